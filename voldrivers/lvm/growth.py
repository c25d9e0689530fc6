"""Growth of a logical volume: what is refused, what lvextend is given, and what a kill of it has left."""

from collections.abc import Sequence

from voldrivers.errors import CommandFailed, NotSupported, OutcomeUnknown
from voldrivers.lvm import clearing, mapping, room
from voldrivers.lvm.lvmtools import VolumeGroup
from voldrivers.lvm.ours import CLEARING, TAG, Found, OurVolumes
from voldrivers.model import Volume


class Growth:
    """How volumes of one backend become larger."""

    def __init__(self, ours: OurVolumes) -> None:
        """Take the backend's logical volumes."""
        self.ours, self._lvm = ours, ours.lvm

    def check(self, volume: Volume, found: Found, growth_bytes: int) -> None:
        """Refuse what cannot be done. Raises NoSpace, NotSupported, InvalidState."""
        if growth_bytes <= 0:
            return
        room.check_metadata(volume.title, found.group, creates=False)
        if found.volume.is_thin:
            room.check_thin(volume.title, found.group, self.ours.options, growth_bytes)
            return
        if found.volume.snapshots and (volume.attachments or found.volume.is_open):
            # lvm2: "Snapshot origin volumes can be resized only while inactive".
            named = ", ".join(found.volume.snapshots)
            cannot = "a thick volume with a snapshot cannot be extended while it is in use"
            raise NotSupported(volume.title, f"{cannot}: detach it, or delete {named}")
        room.check_thick(volume.title, found.group, self.ours.options, growth_bytes)

    def grow(self, volume: Volume, found: Found, growth_bytes: int) -> None:
        """Run lvextend. Raises NoSpace when the room was taken since it was looked for.

        A thick one with snapshots is inactive meanwhile; who ends what a kill has left activates it.
        """
        clears_first = self.ours.options.volume_clear == "before-use" and not found.volume.is_thin
        extents = (found.volume.size_bytes + growth_bytes) // found.group.extent_bytes
        try:
            onto = self._cleared_extents(volume, found, growth_bytes) if clears_first else ()
            if _is_thick_origin(found):
                self._lvm.deactivate(found.volume.name)
            self._lvm.extend(found.volume.name, extents, onto)
            if _is_thick_origin(found):
                self._lvm.activate(found.volume.name)
        except (CommandFailed, OutcomeUnknown):
            after = self.ours.observed(volume)
            self.end_change(after)
            if after.volume.size_bytes == found.volume.size_bytes:
                self.check(volume, after, growth_bytes)
            raise
        self._lvm.flush(found.group)

    def end_change(self, found: Found) -> None:
        """End what was begun with a volume and was interrupted; it is active then."""
        self.ours.end_change(found)
        if _is_thick_origin(found) and mapping.look(found.volume.path) is None:
            self._lvm.activate(found.volume.name)

    def remove_scratch(self, group: VolumeGroup, volume: Volume) -> None:
        """Remove what an extend that was killed has left: extents that are nobody's yet."""
        left = group.find(_scratch_name(volume))
        if left is not None and CLEARING in left.tags:
            self._lvm.remove(left.name)

    def _cleared_extents(self, volume: Volume, found: Found, growth_bytes: int) -> Sequence[str]:
        """Take free extents, clear them, and give them back for the volume to take.

        Whoever takes them in between makes the extend fail, with nothing grown: they are no longer free.
        """
        scratch, extents = _scratch_name(volume), growth_bytes // found.group.extent_bytes
        self._lvm.create(scratch, extents, stripes=found.volume.stripes, tags=[TAG, CLEARING])
        made = self.ours.named(scratch)
        clearing.clear(self.ours.run, made.path, made.size_bytes)
        self._lvm.remove(scratch)
        return made.extents


def _is_thick_origin(found: Found) -> bool:
    return bool(found.volume.snapshots) and not found.volume.is_thin


def _scratch_name(volume: Volume) -> str:
    return f"clearing-{volume.id}"
