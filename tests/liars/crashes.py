"""Lies about what is left by one who was killed."""

from typing import Any

from liars.liar import lying_driver
from voldrivers.abilities import Taken
from voldrivers.base import Run
from voldrivers.errors import InvalidState, VolDriverError
from voldrivers.memory import MemoryArray, MemoryDriver, MemoryFileDriver
from voldrivers.model import ConnectionInfo, Connector, ExtendReply, Snapshot, Volume


class GrowsInSlices(MemoryDriver):
    """Grows a volume in two slices, and takes care of an error in between, not of a kill."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        old_bytes = self.volume_size(volume)
        if old_bytes < new_size_bytes:
            self.array.resize(volume.id, (old_bytes + new_size_bytes) // 2)
            try:
                self.run(["join", "the", "slices"], timeout_s=60)
            except VolDriverError:
                self.array.resize(volume.id, new_size_bytes)
                raise
        return super().extend_volume(volume, new_size_bytes)


class NeedsTwoCalls(MemoryDriver):
    """Needs two calls to delete: the first one takes a volume out of service only."""

    def delete_volume(self, volume: Volume) -> None:
        marks = self.array.written.setdefault("out of service", {})
        if volume.id in self.array.sizes and volume.id not in marks.values():
            marks[len(marks)] = volume.id
            return
        super().delete_volume(volume)


class LosesASnapshot(MemoryDriver):
    """Has a snapshot under another name until it is complete, and takes a new name the next time."""

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        if snapshot.id not in self.array.snapshots:
            begun = f"begun-{len(self.array.snapshots)}-{snapshot.id}"
            self.array.snapshots[begun] = self.array.image(volume.id)
            self.run(["complete", begun], timeout_s=60)
            self.array.snapshots[snapshot.id] = self.array.snapshots.pop(begun)
        return super().create_snapshot(volume, snapshot)


class ExportsTwice(MemoryDriver):
    """Makes a second export when it is asked again for one that it had begun."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        if (volume.id, connector.host) in self.array.exports:
            self.array.exports.add((volume.id, f"{connector.host} again"))
        return super().initialize_connection(volume, connector)


class RemembersInItself(MemoryFileDriver):
    """Remembers in the driver object which files the hypervisor is to grow, and knows no others."""

    def __init__(
        self, name: str, options: Any, run: Run, array: MemoryArray | None = None
    ) -> None:  # Any: base
        super().__init__(name, options, run, array)
        self._waiting: set[str] = set()

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        reply = super().extend_volume(volume, new_size_bytes)
        if reply is ExtendReply.DEFERRED:
            self._waiting.add(volume.id)
        elif not volume.nobody_runs and volume.id not in self._waiting:
            raise InvalidState(volume.title, "not waiting for its hypervisor", "left to it first")
        return reply


LIARS = [
    lying_driver(GrowsInSlices, "CRA-001"),
    lying_driver(NeedsTwoCalls, "CRA-002"),
    lying_driver(LosesASnapshot, "CRA-002"),
    lying_driver(ExportsTwice, "CRA-002"),
    lying_driver(RemembersInItself, "CRA-003"),
]
