"""What is mounted where, found without asking a file system that may not answer."""

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from voldrivers.errors import BackendError

#: File systems of one machine: they answer without a server, and nobody else's locks are missing.
_LOCAL = frozenset(["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "tmpfs", "overlay"])
_LINKS = 40  # as the kernel (path_resolution(7))


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo: what is mounted at `point` (proc(5))."""

    point: Path
    file_system: str
    source: str
    options: frozenset[str]

    @property
    def is_local(self) -> bool:
        """Tell whether it answers without a server."""
        return self.file_system in _LOCAL

    @property
    def is_nfs4(self) -> bool:
        """Tell whether it is NFS of a version whose locks the server keeps for all clients."""
        return self.file_system == "nfs4" or (
            self.file_system == "nfs" and any(option.startswith("vers=4") for option in self.options)
        )

    @property
    def kind(self) -> str:
        """Name file system and version for people."""
        versions = sorted(option for option in self.options if option.startswith("vers="))
        return " ".join([self.file_system, *versions])


#: In a chroot the root need not be a mount point.
_UNKNOWN = Mount(Path("/"), "unknown", "unknown", frozenset())


@dataclass(frozen=True)
class Place:
    """Where a path leads: to `path`, without links, on `mount`."""

    path: Path
    mount: Mount


def place_of(path: Path) -> Place:
    """Follow `path` to the mount it lies on by reading links of local file systems only.

    A path beyond a network file system's mount point is taken as written: following it there could
    block for ever. Raises BackendError for a loop of links.
    """
    mounts = {entry.point: entry for entry in _mounts()}
    here, rest, links = Path("/"), list(reversed(path.parts[1:])), 0
    while rest:
        step = rest.pop()
        here = here.parent if step == ".." else here / step
        target = _link_target(here) if _holder(mounts, here).is_local else None
        if target is not None:
            links += 1
            if links > _LINKS:
                raise BackendError(f"path {path}", os.strerror(errno.ELOOP))
            here = Path("/") if target.is_absolute() else here.parent
            rest += [part for part in reversed(target.parts) if part != "/"]
    return Place(here, _holder(mounts, here))


def point_below(directory: Path, source: str) -> Path | None:
    """Find where something is mounted directly below a directory; None where it is not."""
    base = place_of(directory).path
    at = {entry.point: entry.source for entry in _mounts() if entry.point.parent == base}
    return next((point for point, what in at.items() if what.rstrip("/") == source.rstrip("/")), None)


def _mounts() -> Iterator[Mount]:
    """Read the mounts, a later one at the same point hiding an earlier one."""
    # A mount point may hold any byte, so only a newline ends a line.
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).rstrip("\n").split("\n"):
        before, _, after = line.partition(" - ")
        mount_fields, (kind, source, options) = before.split(" "), after.split(" ")
        names = frozenset(mount_fields[5].split(",") + options.split(","))
        yield Mount(Path(_unescaped(mount_fields[4])), kind, _unescaped(source), names)


def _unescaped(text: str) -> str:
    r"""Space, tab, newline and backslash stand as \040, \011, \012, \134."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _holder(mounts: dict[Path, Mount], path: Path) -> Mount:
    return next((mounts[place] for place in (path, *path.parents) if place in mounts), _UNKNOWN)


def _link_target(path: Path) -> Path | None:
    try:
        return path.readlink()
    except OSError:  # no link, or not there
        return None
