"""A file system on a volume of this machine: ext4, mounted, files as well as block devices."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from voldrivers.base import Run
from voldrivers.conformance.verdicts import NotRun
from voldrivers.errors import CommandFailed

_PROGRAMS = ("mkfs.ext4", "e2fsck", "resize2fs", "mount", "umount", "losetup")
_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 20


@dataclass
class Mounted:
    """One that is mounted. `voldrivers.conformance.subject.Filesystem` says what each method means."""

    run: Run
    #: The block device, or the loop device over a file.
    device: str
    point: Path
    is_loop: bool

    def size_bytes(self) -> int:
        """Give the blocks of statvfs(3), which are those for files."""
        status = os.statvfs(self.point)
        return status.f_blocks * status.f_frsize

    def write(self, name: str, size_bytes: int) -> None:
        """Write random bytes, have them on the medium, and keep their digest beside them."""
        digest = sha256()
        with (self.point / name).open("wb") as file:
            for at in range(0, size_bytes, _CHUNK_BYTES):
                chunk = os.urandom(min(_CHUNK_BYTES, size_bytes - at))
                file.write(chunk)
                digest.update(chunk)
            file.flush()
            os.fsync(file.fileno())
        (self.point / f"{name}.sum").write_text(digest.hexdigest())

    def check(self, name: str) -> None:
        """Read it from the medium, and compare with its digest."""
        with (self.point / name).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            digest = sha256()
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        if digest.hexdigest() != (self.point / f"{name}.sum").read_text():
            raise OSError(f"{name} is not what was written")

    def grow(self, *, online: bool) -> None:
        """Have the loop device read the size of its file, then grow; unmounted, it is checked first."""
        if self.is_loop:
            self.run(["losetup", "--set-capacity", self.device], timeout_s=_TIMEOUT_S)
        if online:
            self._grow_mounted()
            return
        self.unmount()
        try:
            self.run(["e2fsck", "-f", "-n", self.device], timeout_s=_TIMEOUT_S)
        except CommandFailed as error:
            raise OSError(f"e2fsck: {error}") from error
        # resize2fs 1.47.0 wants a check that is written down after the last mount, a second later or more.
        self.run(["e2fsck", "-f", "-p", self.device], timeout_s=_TIMEOUT_S)
        self.run(["resize2fs", self.device], timeout_s=_TIMEOUT_S)
        self.mount()

    def _grow_mounted(self) -> None:
        try:
            self.run(["resize2fs", self.device], timeout_s=_TIMEOUT_S)
        except CommandFailed as error:
            if "Permission denied" in str(error):  # for want of CAP_SYS_RESOURCE: ext4_resize_begin()
                raise NotRun("this process may not grow an ext4 that is mounted") from error
            raise

    def mount(self) -> None:
        """Mount it."""
        self.run(["mount", self.device, str(self.point)], timeout_s=_TIMEOUT_S)

    def unmount(self) -> None:
        """Unmount it, if it is mounted."""
        if self.point.is_mount():
            self.run(["umount", str(self.point)], timeout_s=_TIMEOUT_S)


@contextmanager
def mounted(run: Run, medium: Path, *, fresh: bool) -> Iterator[Mounted]:
    """Mount what is on a file or device, made anew if it is `fresh`. Raises NotRun."""
    missing = [each for each in _PROGRAMS if shutil.which(each) is None]
    if missing or os.geteuid() != 0:
        raise NotRun(f"to mount takes root and {', '.join(_PROGRAMS)}; missing: {missing or 'root'}")
    if not medium.is_block_device() and not medium.is_file():
        raise NotRun(f"{medium} is neither a file nor a block device")
    with tempfile.TemporaryDirectory(prefix="voldrivers-mounted-") as point, _device(run, medium) as device:
        if fresh:
            run(["mkfs.ext4", "-q", "-F", device], timeout_s=_TIMEOUT_S)
        made = Mounted(run, device, Path(point), is_loop=device != str(medium))
        made.mount()
        try:
            yield made
        finally:
            made.unmount()


@contextmanager
def _device(run: Run, medium: Path) -> Iterator[str]:
    if medium.is_block_device():
        yield str(medium)
        return
    loop = run(["losetup", "--find", "--show", str(medium)], timeout_s=_TIMEOUT_S).stdout.strip()
    try:
        _check_shows(run, loop, medium)
        yield loop
    finally:
        run(["losetup", "--detach", loop], timeout_s=_TIMEOUT_S)


def _check_shows(run: Run, loop: str, medium: Path) -> None:
    """Refuse a loop device over another file: losetup resolves links, and opens what it finds then."""
    listed = run(["losetup", "--json", "--output", "BACK-INO", loop], timeout_s=_TIMEOUT_S).stdout
    (shown,) = json.loads(listed)["loopdevices"]
    if int(shown["back-ino"]) != medium.stat().st_ino:
        raise NotRun(f"{loop} shows another file than {medium}")
