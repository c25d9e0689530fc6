"""Lies about what a copy holds."""

from liars.liar import lying_driver
from voldrivers.abilities import Taken
from voldrivers.memory import MemoryDriver
from voldrivers.model import Snapshot, Volume


def without_a_chunk(written: dict[int, str], size_bytes: int) -> dict[int, str]:
    """Leave out what lies in the first quarter, but for its beginning."""
    return {at: word for at, word in written.items() if not size_bytes // 16 < at < size_bytes // 4}


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


class SnapshotLosesAChunk(MemoryDriver):
    """A snapshot skips a chunk in its first quarter."""

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        taken = super().create_snapshot(volume, snapshot)
        image = self.array.snapshots[snapshot.id]
        image.written = without_a_chunk(image.written, image.size_bytes)
        return taken


class RevertLosesAChunk(MemoryDriver):
    """A revert skips a chunk in its first quarter."""

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        provider_data = super().revert_to_snapshot(volume, snapshot)
        written = self.array.written[volume.id]
        self.array.written[volume.id] = without_a_chunk(written, snapshot.size_bytes)
        return provider_data


LIARS = [
    lying_driver(CloneLosesAChunk, "DAT-009"),
    lying_driver(SnapshotLosesAChunk, "DAT-009"),
    lying_driver(RevertLosesAChunk, "DAT-009"),
]
