"""What is done with a volume: extending, completing, repairing, resetting, reverting, giving up."""

from dataclasses import replace

from fastapi import APIRouter

from voldrivers.api.volume import bodies, versions, views
from voldrivers.api.volume.asked import Asked, Question, changed
from voldrivers.api.volume.faults import Refused
from voldrivers.errors import InvalidState, NotFound, NotSupported
from voldrivers.extend.catalog import Catalog
from voldrivers.extend.engine import Engine
from voldrivers.model import VolumeStatus
from voldrivers.sizes import GiB

router = APIRouter(tags=["volumes"])


@router.post("/volumes/{volume_id}/action", status_code=202)
async def act(asked: Question, volume_id: str, body: bodies.VolumeAction) -> None:
    """Extend, complete, reset, revert or unmanage a volume."""
    if body.extend is not None:
        await _extend(asked, volume_id, body.extend)
    elif body.extend_volume_completion is not None:
        await _complete(asked, volume_id, body.extend_volume_completion)
    elif body.reset_status is not None:
        await _reset(asked, volume_id, body.reset_status)
    elif body.revert is not None:
        await _revert(asked, volume_id, body.revert.snapshot_id)
    elif body.update_readonly_flag is not None:
        await _update_readonly_flag(asked, volume_id, body.update_readonly_flag)
    elif "unmanage" in body.model_fields_set:
        await _unmanage(asked, volume_id)
    else:
        await _mend(asked, volume_id, *body.model_fields_set)


@router.get("/volumes/{volume_id}/ledger")
async def ledger(asked: Question, volume_id: str) -> views.View:
    """Show the size ledger of a volume, every layer read now, and whose instances have stopped."""

    def look(engine: Engine) -> views.View:
        volume, _ = asked.found(engine, volume_id, "voldrivers:ledger")
        rows = [views.row(each) for each in engine.ledger(volume.id)]
        return {"ledger": rows, "stopped": [each.id for each in engine.stopped(volume)]}

    return await asked.act_whole(look)


async def _extend(asked: Asked, volume_id: str, wanted: bodies.Extend) -> None:
    """`os-extend`: what cannot be done is refused here, with the reason, before anything is touched.

    The size that a volume has already is refused as Cinder does; `voldrivers doctor --repair` is for that.
    """
    new_size_bytes = wanted.new_size_bytes or wanted.new_size * GiB

    def work(engine: Engine) -> None:
        volume, said = asked.found(engine, volume_id, "volume:extend")
        if volume.status is VolumeStatus.IN_USE:
            if asked.version < versions.EXTEND_IN_USE:
                needed = f"Volume {volume.id} status must be available to extend, currently in-use."
                raise Refused(400, f"{needed} Since version {versions.EXTEND_IN_USE} it may be in-use.")
            asked.must("volume:extend_attached_volume", asked.project if said is None else said.project)
        if wanted.new_size_bytes is None and new_size_bytes <= volume.size_bytes:
            sizes = f"current: {-(-volume.size_bytes // GiB)}, extended: {wanted.new_size}"
            raise Refused(400, f"New size for extend must be greater than current size. ({sizes})")
        try:
            engine.extend(volume.id, new_size_bytes)
        except NotFound as error:  # a host that is gone, say: the volume is there
            raise NotSupported(volume.title, str(error)) from error

    await asked.act(work)


async def _complete(asked: Asked, volume_id: str, said: bodies.ExtendCompletion) -> None:
    """`os-extend_volume_completion`: a hint to look now, for the extend that it names, or the one at work."""
    asked.needs(versions.EXTEND_COMPLETION)

    def work(engine: Engine) -> None:
        volume, _ = asked.found(
            engine, volume_id, "volume_extension:volume_admin_actions:extend_volume_completion"
        )
        extend = engine.last_extend(volume)
        if volume.status is not VolumeStatus.EXTENDING or extend is None:
            raise InvalidState(volume.title, volume.status, VolumeStatus.EXTENDING)
        engine.completion(
            volume.id, extend.id if said.extend_id is None else said.extend_id, error=said.error
        )

    await asked.look(work)


async def _reset(asked: Asked, volume_id: str, wanted: bodies.ResetStatus) -> None:
    """`os-reset_status`: out of error_extending, back to what the attachments say, and nothing else."""

    def work(engine: Engine) -> None:
        volume, _ = asked.found(engine, volume_id, "volume_extension:volume_admin_actions:reset_status")
        if wanted.status is None or wanted.attach_status or wanted.migration_status:
            raise Refused(400, "Only the status can be reset.")
        engine.reset_status(volume.id, wanted.status)

    await asked.act(work)


async def _mend(asked: Asked, volume_id: str, name: str) -> None:
    """Go on with a failed extend, bring every layer up, or ask for a roll-back: as on the command line."""

    def work(engine: Engine) -> None:
        volume, _ = asked.found(engine, volume_id, f"voldrivers:{name}")
        {"retry": engine.retry, "repair": engine.repair, "cancel": engine.cancel}[name](volume.id)

    await asked.act(work)


async def _revert(asked: Asked, volume_id: str, snapshot_id: str) -> None:
    asked.needs(versions.REVERT)

    def work(engine: Engine) -> None:
        asked.found(engine, volume_id, "volume:revert_to_snapshot")
        snapshot, _ = asked.found_snapshot(engine, snapshot_id, "volume:get_snapshot")
        if snapshot.volume_id != volume_id:
            raise Refused(400, f"Snapshot {snapshot_id} is not of volume {volume_id}.")
        engine.revert_to_snapshot(snapshot.id)

    await asked.act(work)


async def _update_readonly_flag(asked: Asked, volume_id: str, wanted: bodies.ReadonlyFlag) -> None:
    """`os-update_readonly_flag`: as Cinder, of a volume that nobody has attached."""

    def work(engine: Engine) -> None:
        volume, said = asked.found(engine, volume_id, "volume:update_readonly_flag")
        if volume.status is not VolumeStatus.AVAILABLE:
            raise InvalidState(volume.title, volume.status, VolumeStatus.AVAILABLE)
        before = changed(asked, volume, said, bodies.Changes())
        Catalog(engine.store.database).put(replace(before, read_only=wanted.readonly))

    await asked.look(work)


async def _unmanage(asked: Asked, volume_id: str) -> None:
    def work(engine: Engine) -> None:
        asked.found(engine, volume_id, "volume_extension:volume_unmanage")
        engine.unmanage_volume(volume_id)
        Catalog(engine.store.database).remove(volume_id)

    await asked.act(work)
