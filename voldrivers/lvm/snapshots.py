"""Snapshots: `snap-ID`, thin ones in the pool, thick ones with room for all that can be overwritten."""

from collections.abc import Sequence

from voldrivers.errors import InvalidState, NotFound
from voldrivers.lvm import mapping, room
from voldrivers.lvm.lvmtools import COW_CHUNK_BYTES, LogicalVolume, VolumeGroup
from voldrivers.lvm.ours import SNAPSHOT, TAG, Found, OurVolumes, formers, snapshot_name, volume_name
from voldrivers.model import Snapshot, Volume

#: Of each thing that is overwritten a thick snapshot notes where it was, 16 bytes
#: (struct disk_exception, drivers/md/dm-snap-persistent.c).
_NOTES_IN_CHUNK = COW_CHUNK_BYTES // 16


class KeptSnapshots:
    """The snapshots of one backend's volumes. A thick one is active with its volume, a thin one is not."""

    def __init__(self, ours: OurVolumes) -> None:
        """Take the backend's logical volumes."""
        self.ours, self._lvm = ours, ours.lvm

    def create(self, volume: Volume, snapshot: Snapshot) -> None:
        """Make a snapshot of the volume, open or not; one that is there is left alone.

        Raises NotFound, InvalidState, NoSpace.
        """
        name = snapshot_name(snapshot)
        group = self.ours.end_changes(self._lvm.report(), volume_name(volume), name)
        origin = self.ours.found(group, volume)
        kept = self.ours.find(group, name)
        if kept is not None and is_snapshot(kept):
            return
        # What a killed lvcreate or delete has left has the name and is none.
        self.ours.discard_named(group, name)
        self.take(snapshot.title, origin, name)
        self._lvm.flush(group)

    def take(self, title: str, origin: Found, name: str) -> None:
        """Make a snapshot of that name, of a volume that has none of it. Raises NoSpace, InvalidState."""
        group, volume, options = origin.group, origin.volume, self.ours.options
        room.check_metadata(title, group, creates=True)
        if volume.is_thin:
            room.check_thin(title, group, options, volume.size_bytes)
            self._lvm.snapshot_thin(name, volume.name, tags=[TAG], active=False)
            return
        extents = _cow_extents(volume.size_bytes, group.extent_bytes)
        room.check_thick(title, group, options, extents * group.extent_bytes)
        self._lvm.snapshot(name, volume.name, extents, tags=[TAG])

    def delete(self, volume: Volume, snapshot: Snapshot) -> None:
        """Remove a snapshot, its volume open or not; and what the volume was once, when nothing needs it now.

        Raises InvalidState while the snapshot is open.
        """
        ends = (reverting_name(snapshot), snapshot_name(snapshot))
        group = self.ours.end_changes(self._lvm.report(), volume_name(volume), *ends)
        for name in ends:
            self.ours.discard_named(group, name)
        if any(formers(group, volume)):
            self.discard_formers(self._lvm.report(), volume)

    def discard_formers(self, group: VolumeGroup, volume: Volume) -> None:
        """Remove what a volume was before it was reverted, as far as no thick snapshot needs it."""
        for former in formers(group, volume):
            if former.is_thin or not former.snapshots:
                self.ours.discard(former)

    def ids(self) -> Sequence[str]:
        """Give the ids of all that there are."""
        ours = [each for each in self._lvm.report().volumes if TAG in each.tags and is_snapshot(each)]
        return [each.name.removeprefix(SNAPSHOT) for each in ours]

    def size(self, snapshot: Snapshot) -> int:
        """Look at the kernel's device, or at lvm's metadata without it. Raises as `whole`."""
        found = self.whole(self._lvm.report(), snapshot)
        device = mapping.look(found.path)
        return found.size_bytes if device is None else device.size_bytes

    def whole(self, group: VolumeGroup, snapshot: Snapshot) -> LogicalVolume:
        """Find a snapshot that can be read. Raises NotFound, InvalidState for one that is worth nothing."""
        name = snapshot_name(snapshot)
        found = self.ours.find(group, name)
        if found is None or not is_snapshot(found):
            raise NotFound("snapshot", snapshot.name, f": there is no {self.ours.title(name)}")
        if found.is_invalid:
            raise InvalidState(snapshot.title, "invalid, lvm could not keep it", "deleted")
        return found


def is_snapshot(found: LogicalVolume) -> bool:
    """Tell a snapshot from what is left of one and from all else."""
    return found.name.startswith(SNAPSHOT) and (found.kind == "snapshot" or found.is_thin)


def reverting_name(snapshot: Snapshot) -> str:
    """Give the name of what becomes the volume when it is reverted to a snapshot."""
    return f"revert-{snapshot.id}"


def _cow_extents(size_bytes: int, extent_bytes: int) -> int:
    """Count the extents with which a thick snapshot never overflows, whatever is overwritten.

    A header, each chunk of the origin, their notes, and room for notes that is made ready ahead.
    lvm takes fewer if they do (lvm2 2.03.16: 17 for 16; with all 16 overwritten 94.5 % were full).
    """
    chunks = -(-size_bytes // COW_CHUNK_BYTES)
    notes = -(-chunks // _NOTES_IN_CHUNK)
    return -(-(1 + chunks + notes + 1) * COW_CHUNK_BYTES // extent_bytes)
