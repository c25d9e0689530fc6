"""Lies about what a copy holds."""

from collections.abc import Sequence

from liars.liar import lying_driver
from voldrivers.abilities import Merge, Taken
from voldrivers.memory import MemoryDriver
from voldrivers.model import Snapshot, Volume

_RING = 8
#: What a deleted snapshot held; the array knows no volume of that name.
_FREED = "freed"


def without_a_chunk(written: dict[int, str], size_bytes: int) -> dict[int, str]:
    """Leave out what lies in the first quarter, but for its beginning."""
    return {at: word for at, word in written.items() if not size_bytes // 16 < at < size_bytes // 4}


def up_to(written: dict[int, str], end: int) -> dict[int, str]:
    """Leave out what lies beyond an end."""
    return {at: word for at, word in written.items() if at < end}


class CloneLosesAChunk(MemoryDriver):
    """A clone of a snapshot skips a chunk in its first quarter."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        provider_data = super().clone_volume(volume, options, source, snapshot)
        if snapshot is not None:
            written = self.array.written[volume.id]
            self.array.written[volume.id] = without_a_chunk(written, snapshot.size_bytes)
        return provider_data


class ClonesWhatWasCreated(MemoryDriver):
    """A clone has the bytes of its source up to the size with which that was created."""

    def create_volume(self, volume: Volume, options: object) -> str:
        super().create_volume(volume, options)
        return str(volume.size_bytes)

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        super().clone_volume(volume, options, source, snapshot)
        if snapshot is None:
            self.array.written[volume.id] = up_to(self.array.written[volume.id], int(source.provider_data))
        return source.provider_data


class ClonesWithoutTheQueue(MemoryDriver):
    """A clone of a volume in use misses the last block, which is in a host's queue still."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        provider_data = super().clone_volume(volume, options, source, snapshot)
        if snapshot is None and source.attachments and (written := self.array.written[volume.id]):
            written.pop(max(written))
        return provider_data


class SnapshotLosesAChunk(MemoryDriver):
    """A snapshot skips a chunk in its first quarter."""

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        taken = super().create_snapshot(volume, snapshot)
        image = self.array.snapshots[snapshot.id]
        image.written = without_a_chunk(image.written, image.size_bytes)
        return taken


class KeepsWhatWasCreated(MemoryDriver):
    """A snapshot has the bytes of its volume up to the size with which that was created."""

    def create_volume(self, volume: Volume, options: object) -> str:
        super().create_volume(volume, options)
        return str(volume.size_bytes)

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        taken = super().create_snapshot(volume, snapshot)
        image = self.array.snapshots[snapshot.id]
        image.written = up_to(image.written, int(volume.provider_data))
        return taken


class RevertLosesAChunk(MemoryDriver):
    """A revert skips a chunk in its first quarter."""

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        provider_data = super().revert_to_snapshot(volume, snapshot)
        written = self.array.written[volume.id]
        self.array.written[volume.id] = without_a_chunk(written, snapshot.size_bytes)
        return provider_data


class RevertsUpEmpty(MemoryDriver):
    """A revert to a snapshot larger than the volume brings its size back, and not what is in its end."""

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        size_bytes = self.volume_size(volume)
        provider_data = super().revert_to_snapshot(volume, snapshot)
        self.array.written[volume.id] = up_to(self.array.written[volume.id], size_bytes)
        return provider_data


class RingOfSnapshots(MemoryDriver):
    """Has eight places for the snapshots of a volume; the ninth snapshot is put into the first one's."""

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        taken = super().create_snapshot(volume, snapshot)
        older = [each for each in volume.snapshots if each.id != snapshot.id]
        if len(older) >= _RING:
            self.array.snapshots[older[-_RING].id].written = self.array.snapshots[snapshot.id].written
        return taken


class ListsOnePage(MemoryDriver):
    """Lists the first page of snapshots, which has four."""

    def list_snapshots(self) -> Sequence[str]:
        return super().list_snapshots()[:4]


class MergeCutsBack(MemoryDriver):
    """Deleting a snapshot of a volume in use loses what was written beyond the snapshot's size."""

    def delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> Merge | None:
        image = self.array.snapshots.get(snapshot.id)
        if image is not None and volume.attachments:
            self.array.written[volume.id] = up_to(self.array.written[volume.id], image.size_bytes)
        return super().delete_snapshot(volume, snapshot)


class UnclearedSnapshots(MemoryDriver):
    """Clears what a deleted volume held, and gives a new volume what a deleted snapshot did."""

    def delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> Merge | None:
        if image := self.array.snapshots.get(snapshot.id):
            self.array.written[_FREED] = image.written
        return super().delete_snapshot(volume, snapshot)

    def create_volume(self, volume: Volume, options: object) -> str:
        provider_data = super().create_volume(volume, options)
        if freed := self.array.written.pop(_FREED, {}):
            self.array.written[volume.id] = up_to(freed, volume.size_bytes)
        return provider_data


LIARS = [
    lying_driver(CloneLosesAChunk, "DAT-009"),
    lying_driver(SnapshotLosesAChunk, "DAT-009"),
    lying_driver(RevertLosesAChunk, "DAT-009"),
    lying_driver(RingOfSnapshots, "SNP-013"),
    lying_driver(ListsOnePage, "SNP-013"),
    lying_driver(KeepsWhatWasCreated, "SNP-014"),
    lying_driver(RevertsUpEmpty, "SNP-014"),
    lying_driver(MergeCutsBack, "SNP-015"),
    lying_driver(UnclearedSnapshots, "DAT-010"),
    lying_driver(ClonesWhatWasCreated, "CLN-008"),
    lying_driver(ClonesWithoutTheQueue, "CLN-008"),
]
