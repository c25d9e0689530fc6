"""Resuming: ending what a killed or timed-out process has left under way with one volume."""

from contextlib import ExitStack
from dataclasses import dataclass, replace

from voldrivers.errors import InvalidState, VolDriverError
from voldrivers.extend import lifecycle, snapshots
from voldrivers.extend.carrying import carry, was_cancelled
from voldrivers.extend.site import Site, is_settled
from voldrivers.model import Phase, SnapshotStatus, Volume, VolumeStatus
from voldrivers.process import end_orphans
from voldrivers.sizes import format_size

#: Programs of a process that was killed may take so long to end; then they are ended.
ORPHAN_S = 30.0


@dataclass(frozen=True)
class Resumed:
    """What `resume` found under way and how it ended; `error` when it did not end well."""

    volume: Volume
    what: str
    outcome: str
    error: VolDriverError | None = None


def under_way(volume: Volume) -> bool:
    """Tell whether something was begun with a volume and has not ended."""
    return not is_settled(volume)


def resumed(site: Site, seen: Volume) -> Resumed:
    """Look first and take each step again; what cannot be ended is in the result with its error."""
    what = ", ".join([str(seen.status), *_unfinished(seen).values()])
    try:
        with site.working_on(seen.id) as volume:
            end_orphans(volume.id, timeout_s=ORPHAN_S)
            return Resumed(seen, what, _carry_on(site, volume))
    except VolDriverError as error:
        return Resumed(seen, what, "left as it is", error)


def _carry_on(site: Site, volume: Volume) -> str:
    if volume.status in (VolumeStatus.CREATING, VolumeStatus.MANAGING):
        return f"created, {format_size(_create(site, volume).size_bytes)}"
    if volume.status is VolumeStatus.DELETING:
        lifecycle.finish_delete(site, volume)
        return "deleted"
    if volume.status is VolumeStatus.UNMANAGING:
        return f"given up as {lifecycle.finish_unmanage(site, volume)}"
    if volume.status is VolumeStatus.REVERTING:
        to = next(each for each in volume.snapshots if each.status is SnapshotStatus.RESTORING)
        snapshots.finish_revert(site, volume, to)
    unfinished = _unfinished(volume)
    volume = snapshots.settle_snapshots(site, lifecycle.settle_attachments(site, volume))
    there = {snapshot.id: f"its {snapshot.title} {snapshot.status}" for snapshot in volume.snapshots}
    ended = [there.get(each, f"{told.rpartition(' ')[0]} gone") for each, told in unfinished.items()]
    return ", ".join([_carry(site, volume), *ended])


def _unfinished(volume: Volume) -> dict[str, str]:
    """Name the snapshots that have not come to their end, by their ids."""
    unfinished = (each for each in volume.snapshots if each.status is not SnapshotStatus.AVAILABLE)
    return {each.id: f"its {each.title} {each.status}" for each in unfinished}


def _create(site: Site, volume: Volume) -> Volume:
    """Make it, with the volume that it is a copy of left alone by others."""
    with ExitStack() as held:
        source = site.store.source(volume)
        if source.volume_id is not None:
            held.enter_context(site.locked(source.volume_id))
        return lifecycle.finish_create(site, volume)


def _carry(site: Site, volume: Volume) -> str:
    extend = site.store.last_extend(volume)
    if extend is None or not extend.phase.under_way:
        return str(volume.status)
    renewed = replace(extend, phase=Phase.GROWING, expires_at=site.expiry())
    site.store.move(extend, renewed)
    try:
        return f"extended, {format_size(carry(site, volume, renewed).to_bytes)}"
    except InvalidState:
        if was_cancelled(site, volume, extend):
            return "cancelled, nothing has grown"
        raise
