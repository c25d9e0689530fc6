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
_LIMIT_S = 200.0
#: A file of a snapshot is copied by the QEMU that has it, of which each CPU is emulated twice.
_COPIED_S = 900.0


def create(size_gib: int, volume_type: str, **source: str) -> str:
    """Make a volume, of a source if one is named; give its id."""
    made = _client().volumes.create(size_gib, volume_type=volume_type, **source)
    shown = wait(made.id)
    assert shown["status"] == "available", shown
    return str(made.id)


def wait(volume_id: str, limit_s: float = _LIMIT_S) -> dict[str, Any]:  # Any: what JSON holds
    """Wait until nothing is under way with a volume; give it as it is then."""
    until = time.monotonic() + limit_s
    while True:
        shown: dict[str, Any] = _client().volumes.get(volume_id).to_dict()
        if shown["status"] in _STEADY or time.monotonic() > until:
            return shown
        time.sleep(0.5)


def begin_extend(volume_id: str, size_gib: int) -> None:
    """Ask for an extend."""
    _client().volumes.extend(volume_id, size_gib)


def extend(volume_id: str, size_gib: int) -> dict[str, Any]:  # Any: as above
    """Extend it, and wait for that."""
    begin_extend(volume_id, size_gib)
    return wait(volume_id)


def extend_with_a_snapshot(volume_id: str, size_gib: int) -> dict[str, Any]:  # Any: as above
    """Take a snapshot of a volume in use, extend the volume, delete the snapshot."""
    kept = _keep(volume_id)
    extend(volume_id, size_gib)
    _delete("volume_snapshots", kept)
    return wait(volume_id)


def live(volume_type: str) -> list[tuple[str, int]]:
    """Make a volume, extend it, keep it, copy that and it, go back, delete all; give each as it was seen."""
    volume_id = create(1, volume_type)
    seen = [extend(volume_id, 2)]
    kept = _keep(volume_id)
    copies = [create(2, volume_type, snapshot_id=kept), create(3, volume_type, source_volid=volume_id)]
    seen += [wait(each) for each in copies]
    _client().volumes.revert_to_snapshot(
        _client().volumes.get(volume_id), _client().volume_snapshots.get(kept)
    )
    seen.append(wait(volume_id))
    _delete("volume_snapshots", kept)
    for each in (*copies, volume_id):
        _delete("volumes", each)
    return [(shown["status"], shown["size"]) for shown in seen]


def wait_for_pools(count: int, limit_s: float = 100.0) -> int:
    """Wait until the scheduler knows so many: before that it finds no place for a volume."""
    until = time.monotonic() + limit_s
    while (known := len(_client().pools.list(detailed=False))) < count and time.monotonic() < until:
        time.sleep(0.5)
    return known


def make_type(name: str) -> None:
    """Make a volume type for a backend."""
    _client().volume_types.create(name).set_keys({"volume_backend_name": name})


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


def _keep(volume_id: str) -> str:
    """Take a snapshot of a volume, in use or not; give its id."""
    snapshots, until = _client().volume_snapshots, time.monotonic() + _LIMIT_S
    taken = snapshots.create(volume_id, name="s")
    while (status := snapshots.get(taken.id).status) == "creating" and time.monotonic() < until:
        time.sleep(0.5)
    assert status == "available", status
    return str(taken.id)


def _delete(kind: str, its_id: str) -> None:
    """Delete a volume or a snapshot, and wait for that."""
    there, until = getattr(_client(), kind), time.monotonic() + _COPIED_S
    there.delete(its_id)
    while its_id in [each.id for each in there.list()]:
        assert time.monotonic() < until, there.get(its_id).to_dict()
        time.sleep(0.5)


def _client() -> Any:  # Any: cinderclient has no types
    from cinderclient import api_versions
    from cinderclient.contrib.noauth import CinderNoAuthPlugin
    from cinderclient.v3.client import Client
    from keystoneauth1.session import Session

    auth = CinderNoAuthPlugin("admin", PROJECT, endpoint=f"http://storage:{PORT}/v3")
    return Client(session=Session(auth=auth), api_version=api_versions.APIVersion("3.71"))
