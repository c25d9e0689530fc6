"""What is in the group already: it becomes a volume, or a volume becomes nobody's, with all its bytes."""

import re

from voldrivers.errors import InvalidInput, InvalidSize, InvalidState, NotFound
from voldrivers.lvm import room
from voldrivers.lvm.lvmtools import LogicalVolume, VolumeGroup
from voldrivers.lvm.options import LVMVolumeOptions
from voldrivers.lvm.ours import TAG, Found, OurVolumes, volume_name
from voldrivers.model import Volume
from voldrivers.sizes import SizeRule, format_size

#: lvm(8), VALID NAMES.
_NAME = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]*")
_KINDS = {"linear": "default", "striped": "default", "thin": "thin"}


class Existing:
    """The logical volumes of a group that are none of ours."""

    def __init__(self, ours: OurVolumes) -> None:
        """Take the backend's logical volumes."""
        self.ours, self._lvm = ours, ours.lvm

    def size(self, reference: str, options: LVMVolumeOptions, rule: SizeRule) -> int:
        """Give the size of `NAME` or `GROUP/NAME`, if it can be a volume: as `Manages.existing_size`."""
        return self._acceptable(self._lvm.report(), reference, options, rule).size_bytes

    def take(self, volume: Volume, reference: str, options: LVMVolumeOptions, rule: SizeRule) -> None:
        """Give what `reference` names the volume's name, then our tag: as `Manages.manage_existing`.

        Killed in between, it has a name that is given to nobody else, and no tag yet.
        """
        group, name = self._lvm.report(), volume_name(volume)
        found = group.find(name)
        if found is not None and TAG in found.tags:
            return self.ours.check_same_size(volume, found)
        renamed = found is not None and group.find(self._name(reference)) is None
        found = self._acceptable(group, name if renamed else reference, options, rule)
        self.ours.check_same_size(volume, found)
        self.ours.end_change(Found(group, found))
        if found.is_thin:
            self._lvm.keep_active(found.name)
        if found.name != name:
            self._lvm.rename(found.name, name)
        self._lvm.tag(name, TAG)
        self._lvm.flush(group)
        return None

    def give_up(self, volume: Volume) -> str:
        """Give a volume the name `unmanaged-ID`, then take our tag from it; return `GROUP/NAME`.

        Raises InvalidState while it is open or has snapshots.
        """
        name, new_name = volume_name(volume), f"unmanaged-{volume.id}"
        group = self.ours.end_changes(self._lvm.report(), name)
        found = self.ours.find(group, name)
        if found is not None:
            self.ours.check_unused(found)
            self._lvm.rename(name, new_name)
        left = group.find(new_name)
        if left is not None and TAG in left.tags:
            self.ours.end_change(Found(group, left))
        if found is not None or (left is not None and TAG in left.tags):
            self._lvm.untag(new_name, TAG)
            self._lvm.flush(group)
        return f"{self._lvm.group}/{new_name}"

    def _acceptable(
        self, group: VolumeGroup, reference: str, options: LVMVolumeOptions, rule: SizeRule
    ) -> LogicalVolume:
        name = self._name(reference)
        found = group.find(name)
        title = self.ours.title(name)
        if found is None:
            raise NotFound("logical volume", f"{group.name}/{name}")
        if TAG in found.tags:
            raise InvalidState(title, f"ours already, with the tag {TAG}", "one of nobody's")
        self._check_kind(title, group, found, options)
        self.ours.check_unused(found)
        if not found.is_writable:
            raise InvalidState(title, "read-only", "writable: lvchange --permission rw")
        if found.health:
            raise InvalidState(title, found.health, "healthy")
        if rule.round_up(found.size_bytes) != found.size_bytes:
            reason = f"must be a multiple of {format_size(rule.granularity_bytes)} to be a volume"
            raise InvalidSize(title, reason, format_size(found.size_bytes))
        return found

    def _check_kind(
        self, title: str, group: VolumeGroup, found: LogicalVolume, options: LVMVolumeOptions
    ) -> None:
        kind, wanted = _KINDS.get(found.kind), options.lvm_type
        if kind is None:
            raise InvalidState(title, f"of kind {found.kind}", "linear, striped or thin")
        if wanted not in (None, "auto", kind):
            raise InvalidState(title, f"of kind {found.kind}", f"of lvm_type {wanted}, as was said")
        if found.is_thin:
            pool = room.thin_pool(group, self.ours.options)
            origin = group.find(found.origin)
            if found.pool != pool.name or (origin is not None and not origin.is_thin):
                needed = f"in {pool.name} alone"
                raise InvalidState(title, f"in thin pool {found.pool}", needed)

    def _name(self, reference: str) -> str:
        """Read `NAME` or `GROUP/NAME`. Raises InvalidInput."""
        group, slash, name = reference.rpartition("/")
        if (slash and group != self._lvm.group) or not _NAME.fullmatch(name):
            needed = f"must be the name of a logical volume, NAME or {self._lvm.group}/NAME"
            raise InvalidInput(f"reference {reference!r}", needed)
        return name
