"""The LVM driver: volumes are logical volumes of one volume group, exported to other machines."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from voldrivers.base import Driver, Run, round_size
from voldrivers.capabilities import Capabilities, Condition, InUseExtend
from voldrivers.errors import (
    BackendError,
    CommandFailed,
    InvalidSize,
    InvalidState,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.lvm import clearing, mapping, room
from voldrivers.lvm.export import Exports, known
from voldrivers.lvm.iscsiexport import ISCSIExports
from voldrivers.lvm.lvmtools import LVM, LogicalVolume, VolumeGroup
from voldrivers.lvm.mapping import Device
from voldrivers.lvm.nvmeexport import NVMeExports
from voldrivers.lvm.options import LVMOptions, LVMVolumeOptions
from voldrivers.model import ConnectionInfo, Connector, ExtendReply, Ledger, LedgerRow, Pool, Volume
from voldrivers.sizes import SizeRule, format_size

#: What is ours bears this tag; what has another one is not a volume yet, or no volume.
TAG, UNCLEARED, CLEARING = "voldrivers", "voldrivers.uncleared", "voldrivers.clearing"
_PREFIX = "volume-"
#: How long what admission has seen is good for the extend that follows it.
_JUST_S = 5.0
#: Measured with lvm2 2.03.16: so much more for each active volume of a thin pool, whose tables all change.
_ACTIVE_S, _MANY_ACTIVE = 0.015, 50


@dataclass(frozen=True)
class _Found:
    """A volume's logical volume, in its group."""

    group: VolumeGroup
    volume: LogicalVolume


@dataclass(frozen=True)
class _Admitted:
    """What admission has seen of a volume, and when (time.monotonic)."""

    volume_id: str
    found: _Found
    at: float


