"""The steps by which a snapshot is taken, deleted and reverted to.

Each is recorded before it begins and may be taken again: `resume` does so after a crash.
"""

from dataclasses import replace

from voldrivers.abilities import Layers, Merge, Reverts, Snapshots
from voldrivers.base import Host, able
from voldrivers.errors import (
    NOTHING_HAPPENED,
    BackendError,
    InvalidState,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.extend.converge import with_instance_states
from voldrivers.extend.site import Progress, Site
from voldrivers.model import Attachment, Snapshot, SnapshotStatus, Volume
from voldrivers.sizes import format_size

_POLL_S = 0.5
#: A merge that the driver still finds undone after so many times has not done what it said.
_MERGES = 3


def finish_snapshot(site: Site, volume: Volume, snapshot: Snapshot) -> Snapshot:
    """Have the backend keep a volume as it is, for a recorded snapshot; on failure it is as before.

    Where the volume is written elsewhere afterwards, every host goes on there before that is recorded.
    """
    driver = able(site.driver(volume), Snapshots, volume.title)
    site.progress(Progress(volume, "taking", snapshot.title))
    seen = volume
    try:
        seen = with_instance_states(volume, site.hosts)
        taken = driver.create_snapshot(seen, snapshot)
        kept = replace(snapshot, provider_data=taken.of_snapshot, status=SnapshotStatus.AVAILABLE)
        after = replace(seen, provider_data=taken.of_volume)
        kept = replace(kept, size_bytes=driver.snapshot_size(after, kept))
        if after.provider_data != seen.provider_data:
            after = _switch(site, after)
    except OutcomeUnknown:
        raise
    except VolDriverError:
        driver.delete_snapshot(seen, snapshot)
        site.store.remove_snapshot(snapshot)
        raise
    site.store.snapshot_taken(after, kept)
    return kept


def finish_snapshot_removal(site: Site, volume: Volume, snapshot: Snapshot, *, fresh: bool = False) -> None:
    """Have the backend remove a snapshot that is recorded as being deleted, and forget it.

    Where the volume is in use on layers that must be merged first, its QEMU does that. One that the
    backend refuses right away, asked for just now (`fresh`), is available again.
    """
    driver = able(site.driver(volume), Snapshots, volume.title)
    site.progress(Progress(volume, "deleting", snapshot.title))
    try:
        merge = driver.delete_snapshot(with_instance_states(volume, site.hosts), snapshot)
    except NOTHING_HAPPENED:
        if fresh:
            site.store.keep_snapshot(snapshot)
        raise
    for _ in range(_MERGES):
        if merge is None:
            site.store.remove_snapshot(snapshot)
            return
        _merge(site, with_instance_states(volume, site.hosts), merge)
        merge = driver.delete_snapshot(with_instance_states(volume, site.hosts), snapshot)
    raise BackendError(snapshot.title, "its layers are not merged, although every host said so")


def finish_revert(site: Site, volume: Volume, snapshot: Snapshot, *, fresh: bool = False) -> None:
    """Have the backend make a volume what its snapshot is, as recorded, and publish its size.

    One that the backend refuses right away, asked for just now (`fresh`), is available as it was.
    """
    driver = site.driver(volume)
    site.progress(Progress(volume, "reverting", f"to {snapshot.title}, {format_size(snapshot.size_bytes)}"))
    try:
        provider_data = able(driver, Reverts, volume.title).revert_to_snapshot(volume, snapshot)
    except NOTHING_HAPPENED:
        if fresh:
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


def _switch(site: Site, volume: Volume) -> Volume:
    """Have every host go on where the volume is written now; all of them, once one has."""
    attachments: list[Attachment] = []
    for attachment in volume.attachments:
        host = site.host(attachment.host)
        try:
            connector = attachment.connector or host.connector()
            info = site.driver(volume).initialize_connection(volume, connector)
            path = _layered(host, volume).switch(volume, attachment, info)
        except VolDriverError as error:
            if attachments and not isinstance(error, OutcomeUnknown):
                what = f"{volume.title} on {attachment.place}, others having been switched"
                raise OutcomeUnknown(what, str(error)) from error
            raise
        attachments.append(replace(attachment, connection_info=info, device_path=path))
    return replace(volume, attachments=tuple(attachments))


def _layered(host: Host, volume: Volume) -> Layers:
    if not isinstance(host, Layers):
        raise NotSupported(volume.title, f"host {host.name} can have no layers of a file merged or switched")
    return host


def _merge(site: Site, volume: Volume, merge: Merge) -> None:
    """Wait for every running instance to merge, as long as there is progress within the deadline."""
    running = [a for a in volume.attachments if a.may_run]
    if not running:
        raise InvalidState(volume.title, "no longer running", "left alone until `resume`")
    for attachment in running:
        host, least, due = _layered(site.host(attachment.host), volume), None, site.expiry()
        while left_bytes := host.merge(volume, attachment, merge):
            if least is None or left_bytes < least:
                least, due = left_bytes, site.expiry()
            elif site.now() >= due:
                stuck = f"{format_size(left_bytes)} are left and nothing moves"
                raise OutcomeUnknown(f"merging layers of {volume.title} on {attachment.place}", stuck)
            site.sleep(_POLL_S)
