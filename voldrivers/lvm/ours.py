"""What is ours in a volume group: how logical volumes are named and tagged, found, made and given back."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from voldrivers.base import Run
from voldrivers.errors import BackendError, InvalidState, NotFound
from voldrivers.lvm import clearing, mapping, room
from voldrivers.lvm.lvmtools import LVM, LogicalVolume, VolumeGroup
from voldrivers.lvm.mapping import Device
from voldrivers.lvm.options import LVMOptions, LVMVolumeOptions
from voldrivers.model import Snapshot, Volume
from voldrivers.sizes import format_size

#: What is ours bears this tag; what has another one is not a volume yet, or no volume.
TAG, UNCLEARED = "voldrivers", "voldrivers.uncleared"
CLEARING, COPYING = "voldrivers.clearing", "voldrivers.copying"
UNFINISHED = frozenset((UNCLEARED, CLEARING, COPYING))
VOLUME, SNAPSHOT = "volume-", "snap-"  # lvm keeps names with `snapshot` for itself


@dataclass(frozen=True)
class Found:
    """A volume's logical volume, in its group."""

    group: VolumeGroup
    volume: LogicalVolume


@dataclass(frozen=True)
class New:
    """A logical volume that is to be made. `title` is how messages name what it is for."""

    title: str
    name: str
    size_bytes: int
    thin: bool
    tags: frozenset[str]
    #: None: as the backend's options say.
    stripes: int | None = None


