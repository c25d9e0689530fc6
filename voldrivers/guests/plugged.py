"""What was plugged into a guest while it ran, so that it has it again when it is started anew."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voldrivers.errors import BackendError
from voldrivers.guests.machine import Machine

_PERIPHERAL = "/machine/peripheral/"
Options = Mapping[str, object]


@dataclass(frozen=True)
class Plugged:
    """Block nodes, those below first, and disks, as QEMU's `blockdev-add` and `device_add` take them."""

    nodes: Sequence[Options]
    disks: Sequence[Options]

    def plug_into(self, guest: Machine) -> None:
        """Plug all of it into a guest that was just started. Raises BackendError, OutcomeUnknown."""
        for node in self.nodes:
            guest.execute("blockdev-add", node)
        for disk in self.disks:
            guest.execute("device_add", disk)


def look(guest: Machine) -> Plugged:
    """Ask a guest what it has: virtio disks that were hot-plugged, and all that these lie on.

    Raises BackendError for a node that is stored otherwise than in a file or block device.
    """
    shown = {node["node-name"]: node for node in guest.execute("query-named-block-nodes", {"flat": True})}
    below = _links(guest.execute("x-debug-query-block-graph"))
    nodes: dict[str, Options] = {}
    disks: list[Options] = []
    for entry in guest.execute("query-block"):
        place = entry.get("qdev", "")
        if "inserted" in entry and place.startswith(_PERIPHERAL):
            top = entry["inserted"]["node-name"]
            nodes |= {name: _options(shown[name], below[name]) for name in _upwards(top, below)}
            disks.append(_disk(guest, place.removeprefix(_PERIPHERAL).partition("/")[0], top))
    return Plugged(list(nodes.values()), disks)


def _disk(guest: Machine, name: str, node: str) -> Options:
    path = f"{_PERIPHERAL}{name}"
    serial, share = (
        guest.execute("qom-get", {"path": path, "property": each}) for each in ("serial", "share-rw")
    )
    return {"driver": "virtio-blk-pci", "id": name, "drive": node, "serial": serial, "share-rw": share}


def _options(node: Mapping[str, Any], below: Mapping[str, str]) -> Options:  # Any: QEMU's own
    options = {"node-name": node["node-name"], "driver": node["drv"], "read-only": node["ro"]}
    if "file" in below:
        backing = {} if node["drv"] == "raw" else {"backing": below.get("backing")}
        return options | {"file": below["file"]} | backing
    if not node["file"].startswith("/"):
        raise BackendError(f"block node {node['node-name']}", f"is stored in {node['file']:.200}")
    locking = {"locking": "on"} if node["drv"] == "file" else {}
    return options | {"filename": node["file"], "cache": {"direct": node["cache"]["direct"]}} | locking


def _upwards(name: str, below: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    for child in below[name].values():
        yield from _upwards(child, below)
    yield name


def _links(graph: Any) -> dict[str, dict[str, str]]:  # Any: QEMU's own, shaped as used here
    """Give the nodes that lie below each node, by the kind of the link."""
    names = {node["id"]: node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
    below: dict[str, dict[str, str]] = {name: {} for name in names.values()}
    for edge in graph["edges"]:
        if edge["parent"] in names and edge["child"] in names:
            below[names[edge["parent"]]][edge["name"]] = names[edge["child"]]
    return below
