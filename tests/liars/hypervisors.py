"""Lies about what hypervisors are asked for, what is kept from them, and what they answer."""

from liars.liar import lying_driver, lying_engine, lying_host
from voldrivers.errors import BackendError, VolDriverError
from voldrivers.extend.engine import Engine
from voldrivers.memory import MemoryDriver, MemoryFileDriver, MemoryHost
from voldrivers.model import Attachment, Extend, ExtendReply, Volume


class CutsALiveDisk(MemoryHost):
    """Resizes to whatever it is asked for, as block_resize does."""

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        super().assist_extend(volume, attachment, extend)
        self.array.sizes[volume.id] = max(0, extend.to_bytes)


class Forces(MemoryFileDriver):
    """Grows a file whose lock it does not look at, as with qemu-img --force-share."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if volume.nobody_runs:
            return MemoryDriver.extend_volume(self, volume, new_size_bytes)
        return super().extend_volume(volume, new_size_bytes)


class OneErrorForAll(Engine):
    """Says of every refusal that the backend failed."""

    def extend(self, name: str, size_bytes: int, *, wait: bool = True) -> Extend:
        try:
            return super().extend(name, size_bytes, wait=wait)
        except VolDriverError as error:
            raise BackendError(f"volume {name}", str(error)) from error


LIARS = [
    lying_host(CutsALiveDisk, "DEF-011", MemoryFileDriver),
    lying_driver(Forces, "DEF-015"),
    lying_engine(OneErrorForAll, "DEF-016", MemoryFileDriver),
]
