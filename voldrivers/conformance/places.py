"""This machine as a place: its files and block devices, and a QEMU whose disks are driven from here."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from voldrivers.base import Host
from voldrivers.conformance.aids.mounting import mounted
from voldrivers.conformance.subject import Filesystem, Place
from voldrivers.conformance.verdicts import NotApplicable, NotRun
from voldrivers.errors import BackendError, NotFound, OutcomeUnknown
from voldrivers.filesystem import image_bytes
from voldrivers.guests import plugged
from voldrivers.guests.device import SECTOR_BYTES, DeviceGuest
from voldrivers.model import Attachment, Volume
from voldrivers.process import run

_EJECT_S, _DISCARD_S, _PATH_S = 0.2, 30.0, 10.0
_BLOCK, _KERNEL_LOG = Path("/sys/class/block"), Path("/dev/kmsg")
#: No record of the kernel's log is longer (CONSOLE_EXT_LOG_MAX).
_RECORD_BYTES = 8192


class LocalPlace(Place):
    """This machine, without instances: raw files and block devices."""

    def __init__(self, host: Host) -> None:
        """Look at what `host`, this machine, has connected."""
        self.host = host

    def device_bytes(self, volume: Volume, attachment: Attachment) -> int:
        info = attachment.connection_info
        image_format = info.properties.get("format", "raw") if info else "raw"
        if image_format != "raw":
            return image_bytes(Path(str(attachment.device_path)), image_format)
        with _opened(attachment, os.O_RDONLY) as medium:
            return os.lseek(medium, 0, os.SEEK_END)

    def guest_bytes(self, volume: Volume, attachment: Attachment) -> int | None:
        return None

    def read(self, volume: Volume, attachment: Attachment, offset_bytes: int, size_bytes: int) -> bytes:
        with _opened(attachment, os.O_RDONLY) as medium:
            return os.pread(medium, size_bytes, offset_bytes)

    def write(self, volume: Volume, attachment: Attachment, offset_bytes: int, content: bytes) -> None:
        if offset_bytes + len(content) > self.device_bytes(volume, attachment):
            raise OSError("beyond the end")  # a file would grow
        with _opened(attachment, os.O_WRONLY | os.O_DSYNC) as medium:
            os.pwrite(medium, content, offset_bytes)

    def residue(self) -> frozenset[str]:
        return frozenset(f"device {name}" for name in os.listdir(_BLOCK))

    def filesystem(
        self, volume: Volume, attachment: Attachment, *, fresh: bool
    ) -> AbstractContextManager[Filesystem]:
        _check_raw(attachment)
        return mounted(run, Path(str(attachment.device_path)), fresh=fresh)

    def discard(self, volume: Volume, attachment: Attachment, offset_bytes: int, size_bytes: int) -> None:
        _check_raw(attachment)
        path = Path(str(attachment.device_path))
        zero = ["blkdiscard", "--zeroout"] if path.is_block_device() else ["fallocate", "--punch-hole"]
        argv = [*zero, f"--offset={offset_bytes}", f"--length={size_bytes}", str(path)]
        run(argv, timeout_s=_DISCARD_S)

    def sector_bytes(self, volume: Volume, attachment: Attachment) -> tuple[int, int]:
        path = Path(str(attachment.device_path)).resolve()
        if not path.is_block_device():
            raise NotApplicable("a file has no sectors")
        queue = _BLOCK / path.name / "queue"
        logical, physical = (queue / f"{kind}_block_size" for kind in ("logical", "physical"))
        return int(logical.read_text()), int(physical.read_text())

    def paths(self, volume: Volume, attachment: Attachment) -> Mapping[str, int]:
        device = _BLOCK / Path(str(attachment.device_path)).resolve().name
        uuid = device / "dm" / "uuid"
        if not (uuid.exists() and uuid.read_text().startswith("mpath-")):
            raise NotRun("the volume has no multipath map here")
        sizes = {path.name: (path / "size").read_text() for path in (device / "slaves").iterdir()}
        return {name: int(sectors) * SECTOR_BYTES for name, sectors in sizes.items()}

    @contextmanager
    def lost(self, path: str) -> Iterator[None]:
        state = _BLOCK / path / "device" / "state"  # scsi_sysfs.c, store_state_field: with the end of a line
        try:
            state.write_text("offline\n")
        except OSError as error:
            raise NotRun(f"path {path} cannot be lost: {error}") from error
        try:
            yield
        finally:
            state.write_text("running\n")
            # It would look by itself after some seconds.
            run(["multipathd", "reinstate", "path", path], timeout_s=_PATH_S)

    def kernel_log(self) -> Sequence[str]:
        try:
            log = os.open(_KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise NotRun(f"{_KERNEL_LOG} cannot be read: {error.strerror}") from error
        try:
            return tuple(_records(log))
        finally:
            os.close(log)


class GuestPlace(LocalPlace):
    """This machine, with a QEMU on it: what is plugged into that is seen as its guest sees it."""

    def __init__(self, host: Host, guest: DeviceGuest) -> None:
        """Look through a guest whose QMP socket `host` finds by its name."""
        super().__init__(host)
        self.guest, self.instance = guest, guest.name

    def guest_bytes(self, volume: Volume, attachment: Attachment) -> int | None:
        return self.guest.disk(volume.id).capacity_bytes()

    def read(self, volume: Volume, attachment: Attachment, offset_bytes: int, size_bytes: int) -> bytes:
        if attachment.instance is None:
            return super().read(volume, attachment, offset_bytes, size_bytes)
        try:
            return self.guest.disk(volume.id).read(offset_bytes // SECTOR_BYTES, size_bytes // SECTOR_BYTES)
        except (BackendError, NotFound) as error:
            raise OSError(str(error)) from error

    def write(self, volume: Volume, attachment: Attachment, offset_bytes: int, content: bytes) -> None:
        if attachment.instance is None:
            super().write(volume, attachment, offset_bytes, content)
            return
        try:
            self.guest.disk(volume.id).write(offset_bytes // SECTOR_BYTES, content)
        except (BackendError, NotFound) as error:
            raise OSError(str(error)) from error

    @contextmanager
    def letting_go(self) -> Iterator[None]:
        over: Future[None] = Future()
        with ThreadPoolExecutor(1) as beside:
            ejected = beside.submit(self._eject, over)
            try:
                yield
            finally:
                over.set_result(None)
            ejected.result()

    def _eject(self, over: Future[None]) -> None:
        """Let go as soon as that is asked for, or not at all where everything is over before."""
        while not over.done():
            with suppress(OutcomeUnknown):
                self.guest.eject(_EJECT_S)
                return

    @contextmanager
    def stopped(self) -> Iterator[None]:
        had = plugged.look(self.guest)
        self.guest.kill()
        try:
            yield
        finally:
            self.guest.start_again()
            had.plug_into(self.guest)

    def residue(self) -> frozenset[str]:
        return super().residue() | {f"disk {disk.serial}" for disk in self.guest.disks()}


def _check_raw(attachment: Attachment) -> None:
    info = attachment.connection_info
    if attachment.instance is not None or (info and info.properties.get("format", "raw") != "raw"):
        raise NotRun("the host itself does not read this volume: it is a guest's, or not raw")


def _records(log: int) -> Iterator[str]:
    """Read the kernel's messages, each with its level and number: `<3>1234 text`."""
    while True:
        try:
            record = os.read(log, _RECORD_BYTES).decode(errors="replace")
        except BlockingIOError:
            return
        except BrokenPipeError:  # what was next is overwritten already
            continue
        head, _, text = record.partition(";")
        level, number, *_ = head.split(",")
        yield f"<{int(level) & 7}>{number} {text.splitlines()[0] if text else ''}"


@contextmanager
def _opened(attachment: Attachment, flags: int) -> Iterator[int]:
    medium = os.open(Path(str(attachment.device_path)), flags)
    try:
        yield medium
    finally:
        os.close(medium)
