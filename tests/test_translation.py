"""What Cinder is told, read by those whom Cinder tells: os-brick's own connectors."""

from pathlib import Path
from typing import Any

import pytest

from voldrivers import brick
from voldrivers.api.connections import from_data, to_data
from voldrivers.errors import InvalidState
from voldrivers.integrations import translation
from voldrivers.model import ConnectionInfo, Pool
from voldrivers.sizes import GiB

with brick.without_eventlet():
    from os_brick.initiator.connectors.gpfs import GPFSConnector
    from os_brick.initiator.connectors.remotefs import RemoteFsConnector

EXPORT = ConnectionInfo(
    "nfs",
    {
        "export": "server:/export",
        "name": "volume-1",
        "format": "raw",
        "options": "vers=4.2,hard",
        "mount_point_base": "/nowhere/mnt",
    },
)
FILE = ConnectionInfo("file", {"path": "/share/volume-1", "format": "raw"})


def connected(info: ConnectionInfo, ran: list[tuple[str, ...]]) -> str:
    """Have os-brick connect as Cinder has it; give the path. What it runs is only kept."""

    def execute(*words: str, **_more: object) -> tuple[str, str]:
        ran.append(words)
        return "", ""

    told = translation.connection(info, to_data(info))
    of_type = {"nfs": lambda: RemoteFsConnector("nfs", "", execute=execute, conn=told)}
    of_type["gpfs"] = lambda: GPFSConnector("", execute=execute)
    connector: Any = of_type[told["driver_volume_type"]]()  # Any: os-brick has no types
    return str(connector.connect_volume(told["data"])["path"])


def test_an_export_is_mounted_with_its_options() -> None:
    ran: list[tuple[str, ...]] = []
    path = Path(connected(EXPORT, ran))
    assert (path.name, path.parent.parent) == ("volume-1", Path("/nowhere/mnt"))
    (mount,) = [words for words in ran if words[0] == "mount"]
    assert mount[-4:] == ("-o", "vers=4.2,hard", "server:/export", str(path.parent))


def test_a_file_that_each_host_has_is_found_by_its_path() -> None:
    ran: list[tuple[str, ...]] = []
    assert (connected(FILE, ran), ran) == ("/share/volume-1", [])


@pytest.mark.parametrize("info", [EXPORT, FILE, ConnectionInfo("iscsi", {"target_portals": "[::1]:3260"})])
def test_what_was_told_is_read_again(info: ConnectionInfo) -> None:
    told = translation.connection(info, to_data(info))
    kind = translation.our_type(told["driver_volume_type"])
    assert from_data(told["data"] | {"driver_volume_type": kind}) == info


def test_a_scheduler_may_promise_as_often_as_the_driver_does() -> None:
    thin = translation.room(Pool(10 * GiB, 100 * GiB, 30 * GiB, 20.0))
    assert (thin["thin_provisioning_support"], thin["max_over_subscription_ratio"]) == (True, 20.0)
    assert (thin["free_capacity_gb"], thin["provisioned_capacity_gb"]) == (5.0, 30.0)
    thick = translation.room(Pool(10 * GiB, 7 * GiB, 3 * GiB))
    assert (thick["thin_provisioning_support"], thick["free_capacity_gb"]) == (False, 7.0)


def test_an_error_is_told_once() -> None:
    error = InvalidState("extend 1", "cancelled", "asked for again")
    error.add_note(f"it was rolled back: {error}")
    error.add_note("at first: its monitor is silent")
    error.add_note("at first: its monitor is silent")
    said = (
        "it was rolled back: extend 1 is cancelled, must be asked for again; at first: its monitor is silent"
    )
    assert translation.told(error) == said


def test_an_owner_is_shown_no_address_and_no_path() -> None:
    said = (
        "host a/b at https://127.0.0.11:9871: (token /etc/x/a.token, 0644) is open; see /tmp/w-1/worker.log"
    )
    assert translation.for_owner(said) == "host a/b at ...: (token ..., 0644) is open; see ..."
