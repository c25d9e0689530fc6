"""Attachments whose volume a client connects by itself, as Nova and Glance do over the attachments API.

    reserve ─▶ give (the connection) ─▶ complete ─▶ release

The client connects between `give` and `complete` and disconnects before `release`. `resume` leaves them
alone: only the client knows how far it has come.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from voldrivers.base import Hosts
from voldrivers.errors import InvalidState, NotFound, NotSupported, VolDriverError
from voldrivers.extend.catalog import Catalog, attachment_of
from voldrivers.extend.site import Site, expect
from voldrivers.model import Attachment, AttachmentState, ConnectionInfo, Connector, Volume, VolumeStatus

#: The host of a reservation, which the connector names later.
_NOBODY = ""


def reserve(site: Site, name: str, instance: str | None, *, read_only: bool = False) -> Attachment:
    """Keep a volume for a client that will connect it. Raises InvalidState, NotFound."""
    with site.working_on(name) as volume:
        again = [VolumeStatus.IN_USE] if volume.multi_attach else []
        expect(volume, VolumeStatus.AVAILABLE, *again)
        wanted = Attachment(
            site.new_id(),
            volume.id,
            _NOBODY,
            instance,
            state=AttachmentState.RESERVED,
            by_client=True,
            read_only=read_only,
        )
        site.store.add_attachment(volume, wanted)
        return wanted


def give(site: Site, attachment_id: str, connector: Connector) -> Attachment:
    """Let the client's host reach the volume; the attachment has the connection then. May be repeated.

    Raises InvalidState, NotFound, and what the driver raises.
    """
    with _working_on(site, attachment_id) as (volume, attachment):
        _expect(volume, attachment, AttachmentState.RESERVED, AttachmentState.CONNECTING)
        if attachment.connector is not None and attachment.connector != connector:
            raise InvalidState(_title(attachment), f"given to host {attachment.host}", "deleted first")
        wanted = replace(attachment, host=connector.host, connector=connector)
        if any(other.id != wanted.id and other.place == wanted.place for other in volume.attachments):
            raise InvalidState(volume.title, f"attached to {wanted.place} already", "attached elsewhere")
        # Recorded before the host is let in, so that `release` lets it out again.
        site.store.update_attachment(wanted)
        others = replace(volume, attachments=tuple(a for a in volume.attachments if a.id != wanted.id))
        info = site.driver(volume).initialize_connection(others, connector)
        given = replace(wanted, state=AttachmentState.CONNECTING, connection_info=_one_way(info, connector))
        site.store.update_attachment(given)
        return given


def complete(site: Site, attachment_id: str) -> Attachment:
    """Take the client's word that it has connected the volume; its host's agent looks where it is.

    Without an agent it is attached all the same, and not extended until it is detached. Raises InvalidState,
    NotFound, and what the agent raises: the volume is not there, say.
    """
    with _working_on(site, attachment_id) as (volume, attachment):
        if attachment.state is AttachmentState.ATTACHED:
            return attachment
        _expect(volume, attachment, AttachmentState.CONNECTING)
        try:
            seen = found(site.hosts, volume, attachment)
        except VolDriverError as error:
            error.add_note(f"{volume.title} stays {VolumeStatus.ATTACHING}: complete it again, or delete it")
            raise
        attached = replace(seen, state=AttachmentState.ATTACHED)
        site.store.update_attachment(attached)
        return attached


def release(site: Site, attachment_id: str) -> None:
    """Let the client's host reach the volume no more, and forget the attachment.

    Raises InvalidState while the volume is extended, NotFound, and what the driver raises.
    """
    with _working_on(site, attachment_id) as (volume, attachment):
        if volume.status is VolumeStatus.EXTENDING:
            raise InvalidState(volume.title, volume.status, "extended to the end, or cancelled")
        others = replace(volume, attachments=tuple(a for a in volume.attachments if a.id != attachment.id))
        if attachment.connector is not None:
            site.driver(volume).terminate_connection(others, attachment.connector)
        site.store.remove_attachment(attachment)


def found(hosts: Hosts, volume: Volume, attachment: Attachment) -> Attachment:
    """Have a host say where an attachment's instance and device are: somebody else has connected it.

    Connecting what is connected changes nothing. Without a host it comes back as it is. Raises what the
    host does when the volume is not there.
    """
    info, host = attachment.connection_info, hosts.get(attachment.host)
    if host is None or info is None:
        return attachment
    with suppress(NotSupported, NotFound):  # the instance cannot be seen from there: an extend will say so
        attachment = host.find_instance(attachment)
    return replace(attachment, device_path=host.connect(volume, attachment, info))


@contextmanager
def _working_on(site: Site, attachment_id: str) -> Iterator[tuple[Volume, Attachment]]:
    """Hold the lock of an attachment's volume; give both as they are then."""
    with site.working_on(Catalog(site.store.database).volume_of(attachment_id)) as volume:
        yield volume, attachment_of(volume, attachment_id)


def _one_way(info: ConnectionInfo, connector: Connector) -> ConnectionInfo:
    """Leave one way where the client cannot join several: its host would have two disks of one volume."""
    properties = dict(info.properties)
    several = [name for name in ("target_portals", "target_iqns", "target_luns") if name in properties]
    if connector.multipath or not several:
        return info
    return replace(info, properties=properties | {each: properties[each].split(",")[0] for each in several})


def _expect(volume: Volume, attachment: Attachment, *allowed: AttachmentState) -> None:
    if not attachment.by_client:
        raise InvalidState(_title(attachment), "made by voldrivers itself", "made over the API")
    if attachment.state not in allowed:
        raise InvalidState(_title(attachment), attachment.state, " or ".join(allowed))
    if volume.status not in (VolumeStatus.RESERVED, VolumeStatus.ATTACHING, VolumeStatus.IN_USE):
        raise InvalidState(volume.title, volume.status, "being attached")


def _title(attachment: Attachment) -> str:
    return f"attachment {attachment.id}"
