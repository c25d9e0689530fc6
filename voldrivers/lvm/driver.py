"""The LVM driver: volumes are logical volumes of one volume group, exported to other machines."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from voldrivers.abilities import Clones, Manages, Merge, Reverts, Snapshots, Taken
from voldrivers.base import Driver, Run, round_size
from voldrivers.capabilities import Capabilities, Condition, InUseExtend
from voldrivers.errors import BackendError, InvalidSize, VolDriverError
from voldrivers.lvm import clearing, mapping, room
from voldrivers.lvm.copies import Copies, copying_name
from voldrivers.lvm.existing import Existing
from voldrivers.lvm.export import Exports, known
from voldrivers.lvm.growth import Growth
from voldrivers.lvm.iscsiexport import ISCSIExports
from voldrivers.lvm.lvmtools import LVM, LogicalVolume, VolumeGroup
from voldrivers.lvm.mapping import Device
from voldrivers.lvm.nvmeexport import NVMeExports
from voldrivers.lvm.options import LVMOptions, LVMVolumeOptions
from voldrivers.lvm.ours import (
    TAG,
    UNCLEARED,
    UNFINISHED,
    VOLUME,
    Found,
    New,
    OurVolumes,
    formers,
    volume_name,
)
from voldrivers.lvm.snapshots import KeptSnapshots
from voldrivers.model import (
    ConnectionInfo,
    Connector,
    ExtendReply,
    Ledger,
    LedgerRow,
    Pool,
    Snapshot,
    Volume,
)
from voldrivers.sizes import SizeRule, format_size

#: How long what admission has seen is good for the extend that follows it.
_JUST_S = 5.0
#: Measured with lvm2 2.03.16: so much more for each active volume of a thin pool, whose tables all change.
_ACTIVE_S, _MANY_ACTIVE = 0.015, 50


@dataclass(frozen=True)
class _Admitted:
    """What admission has seen of a volume, and when (time.monotonic)."""

    volume_id: str
    found: Found
    at: float


class LVMDriver(Driver, Snapshots, Reverts, Clones, Manages):
    """Volumes are logical volumes `volume-ID` with the tag `voldrivers`; others are never touched.

    A logical volume grows while it is open, its data in place. What its new extents held is cleared when
    their earlier volume is deleted or before they join this one, never after (docs/architecture.md, rule 6).
    """

    capabilities = Capabilities(
        in_use_extend=InUseExtend.BY_BACKEND,
        multi_attach=True,
        snapshots=True,
        revert=True,
        clones=True,
        manage=True,
        conditions=(Condition(capability="in_use_extend", unless="the volume is thick and has a snapshot"),),
    )
    options_type = LVMOptions
    volume_options_type = LVMVolumeOptions
    options: LVMOptions

    def __init__(self, name: str, options: LVMOptions, run: Run) -> None:
        """Take the options; no program is run."""
        super().__init__(name, options, run)
        self._lvm = LVM(run, options.volume_group)
        self._ours = OurVolumes(self._lvm, options, run)
        self._growth, self._snapshots = Growth(self._ours), KeptSnapshots(self._ours)
        self._copies, self._existing = Copies(self._ours, self._snapshots), Existing(self._ours)
        self._admitted: _Admitted | None = None
        nvme = options.target_protocol == "nvmet_tcp"
        self._exports: Exports = NVMeExports(options, run) if nvme else ISCSIExports(options)

    @cached_property
    def size_rule(self) -> SizeRule:  # type: ignore[override]  # the extent's size is the group's, asked for once
        """Whole extents, on every stripe."""
        granularity_bytes = self._lvm.report().extent_bytes * self.options.stripes
        return SizeRule(granularity_bytes=granularity_bytes, minimum_bytes=granularity_bytes)

    def create_volume(self, volume: Volume, options: LVMVolumeOptions) -> str:
        """Make the logical volume, cleared before it is anybody's; one that is there is left alone."""
        self._exports.check_id(volume.id)
        group = self._lvm.report()
        self._check_size(volume, volume.size_bytes)
        seen = self._ours.find(group, volume_name(volume))
        if seen is None:
            self._make(volume, group, thin=self._ours.is_thin(group, options))
        found = self._ours.observed(volume) if seen is None else Found(group, seen)
        self._ours.check_same_size(volume, found.volume)
        if UNCLEARED in found.volume.tags:
            clearing.clear(self.run, found.volume.path, found.volume.size_bytes)
            self._lvm.untag(found.volume.name, UNCLEARED)
        self._lvm.flush(found.group)
        return ""

    def delete_volume(self, volume: Volume) -> None:
        """Clear the logical volume where that is due, and remove it. Raises InvalidState while it is open."""
        group = self._ours.end_changes(self._lvm.report(), copying_name(volume), volume_name(volume))
        self._growth.remove_scratch(group, volume)
        self._exports.remove(volume.id)
        for former in formers(group, volume):
            self._ours.check_unused(former)
        self._ours.discard_named(group, copying_name(volume))
        if (found := self._ours.find(group, volume_name(volume))) is not None:
            self._ours.check_unused(found)
            self._ours.discard(found)
        self._snapshots.discard_formers(group, volume)

    def list_volumes(self) -> Sequence[str]:
        """Give the ids of logical volumes with our name and our tag."""
        ours = [v for v in self._lvm.report().volumes if TAG in v.tags and not UNFINISHED & v.tags]
        return [v.name.removeprefix(VOLUME) for v in ours if v.name.startswith(VOLUME)]

    def volume_size(self, volume: Volume) -> int:
        """Look at the kernel's device, and at lvm's metadata where that may differ: the larger counts."""
        device = mapping.look(mapping.path_of(self._lvm.group, volume_name(volume)))
        if device is None:
            return self._ours.observed(volume).volume.size_bytes
        if device.is_suspended:
            return max(device.size_bytes, self._ours.observed(volume).volume.size_bytes)
        return device.size_bytes

    def pool(self) -> Pool:
        """Give the room of the thin pool or of the group, whichever new volumes come from."""
        group = self._lvm.report()
        return room.pool_of(group, self.options, thin=self._ours.is_thin(group, LVMVolumeOptions()))

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        """Refuse what could not be done: no room, no metadata, a thin pool nearly full, a thick origin."""
        self._check_size(volume, new_size_bytes)
        found = self._ours.observed(volume)
        self._growth.check(volume, found, new_size_bytes - found.volume.size_bytes)
        self._admitted = _Admitted(volume.id, found, time.monotonic())

    def extend_notes(self, volume: Volume, new_size_bytes: int) -> Sequence[str]:
        """Tell what a thin pool with many active volumes costs: see docs/limitations.md."""
        found = self._just_observed(volume)
        active = sum(each.pool == found.volume.pool and each.is_active for each in found.group.volumes)
        if not found.volume.is_thin or active < _MANY_ACTIVE:
            return ()
        pool, cost_s = f"{found.group.name}/{found.volume.pool}", active * _ACTIVE_S
        return (f"lvextend takes {cost_s:.1f} s or more: thin pool {pool} has {active} active volumes",)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        """Make the logical volume larger; it stays open, and nothing is ever deactivated.

        What a killed lvextend has left is brought to its end first, also when there is no room for more.
        """
        found = self._just_observed(volume)
        self._admitted = None
        self._growth.end_change(found)
        self._growth.remove_scratch(found.group, volume)
        growth_bytes = new_size_bytes - found.volume.size_bytes
        if growth_bytes > 0:
            self._growth.check(volume, found, growth_bytes)
            self._growth.grow(volume, found, growth_bytes)
        if (observed_bytes := self.volume_size(volume)) < new_size_bytes:
            seen, wanted = format_size(observed_bytes), format_size(new_size_bytes)
            raise BackendError(
                self._ours.title(volume_name(volume)), f"lvextend said {wanted}, but it is {seen}"
            )
        if volume.attachments:
            self._exports.restore(volume, self._device(found))
        return ExtendReply.EXTENDED

    def ledger_rows(self, volume: Volume, expected_bytes: int) -> Ledger:
        """Give the device, lvm's metadata where it differs, and what the export shows if it is attached.

        Metadata is not asked for where the device is as expected. An export that cannot be read, or that
        keeps a host out, is a row that says why.
        """
        path = mapping.path_of(self._lvm.group, volume_name(volume))
        device = mapping.look(path)
        if device is not None and device.size_bytes == expected_bytes and not device.is_held_up:
            rows: Ledger = (LedgerRow("LV", path, device.size_bytes, expected_bytes),)
        else:
            rows = _lv_rows(self._ours.observed(volume).volume, device, expected_bytes)
        if not volume.attachments:
            return rows
        give_back = f"voldrivers doctor {volume.name} --repair"
        shown = LedgerRow(self._exports.layer, volume_name(volume), None, expected_bytes, repair=give_back)
        try:
            shown_bytes = self._exports.shown_bytes(volume.id)
            self._exports.check_open(volume)
            return (*rows, replace(shown, observed_bytes=shown_bytes))
        except VolDriverError as error:
            return (*rows, replace(shown, note=str(error)))

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        """Export the volume, and let the connector's host in. Raises NotSupported for one without a name."""
        device = self._device(self._ours.observed(volume))
        self._exports.restore(volume, device)
        return self._exports.open(volume.id, device, connector, known(volume))

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        """Let the host in no more; with the last attachment the export ends."""
        if all(a.host != connector.host for a in volume.attachments):
            self._exports.close_to(volume.id, connector)
        if not volume.attachments:
            self._exports.remove(volume.id)

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        """Make `snap-ID`; the volume may be in use. A thick one takes as much room as the volume."""
        self._snapshots.create(volume, snapshot)
        return Taken(volume.provider_data, "")

    def delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> Merge | None:
        self._snapshots.delete(volume, snapshot)
        return None

    def list_snapshots(self) -> Sequence[str]:
        return self._snapshots.ids()

    def snapshot_size(self, volume: Volume, snapshot: Snapshot) -> int:
        return self._snapshots.size(snapshot)

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        """Put a copy of the snapshot in the volume's place, which stays as it is until that is whole."""
        self._copies.revert(volume, snapshot)
        return volume.provider_data

    def clone_volume(
        self, volume: Volume, options: LVMVolumeOptions, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        """Share the blocks of a thin source with a thin volume, else copy all; the source may be in use."""
        self._exports.check_id(volume.id)
        self._check_size(volume, volume.size_bytes)
        self._copies.clone(volume, options, source, snapshot)
        return ""

    def existing_size(self, reference: str, options: LVMVolumeOptions) -> int:
        return self._existing.size(reference, options, self.size_rule)

    def manage_existing(self, volume: Volume, reference: str, options: LVMVolumeOptions) -> str:
        """Rename the logical volume and tag it; `reference` is NAME or GROUP/NAME."""
        self._exports.check_id(volume.id)
        self._existing.take(volume, reference, options, self.size_rule)
        return ""

    def unmanage(self, volume: Volume) -> str:
        """Rename the logical volume to `unmanaged-ID` and take the tag from it."""
        self._growth.remove_scratch(self._lvm.report(), volume)
        self._exports.remove(volume.id)
        return self._existing.give_up(volume)

    def _device(self, found: Found) -> Path:
        """Give the device, which is there then."""
        if not found.volume.is_active:
            self._lvm.activate(found.volume.name)
        return Path(found.volume.path)

    def _make(self, volume: Volume, group: VolumeGroup, *, thin: bool) -> None:
        clears_first = self.options.volume_clear == "before-use" and not thin
        tags = frozenset((TAG, UNCLEARED) if clears_first else (TAG,))
        self._ours.make(group, New(volume.title, volume_name(volume), volume.size_bytes, thin, tags))

    def _check_size(self, volume: Volume, size_bytes: int) -> None:
        """Refuse a size that was not rounded by this driver's rule: the caller does that, once."""
        if round_size(self, volume.title, size_bytes) != size_bytes:
            needed = f"must be a multiple of {format_size(self.size_rule.granularity_bytes)}"
            raise InvalidSize(volume.title, needed, format_size(size_bytes))

    def _just_observed(self, volume: Volume) -> Found:
        """Give what admission has seen a moment ago, else look. lvextend refuses what no longer holds."""
        admitted = self._admitted
        if admitted and admitted.volume_id == volume.id and time.monotonic() - admitted.at < _JUST_S:
            return admitted.found
        return self._ours.observed(volume)


def _lv_rows(found: LogicalVolume, device: Device | None, expected_bytes: int) -> Ledger:
    if device is None or device.size_bytes == found.size_bytes:
        note = f"{found.kind}, a change of it was interrupted" if found.is_interrupted else found.kind
        return (LedgerRow("LV", found.path, found.size_bytes, expected_bytes, note=note),)
    lv = LedgerRow(
        "LV", found.path, device.size_bytes, expected_bytes, note=f"{found.kind}, not its metadata's"
    )
    return (lv, LedgerRow("LV metadata", found.name, found.size_bytes, expected_bytes))
