"""Backends as clients see them: pools, capabilities, volume types; and what went wrong (messages)."""

from collections.abc import Mapping

from fastapi import APIRouter

from voldrivers.api.volume import versions, views
from voldrivers.api.volume.asked import Asked, Question
from voldrivers.base import Driver
from voldrivers.capabilities import NAMES
from voldrivers.errors import NotFound, VolDriverError
from voldrivers.extend.catalog import Catalog, Told
from voldrivers.extend.engine import Engine
from voldrivers.sizes import GiB

router = APIRouter(tags=["backends"])

_VENDOR = "voldrivers"


@router.get("/scheduler-stats/get_pools")
async def pools(asked: Question, detail: bool = False) -> views.View:
    """List the backends, each a pool of its own; in detail with room and declared capabilities.

    `online_extend_support`, the `in-use-extend` of the specifications, is in every pool.
    """
    asked.must("scheduler_extension:scheduler_stats:get_pools")

    def look(engine: Engine) -> list[views.View]:
        return [_pool(name, engine.site.backend(name), detail=detail) for name in engine.site.drivers]

    return {"pools": await asked.look(look)}


@router.get("/capabilities/{host}")
async def capabilities(asked: Question, host: str) -> views.View:
    """Show what a backend declares: HOST is `get_pools`' name, or the backend's own."""
    asked.must("volume_extension:capabilities")
    name = host.rpartition("#")[2] or host

    def look(engine: Engine) -> views.View:
        driver = engine.site.backend(name)
        return {
            "namespace": f"OS::Storage::Capabilities::{driver.name}",
            "vendor_name": _VENDOR,
            "volume_backend_name": driver.name,
            "pool_name": driver.name,
            "driver_version": "",
            "storage_protocol": type(driver).__name__,
            "display_name": driver.name,
            "description": (type(driver).__doc__ or "").partition("\n")[0],
            "visibility": "public",
            "replication_targets": [],
            "properties": dict(_properties(driver)),
        }

    return await asked.look(look)


@router.get("/types")
async def types(asked: Question) -> views.View:
    """List volume types: one for each backend, with its name."""
    asked.must("volume_extension:type_get")
    names = await asked.look(lambda engine: list(engine.site.drivers))
    return {"volume_types": [_type(name) for name in names]}


@router.get("/types/{type_id}")
async def show_type(asked: Question, type_id: str) -> views.View:
    """Show a volume type; `default` is that of the first backend."""
    asked.must("volume_extension:type_get")

    def look(engine: Engine) -> str:
        names = list(engine.site.drivers)
        name = names[0] if type_id == "default" else type_id
        if name not in names:
            raise NotFound("volume type", type_id[:64])
        return name

    return {"volume_type": _type(await asked.look(look))}


@router.get("/messages")
async def messages(asked: Question, resource_uuid: str | None = None) -> views.View:
    """List what happened to volumes, with the reasons."""
    asked.needs(versions.MESSAGES)
    asked.must("message:get_all")
    told = await asked.look(lambda engine: _told(asked, engine))
    return {"messages": [views.message(each) for each in told if resource_uuid in (None, each.volume_id)]}


@router.get("/messages/{message_id}")
async def message(asked: Question, message_id: str) -> views.View:
    """Show one message."""
    asked.needs(versions.MESSAGES)
    asked.must("message:get")

    def look(engine: Engine) -> views.View:
        for each in map(views.message, _told(asked, engine)):
            if each["id"] == message_id:
                return each
        raise NotFound("message", message_id[:64])

    return {"message": await asked.look(look)}


def _told(asked: Asked, engine: Engine) -> list[Told]:
    catalog = Catalog(engine.store.database)
    described = catalog.all()
    return [each for each in catalog.messages() if asked.sees(described.get(each.volume_id))]


def _type(name: str) -> views.View:
    return {
        "id": name,
        "name": name,
        "description": f"backend {name}",
        "is_public": True,
        "os-volume-type-access:is_public": True,
        "extra_specs": {"volume_backend_name": name},
        "qos_specs_id": None,
    }


def _pool(name: str, driver: Driver, *, detail: bool) -> views.View:
    shown: views.View = {"name": f"{_VENDOR}@{name}#{name}"}
    if not detail:
        return shown
    capabilities: views.View = {
        "volume_backend_name": name,
        "pool_name": name,
        "vendor_name": _VENDOR,
        "storage_protocol": type(driver).__name__,
        "online_extend_support": driver.capabilities.declares("in_use_extend"),
        "multiattach": driver.capabilities.declares("multi_attach"),
        "QoS_support": False,
        "backend_state": "up",
    }
    try:
        room = driver.pool()
    except VolDriverError as error:
        capabilities |= {"backend_state": "down", "voldrivers:reason": str(error)}
    else:
        capabilities |= {
            "total_capacity_gb": round(room.total_bytes / GiB, 2),
            "free_capacity_gb": round(room.free_bytes / GiB, 2),
            "allocated_capacity_gb": round(room.allocated_bytes / GiB, 2),
            "reserved_percentage": 0,
        }
    return shown | {"capabilities": capabilities}


def _properties(driver: Driver) -> Mapping[str, views.View]:
    """Give every capability with what it is declared as, and the cases in which it does not hold."""
    return {
        name: {
            "title": name.replace("_", " "),
            "description": "; ".join(
                f"not for {each.unless}" for each in driver.capabilities.conditions if each.capability == name
            ),
            "type": "string",
            "default": str(getattr(driver.capabilities, name)),
        }
        for name in NAMES
    }
