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


class KnowsNoHalfClone(MemoryDriver):
    """Makes a clone's object first and copies into it then: what is there already is taken for copied."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        if volume.id not in self.array.sizes:
            self.array.resize(volume.id, volume.size_bytes)
            self.run(["copy", volume.id], timeout_s=60)
            self.array.remove(volume.id)
            super().clone_volume(volume, options, source, snapshot)
        return super().clone_volume(volume, options, source, snapshot)


class ForgetsWhatItClones(MemoryDriver):
    """A clone of a snapshot that was begun is ended as a copy of the live volume."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        begun = self.array.written.setdefault("begun clones", {})
        kept = None if volume.id in begun.values() else snapshot
        begun[len(begun)] = volume.id
        self.run(["begin", volume.id], timeout_s=60)
        return super().clone_volume(volume, options, source, kept)


class SwapsBack(MemoryDriver):
    """Reverts by a swap with what it has put aside, and taken again the step swaps them back."""

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        aside = f"aside-{volume.id}"
        if aside in self.array.foreign:
            old = self.array.foreign.pop(aside)
            self.array.fill(volume.id, old, old.size_bytes)
            return volume.provider_data
        self.array.foreign[aside] = self.array.image(volume.id)
        super().revert_to_snapshot(volume, snapshot)
        self.run(["swap", volume.id], timeout_s=60)
        del self.array.foreign[aside]
        return volume.provider_data


class RevertsTheSizeFirst(MemoryDriver):
    """Cuts a volume to its snapshot's size first: one that has that size is taken for reverted."""

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        size_bytes = self.snapshot_size(volume, snapshot)
        if self.volume_size(volume) != size_bytes:
            self.array.resize(volume.id, size_bytes)
            self.run(["roll", "back", volume.id], timeout_s=60)
            super().revert_to_snapshot(volume, snapshot)
        return volume.provider_data


class MergesTheSnapshot(MemoryDriver):
    """Reverts by merging the snapshot into its volume, and takes it anew afterwards."""

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        if snapshot.id in self.array.snapshots:
            super().revert_to_snapshot(volume, snapshot)
            del self.array.snapshots[snapshot.id]
            self.run(["merge", snapshot.id], timeout_s=60)
            self.array.snapshots[snapshot.id] = self.array.image(volume.id)
        return volume.provider_data


class LosesWhatItTakesOver(MemoryDriver):
    """Takes something from its place, has it renamed, and makes it a volume only then."""

    def manage_existing(self, volume: Volume, reference: str, options: object) -> str:
        if volume.id not in self.array.sizes:
            self.existing_size(reference, options)
            taken = self.array.foreign.pop(reference)
            self.run(["rename", reference, volume.id], timeout_s=60)
            self.array.foreign[reference] = taken
        return super().manage_existing(volume, reference, options)


class LosesWhatItGivesUp(MemoryDriver):
    """Takes a volume from its list, and gives it the name under which it can be found only then."""

    def unmanage(self, volume: Volume) -> str:
        if volume.id in self.array.sizes:
            image = self.array.image(volume.id)
            self.array.remove(volume.id)
            self.run(["rename", volume.id], timeout_s=60)
            self.array.fill(volume.id, image, image.size_bytes)
        return super().unmanage(volume)


LIARS = [
    lying_driver(GrowsInSlices, "CRA-001"),
    lying_driver(NeedsTwoCalls, "CRA-002"),
    lying_driver(LosesASnapshot, "CRA-002"),
    lying_driver(ExportsTwice, "CRA-002"),
    lying_driver(RemembersInItself, "CRA-003"),
    lying_driver(KnowsNoHalfClone, "CRA-009"),
    lying_driver(ForgetsWhatItClones, "CRA-009"),
    lying_driver(SwapsBack, "CRA-010"),
    lying_driver(RevertsTheSizeFirst, "CRA-010"),
    lying_driver(MergesTheSnapshot, "CRA-010"),
    lying_driver(LosesWhatItTakesOver, "CRA-011"),
    lying_driver(LosesWhatItGivesUp, "CRA-011"),
]
