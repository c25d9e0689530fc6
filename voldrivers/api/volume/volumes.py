"""Volumes: creating, showing, listing, changing, deleting, and taking over what is there."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, StringConstraints
from pydantic.json_schema import SkipJsonSchema

from voldrivers.api.volume import bodies, versions, views
from voldrivers.api.volume.asked import Asked, Question, changed, describe
from voldrivers.api.volume.faults import Refused
from voldrivers.errors import InvalidInput, NotFound, VolDriverError
from voldrivers.extend.catalog import Catalog, Description
from voldrivers.extend.engine import Engine
from voldrivers.model import Volume, check_name

router = APIRouter(tags=["volumes"])

_SORT = r"^((created_at|id|name|size|status)(:(asc|desc))?(,|$))*$"
_MOST = 1000


class Filters(BaseModel):
    """What a list is narrowed to, as clients send it in the query. Others are let pass, as Cinder does."""

    name: str | None = None
    status: str | None = None
    all_tenants: str = "0"
    limit: Annotated[int, Field(ge=0, le=2**31 - 1)] = _MOST
    offset: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    marker: str | None = None
    sort: Annotated[str, StringConstraints(pattern=_SORT)] | SkipJsonSchema[None] = None
    sort_key: Literal["created_at", "id", "name", "size", "status"] = "created_at"
    sort_dir: Literal["asc", "desc"] = "desc"

    @property
    def is_for_everybody(self) -> bool:
        """Tell whether all projects are wanted."""
        return self.all_tenants.lower() in ("1", "true", "yes", "t", "on")


@router.post("/volumes", status_code=202)
async def create(asked: Question, body: bodies.CreateVolume) -> views.View:
    """Create a volume: empty, as a copy of another one, or of a snapshot."""
    wanted = body.volume
    asked.must("volume:create")
    if wanted.snapshot_id is not None and wanted.source_volid is not None:
        raise Refused(400, "Only one of snapshot_id and source_volid can be given.")
    size_bytes = wanted.wanted_bytes
    if size_bytes is None and wanted.snapshot_id is None and wanted.source_volid is None:
        raise Refused(400, "The size is missing.")
    making = Making(describe(asked, wanted))
    volume = await asked.act(_creation(asked, wanted, size_bytes), making.begun, making.failed)
    return {"volume": await asked.look(lambda engine: _shown(asked, engine, volume))}


@router.get("/volumes")
async def list_briefly(asked: Question, filters: Annotated[Filters, Query()]) -> views.View:
    """List volumes."""
    found = await asked.look(lambda engine: _listed(asked, engine, filters))
    return {"volumes": [views.brief(each) for each in found]}


@router.get("/volumes/detail")
async def list_in_detail(asked: Question, filters: Annotated[Filters, Query()]) -> views.View:
    """List volumes with all that is known of them."""
    return {"volumes": await asked.look(lambda engine: _listed(asked, engine, filters))}


@router.get("/volumes/{volume_id}")
async def show(asked: Question, volume_id: str) -> views.View:
    """Show a volume."""

    def look(engine: Engine) -> views.View:
        said = Catalog(engine.store.database).get(volume_id)
        try:
            volume, _ = asked.found(engine, volume_id, "volume:get")
        except NotFound:
            if said is None or not said.failure or not asked.sees(said):
                raise
            return views.failed(said, asked.version, is_admin=asked.is_admin)
        return _view(asked, engine, volume, said)

    return {"volume": await asked.look(look)}


@router.put("/volumes/{volume_id}")
async def update(asked: Question, volume_id: str, body: bodies.UpdateVolume) -> views.View:
    """Change name, description or metadata; the name on the command line stays."""
    return {"volume": await asked.look(lambda engine: _changed(asked, engine, volume_id, body.volume))}


@router.get("/volumes/{volume_id}/metadata")
async def show_metadata(asked: Question, volume_id: str) -> views.View:
    """Show the metadata of a volume."""
    return {"metadata": (await show(asked, volume_id))["volume"]["metadata"]}


@router.put("/volumes/{volume_id}/metadata")
async def replace_metadata(asked: Question, volume_id: str, body: bodies.NewMetadata) -> views.View:
    """Replace the metadata of a volume."""
    changes = bodies.Changes(metadata=body.metadata)
    shown = await asked.look(lambda engine: _changed(asked, engine, volume_id, changes))
    return {"metadata": shown["metadata"]}


@router.post("/volumes/{volume_id}/metadata")
async def add_metadata(asked: Question, volume_id: str, body: bodies.NewMetadata) -> views.View:
    """Add to the metadata of a volume."""

    def work(engine: Engine) -> views.View:
        _, said = asked.found(engine, volume_id, "volume:update")
        both = {**(said.metadata if said else {}), **body.metadata}
        return _changed(asked, engine, volume_id, bodies.Changes(metadata=both))

    return {"metadata": (await asked.look(work))["metadata"]}


@router.delete("/volumes/{volume_id}", status_code=202)
async def delete(asked: Question, volume_id: str) -> None:
    """Delete a volume that is detached, or forget one that could not be made."""

    def work(engine: Engine) -> None:
        catalog = Catalog(engine.store.database)
        try:
            volume, _ = asked.found(engine, volume_id, "volume:delete")
        except NotFound:
            said = catalog.get(volume_id)
            if said is None or not said.failure or not asked.sees(said):
                raise
            asked.must("volume:delete", said.project)
        else:
            engine.delete_volume(volume.id)
        catalog.remove(volume_id)

    await asked.act(work, failed=lambda engine, error: _note(engine, volume_id, error))


@router.post("/manageable_volumes", status_code=202)
async def manage(asked: Question, body: bodies.ManageVolume) -> views.View:
    """Make something that is on a backend already a volume, with all its bytes."""
    asked.needs(versions.MANAGE)
    asked.must("volume_extension:volume_manage")
    wanted = body.volume
    backend = wanted.host.rpartition("#")[2] or None

    def work(engine: Engine) -> Volume:
        name = _free_name(engine, wanted.name)
        return engine.manage_volume(name, wanted.ref.source_name, backend, wanted.options)

    making = Making(describe(asked, wanted))
    volume = await asked.act(work, making.begun, making.failed)
    return {"volume": await asked.look(lambda engine: _shown(asked, engine, volume))}


def _creation(asked: Asked, wanted: bodies.NewVolume, size_bytes: int | None) -> Callable[[Engine], Volume]:
    def work(engine: Engine) -> Volume:
        name = _free_name(engine, wanted.name)
        if wanted.snapshot_id is not None:
            asked.found_snapshot(engine, wanted.snapshot_id, "volume:get_snapshot")
        elif wanted.source_volid is not None:
            asked.found(engine, wanted.source_volid, "volume:get")
        else:
            return engine.create_volume(
                name,
                size_bytes or 0,
                _backend(engine, wanted.volume_type),
                wanted.options,
                multi_attach=bool(wanted.multiattach),
            )
        return engine.clone_volume(
            name,
            wanted.source_volid,
            wanted.snapshot_id,
            size_bytes,
            wanted.options,
            multi_attach=bool(wanted.multiattach),
        )

    return work


def _backend(engine: Engine, volume_type: str | None) -> str | None:
    if volume_type is not None and volume_type not in engine.site.drivers:
        names = ", ".join(engine.site.drivers)
        raise InvalidInput(f"volume type {volume_type}", f"must be the name of a backend: {names}")
    return volume_type or next(iter(engine.site.drivers))


def _free_name(engine: Engine, wanted: str | None) -> str:
    """Choose the name on the command line: the client's, if it can be one and is free, else a new one."""
    if wanted is not None:
        try:
            check_name(wanted)
            engine.volume(wanted)
        except InvalidInput:
            pass
        except NotFound:
            return wanted
    return f"volume-{uuid.uuid4()}"


