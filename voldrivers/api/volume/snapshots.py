"""Snapshots: taking, showing, listing, changing, deleting."""

import uuid
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query

from voldrivers.api.volume import bodies, views
from voldrivers.api.volume.asked import Asked, Question, changed, describe
from voldrivers.api.volume.volumes import Filters, Making, narrowed
from voldrivers.errors import InvalidInput, NotFound, VolDriverError
from voldrivers.extend.catalog import Catalog
from voldrivers.extend.engine import Engine
from voldrivers.model import Volume, check_name

router = APIRouter(tags=["snapshots"])


class SnapshotFilters(Filters):
    """What a list of snapshots is narrowed to."""

    volume_id: str | None = None


@router.post("/snapshots", status_code=202)
async def create(asked: Question, body: bodies.CreateSnapshot) -> views.View:
    """Take a snapshot of a volume, in use or not."""
    wanted = body.snapshot
    taking = _Taking(describe(asked, wanted, wanted.volume_id))

    def work(engine: Engine) -> None:
        volume, _ = asked.found(engine, wanted.volume_id, "volume:create_snapshot")
        taking.name = _free_name(engine, wanted.name)
        engine.create_snapshot(volume.id, taking.name)

    await asked.act(work, taking.begun, taking.failed)
    return {"snapshot": await asked.look(lambda engine: _shown(engine, taking.said.id))}


@router.get("/snapshots")
async def list_briefly(asked: Question, filters: Annotated[SnapshotFilters, Query()]) -> views.View:
    """List snapshots."""
    return {"snapshots": await asked.look(lambda engine: _listed(asked, engine, filters))}


@router.get("/snapshots/detail")
async def list_in_detail(asked: Question, filters: Annotated[SnapshotFilters, Query()]) -> views.View:
    """List snapshots, of one volume or of all."""
    return {"snapshots": await asked.look(lambda engine: _listed(asked, engine, filters))}


@router.get("/snapshots/{snapshot_id}")
async def show(asked: Question, snapshot_id: str) -> views.View:
    """Show a snapshot."""

    def look(engine: Engine) -> views.View:
        said = Catalog(engine.store.database).get(snapshot_id)
        try:
            snapshot, _ = asked.found_snapshot(engine, snapshot_id, "volume:get_snapshot")
        except NotFound:
            if said is None or not said.failure or not asked.sees(said):
                raise
            return views.failed_snapshot(said)
        return views.snapshot(snapshot, said)

    return {"snapshot": await asked.look(look)}


@router.put("/snapshots/{snapshot_id}")
async def update(asked: Question, snapshot_id: str, body: bodies.UpdateSnapshot) -> views.View:
    """Change name, description or metadata."""
    changes = body.snapshot

    def work(engine: Engine) -> views.View:
        snapshot, said = asked.found_snapshot(engine, snapshot_id, "volume:update_snapshot")
        after = changed(asked, snapshot, said, changes)
        Catalog(engine.store.database).put(after)
        return views.snapshot(snapshot, after)

    return {"snapshot": await asked.look(work)}


@router.delete("/snapshots/{snapshot_id}", status_code=202)
async def delete(asked: Question, snapshot_id: str) -> None:
    """Delete a snapshot, the volume in use or not, or forget one that could not be taken."""

    def work(engine: Engine) -> None:
        catalog = Catalog(engine.store.database)
        try:
            snapshot, _ = asked.found_snapshot(engine, snapshot_id, "volume:delete_snapshot")
        except NotFound:
            said = catalog.get(snapshot_id)
            if said is None or not said.failure or not asked.sees(said):
                raise
            asked.must("volume:delete_snapshot", said.project)
        else:
            engine.delete_snapshot(snapshot.id)
        catalog.remove(snapshot_id)

    await asked.act(work)


class _Taking(Making):
    """Of a snapshot: the engine tells its volume when it has begun."""

    name = ""

    def begun(self, engine: Engine, volume: Volume) -> None:
        """Describe a snapshot that is recorded."""
        self.describe(engine, engine.snapshot(self.name).id, volume.size_bytes)

    def failed(self, engine: Engine, error: VolDriverError) -> None:
        """Keep the reason, unless the snapshot is there still."""
        try:
            engine.snapshot(self.said.id)
        except NotFound:
            self.keep_failure(engine, error)


def _free_name(engine: Engine, wanted: str | None) -> str:
    """Choose the name on the command line, as that of a volume."""
    if wanted is not None:
        try:
            check_name(wanted, "snapshot")
            engine.snapshot(wanted)
        except InvalidInput:
            pass
        except NotFound:
            return wanted
    return f"snapshot-{uuid.uuid4()}"


def _shown(engine: Engine, snapshot_id: str) -> views.View:
    return views.snapshot(engine.snapshot(snapshot_id), Catalog(engine.store.database).get(snapshot_id))


def _listed(asked: Asked, engine: Engine, filters: SnapshotFilters) -> Sequence[views.View]:
    asked.must("volume:get_all_snapshots")
    described, everybody = Catalog(engine.store.database).all(), filters.is_for_everybody
    there = {each.id: each for volume in engine.volumes() for each in volume.snapshots}
    shown = [
        views.snapshot(each, described.get(each.id))
        for each in there.values()
        if asked.lists(described.get(each.id), everybody=everybody)
    ]
    shown += [
        views.failed_snapshot(said)
        for said in described.values()
        if said.failure and said.volume_id and said.id not in there
        if asked.lists(said, everybody=everybody)
    ]
    of_all = filters.volume_id in (None, "")
    return narrowed([each for each in shown if of_all or each["volume_id"] == filters.volume_id], filters)
