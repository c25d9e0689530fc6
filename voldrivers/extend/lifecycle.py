"""The steps by which a volume is created, deleted, attached and detached.

Each is recorded before it begins and may be taken again: `resume` does so after a crash.
"""

from dataclasses import replace

from voldrivers.base import Driver, Host
from voldrivers.errors import (
    NOTHING_HAPPENED,
    InvalidInput,
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
    Volume,
    VolumeStatus,
)
from voldrivers.options import read_options
from voldrivers.sizes import format_size


def finish_create(site: Site, volume: Volume) -> Volume:
    """Have the backend make a recorded volume and publish it; on failure nothing is left."""
    driver = site.driver(volume)
    kind: type[object] = driver.volume_options_type
    options = read_options(kind, site.store.creation_options(volume), "volume option")
    site.progress(Progress(volume, "creating", format_size(volume.size_bytes)))
    is_made = False
    try:
        provider_data = driver.create_volume(volume, options)
        is_made = True
        backend_bytes = driver.volume_size(replace(volume, provider_data=provider_data))
    except OutcomeUnknown:
        raise
    except VolDriverError as error:
        nothing_made = not is_made and isinstance(error, NOTHING_HAPPENED)
        _undo_create(site, volume, driver, nothing_made=nothing_made)
        raise
    site.store.volume_created(volume, provider_data, backend_bytes)
    return site.store.volume(volume.id)


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
    host, others = site.host(attachment.host), _without(volume, attachment)
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
        _let_go(site, site.host(attachment.host), _without(volume, attachment), attachment)


def _let_go(site: Site, host: Host, others: Volume, attachment: Attachment) -> None:
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