class Making:
    """Says what a client said of something once it is on disk, and why where it then could not be made."""

    def __init__(self, said: Description) -> None:
        """Take what was said, without an id."""
        self.said = said

    def begun(self, engine: Engine, volume: Volume) -> None:
        """Describe a volume that is recorded."""
        self.describe(engine, volume.id, volume.size_bytes)

    def describe(self, engine: Engine, subject_id: str, size_bytes: int) -> None:
        """Describe what is recorded."""
        self.said = replace(self.said, id=subject_id, size_bytes=size_bytes)
        Catalog(engine.store.database).put(self.said)

    def failed(self, engine: Engine, error: VolDriverError) -> None:
        """Keep the reason for who polls, unless what was to be made is there still, for `resume` to end."""
        try:
            engine.volume(self.said.id)
        except NotFound:
            self.keep_failure(engine, error)

    def keep_failure(self, engine: Engine, error: VolDriverError) -> None:
        """Say why it is not there."""
        Catalog(engine.store.database).put(replace(self.said, failure=str(error)))


def _note(engine: Engine, volume_id: str, error: VolDriverError) -> None:
    """Leave the reason where clients find it."""
    try:
        engine.store.note(engine.volume(volume_id), str(error))
    except NotFound:
        return


def _shown(asked: Asked, engine: Engine, volume: object) -> views.View:
    assert isinstance(volume, Volume)
    return _view(asked, engine, volume, Catalog(engine.store.database).get(volume.id))


