"""Lies about what is written."""

from collections.abc import Sequence
from typing import Any

from liars.liar import lying_driver, lying_host
from voldrivers.base import Run
from voldrivers.memory import MemoryArray, MemoryDriver, MemoryHost
from voldrivers.model import Attachment, ConnectionInfo, Connector, ExtendReply, Volume
from voldrivers.sizes import MiB

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


class Flipping(MemoryDriver):
    """Flips a byte far from where anybody looks when it extends."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        for offset, word in self.array.written.get(volume.id, {}).items():
            if len(word) > 2**16:  # a piece that was written as a whole
                self.array.written[volume.id][offset] = f"{word[:24690]}00{word[24692:]}"
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


class ClearsTheBeginning(Uncleared):
    """Clears the first 64 MiB of what a deleted volume held, and gives the rest to a new one."""

    def delete_volume(self, volume: Volume) -> None:
        super().delete_volume(volume)
        freed = self.array.written[_FREED]
        self.array.written[_FREED] = {at: word for at, word in freed.items() if at >= 64 * MiB}

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


class RemembersTheOldEnd(MemoryHost):
    """Discards as far as the volume went when it was first connected."""

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        self.machine.newest.setdefault(f"end of {volume.id}", self.array.sizes[volume.id])
        return super().connect(volume, attachment, connection_info)

    def discard(self, volume: Volume, offset_bytes: int, size_bytes: int) -> None:
        end = self.machine.newest[f"end of {volume.id}"]
        super().discard(volume, offset_bytes, min(size_bytes, end - offset_bytes))


class LosesItsCache(MemoryDriver):
    """Has the last block that was written in a cache, which is empty when it is started anew."""

    def __init__(self, name: str, options: Any, run: Run, array: MemoryArray | None = None) -> None:
        super().__init__(name, options, run, array)
        for volume_id, _host in self.array.exports if self._array.reachable else ():
            if written := self.array.written.get(volume_id):
                written.pop(max(written))


class CopiesToGrow(MemoryDriver):
    """Grows a volume by a copy, and loses what is written to it meanwhile."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if self.volume_size(volume) < new_size_bytes:
            image = self.array.image(volume.id)
            self.run(["copy", volume.id], timeout_s=60)
            self.array.fill(volume.id, image, new_size_bytes)
        return ExtendReply.EXTENDED


class GrowsTheSnapshotToo(MemoryDriver):
    """Makes a volume's snapshots as large as the volume."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        for snapshot in volume.snapshots:
            self.array.snapshots[snapshot.id].size_bytes = new_size_bytes
        return super().extend_volume(volume, new_size_bytes)


LIARS = [
    lying_driver(Forgetful, "DAT-001"),
    lying_driver(Scrambling, "DAT-002"),
    lying_driver(Flipping, "DAT-002"),
    lying_driver(Uncleared, "DAT-003"),
    lying_driver(UnclearedTail, "DAT-003"),
    lying_driver(ClearsTheBeginning, "DAT-003"),
    lying_driver(Aliasing, "DAT-005"),
    lying_driver(Overlapping, "DAT-005"),
    lying_host(RemembersTheOldEnd, "DAT-004"),
    lying_driver(LosesItsCache, "DAT-006"),
    lying_driver(CopiesToGrow, "DAT-007"),
    lying_driver(GrowsTheSnapshotToo, "DAT-008"),
]
