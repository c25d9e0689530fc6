"""Lies about what is there after an outage, and about what was remembered."""

from contextlib import suppress

from liars.deferred import ForgetsAtRestart
from liars.liar import lying_driver, lying_engine, lying_host
from voldrivers.errors import BackendError, NotFound
from voldrivers.extend.resuming import Resumed
from voldrivers.memory import MemoryDriver, MemoryFileDriver, MemoryHost
from voldrivers.model import Attachment, Extend, ExtendReply, Phase, Volume, VolumeStatus


class BelievesItWasTold(ForgetsAtRestart):
    """Takes a host that was being told of a new size for one that knows it."""

    def resume(self, name: str | None = None) -> tuple[Resumed, ...]:
        for volume in self.volumes():
            extend = self.last_extend(volume)
            if extend is not None and extend.phase is Phase.RESCANNING:
                self.take_back(volume, extend.to_bytes, VolumeStatus.IN_USE)
                return ()
        return super(ForgetsAtRestart, self).resume(name)


class GrowsByHalves(MemoryHost):
    """Grows a file in two halves, and looks between them whether anybody has it open."""

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        size_bytes = self.array.sizes[volume.id]
        if size_bytes < extend.to_bytes:
            self.array.resize(volume.id, (size_bytes + extend.to_bytes) // 2)
        super().assist_extend(volume, attachment, extend)


class AddsAgain(MemoryDriver):
    """Adds once more what it was asked for before the backend went away."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        more_bytes = max(0, new_size_bytes - volume.size_bytes)
        self.array.resize(volume.id, self.volume_size(volume) + more_bytes)
        return ExtendReply.EXTENDED


class TrustsWhatIsTorn(MemoryDriver):
    """Reads the size of a volume from what it remembers of it, though that may be cut off."""

    def create_volume(self, volume: Volume, options: object) -> str:
        super().create_volume(volume, options)
        return f"{volume.size_bytes} bytes."

    def volume_size(self, volume: Volume) -> int:
        size_bytes, remembered = super().volume_size(volume), volume.provider_data
        return size_bytes if not remembered or remembered.endswith(".") else int(f"0{remembered.split()[0]}")


class TakesItForEmpty(MemoryDriver):
    """Takes a backend that does not answer for one that is empty."""

    def list_volumes(self) -> tuple[str, ...]:
        try:
            return super().list_volumes()
        except BackendError:
            return ()


class TakesItForGone(MemoryDriver):
    """Takes a volume that nobody tells of for one that is gone."""

    def volume_size(self, volume: Volume) -> int:
        try:
            return super().volume_size(volume)
        except BackendError as error:
            raise NotFound("volume", volume.name) from error


class TakesItForDeleted(MemoryDriver):
    """Takes a volume that cannot be reached for one that is deleted already, and leaves it there."""

    def delete_volume(self, volume: Volume) -> None:
        with suppress(BackendError):
            super().delete_volume(volume)


LIARS = [
    lying_engine(BelievesItWasTold, "CRA-004"),
    lying_host(GrowsByHalves, "CRA-005", MemoryFileDriver),
    lying_driver(AddsAgain, "CRA-006"),
    lying_driver(TrustsWhatIsTorn, "CRA-007"),
    lying_driver(TakesItForEmpty, "ROL-006"),
    lying_driver(TakesItForGone, "ROL-006"),
    lying_driver(TakesItForDeleted, "ROL-006"),
]