def _view(asked: Asked, engine: Engine, volume: Volume, said: Description | None) -> views.View:
    return views.volume(volume, said, asked.version, engine.last_extend(volume), is_admin=asked.is_admin)


def _changed(asked: Asked, engine: Engine, volume_id: str, changes: bodies.Changes) -> views.View:
    volume, said = asked.found(engine, volume_id, "volume:update")
    after = changed(asked, volume, said, changes)
    Catalog(engine.store.database).put(after)
    return _view(asked, engine, volume, after)


def _listed(asked: Asked, engine: Engine, filters: Filters) -> Sequence[views.View]:
    asked.must("volume:get_all")
    described, everybody = Catalog(engine.store.database).all(), filters.is_for_everybody
    volumes = {volume.id: volume for volume in engine.volumes()}
    shown = [
        views.volume(each, described.get(each.id), asked.version, None, is_admin=asked.is_admin)
        for each in volumes.values()
        if asked.lists(described.get(each.id), everybody=everybody)
    ]
    shown += [
        views.failed(said, asked.version, is_admin=asked.is_admin)
        for said in described.values()
        if said.failure and said.volume_id is None and said.id not in volumes
        if asked.lists(said, everybody=everybody)
    ]
    return narrowed(shown, filters)


def narrowed(shown: Sequence[views.View], filters: Filters) -> Sequence[views.View]:
    """Filter, sort and cut a list. Raises Refused for a marker that is not in it."""
    key, _, direction = (
        (filters.sort or f"{filters.sort_key}:{filters.sort_dir}").partition(",")[0].partition(":")
    )
    fitting = [
        each
        for each in shown
        if filters.name in (None, "", each["name"]) and filters.status in (None, "", each["status"])
    ]
    fitting.sort(key=lambda each: _order(each, key), reverse=direction != "asc")
    if filters.marker:
        ids = [each["id"] for each in fitting]
        if filters.marker not in ids:
            raise Refused(404, f"marker {filters.marker[:64]} could not be found.")
        fitting = fitting[ids.index(filters.marker) + 1 :]
    return fitting[filters.offset :][: min(filters.limit, _MOST)]


def _order(shown: views.View, key: str) -> tuple[bool, object, str]:
    """Order by a field that may be missing, then by the id."""
    value = shown.get(key)
    return value is not None, 0 if value is None else value, shown["id"]
