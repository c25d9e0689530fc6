"""Layers of a volume in a running QEMU: which there are, and going on in another file over them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voldrivers.errors import BackendError, InvalidState, OutcomeUnknown
from voldrivers.host import blocknode
from voldrivers.host.blocknode import BlockNode
from voldrivers.host.instance import check_one_size
from voldrivers.host.media import Medium
from voldrivers.host.qmp import Monitor
from voldrivers.model import Volume


@dataclass(frozen=True)
class Layer:
    """A node with a format in the chain below a disk, the file that stores its blocks, the node of that."""

    name: str
    file: str
    driver: str
    file_node: str
    read_only: bool


def switch(monitor: Monitor, volume: Volume, now: Medium, then: Medium, qemu_pid: int | None) -> None:
    """Have a disk written to `then`, an empty overlay over `now`; one that is there already is left alone.

    Raises InvalidState, BackendError (nothing was switched), OutcomeUnknown.
    """
    top = top_of(monitor, volume, then.path, now.path)
    if not blocknode.is_stored_in(top, volume.id, then.path):
        blocknode.check_identity(monitor, top, now.path, now.format, qemu_pid)
        blocknode.check_resizable(monitor, top)
        check_one_size(volume, top.size_bytes, then)
        blocknode.close(monitor, volume.id)  # what a switch or a merge left that was killed half-way
        _lay_over(monitor, volume, top, then)
        top = _after(monitor, volume, then.path, now.path)
    blocknode.check_identity(monitor, top, then.path, then.format, qemu_pid)


def top_of(monitor: Monitor, volume: Volume, *paths: Path) -> BlockNode:
    """Find the one node through which a guest uses the volume. Raises InvalidState."""
    nodes = blocknode.find(monitor, volume.id, *paths)
    if len(nodes) != 1:
        state = "used through several disks" if nodes else "not in the instance"
        raise InvalidState(f"{volume.title} in QEMU at {monitor.path}", state, "used through one disk")
    return nodes[0]


def _lay_over(monitor: Monitor, volume: Volume, top: BlockNode, then: Medium) -> None:
    name = blocknode.add(monitor, volume.id, then.path, then.format, then.node())
    try:
        monitor.execute("blockdev-snapshot", {"node": top.name, "overlay": name})
    except BackendError:
        blocknode.close(monitor, volume.id)
        raise


def _after(monitor: Monitor, volume: Volume, wanted: Path, before: Path) -> BlockNode:
    """Look where the disk is written now. Raises BackendError when it is where it was."""
    try:
        top = top_of(monitor, volume, wanted, before)
    except InvalidState as error:
        raise OutcomeUnknown(f"having {volume.title} written to {wanted}", str(error)) from error
    if not blocknode.is_stored_in(top, volume.id, wanted):
        blocknode.close(monitor, volume.id)
        raise BackendError(f"block node {top.name}", f"QEMU said it writes to {wanted}, but it does not")
    return top


def chain(monitor: Monitor, top: BlockNode) -> list[Layer]:
    """Follow the disk's node down, filters left out.

    QEMU's name of a file over others is cut after 4096 bytes, so each file is named by its own node. No
    stable command tells which node lies on which; QEMU 4.0 and later draw the whole graph.
    """
    nodes = {n["node-name"]: n for n in monitor.execute("query-named-block-nodes", {"flat": True})}
    below = _links(monitor.execute("x-debug-query-block-graph"))
    found: list[Layer] = []
    name: str | None = top.name
    while name is not None:
        stored = below.get((name, "file"))
        if nodes[name]["drv"] in blocknode.FORMATS:
            file = blocknode.file_of(nodes[_last(below, name)]["file"])
            node = nodes[name]
            found.append(Layer(name, file, node["drv"], below.get((name, "file"), ""), node["ro"]))
            stored = None
        name = below.get((name, "backing")) or stored
    return found


def _links(graph: Any) -> dict[tuple[str, str], str]:  # Any: QEMU's own, shaped as used here
    """Give the node that lies below another one, by that one's name and the kind of the link."""
    names = {node["id"]: node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
    return {
        (names[edge["parent"]], edge["name"]): names[edge["child"]]
        for edge in graph["edges"]
        if edge["parent"] in names and edge["child"] in names
    }


def _last(below: dict[tuple[str, str], str], name: str) -> str:
    while (name, "file") in below:
        name = below[name, "file"]
    return name