class OurVolumes:
    """The logical volumes of one backend. What methods raise beside what they say: as `LVM`."""

    def __init__(self, lvm: LVM, options: LVMOptions, run: Run) -> None:
        """Take the programs and the options."""
        self.lvm, self.options, self.run = lvm, options, run

    def title(self, name: str) -> str:
        """How messages name a logical volume."""
        return f"logical volume {self.lvm.group}/{name}"

    def find(self, group: VolumeGroup, name: str) -> LogicalVolume | None:
        """Find one of ours. Raises InvalidState for one of that name without our tag."""
        found = group.find(name)
        if found is not None and TAG not in found.tags:
            raise InvalidState(self.title(name), f"without the tag {TAG}", "one of ours")
        return found

    def observed(self, volume: Volume) -> Found:
        """Look at a volume. Raises NotFound, InvalidState."""
        return self.found(self.lvm.report(), volume)

    def found(self, group: VolumeGroup, volume: Volume) -> Found:
        """Find a volume in what was seen of the group. Raises NotFound, InvalidState."""
        found = self.find(group, volume_name(volume))
        if found is None:
            raise NotFound("volume", volume.name, f": there is no {self.title(volume_name(volume))}")
        return Found(group, found)

    def named(self, name: str) -> LogicalVolume:
        """Look at what was just made. Raises BackendError."""
        made = self.lvm.report().find(name)
        if made is None:
            raise BackendError(self.title(name), "it was made and is not there")
        return made

    def is_thin(self, group: VolumeGroup, options: LVMVolumeOptions) -> bool:
        """Tell of which kind a new volume is."""
        kind = options.lvm_type or self.options.lvm_type
        if kind == "auto":
            pool = group.find(self.options.pool)
            return pool is not None and pool.kind == "thin-pool"
        return kind == "thin"

    def make(self, group: VolumeGroup, new: New) -> None:
        """Make a logical volume; what extents of a thick one hold is still there.

        Raises NoSpace, InvalidState, NotSupported.
        """
        room.check_metadata(new.title, group, creates=True)
        if new.thin:
            room.check_thin(new.title, group, self.options, new.size_bytes)
            self.lvm.create_thin(new.name, new.size_bytes, pool=self.options.pool, tags=sorted(new.tags))
            return
        room.check_thick(new.title, group, self.options, new.size_bytes)
        extents, stripes = new.size_bytes // group.extent_bytes, new.stripes or self.options.stripes
        self.lvm.create(new.name, extents, stripes=stripes, tags=sorted(new.tags))

    def check_same_size(self, volume: Volume, found: LogicalVolume) -> None:
        """Refuse a logical volume that cannot be this volume. Raises InvalidState."""
        if found.size_bytes != volume.size_bytes:
            needed = f"{format_size(volume.size_bytes)} to be {volume.title}"
            raise InvalidState(self.title(found.name), f"{format_size(found.size_bytes)} large", needed)

    def check_unused(self, found: LogicalVolume) -> None:
        """Refuse one that is in use, or that has snapshots. Raises InvalidState.

        Thin snapshots need nobody; ours are refused because who removes a volume has forgotten them.
        """
        thin = [name for name in found.snapshots if name.startswith(SNAPSHOT)]
        self._check_unneeded(found, thin if found.is_thin else found.snapshots)

    def end_changes(self, group: VolumeGroup, *names: str) -> VolumeGroup:
        """End what was begun with those of ours that there are; give the group as it is then."""
        for name in names:
            found = self.find(group, name)
            if found is not None and self.end_change(Found(group, found)):
                group = self.lvm.report()
        return group

    def end_change(self, found: Found) -> bool:
        """End what was begun, if anything; tell whether there was something.

        No device stays suspended, or smaller than the metadata. Never smaller.
        """
        device = _device(found.volume)
        if device is None:
            return False
        if not found.volume.is_interrupted and device.size_bytes >= found.volume.size_bytes:
            return False
        by_uuid = {each.uuid.replace("-", ""): each for each in found.group.volumes}
        for each in mapping.family(device):
            if each.uuid in by_uuid:
                self._end_change(by_uuid[each.uuid], each)
        self.lvm.flush(found.group)  # what is committed may not be on the disks
        return True

    def discard(self, found: LogicalVolume) -> None:
        """Remove a logical volume or a snapshot; thick ones cleared, where that is due at delete.

        What a thick snapshot has kept of its origin is cleared too: it becomes an ordinary volume first, and
        is one still after a kill. Raises InvalidState while it is open, or thick snapshots need it.
        """
        self._check_unneeded(found, () if found.is_thin else found.snapshots)
        if self.options.volume_clear == "at-delete" and not found.is_thin:
            self._clear(found)
        self.lvm.remove(found.name)

    def discard_named(self, group: VolumeGroup, name: str) -> None:
        """Remove what has that name, as `discard`; nothing is no error."""
        found = self.find(group, name)
        if found is not None:
            self.discard(found)

    def _end_change(self, volume: LogicalVolume, device: Device) -> None:
        if volume.kind == "snapshot":
            # It comes back with its volume. Until then it must not hold what that may need no more:
            # lvchange would fail for it.
            self.lvm.drop_table(device)
        else:
            self.lvm.end_change(volume.name, device)

    def _check_unneeded(self, found: LogicalVolume, needing: Sequence[str]) -> None:
        if found.is_open:
            raise InvalidState(self.title(found.name), "open", "closed by all who use it")
        if needing:
            raise InvalidState(self.title(found.name), f"origin of {', '.join(needing)}", "without snapshots")

    def _clear(self, found: LogicalVolume) -> None:
        if found.kind == "snapshot":
            self.lvm.split(found.name)
            found = self.named(found.name)
        if not found.is_writable:
            self.lvm.make_writable(found.name)
        if not found.is_active:
            self.lvm.activate(found.name)
        clearing.clear(self.run, found.path, found.size_bytes)


def volume_name(volume: Volume) -> str:
    """Give the name of a volume's logical volume."""
    return f"{VOLUME}{volume.id}"


def snapshot_name(snapshot: Snapshot) -> str:
    """Give the name of a snapshot's logical volume."""
    return f"{SNAPSHOT}{snapshot.id}"


def formers(group: VolumeGroup, volume: Volume) -> Iterator[LogicalVolume]:
    """Give what the volume was before it was reverted: `former-ID-NUMBER`, kept while snapshots need it."""
    ours = re.compile(rf"former-{re.escape(volume.id)}-\d+")
    return (each for each in group.volumes if ours.fullmatch(each.name) and TAG in each.tags)


def _device(found: LogicalVolume) -> Device | None:
    return mapping.look(found.path) or (mapping.find(found.uuid) if found.is_active else None)
