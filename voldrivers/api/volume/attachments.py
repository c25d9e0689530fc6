"""Attachments: reserving, connecting, completing, and letting go (the API that Nova and Glance use)."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from voldrivers.api.volume import bodies, versions, views
from voldrivers.api.volume.asked import Asked, Question
from voldrivers.api.volume.faults import Refused
from voldrivers.errors import InvalidState, NotFound
from voldrivers.extend import clients
from voldrivers.extend.catalog import Catalog, attachment_of
from voldrivers.extend.engine import Engine
from voldrivers.model import Attachment, Connector, Volume

router = APIRouter(tags=["attachments"])


@router.post("/attachments")
async def create(asked: Question, body: bodies.CreateAttachment) -> views.View:
    """Reserve a volume; with a connector let its host reach it; with `voldrivers:host` attach it there."""
    asked.needs(versions.ATTACHMENTS)
    wanted = body.attachment
    if wanted.mode is not None and asked.version < versions.ATTACHMENT_MODE:
        raise Refused(400, f"mode came with version {versions.ATTACHMENT_MODE}.")

    def work(engine: Engine) -> Attachment:
        volume, said = asked.found(engine, wanted.volume_uuid, "volume:attachment_create")
        for_reading = said is not None and said.read_only
        if for_reading and (wanted.host is not None or wanted.mode == "rw"):
            raise Refused(400, f"Volume {volume.id} is read-only, and cannot be attached for writing.")
        if wanted.host is not None:
            asked.must("voldrivers:attach")
            return engine.attach(volume.id, wanted.host, wanted.instance_uuid)
        read_only = for_reading or wanted.mode == "ro"
        return _created(engine, volume, wanted.instance_uuid, wanted.connector, read_only=read_only)

    # To its end, however long that takes: the answer holds the connection.
    attachment = await asked.act_whole(work)
    return {"attachment": _view(asked, attachment)}


@router.get("/attachments")
async def list_briefly(
    asked: Question, volume_id: str | None = None, instance_id: str | None = None
) -> views.View:
    """List attachments."""
    asked.needs(versions.ATTACHMENTS)
    found = await asked.look(lambda engine: _found(asked, engine, volume_id, instance_id))
    return {"attachments": [views.attachment(each, in_full=False) for each in found]}


@router.get("/attachments/detail")
async def list_in_detail(
    asked: Question,
    volume_id: Annotated[str | None, Query()] = None,
    instance_id: Annotated[str | None, Query()] = None,
) -> views.View:
    """List attachments with what their hosts need to connect."""
    asked.needs(versions.ATTACHMENTS)
    found = await asked.look(lambda engine: _found(asked, engine, volume_id, instance_id))
    return {"attachments": [_view(asked, each) for each in found]}


@router.get("/attachments/{attachment_id}")
async def show(asked: Question, attachment_id: str) -> views.View:
    """Show an attachment."""
    asked.needs(versions.ATTACHMENTS)
    attachment = await asked.look(
        lambda engine: _one(asked, engine, attachment_id, "volume:attachment_get")[1]
    )
    return {"attachment": _view(asked, attachment)}


@router.put("/attachments/{attachment_id}")
async def update(asked: Question, attachment_id: str, body: bodies.UpdateAttachment) -> views.View:
    """Let a host reach a reserved volume; the answer says how."""
    asked.needs(versions.ATTACHMENTS)

    def work(engine: Engine) -> Attachment:
        _one(asked, engine, attachment_id, "volume:attachment_update")
        return clients.give(engine.site, attachment_id, _connector(body.attachment.connector))

    return {"attachment": _view(asked, await asked.act_whole(work))}


@router.post("/attachments/{attachment_id}/action", status_code=204)
async def complete(asked: Question, attachment_id: str, body: bodies.AttachmentAction) -> None:  # noqa: ARG001 - checked
    """Take the client's word that it has connected the volume."""
    asked.needs(versions.ATTACHMENT_COMPLETE)

    def work(engine: Engine) -> Attachment:
        _one(asked, engine, attachment_id, "volume:attachment_complete")
        return clients.complete(engine.site, attachment_id)

    await asked.act_whole(work)


@router.delete("/attachments/{attachment_id}")
async def delete(asked: Question, attachment_id: str) -> views.View:
    """Let go of a volume; one that the service attached itself is unplugged and disconnected first."""
    asked.needs(versions.ATTACHMENTS)

    def work(engine: Engine) -> Volume:
        volume, attachment = _one(asked, engine, attachment_id, "volume:attachment_delete")
        if attachment.by_client:
            clients.release(engine.site, attachment_id)
        else:
            engine.detach(volume.id, attachment.host, attachment.instance or "")
        return engine.volume(volume.id)

    volume = await asked.act_whole(work)
    return {"attachments": [views.attachment(each, in_full=False) for each in volume.attachments]}


def _created(
    engine: Engine,
    volume: Volume,
    instance: str | None,
    connector: bodies.Connector | None,
    *,
    read_only: bool,
) -> Attachment:
    reserved = clients.reserve(engine.site, volume.id, instance, read_only=read_only)
    if connector is None:
        return reserved
    try:
        return clients.give(engine.site, reserved.id, _connector(connector))
    except InvalidState:
        clients.release(engine.site, reserved.id)
        raise


def _connector(given: bodies.Connector) -> Connector:
    return Connector(given.host, given.ip, given.initiator, given.multipath, given.nqn)


def _one(asked: Asked, engine: Engine, attachment_id: str, rule: str) -> tuple[Volume, Attachment]:
    volume_id = Catalog(engine.store.database).volume_of(attachment_id)
    try:
        volume, _ = asked.found(engine, volume_id, rule)
    except NotFound as error:
        raise NotFound("attachment", attachment_id) from error
    return volume, attachment_of(volume, attachment_id)


def _found(asked: Asked, engine: Engine, volume_id: str | None, instance: str | None) -> list[Attachment]:
    described = Catalog(engine.store.database).all()
    return [
        attachment
        for volume in engine.volumes()
        if asked.sees(described.get(volume.id)) and volume_id in (None, volume.id)
        for attachment in volume.attachments
        if instance in (None, attachment.instance)
    ]


def _view(asked: Asked, attachment: Attachment) -> dict[str, Any]:  # Any: what JSON holds
    in_full = asked.policy.allows("volume:attachment_get", asked.caller, asked.project)
    return views.attachment(attachment, in_full=in_full)
