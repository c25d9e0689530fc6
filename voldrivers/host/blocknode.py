"""Block nodes: the one through which a guest uses a volume, whether it may be resized, and resizing it."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from voldrivers.errors import BackendError, InvalidSize, InvalidState, NoSpace, VolDriverError
from voldrivers.host.qmp import Monitor
from voldrivers.mounts import place_of
from voldrivers.sizes import format_size

#: QEMU 7.2 aborts on block_resize while its images belong to the other side of a migration
#: (assertion !(bs->open_flags & BDRV_O_INACTIVE)), so only these states and no others.
_RESIZABLE = ("running", "paused", "prelaunch")
_NO_MIGRATION = ("none", "cancelled", "failed")

#: The formats in which a volume's file could be opened; other drivers are filters and protocols.
_FORMATS = frozenset(["raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "vhdx", "luks", "parallels"])

#: What QEMU says when the state of the node or its file forbids a resize, and what it must be instead.
_REFUSALS = (
    ("read-only", "writable"),
    ("has no medium", "holding the volume"),
    ("v2 image which has snapshots", "without internal snapshots, or qcow2 of version 3"),
    ("Cannot grow device files", "larger on the host first"),
    ("Cannot grow NBD nodes", "a file or a device"),
)


@dataclass(frozen=True)
class BlockNode:
    """The top node of one disk of a guest, as QEMU shows it now.

    `disk` is the QOM path of the guest's disk, `file` what the node stores its blocks in, `driver` the
    format that the node has, or the filter it is.
    """

    name: str
    disk: str
    file: str
    driver: str
    size_bytes: int
    read_only: bool


def disk_id(volume_id: str) -> str:
    """Name the disk and its node: at most 31 characters (QAPI), beginning with a letter.

    A volume id may be longer, so it is its digest, of 108 bits.
    """
    return f"vol-{sha256(volume_id.encode()).hexdigest()[:27]}"


def find(monitor: Monitor, volume_id: str, path: Path) -> list[BlockNode]:
    """Find the nodes, anew at each call: of our disk, then of every other disk with the file; none if none.

    Always the top ones: resizing a node below a filter leaves the guest with the old size. Raises
    InvalidState when our disk meanwhile stores its blocks elsewhere (an external snapshot, a mirror).
    """
    nodes = list(_nodes(monitor))
    ours = [n for n in nodes if n.disk.startswith(f"/machine/peripheral/{disk_id(volume_id)}/")]
    for node in ours:
        if not _same_file(node.file, path):
            raise InvalidState(f"block node {node.name}", f"stored in {node.file}", f"stored in {path}")
    return ours + [node for node in nodes if node not in ours and _same_file(node.file, path)]


def check_identity(
    monitor: Monitor, node: BlockNode, path: Path, image_format: str, qemu_pid: int | None
) -> None:
    """Refuse a node that is not the volume: in another format than recorded, or of a file since replaced.

    A guest can write a header of another format into a raw disk, and a QEMU that was started to guess
    believes it. `qemu_pid` is None where it is not known. Raises InvalidState; changes nothing.
    """
    if node.driver != image_format and not _is_filtered(monitor, path, image_format):
        raise InvalidState(f"block node {node.name}", f"opened as {node.driver}", f"opened as {image_format}")
    if qemu_pid is not None and _has_other_file(qemu_pid, path):
        raise InvalidState(f"block node {node.name}", f"of a file that is no longer {path}", "of that file")


def check_resizable(monitor: Monitor, node: BlockNode) -> None:
    """Refuse where QEMU would refuse, stop or lose data. Raises InvalidState; changes nothing."""
    subject = f"QEMU at {monitor.path}"
    status: str = monitor.execute("query-status")["status"]
    if status not in _RESIZABLE:
        raise InvalidState(subject, status, " or ".join(_RESIZABLE))
    migration: str = monitor.execute("query-migrate").get("status", "none")
    # A guest that came in paused may not own its images yet (capability late-block-activate).
    if migration not in _NO_MIGRATION and (migration, status) != ("completed", "running"):
        raise InvalidState(subject, f"{status}, its migration {migration}", "not migrating")
    if node.read_only:
        raise InvalidState(f"block node {node.name}", "read-only", "writable")
    if busy := _user(monitor, node):
        raise _in_use(node, busy)


def resize(monitor: Monitor, node: BlockNode, size_bytes: int, timeout_s: float) -> None:
    """Ask QEMU for `size_bytes`, which must not be below what `node` and its file show: QEMU would cut it.

    Raises InvalidState, NoSpace, InvalidSize, BackendError (refused for these reasons), OutcomeUnknown.
    """
    try:
        monitor.execute("block_resize", {"node-name": node.name, "size": size_bytes}, timeout_s)
    except BackendError as error:
        raise _refusal(monitor, node, size_bytes, error.reason) from error


def _nodes(monitor: Monitor) -> Iterator[BlockNode]:
    """List the disks with a medium. QEMU's `query-block` leaves out filters that jobs insert."""
    for entry in monitor.execute("query-block"):
        if inserted := entry.get("inserted"):
            size_bytes = inserted["image"]["virtual-size"]
            if type(size_bytes) is not int or size_bytes < 0:
                raise ValueError(f"a virtual size of {size_bytes!r}")
            yield BlockNode(
                name=inserted["node-name"],
                disk=entry.get("qdev", ""),
                file=_file(inserted["file"]),
                driver=inserted["drv"],
                size_bytes=size_bytes,
                read_only=inserted["ro"],
            )