class LVMDriver(Driver):
    """Volumes are logical volumes `volume-ID` with the tag `voldrivers`; others are never touched.

    A logical volume grows while it is open, its data in place. What its new extents held is cleared when
    their earlier volume is deleted or before they join this one, never after (docs/architecture.md, rule 6).
    """

    capabilities = Capabilities(
        in_use_extend=InUseExtend.BY_BACKEND,
        multi_attach=True,
        conditions=(Condition(capability="in_use_extend", unless="the volume is thick and has a snapshot"),),
    )
    options_type = LVMOptions
    volume_options_type = LVMVolumeOptions
    options: LVMOptions

    def __init__(self, name: str, options: LVMOptions, run: Run) -> None:
        """Take the options; no program is run."""
        super().__init__(name, options, run)
        self._lvm = LVM(run, options.volume_group)
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
        group = self._lvm.report()
        self._check_size(volume, volume.size_bytes)
        found = self._find(group, volume)
        if found is None:
            self._make(volume, group, thin=self._is_thin(group, options))
            found = self._observed(volume)
        if found.volume.size_bytes != volume.size_bytes:
            needed = f"{format_size(volume.size_bytes)} to be {volume.title}"
            raise InvalidState(self._title(volume), f"{format_size(found.volume.size_bytes)} large", needed)
        if UNCLEARED in found.volume.tags:
            clearing.clear(self.run, found.volume.path, found.volume.size_bytes)
            self._lvm.untag(found.volume.name, UNCLEARED)
        self._lvm.flush(found.group)
        return ""

    def delete_volume(self, volume: Volume) -> None:
        """Clear the logical volume where that is due, and remove it. Raises InvalidState while it is open."""
        group = self._lvm.report()
        self._remove_scratch(group, volume)
        self._exports.remove(volume.id)
        found = self._find(group, volume)
        if found is None:
            return
        if found.volume.is_open:
            raise InvalidState(self._title(volume), "open", "closed by all who use it")
        if found.volume.snapshots:
            raise InvalidState(
                self._title(volume), f"origin of {', '.join(found.volume.snapshots)}", "without snapshots"
            )
        if self.options.volume_clear == "at-delete" and not found.volume.is_thin:
            if not found.volume.is_active:
                self._lvm.activate(found.volume.name)
            clearing.clear(self.run, found.volume.path, found.volume.size_bytes)
        self._lvm.remove(found.volume.name)

    def list_volumes(self) -> Sequence[str]:
        """Give the ids of logical volumes with our name and our tag."""
        ours = [v for v in self._lvm.report().volumes if TAG in v.tags and not {CLEARING, UNCLEARED} & v.tags]
        return [v.name.removeprefix(_PREFIX) for v in ours if v.name.startswith(_PREFIX)]

    def volume_size(self, volume: Volume) -> int:
        """Look at the kernel's device, and at lvm's metadata where that may differ: the larger counts."""
        device = mapping.look(mapping.path_of(self._lvm.group, _name(volume)))
        if device is None:
            return self._observed(volume).volume.size_bytes
        if device.is_suspended:
            return max(device.size_bytes, self._observed(volume).volume.size_bytes)
        return device.size_bytes

    def pool(self) -> Pool:
        """Give the room of the thin pool or of the group, whichever new volumes come from."""
        group = self._lvm.report()
        return room.pool_of(group, self.options, thin=self._is_thin(group, LVMVolumeOptions()))

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        """Refuse what could not be done: no room, no metadata, a thin pool nearly full, a thick origin."""
        self._check_size(volume, new_size_bytes)
        found = self._observed(volume)
        self._check_growth(volume, found, new_size_bytes - found.volume.size_bytes)
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
        self._end_change(found)
        self._remove_scratch(found.group, volume)
        growth_bytes = new_size_bytes - found.volume.size_bytes
        if growth_bytes > 0:
            self._check_growth(volume, found, growth_bytes)
            self._grow(volume, found, growth_bytes)
        if (observed_bytes := self.volume_size(volume)) < new_size_bytes:
            seen, wanted = format_size(observed_bytes), format_size(new_size_bytes)
            raise BackendError(self._title(volume), f"lvextend said {wanted}, but it is {seen}")
        if volume.attachments:
            self._exports.restore(volume, self._device(found))
        return ExtendReply.EXTENDED

    def ledger_rows(self, volume: Volume, expected_bytes: int) -> Ledger:
        """Give the device, lvm's metadata where it differs, and what the export shows if it is attached.

        Metadata is not asked for where the device is as expected. An export that cannot be read, or that
        keeps a host out, is a row that says why.
        """
        path = mapping.path_of(self._lvm.group, _name(volume))
        device = mapping.look(path)
        if device is not None and device.size_bytes == expected_bytes and not device.is_held_up:
            rows: Ledger = (LedgerRow("LV", path, device.size_bytes, expected_bytes),)
        else:
            rows = _lv_rows(self._observed(volume).volume, device, expected_bytes)
        if not volume.attachments:
            return rows
        give_back = f"voldrivers doctor {volume.name} --repair"
        shown = LedgerRow(self._exports.layer, _name(volume), None, expected_bytes, repair=give_back)
        try:
            shown_bytes = self._exports.shown_bytes(volume.id)
            self._exports.check_open(volume)
            return (*rows, replace(shown, observed_bytes=shown_bytes))
        except VolDriverError as error:
            return (*rows, replace(shown, note=str(error)))

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        """Export the volume, and let the connector's host in. Raises NotSupported for one without a name."""
        device = self._device(self._observed(volume))
        self._exports.restore(volume, device)
        return self._exports.open(volume.id, device, connector, known(volume))

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        """Let the host in no more; with the last attachment the export ends."""
        if all(a.host != connector.host for a in volume.attachments):
            self._exports.close_to(volume.id, connector)
        if not volume.attachments:
            self._exports.remove(volume.id)

    def _device(self, found: _Found) -> Path:
        """Give the device, which is there then."""
        if not found.volume.is_active:
            self._lvm.activate(found.volume.name)
        return Path(found.volume.path)

    def _make(self, volume: Volume, group: VolumeGroup, *, thin: bool) -> None:
        name, tags = _name(volume), [TAG]
        room.check_metadata(volume.title, group, creates=True)
        if thin:
            room.check_thin(volume.title, group, self.options, volume.size_bytes)
            self._lvm.create_thin(name, volume.size_bytes, pool=self.options.pool, tags=tags)
        else:
            room.check_thick(volume.title, group, self.options, volume.size_bytes)
            if self.options.volume_clear == "before-use":
                tags.append(UNCLEARED)
            extents = volume.size_bytes // group.extent_bytes
            self._lvm.create(name, extents, stripes=self.options.stripes, tags=tags)

    def _grow(self, volume: Volume, found: _Found, growth_bytes: int) -> None:
        """Run lvextend. Raises NoSpace when the room was taken since it was looked for."""
        clears_first = self.options.volume_clear == "before-use" and not found.volume.is_thin
        extents = (found.volume.size_bytes + growth_bytes) // found.group.extent_bytes
        try:
            onto = self._cleared_extents(volume, found, growth_bytes) if clears_first else ()
            self._lvm.extend(found.volume.name, extents, onto)
        except (CommandFailed, OutcomeUnknown):
            after = self._observed(volume)
            self._end_change(after)
            if after.volume.size_bytes == found.volume.size_bytes:
                self._check_growth(volume, after, growth_bytes)
            raise
        self._lvm.flush(found.group)

    def _end_change(self, found: _Found) -> None:
        """End what was begun: no device stays suspended, or smaller than the metadata. Never smaller."""
        device = mapping.look(found.volume.path)
        if device is None:
            return
        if found.volume.is_interrupted or device.size_bytes < found.volume.size_bytes:
            self._lvm.end_change(device)
            self._lvm.flush(found.group)  # what is committed may not be on the disks

    def _cleared_extents(self, volume: Volume, found: _Found, growth_bytes: int) -> Sequence[str]:
        """Take free extents, clear them, and give them back for the volume to take.

        Whoever takes them in between makes the extend fail, with nothing grown: they are no longer free.
        """
        scratch, extents = _scratch_name(volume), growth_bytes // found.group.extent_bytes
        self._lvm.create(scratch, extents, stripes=found.volume.stripes, tags=[TAG, CLEARING])
        made = self._lvm.report().find(scratch)
        if made is None:
            raise BackendError(f"logical volume {self._lvm.group}/{scratch}", "it was made and is not there")
        clearing.clear(self.run, made.path, made.size_bytes)
        self._lvm.remove(scratch)
        return made.extents

    def _remove_scratch(self, group: VolumeGroup, volume: Volume) -> None:
        """Remove what an extend that was killed has left: extents that are nobody's yet."""
        left = group.find(_scratch_name(volume))
        if left is not None and CLEARING in left.tags:
            self._lvm.remove(left.name)

    def _check_growth(self, volume: Volume, found: _Found, growth_bytes: int) -> None:
        if growth_bytes <= 0:
            return
        room.check_metadata(volume.title, found.group, creates=False)
        if found.volume.is_thin:
            room.check_thin(volume.title, found.group, self.options, growth_bytes)
            return
        if found.volume.snapshots and found.volume.is_active:
            raise NotSupported(
                volume.title, "a thick volume with a snapshot cannot be extended while it is active"
            )
        room.check_thick(volume.title, found.group, self.options, growth_bytes)

    def _check_size(self, volume: Volume, size_bytes: int) -> None:
        """Refuse a size that was not rounded by this driver's rule: the caller does that, once."""
        if round_size(self, volume.title, size_bytes) != size_bytes:
            needed = f"must be a multiple of {format_size(self.size_rule.granularity_bytes)}"
            raise InvalidSize(volume.title, needed, format_size(size_bytes))

    def _is_thin(self, group: VolumeGroup, options: LVMVolumeOptions) -> bool:
        kind = options.lvm_type or self.options.lvm_type
        if kind == "auto":
            pool = group.find(self.options.pool)
            return pool is not None and pool.kind == "thin-pool"
        return kind == "thin"

    def _just_observed(self, volume: Volume) -> _Found:
        """Give what admission has seen a moment ago, else look. lvextend refuses what no longer holds."""
        admitted = self._admitted
        if admitted and admitted.volume_id == volume.id and time.monotonic() - admitted.at < _JUST_S:
            return admitted.found
        return self._observed(volume)

    def _observed(self, volume: Volume) -> _Found:
        found = self._find(self._lvm.report(), volume)
        if found is None:
            raise NotFound("volume", volume.name, f": there is no {self._title(volume)}")
        return found

    def _find(self, group: VolumeGroup, volume: Volume) -> _Found | None:
        """Find the volume's own logical volume. Raises InvalidState for one of its name without our tag."""
        found = group.find(_name(volume))
        if found is not None and TAG not in found.tags:
            raise InvalidState(self._title(volume), f"without the tag {TAG}", "one of ours")
        return None if found is None else _Found(group, found)

    def _title(self, volume: Volume) -> str:
        return f"logical volume {self._lvm.group}/{_name(volume)}"


def _lv_rows(found: LogicalVolume, device: Device | None, expected_bytes: int) -> Ledger:
    if device is None or device.size_bytes == found.size_bytes:
        note = f"{found.kind}, a change of it was interrupted" if found.is_interrupted else found.kind
        return (LedgerRow("LV", found.path, found.size_bytes, expected_bytes, note=note),)
    lv = LedgerRow(
        "LV", found.path, device.size_bytes, expected_bytes, note=f"{found.kind}, not its metadata's"
    )
    return (lv, LedgerRow("LV metadata", found.name, found.size_bytes, expected_bytes))


def _name(volume: Volume) -> str:
    return f"{_PREFIX}{volume.id}"


def _scratch_name(volume: Volume) -> str:
    return f"clearing-{volume.id}"
