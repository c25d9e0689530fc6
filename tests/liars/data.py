"""Lies about what is written."""

from collections.abc import Sequence

from liars.liar import lying_driver
from voldrivers.memory import MemoryDriver
from voldrivers.model import Connector, ExtendReply, Volume

#: What deleted volumes held; the array knows no volume of that name.
_FREED = "freed"


class Forgetful(MemoryDriver):
    """Keeps the last block in a cache that is dropped when the host lets go."""

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        super().terminate_connection(volume, connector)
        if written := self.array.written.get(volume.id):
            written.pop(max(written))


class Scrambling(MemoryDriver):
    """Loses a block in the first quarter when it extends."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        written = self.array.written.get(volume.id, {})
        for offset in [each for each in written if 0 < each < volume.size_bytes // 4][:1]:
            del written[offset]
        return super().extend_volume(volume, new_size_bytes)


class Uncleared(MemoryDriver):
    """Gives a new volume the bytes of a deleted one."""

    def delete_volume(self, volume: Volume) -> None:
        freed = dict(self.array.written.get(volume.id, {}))
        super().delete_volume(volume)
        self.array.written[_FREED] = freed

    def create_volume(self, volume: Volume, options: object) -> str:
        provider_data = super().create_volume(volume, options)
        self._give(volume, range(volume.size_bytes))
        return provider_data

    def _give(self, volume: Volume, offsets: Sequence[int]) -> None:
        freed = self.array.written.get(_FREED, {})
        stale = {each: word for each, word in freed.items() if each in offsets}
        self.array.written[volume.id] = stale | self.array.written.get(volume.id, {})


class UnclearedTail(Uncleared):
    """Clears new volumes, and gives the tail of an extended one the bytes of a deleted one."""

    def create_volume(self, volume: Volume, options: object) -> str:
        return MemoryDriver.create_volume(self, volume, options)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        old_size_bytes = self.volume_size(volume)
        reply = super().extend_volume(volume, new_size_bytes)
        self._give(volume, range(old_size_bytes, new_size_bytes))
        return reply


class Aliasing(MemoryDriver):
    """Cuts all volumes from the same room."""

    def create_volume(self, volume: Volume, options: object) -> str:
        provider_data = super().create_volume(volume, options)
        self.array.written[volume.id] = self.array.written.setdefault("room", {})
        return provider_data


class Overlapping(MemoryDriver):
    """Extends a volume over another one."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        reply = super().extend_volume(volume, new_size_bytes)
        written = self.array.written.setdefault(volume.id, {})
        for other in self.array.sizes.keys() - {volume.id}:
            self.array.written[other] = written
        return reply


LIARS = [
    lying_driver(Forgetful, "DAT-001"),
    lying_driver(Scrambling, "DAT-002"),
    lying_driver(Uncleared, "DAT-003"),
    lying_driver(UnclearedTail, "DAT-003"),
    lying_driver(Aliasing, "DAT-005"),
    lying_driver(Overlapping, "DAT-005"),
]
