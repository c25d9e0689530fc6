"""The lab's cache: images, dependencies and saved states, each named by what it is made of."""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from voldrivers.guests import debian, machine
from voldrivers.guests.machine import QEMU, Accelerator
from voldrivers.lab import image, project, tree
from voldrivers.lab.image import LabImage
from voldrivers.sizes import MiB

Say = Callable[[str], None]
#: How much of each kind is kept: what was used last. What a person has saved is kept besides.
MOST_BYTES = {
    "images": 1024 * MiB,
    "dependencies": 512 * MiB,
    "guests": 256 * MiB,
    "states": 4096 * MiB,
    "logs": 16 * MiB,
}
#: How the name of a state begins that a person has saved.
SAVED = "saved-"
#: A thing that is still being made after so long is what a killed process left.
_MAKING_S = 3600.0


class Cache:
    """A directory that several processes may use at once; all that is in it can be made again."""

    def __init__(self, directory: Path, say: Say) -> None:
        """Take the directory; `say` is told what takes long."""
        self.directory, self.say = directory.absolute(), say
        for name in (*MOST_BYTES, "locks"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)

    def image(self) -> LabImage:
        """Give the image of today's recipe; make it first if it is not there. Raises as `image.make`."""
        with self.alone("image"):
            found = image.find(self.directory)
            if found is None:
                self.say("making the image out of Debian's packages")
                found = image.make(self.directory)
            self.used(found.directory)
            return found

    def dependencies(self) -> Path:
        """Give the libraries of this Python as a disk. Raises NotSupported for a Python that does not fit."""
        path = self.directory / "dependencies" / project.dependencies_key()
        with self.alone("dependencies"):
            if not path.exists():
                self.say(f"packing the libraries in {project.site_packages()}")
                with tempfile.TemporaryDirectory(prefix="making-", dir=path.parent) as made:
                    self._pack(Path(made)).rename(path)
            self.used(path)
            return path

    def accelerator(self) -> Accelerator:
        """Choose KVM or TCG as `guests.machine.accelerator` does, which may take 3 s, and remember it.

        It is asked again after a boot, with another QEMU or another /dev/kvm, and by another user.
        """
        path, key = self.directory / "accelerator.json", _accelerator_key()
        try:
            remembered = json.loads(path.read_text())
            if remembered["key"] == key:
                return Accelerator(remembered["name"], remembered["reason"])
        except (OSError, ValueError, KeyError):
            pass  # never asked, or half written: asked now
        chosen = machine.accelerator()
        path.write_text(json.dumps({"key": key, "name": chosen.name, "reason": chosen.reason}))
        return chosen

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Wait until no other process makes the same thing; the kernel lets go when we end, however."""
        with (self.directory / "locks" / name).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def used(self, path: Path) -> None:
        """Note that something was used now, and remove what was used longest ago of the same kind.

        Others do the same at once, so anything may go while it is looked at.
        """
        with suppress(FileNotFoundError):
            os.utime(path)
        left_bytes = MOST_BYTES[path.parent.name] - _size_bytes(path)
        others = [other for other in path.parent.iterdir() if other != path]
        for other in sorted(others, key=_last_used, reverse=True):
            if other.name.startswith("making-"):
                is_kept = _age_s(other) < _MAKING_S
            else:
                left_bytes -= 0 if other.name.startswith(SAVED) else _size_bytes(other)
                is_kept = other.name.startswith(SAVED) or left_bytes >= 0
            if not is_kept:
                shutil.rmtree(other, ignore_errors=True) if other.is_dir() else other.unlink(missing_ok=True)

    def _pack(self, work: Path) -> Path:
        packages = debian.Packages(self.directory / "packages").download_all(["erofs-utils"])
        tools = debian.unpack(packages, work / "tools")
        disk = work / "disk"
        tree.make_read_only(project.site_packages(), disk, excluded=project.left_out(), tools=tools)
        return disk


def _last_used(path: Path) -> float:
    status = _status(path)
    return status.st_mtime if status else 0.0


def _size_bytes(path: Path) -> int:
    """Give what a file, or all in a directory, takes on the disk."""
    if path.is_dir():
        return sum(map(_size_bytes, _entries(path)))
    status = _status(path)
    return status.st_blocks * 512 if status else 0


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def _status(path: Path) -> os.stat_result | None:
    """Look at a file; None if it has gone."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _age_s(path: Path) -> float:
    return time.time() - _last_used(path)


def _accelerator_key() -> str:
    """Name all that the choice depends on; a program is another one when its time has changed."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    programs = [Path(path) for path in (shutil.which(QEMU), "/dev/kvm") if path and Path(path).exists()]
    changed = [f"{path} {path.stat().st_mtime_ns}" for path in programs]
    return json.dumps([boot_id, *changed, os.access("/dev/kvm", os.R_OK | os.W_OK)])
