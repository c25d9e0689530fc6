"""Acme boxes: every volume is one file in the box's directory, and a box has room for so many bytes."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from voldrivers.abilities import GrownByHypervisor
from voldrivers.base import Driver
from voldrivers.capabilities import Capabilities, InUseExtend
from voldrivers.errors import BackendError, InvalidState, NoSpace, NotFound
from voldrivers.model import ConnectionInfo, Connector, ExtendReply, Pool, Volume
from voldrivers.options import SizeBytes, option
from voldrivers.sizes import MiB, SizeRule


@dataclass(frozen=True)
class AcmeOptions:
    """One box."""

    directory: Path = option("where the box is")
    capacity: SizeBytes = option("how much fits in")


class AcmeDriver(Driver, GrownByHypervisor):
    """Files of whole MiB. A running QEMU locks its file, so it alone makes that larger."""

    capabilities = Capabilities(in_use_extend=InUseExtend.BY_HYPERVISOR)
    options_type = AcmeOptions
    options: AcmeOptions
    size_rule = SizeRule(granularity_bytes=MiB, minimum_bytes=MiB)

    def create_volume(self, volume: Volume, options: object) -> str:
        """Make the file under another name, and give it its own when it is whole."""
        path = self._path(volume)
        if path.exists():
            return ""
        self._check_room(volume, volume.size_bytes)
        with _typed(volume):
            unfinished = path.with_suffix(".new")
            with unfinished.open("wb") as file:
                file.truncate(volume.size_bytes)
            unfinished.rename(path)
        return ""

    def delete_volume(self, volume: Volume) -> None:
        """Remove the file, and what an interrupted `create_volume` has left."""
        if volume.attachments:
            raise InvalidState(volume.title, "attached", "detached")
        with _typed(volume):
            self._path(volume).with_suffix(".new").unlink(missing_ok=True)
            self._path(volume).unlink(missing_ok=True)

    def list_volumes(self) -> Sequence[str]:
        """Every file that bears our suffix."""
        return [path.stem for path in self._box.glob("*.volume")]

    def volume_size(self, volume: Volume) -> int:
        """Look at the file."""
        path = self._path(volume)
        try:
            return path.stat().st_size
        except FileNotFoundError as error:
            raise NotFound("volume", volume.name, f" in {self._box}") from error

    def pool(self) -> Pool:
        """What is promised to volumes is taken, written or not."""
        taken = sum(path.stat().st_size for path in self._box.glob("*.volume"))
        return Pool(self.options.capacity, max(0, self.options.capacity - taken), taken)

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        """Refuse what does not fit, before anything is touched."""
        self._check_room(volume, new_size_bytes - self.volume_size(volume))

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        """Make the file larger, or leave it to the QEMU that has it open."""
        missing_bytes = new_size_bytes - self.volume_size(volume)
        if missing_bytes <= 0:
            return ExtendReply.EXTENDED
        if not volume.nobody_runs:
            return ExtendReply.DEFERRED
        self._check_room(volume, missing_bytes)
        with self._locked(volume) as file:
            file.truncate(new_size_bytes)
        return ExtendReply.EXTENDED

    def probe_locks(self, volume: Volume) -> None:
        """Prove that no QEMU has the file."""
        with self._locked(volume):
            pass

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        """Say where the file is; the box is mounted at the same place everywhere."""
        self.volume_size(volume)
        return ConnectionInfo("file", {"path": str(self._path(volume)), "format": "raw"})

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        """There is nothing to take back."""

    @property
    def _box(self) -> Path:
        """Give the directory. One that is away is no empty one."""
        if not self.options.directory.is_dir():
            raise BackendError(f"box {self.options.directory}", "is not there")
        return self.options.directory

    def _path(self, volume: Volume) -> Path:
        return self._box / f"{volume.id}.volume"

    @contextmanager
    def _locked(self, volume: Volume) -> Iterator[BinaryIO]:
        """Open the file while no QEMU has it: each keeps locks on its own (docs/system/images of QEMU)."""
        with _typed(volume), self._path(volume).open("r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InvalidState(volume.title, "locked by a QEMU", "held by nobody") from error
            yield file

    def _check_room(self, volume: Volume, missing_bytes: int) -> None:
        free_bytes = self.pool().free_bytes
        if missing_bytes > free_bytes:
            raise NoSpace(volume.title, missing_bytes, free_bytes)


@contextmanager
def _typed(volume: Volume) -> Iterator[None]:
    """Turn what the system says into an error of voldrivers."""
    try:
        yield
    except OSError as error:
        raise BackendError(volume.title, str(error.strerror)) from error
