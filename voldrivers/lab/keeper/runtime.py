"""Where a running lab is on this computer: its directory, its lock, its disks, its log.

A lab NAME has a directory `voldrivers-lab-UID-NAME` of its own, with its sockets, in $XDG_RUNTIME_DIR or
/tmp, and one for its disks in the cache. Its keeper holds a lock in the cache, to which `lock` in the
directory points; a process in a session of its own waits for that lock and then removes both. So whatever
ends a keeper, nothing stays.
"""

import fcntl
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from voldrivers import process
from voldrivers.errors import InvalidInput, InvalidState
from voldrivers.lab.keeper import cleaner

DEFAULT_NAME = "default"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
#: The longest name of a socket in the directory, and of the directory itself; unix(7) allows 107 bytes.
_LONGEST_BASE = 107 - len("/compute2.control") - len(f"/voldrivers-lab-{2**32}-") - 32
_END_S = 10.0


@dataclass(frozen=True)
class Site:
    """The places of one lab, whether it runs or not."""

    name: str
    cache: Path
    #: For one command alone, under a name that comes never again.
    private: bool = False

    @property
    def directory(self) -> Path:
        """The directory with the sockets."""
        return _base() / f"{_prefix()}{self.name}"

    @property
    def socket(self) -> Path:
        """The keeper's socket."""
        return self.directory / "keeper"

    @property
    def disks(self) -> Path:
        """The directory with the disks, which may become large."""
        return self.cache / "running" / self.directory.name

    @property
    def lock(self) -> Path:
        """What the keeper has locked for as long as it runs."""
        return self.cache / "locks" / f"lab-{self.name}"

    @property
    def log(self) -> Path:
        """What the keeper wrote; it stays."""
        return self.cache / "logs" / self.name


def site(name: str) -> Site:
    """Give the places of a lab. Raises InvalidInput for a name that cannot be one."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"lab name {name!r}", "it has at most 32 letters, digits, - and _")
    return Site(name, cache_directory())


def cache_directory() -> Path:
    """Give the cache: $VOLDRIVERS_CACHE, else `voldrivers` in $XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get("VOLDRIVERS_CACHE"):
        return Path(given).absolute()
    given = os.environ.get("XDG_CACHE_HOME")  # to be ignored unless absolute (XDG base directories)
    return (Path(given) if given and Path(given).is_absolute() else Path.home() / ".cache") / "voldrivers"


def names() -> list[str]:
    """Give the names of the labs of this user that have a directory; not all may run."""
    found = [path for path in _base().glob(f"{_prefix()}*") if _is_ours(path)]
    return sorted(path.name.removeprefix(_prefix()) for path in found)


@contextmanager
def held(place: Site) -> Iterator[None]:
    """Hold a lab's lock, with its directories made; they are removed whatever ends us.

    Raises InvalidState when another keeper has it.
    """
    place.lock.parent.mkdir(parents=True, exist_ok=True)
    with place.lock.open("wb") as lock:
        if not process.holds_within(lambda: _locks(lock), _END_S) or not _make_room(place):
            raise InvalidState(f"lab {place.name}", "running", "down")
        doomed = [place.directory, place.disks, *([place.lock] if place.private else [])]
        # Python alone, without the packages of its environment: 10 ms.
        clean = [sys.executable, "-I", "-S", cleaner.__file__, *map(str, doomed)]
        process.start(["flock", str(place.lock), *clean], output=place.log)
        place.directory.mkdir(mode=0o700)
        (place.directory / "lock").symlink_to(place.lock)
        place.disks.mkdir(parents=True)
        yield


def remove_stale(place: Site) -> bool:
    """Remove what a lab left, processes too, unless it runs or begins; tell whether it did.

    Raises InvalidState when its directory belongs to somebody else.
    """
    lock_path = _lock_of(place)
    if lock_path is None:
        return False
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with lock_path.open("ab") as lock:
        stale = _locks(lock)
        if stale:
            cleaner.remove(place.directory, place.disks)
        return stale


def wait_until_gone(place: Site) -> None:
    """Wait until nothing is left of a lab that ends. Raises OutcomeUnknown."""
    process.wait_until(lambda: not place.directory.exists(), _END_S, f"the end of lab {place.name}")


def _make_room(place: Site) -> bool:
    """Remove what an earlier keeper left; tell whether the place is free. We hold the lock."""
    lock_path = _lock_of(place)
    if lock_path not in (None, place.lock):
        return remove_stale(place)  # of another cache
    cleaner.remove(place.directory, place.disks)
    return True


def _lock_of(place: Site) -> Path | None:
    """Give the lock of the keeper whose directory is there; None when there is none yet."""
    if not os.path.lexists(place.directory):
        return None
    if not _is_ours(place.directory):
        raise InvalidState(f"{place.directory}", "somebody else's", "a directory of this user alone")
    try:
        return (place.directory / "lock").readlink()
    except OSError:  # it begins just now, or was killed there
        return None


def _locks(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _base() -> Path:
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    fits = given.startswith("/") and len(os.fsencode(given)) <= _LONGEST_BASE and os.access(given, os.W_OK)
    return Path(given if fits else "/tmp")  # noqa: S108 - the directory in it is ours alone


def _prefix() -> str:
    return f"voldrivers-lab-{os.getuid()}-"


def _is_ours(directory: Path) -> bool:
    status = directory.lstat()
    mode = stat.S_IMODE(status.st_mode)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and mode == 0o700
