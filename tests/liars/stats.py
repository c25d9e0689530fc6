"""Lies about room and abilities."""

from dataclasses import replace
from typing import Any

from liars.liar import lying_driver
from voldrivers.base import Run
from voldrivers.errors import NotSupported
from voldrivers.memory import MemoryArray, MemoryDriver
from voldrivers.model import Pool, Volume
from voldrivers.sizes import GiB


class InGiB(MemoryDriver):
    """Tells its room in GiB, as Cinder has it."""

    def pool(self) -> Pool:
        pool = super().pool()
        return Pool(pool.total_bytes // GiB, pool.free_bytes // GiB, pool.allocated_bytes // GiB)


class Infinite(MemoryDriver):
    """Tells that its room is infinite."""

    def pool(self) -> Pool:
        return replace(super().pool(), free_bytes=float("inf"))  # type: ignore[arg-type]  # the lie


class Counts(MemoryDriver):
    """Counts its room when it is started, and not again."""

    def __init__(self, name: str, options: Any, run: Run, array: MemoryArray | None = None) -> None:
        super().__init__(name, options, run, array)
        self.counted = super().pool()

    def pool(self) -> Pool:
        return self.counted


class AllFree(MemoryDriver):
    """Tells that all of its room is free, whatever has been made of it."""

    def pool(self) -> Pool:
        return replace(super().pool(), free_bytes=self.array.capacity_bytes)


class LooksLate(MemoryDriver):
    """Finds out in the middle of an extend that there is no room for it."""

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        self.volume_size(volume)


class Promises(MemoryDriver):
    """Declares in-use extends, and refuses each."""

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        if volume.attachments:
            raise NotSupported(volume.title, "detach it first")
        super().check_extend(volume, new_size_bytes)


class CountsItsOwn(MemoryDriver):
    """Counts what it has made itself, from what there was when it was started."""

    def __init__(self, name: str, options: Any, run: Run, array: MemoryArray | None = None) -> None:
        super().__init__(name, options, run, array)
        self.others_bytes = self.array.allocated_bytes
        self.own: set[str] = set()

    def create_volume(self, volume: Volume, options: object) -> str:
        self.own.add(volume.id)
        return super().create_volume(volume, options)

    def pool(self) -> Pool:
        own_bytes = sum(size for each, size in self.array.sizes.items() if each in self.own)
        return replace(super().pool(), allocated_bytes=self.others_bytes + own_bytes)


class CountsWhatIsWritten(MemoryDriver):
    """Counts what is written in addition to what was promised."""

    def pool(self) -> Pool:
        pool = super().pool()
        written = sum(len(word) for words in self.array.written.values() for word in words.values())
        return replace(pool, allocated_bytes=pool.allocated_bytes + written)


LIARS = [
    lying_driver(InGiB, "STA-001"),
    lying_driver(Infinite, "STA-001"),
    lying_driver(Counts, "STA-002"),
    lying_driver(AllFree, "STA-005"),
    lying_driver(LooksLate, "STA-005"),
    lying_driver(Promises, "STA-006"),
    lying_driver(CountsItsOwn, "STA-003"),
    lying_driver(CountsWhatIsWritten, "STA-004"),
]
