"""What Nova and an operator do with a Cinder in a lab: run on the compute machine."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from voldrivers.host.local import LocalHost, LocalOptions
from voldrivers.model import Attachment, ConnectionInfo, Volume
from voldrivers.process import run

PORT, PROJECT = 8777, "a" * 32
_STEADY = ("available", "in-use", "error", "error_extending")
_INSTANCES = Path("/run/lab")


def create(size_gib: int, volume_type: str) -> str:
    """Make a volume; give its id."""
    made = _client().volumes.create(size_gib, volume_type=volume_type)
    shown = wait(made.id)
    assert shown["status"] == "available", shown
    return str(made.id)


def wait(volume_id: str, limit_s: float = 200.0) -> dict[str, Any]:  # Any: what JSON holds
    """Wait until nothing is under way with a volume; give it as it is then."""
    until = time.monotonic() + limit_s
    while True:
        shown: dict[str, Any] = _client().volumes.get(volume_id).to_dict()
        if shown["status"] in _STEADY or time.monotonic() > until:
            return shown
        time.sleep(0.5)


def extend(volume_id: str, size_gib: int) -> dict[str, Any]:  # Any: as above
    """Extend it, and wait for that."""
    _client().volumes.extend(volume_id, size_gib)
    return wait(volume_id)


def wait_for_pools(count: int, limit_s: float = 100.0) -> int:
    """Wait until the scheduler knows so many: before that it finds no place for a volume."""
    until = time.monotonic() + limit_s
    while (known := len(_client().pools.list(detailed=False))) < count and time.monotonic() < until:
        time.sleep(0.5)
    return known


def make_type(name: str, **specs: str) -> None:
    """Make a volume type for a backend, with further extra specs."""
    _client().volume_types.create(name).set_keys({"volume_backend_name": name, **specs})


def attach(volume_id: str, instance: str) -> str:
    """Do as Nova does: tell what this host is, connect, plug, complete; give the attachment's id."""
    host = LocalHost("compute", LocalOptions(qmp_dir=_INSTANCES), run)
    ours = host.connector()
    connector = {
        "host": "compute",
        "ip": "10.77.1.2",
        "initiator": ours.initiator,
        "multipath": True,
        "nqn": ours.nqn,
    }
    cinder = _client()
    made = cinder.attachments.create(volume_id, connector, instance)
    info = made["connection_info"]
    connection = ConnectionInfo(info["driver_volume_type"], info["voldrivers:properties"])
    volume = Volume(volume_id, f"volume-{volume_id}", "", 0)
    there = host.find_instance(Attachment(made["id"], volume_id, "compute", instance))
    path = host.connect(volume, there, connection)
    host.plug(volume, replace(there, connection_info=connection, device_path=path))
    cinder.attachments.complete(made["id"])
    return str(made["id"])


def snapshot(volume_id: str) -> str:
    """Take a snapshot of a volume in use, and delete it; give how it was meanwhile."""
    cinder = _client()
    taken = cinder.volume_snapshots.create(volume_id, force=True, name="s")
    until = time.monotonic() + 200
    while (status := cinder.volume_snapshots.get(taken.id).status) == "creating" and time.monotonic() < until:
        time.sleep(0.5)
    cinder.volume_snapshots.delete(taken)
    while cinder.volume_snapshots.list() and time.monotonic() < until:
        time.sleep(0.5)
    return str(status)


def _client() -> Any:  # Any: cinderclient has no types
    from cinderclient import api_versions
    from cinderclient.contrib.noauth import CinderNoAuthPlugin
    from cinderclient.v3.client import Client
    from keystoneauth1.session import Session

    auth = CinderNoAuthPlugin("admin", PROJECT, endpoint=f"http://storage:{PORT}/v3")
    return Client(session=Session(auth=auth), api_version=api_versions.APIVersion("3.71"))