def _is_filtered(monitor: Monitor, path: Path, image_format: str) -> bool:
    """Tell whether the node with the format lies below filters: throttle, copy-on-read and their like."""
    nodes = monitor.execute("query-named-block-nodes", {"flat": True})
    formats = {node["drv"] for node in nodes if _same_file(_file(node["file"]), path)}
    return image_format in formats and not formats & (_FORMATS - {image_format})


def _has_other_file(pid: int, path: Path) -> bool:
    """Tell whether a QEMU provably has not opened the file that is at `path` now.

    Only who may look at its open files can tell. Over a network another mount of the same share has
    another device number, so there the inode alone counts.
    """
    try:
        here = path.stat()
        opened = [os.stat(entry) for entry in os.scandir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    local = place_of(path.parent).mount.is_local
    return not any(o.st_ino == here.st_ino and (o.st_dev == here.st_dev or not local) for o in opened)


def _file(filename: str) -> str:
    """Give the file's name from QEMU's, which for a filter node is `json:` and its options, nested."""
    if not filename.startswith("json:"):
        return filename
    options: Any = json.loads(filename.removeprefix("json:"))  # Any: as nested as the nodes are
    while isinstance(options, dict) and "filename" not in options:
        options = options.get("file")
    return str(options["filename"]) if options else filename


def _same_file(name: str, path: Path) -> bool:
    return name == str(path) or os.path.realpath(name) == os.path.realpath(path)


def _user(monitor: Monitor, node: BlockNode) -> str:
    """Name a block job or an export that is connected with the node; "" when there is none.

    No stable command tells the nodes of a job; QEMU 4.0 and later draw the whole graph.
    """
    jobs = {
        job["device"]: f"{job['type']} job {job['device']}" for job in monitor.execute("query-block-jobs")
    }
    exports = {
        export["node-name"]: f"{export['type']} export {export['id']}"
        for export in monitor.execute("query-block-exports")
    }
    if not jobs and not exports:
        return ""
    graph = monitor.execute("x-debug-query-block-graph")
    near = _connected(graph, node.name)
    uses = [jobs.get(n["name"], "") for n in graph["nodes"] if n["id"] in near and n["type"] == "block-job"]
    uses += [exports.get(n["name"], "") for n in graph["nodes"] if n["id"] in near]
    return next(filter(None, uses), "")


def _connected(graph: Any, node_name: str) -> set[int]:  # Any: QEMU's own, shaped as used here
    """Give the ids of all that is linked with a node, up and down."""
    near = {n["id"] for n in graph["nodes"] if n["type"] == "block-driver" and n["name"] == node_name}
    edges = [{edge["parent"], edge["child"]} for edge in graph["edges"]]
    while more := set().union(*(edge for edge in edges if edge & near)) - near:
        near |= more
    return near


def _in_use(node: BlockNode, busy: str) -> InvalidState:
    return InvalidState(f"block node {node.name}", f"in use by {busy}", "free of block jobs and exports")


def _refusal(monitor: Monitor, node: BlockNode, size_bytes: int, reason: str) -> VolDriverError:
    """Choose the error by what its reader can do. The class QEMU gives is always GenericError."""
    subject = f"block node {node.name}"
    if "No space left" in reason:
        return NoSpace(f"file {node.file}", size_bytes - node.size_bytes)
    if "is in use" in reason or "Permission conflict" in reason:
        return _in_use(node, _user(monitor, node) or f"something else ({reason})")
    if "File too large" in reason or "exceeds maximum" in reason:
        return InvalidSize(subject, reason, format_size(size_bytes), node.size_bytes)
    for words, needed in _REFUSALS:
        if words.lower() in reason.lower():
            return InvalidState(subject, f"refused by QEMU ({reason})", needed)
    return BackendError(subject, f"QEMU refused {format_size(size_bytes)}: {reason}")
