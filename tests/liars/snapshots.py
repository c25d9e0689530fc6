"""Lies about snapshots."""

from collections.abc import Sequence

from liars.liar import Liar, lying_driver
from voldrivers.abilities import Merge, Taken
from voldrivers.capabilities import Capabilities, Condition, InUseExtend
from voldrivers.errors import NotSupported
from voldrivers.extend.engine import Engine
from voldrivers.memory import MemoryDriver, MemoryImage
from voldrivers.model import ExtendReply, Snapshot, Volume


class ForgetsSnapshots(MemoryDriver):
    """list_snapshots forgets them."""

    def list_snapshots(self) -> Sequence[str]:
        return ()


class LeavesSnapshots(MemoryDriver):
    """Snapshots survive being deleted, and so their volume."""

    def delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> Merge | None:
        if image := self.array.snapshots.pop(snapshot.id, None):
            self.array.snapshots[f"deleted-{snapshot.id}"] = image
        return None


class LiveSnapshots(MemoryDriver):
    """A snapshot is the live volume."""

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        taken = super().create_snapshot(volume, snapshot)
        live = self.array.written.setdefault(volume.id, {})
        self.array.snapshots[snapshot.id] = MemoryImage(self.array.sizes[volume.id], live)
        return taken


class GrowsSnapshots(MemoryDriver):
    """Resizes the snapshots when the volume is extended."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        for each in volume.snapshots:
            self.array.snapshots[each.id].size_bytes = new_size_bytes
        return super().extend_volume(volume, new_size_bytes)


class KeepsTheNewest(MemoryDriver):
    """An extend merges all snapshots into the newest."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        for each in volume.snapshots[:-1]:
            self.array.snapshots[each.id] = self.array.snapshots[volume.snapshots[-1].id]
        return super().extend_volume(volume, new_size_bytes)


class DeletesAll(MemoryDriver):
    """delete_snapshot deletes all snapshots of the volume."""

    def delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> Merge | None:
        for each in volume.snapshots:
            self.array.snapshots.pop(each.id, None)
        return None


class CutsBack(MemoryDriver):
    """Deleting a snapshot cuts the volume back to its size."""

    def delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> Merge | None:
        if image := self.array.snapshots.get(snapshot.id):
            self.array.resize(volume.id, image.size_bytes)
        return super().delete_snapshot(volume, snapshot)


class RevertKeepsSize(MemoryDriver):
    """A revert brings the content back and keeps the larger size, silently."""

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        size_bytes = self.volume_size(volume)
        provider_data = super().revert_to_snapshot(volume, snapshot)
        self.array.resize(volume.id, size_bytes)
        return provider_data


class RevertForgets(MemoryDriver):
    """A revert forgets the other snapshots."""

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        for each in volume.snapshots:
            if each.id != snapshot.id:
                self.array.snapshots.pop(each.id, None)
        return super().revert_to_snapshot(volume, snapshot)


class RevertKeepsTail(MemoryDriver):
    """What was beyond the size that a revert brought back is there again after the next extend."""

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        written = self.array.written.get(volume.id, {})
        provider_data = super().revert_to_snapshot(volume, snapshot)
        beyond = {each: word for each, word in written.items() if each >= self.volume_size(volume)}
        self.array.written[volume.id] |= beyond
        return provider_data


class Unflushed(MemoryDriver):
    """A snapshot of a volume in use misses the last block."""

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        taken = super().create_snapshot(volume, snapshot)
        written = self.array.snapshots[snapshot.id].written
        if volume.attachments and written:
            del written[max(written)]
        return taken


class UndeclaredCondition(MemoryDriver):
    """Reverts to the newest snapshot only, and declares no condition."""

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        if snapshot.id != volume.snapshots[-1].id:
            raise NotSupported(snapshot.title, "is not the newest")
        return super().revert_to_snapshot(volume, snapshot)


class LateCondition(MemoryDriver):
    """Refuses by a declared condition, after the volume has grown."""

    capabilities = Capabilities(
        in_use_extend=InUseExtend.BY_BACKEND,
        snapshots=True,
        conditions=(Condition(capability="in_use_extend", unless="the volume has a snapshot"),),
    )

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        reply = super().extend_volume(volume, new_size_bytes)
        if volume.attachments and volume.snapshots:
            raise NotSupported(volume.title, "has a snapshot")
        return reply


class Orphans(Engine):
    """Deletes a volume, and leaves its snapshots on the backend."""

    def delete_volume(self, name: str) -> None:
        for snapshot in self.volume(name).snapshots:
            self.store.remove_snapshot(snapshot)
        super().delete_volume(name)


class NamesSnapshots(MemoryDriver):
    """Names snapshots by their first 31 characters in small letters, and takes one that is there for done."""

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        named: dict[str, str] = self.array.__dict__.setdefault("named", {})
        first = named.setdefault(snapshot.name[:31].lower(), snapshot.id)
        taken = super().create_snapshot(volume, snapshot)
        if first in self.array.snapshots:
            self.array.snapshots[snapshot.id] = self.array.snapshots[first]
        return taken


class DeletesByName(MemoryDriver):
    """Deletes every snapshot of the volume whose name is this one's but for the last character."""

    def delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> Merge | None:
        for each in volume.snapshots:
            if each.name[:-1] == snapshot.name[:-1]:
                self.array.snapshots.pop(each.id, None)
        return None


class SameName(Engine):
    """Gives the snapshot of that name that is there, whatever it is of."""

    def create_snapshot(self, volume_name: str, name: str) -> Snapshot:
        there = [each for volume in self.volumes() for each in volume.snapshots if each.name == name]
        return there[0] if there else super().create_snapshot(volume_name, name)


LIARS = [
    lying_driver(ForgetsSnapshots, "SNP-001"),
    lying_driver(LeavesSnapshots, "SNP-001"),
    lying_driver(LiveSnapshots, "SNP-002"),
    lying_driver(GrowsSnapshots, "SNP-003"),
    lying_driver(KeepsTheNewest, "SNP-004"),
    lying_driver(DeletesAll, "SNP-005"),
    lying_driver(CutsBack, "SNP-005"),
    lying_driver(RevertKeepsSize, "SNP-006"),
    lying_driver(RevertForgets, "SNP-006"),
    lying_driver(RevertKeepsTail, "SNP-006"),
    lying_driver(Unflushed, "SNP-007"),
    lying_driver(UndeclaredCondition, "SNP-008"),
    lying_driver(LateCondition, "SNP-008"),
    Liar(Orphans, "SNP-009", engine=Orphans),
    Liar(SameName, "SNP-010", engine=SameName),
    lying_driver(NamesSnapshots, "SNP-010"),
    lying_driver(DeletesByName, "SNP-010"),
]
