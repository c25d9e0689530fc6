"""Taking a snapshot and removing one: look and act, without records, volume in use or not.

The engine is this plus its store (`snapshots`), an adapter for another platform this plus that one's records.
Each may be done again after a crash.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from voldrivers.abilities import Layers, Merge, Snapshots
from voldrivers.base import Driver, Host, Hosts, Sleep, able
from voldrivers.errors import (
    BackendError,
    InvalidState,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.extend.converge import with_instance_states
from voldrivers.model import Attachment, Snapshot, SnapshotStatus, Volume, utc_now
from voldrivers.sizes import format_size

_POLL_S = 0.5
#: A merge that the driver still finds undone after so many times has not done what it said.
_MERGES = 3


@dataclass(frozen=True)
class Reach:
    """What is needed for one volume: its driver, the hosts, and until when no progress is borne."""

    driver: Driver
    hosts: Hosts
    expiry: Callable[[], datetime]
    now: Callable[[], datetime] = utc_now
    sleep: Sleep = time.sleep

    def host(self, name: str) -> Host:
        """Give a host. Raises NotFound."""
        if name not in self.hosts:
            raise NotFound("host", name)
        return self.hosts[name]

    def as_seen(self, volume: Volume) -> Volume:
        """Give a volume with what its hosts know of their instances now."""
        return with_instance_states(volume, self.hosts)


def take(
    reach: Reach, volume: Volume, snapshot: Snapshot, undone: Callable[[], object] = lambda: None
) -> tuple[Volume, Snapshot]:
    """Have the backend keep a volume as it is; give both as they are then.

    Where the volume is written elsewhere afterwards, every host goes on there before this returns. On
    failure it is as before, and `undone` is called once that is so. Raises as `Snapshots.create_snapshot`.
    """
    driver, seen = able(reach.driver, Snapshots, volume.title), volume
    try:
        seen = reach.as_seen(volume)
        taken = driver.create_snapshot(seen, snapshot)
        kept = replace(snapshot, provider_data=taken.of_snapshot, status=SnapshotStatus.AVAILABLE)
        after = replace(seen, provider_data=taken.of_volume)
        kept = replace(kept, size_bytes=driver.snapshot_size(after, kept))
        if after.provider_data != seen.provider_data:
            after = _switch(reach, after)
    except OutcomeUnknown:
        raise
    except VolDriverError:
        driver.delete_snapshot(seen, snapshot)
        undone()
        raise
    return after, kept


def begin_removal(reach: Reach, volume: Volume, snapshot: Snapshot) -> Merge | None:
    """Have the backend remove a snapshot; what a QEMU must merge first is given, nothing being done then."""
    driver = able(reach.driver, Snapshots, volume.title)
    return driver.delete_snapshot(reach.as_seen(volume), snapshot)


def finish_removal(reach: Reach, volume: Volume, snapshot: Snapshot, merge: Merge | None) -> None:
    """Have every running instance merge what must be, until the backend has removed the snapshot."""
    for _ in range(_MERGES):
        if merge is None:
            return
        _merge(reach, reach.as_seen(volume), merge)
        merge = begin_removal(reach, volume, snapshot)
    raise BackendError(snapshot.title, "its layers are not merged, although every host said so")


def _switch(reach: Reach, volume: Volume) -> Volume:
    """Have every host go on where the volume is written now; all of them, once one has."""
    attachments: list[Attachment] = []
    for attachment in volume.attachments:
        host = reach.host(attachment.host)
        try:
            connector = attachment.connector or host.connector()
            info = reach.driver.initialize_connection(volume, connector)
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


def _merge(reach: Reach, volume: Volume, merge: Merge) -> None:
    """Wait for every running instance to merge, as long as there is progress within the deadline."""
    running = [a for a in volume.attachments if a.may_run]
    if not running:
        raise InvalidState(volume.title, "no longer running", "left alone until `resume`")
    for attachment in running:
        host, least, due = _layered(reach.host(attachment.host), volume), None, reach.expiry()
        while left_bytes := host.merge(volume, attachment, merge):
            if least is None or left_bytes < least:
                least, due = left_bytes, reach.expiry()
            elif reach.now() >= due:
                stuck = f"{format_size(left_bytes)} are left and nothing moves"
                raise OutcomeUnknown(f"merging layers of {volume.title} on {attachment.place}", stuck)
            reach.sleep(_POLL_S)
