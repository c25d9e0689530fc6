"""Copies: volumes that begin as what another one or a snapshot is, and volumes that become it again.

A thin one of a thin one shares its blocks; all else is copied byte for byte. Until it is whole it bears a tag
by which it is no volume yet.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from voldrivers.base import Run
from voldrivers.errors import InvalidSize, InvalidState, OutcomeUnknown, VolDriverError
from voldrivers.lvm import clearing, room
from voldrivers.lvm.lvmtools import LogicalVolume, VolumeGroup
from voldrivers.lvm.options import LVMVolumeOptions
from voldrivers.lvm.ours import COPYING, TAG, Found, New, OurVolumes, formers, volume_name
from voldrivers.lvm.snapshots import KeptSnapshots, is_snapshot, reverting_name
from voldrivers.model import Snapshot, Volume
from voldrivers.sizes import MiB, format_size

#: A slow disk that is read and written at once; the limit on time follows from it.
_SLOWEST_BYTES_PER_S, _LEAST_S = 4 * MiB, 60.0
_MOMENT = "copy-"


@dataclass(frozen=True)
class _Copy:
    """What is to be made, and of what."""

    new: New
    origin: LogicalVolume
    #: Nobody writes to the origin until the copy is whole; else this snapshot of it is copied.
    moment: str | None = None
    #: What a thin pool has promised to the volume that the copy replaces.
    freed_bytes: int = 0


class Copies:
    """The copies of one backend's volumes."""

    def __init__(self, ours: OurVolumes, snapshots: KeptSnapshots) -> None:
        """Take the backend's logical volumes and snapshots."""
        self.ours, self._snapshots, self._lvm = ours, snapshots, ours.lvm

    def clone(
        self, volume: Volume, options: LVMVolumeOptions, source: Volume, snapshot: Snapshot | None
    ) -> None:
        """Make `volume` what the source is now, in use or not, or what the snapshot is.

        Raises NotFound, InvalidState, InvalidSize, NoSpace, NotSupported.
        """
        moment = copying_name(volume)
        group = self.ours.end_changes(self._lvm.report(), volume_name(source), moment)
        found = self.ours.find(group, volume_name(volume))
        if found is not None and COPYING not in found.tags:
            return self.ours.check_same_size(volume, found)
        origin = self._origin(group, source, snapshot)
        self.ours.discard_named(group, moment)
        if volume.size_bytes < origin.size_bytes:
            reason = f"must be at least as large as {self.ours.title(origin.name)}"
            raise InvalidSize(volume.title, reason, format_size(volume.size_bytes))
        thin, tags = self.ours.is_thin(group, options), frozenset((TAG, COPYING))
        new = New(volume.title, volume_name(volume), volume.size_bytes, thin, tags)
        rests = snapshot is not None or not (source.attachments or origin.is_open)
        self._make(group, _Copy(new, origin, None if rests else moment))
        return None

    def revert(self, volume: Volume, snapshot: Snapshot) -> None:
        """Make a copy of the snapshot the volume, in place of what it was; every snapshot stays as it is.

        What it was is removed; where thick snapshots need that, it stays as `former-ID-NUMBER` until they are
        gone. Until the copy is whole the volume is as it was. Raises NotFound, NoSpace, InvalidState while it
        is in use.
        """
        name, scratch = volume_name(volume), reverting_name(snapshot)
        group = self._lvm.report()
        group = self.ours.end_changes(group, name, scratch, *(each.name for each in formers(group, volume)))
        old, made = self.ours.find(group, name), self.ours.find(group, scratch)
        if volume.attachments or (old is not None and old.is_open):
            raise InvalidState(self.ours.title(name), "in use", "closed by all who use it")
        if made is None or COPYING in made.tags:
            origin = self._snapshots.whole(group, snapshot)
            was = self.ours.found(group, volume).volume
            kind = (was.is_thin, was.tags | {COPYING}, was.stripes)
            new = New(volume.title, scratch, origin.size_bytes, *kind)
            self._make(group, _Copy(new, origin, freed_bytes=was.size_bytes))
        if old is not None:
            self._lvm.rename(name, _former_name(group, volume))
        self._lvm.rename(scratch, name)
        self._lvm.flush(group)
        self._snapshots.discard_formers(self._lvm.report(), volume)

    def _origin(self, group: VolumeGroup, source: Volume, snapshot: Snapshot | None) -> LogicalVolume:
        found = self.ours.found(group, source)
        return found.volume if snapshot is None else self._snapshots.whole(group, snapshot)

    def _make(self, group: VolumeGroup, wanted: _Copy) -> None:
        """Make a copy, whole when it loses its tag; one that a kill has left is made or written again."""
        new, origin = wanted.new, wanted.origin
        left = self.ours.find(group, new.name)
        if left is not None and (left.is_thin or new.thin or left.size_bytes != new.size_bytes):
            self.ours.discard(left)
            group, left = self._lvm.report(), None
        if new.thin and origin.is_thin and origin.pool == self.ours.options.pool:
            self._share(group, wanted)
        else:
            self._copy(wanted, left)
        self._lvm.untag(new.name, COPYING)
        self._lvm.flush(group)

    def _share(self, group: VolumeGroup, wanted: _Copy) -> None:
        """Make a thin snapshot a volume of its own."""
        new, origin = wanted.new, wanted.origin
        room.check_metadata(new.title, group, creates=True)
        room.check_thin(new.title, group, self.ours.options, new.size_bytes - wanted.freed_bytes)
        self._lvm.snapshot_thin(new.name, origin.name, tags=sorted(new.tags), active=True)
        if new.size_bytes > origin.size_bytes:
            self._lvm.extend(new.name, new.size_bytes // group.extent_bytes)

    def _copy(self, wanted: _Copy, left: LogicalVolume | None) -> None:
        """Copy every byte; to a thin volume, which is new, only what is not zero."""
        new, size_bytes = wanted.new, wanted.origin.size_bytes
        with self._readable(wanted) as path:
            if left is None:
                self.ours.make(self._lvm.report(), new)
            made = self.ours.named(new.name)
            if not made.is_active:
                self._lvm.activate(made.name)
            clears = self.ours.options.volume_clear == "before-use" and not made.is_thin
            if clears and made.size_bytes > size_bytes:
                clearing.clear(self.ours.run, made.path, made.size_bytes, size_bytes)
            copy(self.ours.run, path, made.path, size_bytes, sparse=made.is_thin)

    @contextmanager
    def _readable(self, wanted: _Copy) -> Iterator[str]:
        """Give the device of what is copied, which does not change; it is let go when that has ended.

        When nobody knows how it has ended it stays: whoever takes the step again finds it.
        """
        origin = wanted.origin
        if wanted.moment is not None:
            self._snapshots.take(wanted.new.title, Found(self._lvm.report(), origin), wanted.moment)
            origin = self.ours.named(wanted.moment)
        if not origin.is_active:
            self._lvm.activate(origin.name)
        try:
            yield origin.path
        except OutcomeUnknown:
            raise
        except VolDriverError:
            self._let_go(origin)
            raise
        self._let_go(origin)

    def _let_go(self, origin: LogicalVolume) -> None:
        if is_snapshot(origin) and origin.is_thin:
            self._lvm.deactivate(origin.name)
        elif origin.name.startswith(_MOMENT):
            self.ours.discard(origin)


def copy(run: Run, source: str, target: str, size_bytes: int, *, sparse: bool) -> None:
    """Copy all of a device to the beginning of another one, past the caches, and have the disks keep it.

    `sparse` leaves out zeroes, for a target that reads as zeros. May be repeated for one that is not sparse.
    Raises CommandFailed, OutcomeUnknown.
    """
    how = ["status=none", "bs=1M", "iflag=direct,fullblock", "oflag=direct"]
    written = f"conv=fsync,notrunc,nocreat{',sparse' if sparse else ''}"
    argv = ["dd", f"if={source}", f"of={target}", *how, written]
    run(argv, timeout_s=_LEAST_S + size_bytes / _SLOWEST_BYTES_PER_S)


def copying_name(volume: Volume) -> str:
    """Give the name of the snapshot that a copy of a volume in use is made from."""
    return f"{_MOMENT}{volume.id}"


def _former_name(group: VolumeGroup, volume: Volume) -> str:
    taken = {int(each.name.rpartition("-")[2]) for each in formers(group, volume)}
    return f"former-{volume.id}-{max(taken, default=0) + 1}"
