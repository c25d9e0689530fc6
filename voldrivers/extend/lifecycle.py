"""The steps by which a volume is made - new, as a copy, of what is there - and removed, attached, detached.

Each is recorded before it begins and may be taken again: `resume` does so after a crash.
"""

from collections.abc import Mapping
from dataclasses import replace

from voldrivers.abilities import Clones, Manages
from voldrivers.base import Driver, Host, able, round_size
from voldrivers.errors import (
    NOTHING_HAPPENED,
    InvalidInput,
    InvalidSize,
    InvalidState,
    NotFound,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.extend.site import Progress, Site
from voldrivers.model import (
    Attachment,
    AttachmentState,
    Connector,
    InstanceState,
    Snapshot,
    Source,
    Volume,
    VolumeStatus,
)
from voldrivers.options import read_options
from voldrivers.sizes import format_size


def finish_create(site: Site, volume: Volume) -> Volume:
    """Have the backend make a recorded volume and publish it; on failure nothing is left.

    What was there already is never removed: when that has failed in the middle, `resume` looks again.
    """
    driver, source, is_made = site.driver(volume), site.store.source(volume), False
    site.progress(Progress(volume, str(volume.status), format_size(volume.size_bytes)))
    try:
        provider_data = _make(site, driver, volume, source)
        is_made = True
        backend_bytes = driver.volume_size(replace(volume, provider_data=provider_data))
    except OutcomeUnknown:
        raise
    except VolDriverError as error:
        nothing_made = not is_made and isinstance(error, NOTHING_HAPPENED)
        if source.reference is None:
            _undo_create(site, volume, driver, nothing_made=nothing_made)
        elif nothing_made:
            site.store.remove_volume(volume)
        raise
    site.store.volume_created(volume, provider_data, backend_bytes)
    return site.store.volume(volume.id)


def clone_of(
    site: Site,
    name: str,
    source: Volume,
    snapshot: Snapshot | None,
    size_bytes: int | None,
    *,
    multi_attach: bool,
) -> Volume:
    """Give the volume that would be a copy. Raises NotSupported, InvalidSize."""
    driver, title = site.driver(source), f"volume {name}"
    able(driver, Clones, title)
    of, least_bytes = (
        (source.title, source.size_bytes) if snapshot is None else (snapshot.title, snapshot.size_bytes)
    )
    asked_bytes = least_bytes if size_bytes is None else size_bytes
    rounded_bytes = round_size(driver, title, asked_bytes)
    if rounded_bytes < least_bytes:
        reason = f"must be at least as large as {of}, {format_size(least_bytes)}"
        raise InvalidSize(title, reason, format_size(asked_bytes))
    return Volume(site.new_id(), name, source.backend, rounded_bytes, multi_attach=multi_attach)


def existing_size(site: Site, volume: Volume, reference: str, options: Mapping[str, object]) -> int:
    """Give the size of what could become a volume. Raises as `Manages.existing_size`, and NotSupported."""
    driver = site.driver(volume)
    kind: type[object] = driver.volume_options_type
    return able(driver, Manages, volume.title).existing_size(
        reference, read_options(kind, options, "volume option")
    )


def finish_unmanage(site: Site, volume: Volume, before: VolumeStatus | None = None) -> str:
    """Have the backend give a volume up, as recorded, and forget it; gives the reference that it has then.

    `before` as in `finish_delete`.
    """
    site.progress(Progress(volume, "unmanaging", volume.id))
    try:
        reference = able(site.driver(volume), Manages, volume.title).unmanage(volume)
    except NOTHING_HAPPENED:
        if before is not None:
            site.store.keep(volume, before)
        raise
    site.store.remove_volume(volume)
    return reference


def finish_delete(site: Site, volume: Volume, before: VolumeStatus | None = None) -> None:
    """Have the backend remove a volume that is recorded as being deleted, and forget it.

    One that the backend refuses to remove is again what it was `before`; who takes the step again
    gives none, because the operator's wish stands.
    """
    site.progress(Progress(volume, "deleting", format_size(volume.size_bytes)))
    try:
        site.driver(volume).delete_volume(volume)
    except NOTHING_HAPPENED:
        if before is not None:
            site.store.keep(volume, before)
        raise
    site.store.remove_volume(volume)


def finish_attach(site: Site, volume: Volume, attachment: Attachment) -> Attachment:
    """Connect and plug a recorded attachment; on failure it is undone and forgotten."""
    host, driver = site.host(attachment.host), site.driver(volume)
    others = _without(volume, attachment)
    site.progress(Progress(volume, "attaching", attachment.place))
    try:
        connector = host.connector()
        attachment = replace(attachment, connector=connector)
        site.store.update_attachment(attachment)
        connection_info = driver.initialize_connection(others, connector)
        path = host.connect(others, attachment, connection_info)
        attachment = replace(attachment, connection_info=connection_info, device_path=path)
        site.store.update_attachment(attachment)
        host.plug(others, attachment)
    except OutcomeUnknown:
        raise
    except VolDriverError as error:
        _undo_attach(site, volume, attachment, error)
        raise
    attached = replace(attachment, state=AttachmentState.ATTACHED)
    site.store.update_attachment(attached)
    return attached


def export_again(site: Site, volume: Volume) -> None:
    """Have the backend give attached hosts again what they were given: a lost export comes back."""
    for attachment in volume.attachments:
        if attachment.state is AttachmentState.ATTACHED and attachment.connector is not None:
            site.driver(volume).initialize_connection(volume, attachment.connector)


def check_ours(volume: Volume, attachment: Attachment) -> None:
    """Refuse an attachment that a client of the API connected. Raises InvalidState."""
    if attachment.by_client:
        place = attachment.place or "a client of the API"
        state = f"connected by {place} itself (attachment {attachment.id})"
        raise InvalidState(volume.title, state, "let go of by who connected it, or by force if that is lost")


def begin_detach(site: Site, attachment: Attachment, state: AttachmentState) -> Attachment:
    """Record that an attachment is being taken away: DETACHING, or FORGETTING by force."""
    leaving = replace(attachment, state=state)
    site.store.update_attachment(leaving)
    return leaving


def finish_detach(
    site: Site, volume: Volume, attachment: Attachment, before: Attachment | None = None
) -> None:
    """Unplug, disconnect and forget an attachment.

    One that cannot be unplugged stays as it was `before` (InvalidState); that is recorded too. Who takes
    the steps again gives none, because an earlier unplug may have taken effect: then only a guest
    that runs and keeps it has it still.
    """
    host, others = site.host(attachment.host), _staying(volume, attachment)
    site.progress(Progress(volume, "detaching", attachment.place))
    _unplug(site, host, others, attachment, before)
    _let_go(site, host, others, attachment)


def forget_attachment(site: Site, volume: Volume, attachment: Attachment) -> None:
    """Drop an attachment whose host is lost, on the operator's word, without asking that host."""
    others = _without(volume, attachment)
    connector = attachment.connector or Connector(attachment.host)
    site.driver(volume).terminate_connection(others, connector)
    by_force = f"detached from {attachment.place} by force, without asking the host"
    site.store.remove_attachment(attachment, by_force)


def settle_attachments(site: Site, volume: Volume) -> Volume:
    """End what a killed process began with a volume's attachments; give the volume as it is then."""
    for attachment in volume.attachments:
        # Read anew each time: a host is let go only with its last attachment.
        now = site.store.volume(volume.id)
        if attachment.state is AttachmentState.ATTACHING:
            finish_attach(site, now, attachment)
        elif attachment.state is AttachmentState.DETACHING:
            finish_detach(site, now, attachment)
        elif attachment.state is AttachmentState.FORGETTING:
            forget_attachment(site, now, attachment)
    return site.store.volume(volume.id)


def choose_attachment(volume: Volume, host: str | None, instance: str | None) -> Attachment:
    """Find the attachment that is meant; instance "" is the one without. Raises NotFound, InvalidInput."""
    fitting = [
        a
        for a in volume.attachments
        if host in (None, a.host) and (instance is None or instance == (a.instance or ""))
    ]
    if not fitting:
        place = "/".join(part for part in (host, instance) if part)
        raise NotFound("attachment", f"of {volume.title}" + (f" to {place}" if place else ""))
    if len(fitting) > 1:
        places = ", ".join(a.place for a in fitting)
        raise InvalidInput(volume.title, f"is attached to {places}: name the host and the instance")
    return fitting[0]


def _make(site: Site, driver: Driver, volume: Volume, source: Source) -> str:
    """Make a volume in the way that was asked for, the one it is a copy of being left alone by others."""
    kind: type[object] = driver.volume_options_type
    options = read_options(kind, site.store.creation_options(volume), "volume option")
    if source.reference is not None:
        return able(site.driver(volume), Manages, volume.title).manage_existing(
            volume, source.reference, options
        )
    if source.volume_id is None:
        return driver.create_volume(volume, options)
    origin = site.store.volume(source.volume_id)
    snapshot = next((each for each in origin.snapshots if each.id == source.snapshot_id), None)
    if source.snapshot_id is not None and snapshot is None:
        raise NotFound("snapshot", source.snapshot_id, f" of {origin.title}")
    return able(driver, Clones, volume.title).clone_volume(volume, options, origin, snapshot)


def _undo_create(site: Site, volume: Volume, driver: Driver, *, nothing_made: bool) -> None:
    """Remove what a failed create left, and forget the volume.

    A backend that can neither make nor remove it now (a share that is away) has nothing of it if that is
    what it said of making it (`nothing_made`); else the record stays, for `resume` to look.
    """
    try:
        driver.delete_volume(volume)
    except VolDriverError:
        if not nothing_made:
            raise
    site.store.remove_volume(volume)


def _undo_attach(site: Site, volume: Volume, attachment: Attachment, error: VolDriverError) -> None:
    """Take back what a failed attach did; a disk that was there before it, of somebody else, stays."""
    try:
        finish_detach(site, volume, attachment)
    except InvalidState:
        if not isinstance(error, NOTHING_HAPPENED):
            raise
        _let_go(site, site.host(attachment.host), _staying(volume, attachment), attachment)


def _let_go(site: Site, host: Host, others: Volume, attachment: Attachment) -> None:
    """Take the volume off the host, unless others there have it too; all of them share one device."""
    if all(other.host != attachment.host for other in others.attachments):
        host.disconnect(others, attachment)
    site.driver(others).terminate_connection(others, attachment.connector or host.connector())
    site.store.remove_attachment(attachment)


def _unplug(
    site: Site, host: Host, volume: Volume, attachment: Attachment, before: Attachment | None
) -> None:
    try:
        host.unplug(volume, attachment)
    except InvalidState:
        if before is not None:
            site.store.update_attachment(before)
        elif _is_kept(host, attachment):
            site.store.update_attachment(replace(attachment, state=AttachmentState.ATTACHED))
        raise


def _is_kept(host: Host, attachment: Attachment) -> bool:
    leaving = attachment.state is AttachmentState.DETACHING
    return leaving and host.instance_state(attachment) is InstanceState.RUNNING


def _without(volume: Volume, attachment: Attachment) -> Volume:
    return replace(volume, attachments=tuple(a for a in volume.attachments if a.id != attachment.id))


def _staying(volume: Volume, leaving: Attachment) -> Volume:
    """Give the volume without an attachment, and without what is being forgotten on the same host.

    The last one there lets go of the host, and forgetting never does.
    """
    forgotten = (leaving.host, AttachmentState.FORGETTING)
    others = _without(volume, leaving)
    staying = (a for a in others.attachments if (a.host, a.state) != forgotten)
    return replace(volume, attachments=tuple(staying))
