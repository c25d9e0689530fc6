"""Block nodes: the one through which a guest uses a volume, whether it may be resized, and resizing it."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
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
FORMATS = frozenset(["raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "vhdx", "luks", "parallels"])

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
    return f"vol-{_digest(volume_id, 27)}"


def node_name(volume_id: str, path: Path) -> str:
    """Name the node of one file of a volume, under the same rule; all of them begin alike."""
    return f"{_prefix(volume_id)}-{_digest(path.name, 8)}"


def file_node_name(volume_id: str, path: Path) -> str:
    """Name the node below that one, for the file itself."""
    return f"{_prefix(volume_id)}-{_digest(f'file {path.name}', 8)}"


def is_ours(name: str, volume_id: str) -> bool:
    """Tell whether a node has a name that we give for a volume."""
    return name.startswith(f"{_prefix(volume_id)}-")


def find(monitor: Monitor, volume_id: str, *paths: Path) -> list[BlockNode]:
    """Find the nodes, anew at each call: of our disk, then of every other disk with a file; none if none.

    Always the top ones: resizing a node below a filter leaves the guest with the old size. Raises
    InvalidState when our disk meanwhile stores its blocks in none of `paths` (another's snapshot, a mirror).
    """
    nodes = list(_nodes(monitor))
    ours = [n for n in nodes if n.disk.startswith(f"/machine/peripheral/{disk_id(volume_id)}/")]
    for node in ours:
        if not any(is_stored_in(node, volume_id, path) for path in paths):
            needed = f"stored in {' or '.join(map(str, paths))}"
            raise InvalidState(f"block node {node.name}", f"stored in {node.file}", needed)
    others = (node for node in nodes if node not in ours)
    return ours + [node for node in others if any(is_stored_in(node, volume_id, path) for path in paths)]


def is_stored_in(node: BlockNode, volume_id: str, path: Path) -> bool:
    """Tell whether a node's own blocks, not those of layers below, are in a file.

    Over many layers QEMU cuts the file's name; then the node's has to do, which we gave it with the file.
    """
    return is_same_file(node.file, path) or node.name == node_name(volume_id, path)


def is_same_file(name: str, path: Path) -> bool:
    """Tell whether QEMU's name of a file is that of one here."""
    return name == str(path) or os.path.realpath(name) == os.path.realpath(path)


def check_identity(
    monitor: Monitor, node: BlockNode, path: Path, image_format: str, qemu_pid: int | None
) -> None:
    """Refuse a node that is not the volume: in another format than recorded, or of a file since replaced.

    A guest can write a header of another format into a raw disk, and a QEMU that was started to guess
    believes it. `qemu_pid` is None where it is not known. Raises InvalidState; changes nothing.
    """
    if node.driver != image_format and not _is_filtered(monitor, path, image_format):
        raise InvalidState(f"block node {node.name}", f"opened as {node.driver}", f"opened as {image_format}")
    if qemu_pid is not None and has_other_file(qemu_pid, path):
        raise InvalidState(f"block node {node.name}", f"of a file that is no longer {path}", "of that file")


def has_other_file(pid: int, path: Path) -> bool:
    """Tell whether a QEMU provably has not opened the file that is at `path` now.

    Only who may look at its open files can tell. Over a network another mount of the same share has
    another device number, so there the inode alone counts.
    """
    try:
        here = path.stat()
        opened = [os.stat(entry) for entry in os.scandir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    if stat.S_ISBLK(here.st_mode):
        # By its number: libvirt gives a QEMU a /dev of its own, in which the same device is another inode.
        return not any(stat.S_ISBLK(o.st_mode) and o.st_rdev == here.st_rdev for o in opened)
    local = place_of(path.parent).mount.is_local
    return not any(o.st_ino == here.st_ino and (o.st_dev == here.st_dev or not local) for o in opened)


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


def refusal(subject: str, file: str, shown_bytes: int, size_bytes: int, reason: str) -> VolDriverError | None:
    """Choose the error by what its reader can do, from QEMU's words for refusing to resize; None for others.

    The class that QEMU gives is always GenericError.
    """
    if "No space left" in reason:
        return NoSpace(f"file {file}", size_bytes - shown_bytes)
    if "File too large" in reason or "exceeds maximum" in reason:
        return InvalidSize(subject, reason, format_size(size_bytes), shown_bytes)
    for words, needed in _REFUSALS:
        if words.lower() in reason.lower():
            return InvalidState(subject, f"refused by QEMU ({reason})", needed)
    return None


def add(
    monitor: Monitor,
    volume_id: str,
    path: Path,
    driver: str,
    file: Mapping[str, object],
    *,
    backing: str | None = None,
    read_only: bool = False,
) -> str:
    """Open a layer, its file as a node by itself; give the name of the layer's. Raises BackendError.

    A file that QEMU opened along with its layer is opened anew when the layer is reopened (blockdev-reopen),
    and once more in the middle of the guest's requests, which fail then: EBADF, seen with QEMU 7.2.
    """
    name, file_name = node_name(volume_id, path), file_node_name(volume_id, path)
    monitor.execute("blockdev-add", {"node-name": file_name, **file})
    try:
        layer = {"node-name": name, "driver": driver, "read-only": read_only, "file": file_name}
        monitor.execute("blockdev-add", layer | ({} if driver == "raw" else {"backing": backing}))
    except BackendError:
        close_node(monitor, file_name)
        raise
    return name


def close(monitor: Monitor, volume_id: str) -> bool:
    """Close every node of a volume that nobody uses; tell whether none is left."""
    while names := _names(monitor, volume_id):
        closed = [name for name in names if close_node(monitor, name)]
        if not closed:  # what lies below another one can be closed after it
            return False
    return True


def close_node(monitor: Monitor, name: str) -> bool:
    """Close a node; tell whether it is gone."""
    try:
        monitor.execute("blockdev-del", {"node-name": name})
    except BackendError as error:
        return "Failed to find node" in error.reason
    return True


def _digest(text: str, length: int) -> str:
    return sha256(text.encode()).hexdigest()[:length]


def _prefix(volume_id: str) -> str:
    return f"vol-{_digest(volume_id, 18)}"


def _names(monitor: Monitor, volume_id: str) -> list[str]:
    nodes = monitor.execute("query-named-block-nodes", {"flat": True})
    return [node["node-name"] for node in nodes if is_ours(node["node-name"], volume_id)]


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
                file=file_of(inserted["file"]),
                driver=inserted["drv"],
                size_bytes=size_bytes,
                read_only=inserted["ro"],
            )


def _is_filtered(monitor: Monitor, path: Path, image_format: str) -> bool:
    """Tell whether the node with the format lies below filters: throttle, copy-on-read and their like."""
    nodes = monitor.execute("query-named-block-nodes", {"flat": True})
    formats = {node["drv"] for node in nodes if is_same_file(file_of(node["file"]), path)}
    return image_format in formats and not formats & (FORMATS - {image_format})


def file_of(filename: str) -> str:
    """Give the file's name from QEMU's, which for a filter or a layer is `json:` and its options, nested."""
    if not filename.startswith("json:"):
        return filename
    try:
        options: Any = json.loads(filename.removeprefix("json:"))  # Any: as nested as the nodes are
    except ValueError:  # cut off
        return filename
    while isinstance(options, dict) and "filename" not in options:
        options = options.get("file")
    return str(options["filename"]) if options else filename


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
    """Choose the error by what its reader can do; of one in use, say by whom."""
    subject = f"block node {node.name}"
    if "is in use" in reason or "Permission conflict" in reason:
        return _in_use(node, _user(monitor, node) or f"something else ({reason})")
    refused = BackendError(subject, f"QEMU refused {format_size(size_bytes)}: {reason}")
    return refusal(subject, node.file, node.size_bytes, size_bytes, reason) or refused
