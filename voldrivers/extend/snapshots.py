"""The steps by which a snapshot is taken, deleted and reverted to.

Each is recorded before it begins and may be taken again: `resume` does so after a crash.
"""

from dataclasses import replace
from functools import partial

from voldrivers.abilities import Reverts
from voldrivers.base import able
from voldrivers.errors import NOTHING_HAPPENED, NotSupported
from voldrivers.extend.site import Progress, Site
from voldrivers.extend.taking import Reach, begin_removal, finish_removal, take
from voldrivers.model import Snapshot, SnapshotStatus, Volume
from voldrivers.sizes import format_size


def finish_snapshot(site: Site, volume: Volume, snapshot: Snapshot) -> Snapshot:
    """Have the backend keep a volume as it is, for a recorded snapshot; on failure it is as before.

    Where the volume is written elsewhere afterwards, every host goes on there before that is recorded.
    """
    site.progress(Progress(volume, "taking", snapshot.title))
    forget = partial(site.store.remove_snapshot, snapshot)
    after, kept = take(_reach(site, volume), volume, snapshot, undone=forget)
    site.store.snapshot_taken(after, kept)
    return kept


def finish_snapshot_removal(site: Site, volume: Volume, snapshot: Snapshot, *, fresh: bool = False) -> None:
    """Have the backend remove a snapshot that is recorded as being deleted, and forget it.

    Where the volume is in use on layers that must be merged first, its QEMU does that. One that the
    backend refuses right away, asked for just now (`fresh`), is available again; so is one whose layers
    the volume's host cannot merge.
    """
    reach = _reach(site, volume)
    site.progress(Progress(volume, "deleting", snapshot.title))
    try:
        merge = begin_removal(reach, volume, snapshot)
    except NOTHING_HAPPENED:
        if fresh:
            site.store.keep_snapshot(snapshot)
        raise
    try:
        finish_removal(reach, volume, snapshot, merge)
    except NotSupported:
        if fresh and begin_removal(reach, volume, snapshot) == merge:  # nothing of it was done
            site.store.keep_snapshot(snapshot)
        raise
    site.store.remove_snapshot(snapshot)


def finish_revert(site: Site, volume: Volume, snapshot: Snapshot, *, fresh: bool = False) -> None:
    """Have the backend make a volume what its snapshot is, as recorded, and publish its size.

    One that the backend refuses right away, asked for just now (`fresh`), is available as it was; so is one
    that it does not do at all (a declared condition), whoever asked and was killed.
    """
    driver = site.driver(volume)
    site.progress(Progress(volume, "reverting", f"to {snapshot.title}, {format_size(snapshot.size_bytes)}"))
    try:
        provider_data = able(driver, Reverts, volume.title).revert_to_snapshot(volume, snapshot)
    except NOTHING_HAPPENED as error:
        if fresh or isinstance(error, NotSupported):
            site.store.end_revert(volume, snapshot)
        raise
    reverted = replace(volume, provider_data=provider_data)
    site.store.end_revert(replace(reverted, size_bytes=driver.volume_size(reverted)), snapshot)


def settle_snapshots(site: Site, volume: Volume) -> Volume:
    """End what a killed process began with a volume's snapshots; give the volume as it is then."""
    for snapshot in volume.snapshots:
        now = site.store.volume(volume.id)
        if snapshot.status is SnapshotStatus.CREATING:
            finish_snapshot(site, now, snapshot)
        elif snapshot.status is SnapshotStatus.DELETING:
            finish_snapshot_removal(site, now, snapshot)
    return site.store.volume(volume.id)


def _reach(site: Site, volume: Volume) -> Reach:
    return Reach(site.driver(volume), site.hosts, site.expiry, site.now, site.sleep)
