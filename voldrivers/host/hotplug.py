"""Hot plug: give a running QEMU a volume as a virtio disk, and take it away again."""

from pathlib import Path

from voldrivers import process
from voldrivers.errors import BackendError, InvalidState, OutcomeUnknown
from voldrivers.host import blocknode
from voldrivers.host.media import Medium
from voldrivers.host.qmp import Monitor
from voldrivers.model import Volume

#: A virtio disk shows the guest at most 20 bytes (virtio 1.1, 5.2.6); Cinder and Nova cut there too.
_SERIAL_BYTES = 20
_ROOT_PORTS = ("child<pcie-root-port>", "child<ioh3420>")


def serial(volume_id: str) -> str:
    """Give the serial by which the guest knows the volume."""
    return volume_id[:_SERIAL_BYTES]


def plug(monitor: Monitor, volume: Volume, medium: Medium, qemu_pid: int | None) -> None:
    """Add node and disk; a guest that has the medium already, however it came to it, is left alone.

    Nothing is left behind on failure. Raises InvalidState (another process holds the file, no free
    port), BackendError, OutcomeUnknown.
    """
    if nodes := blocknode.find(monitor, volume.id, medium.path):
        for node in nodes:
            blocknode.check_identity(monitor, node, medium.path, medium.format, qemu_pid)
        return
    blocknode.close(monitor, volume.id)  # what a plug left that was killed half-way
    try:
        name = _add_nodes(monitor, volume, medium)
        _add_disk(monitor, name, volume)
    except (BackendError, InvalidState):
        blocknode.close(monitor, volume.id)
        raise


def unplug(monitor: Monitor, volume: Volume, path: Path, timeout_s: float) -> None:
    """Take disk and nodes out; what is not there is no error.

    Raises InvalidState when the guest has not let go of the disk within `timeout_s`, or uses the
    file through a disk that was not plugged by us; OutcomeUnknown.
    """
    name = blocknode.disk_id(volume.id)
    if name in _children(monitor, "/machine/peripheral"):
        _remove_disk(monitor, name, timeout_s)
    # The nodes are free a moment after their disk has gone: QEMU ends it from a callback.
    process.wait_until(lambda: blocknode.close(monitor, volume.id), timeout_s, f"{name} to be closed")
    if foreign := blocknode.find(monitor, volume.id, path):
        used = f"used through disk {foreign[0].disk}"
        raise InvalidState(f"file {path}", used, "unplugged by who plugged it")


def _add_nodes(monitor: Monitor, volume: Volume, medium: Medium) -> str:
    name: str | None = None
    try:
        for each in (*reversed(medium.lower()), medium):
            name = blocknode.add(
                monitor,
                volume.id,
                each.path,
                each.format,
                each.node(),
                backing=name,
                read_only=each is not medium,
            )
    except BackendError as error:
        if "lock" in error.reason:
            raise InvalidState(
                f"file {medium.path}", f"held by another process ({error.reason})", "free"
            ) from error
        raise
    assert name is not None
    return name


def _add_disk(monitor: Monitor, node: str, volume: Volume) -> None:
    name = blocknode.disk_id(volume.id)
    disk = {"driver": "virtio-blk-pci", "id": name, "drive": node, "serial": serial(volume.id)}
    try:
        monitor.execute("device_add", disk | _place(monitor) | {"share-rw": volume.multi_attach})
    except BackendError as error:
        subject = f"QEMU at {monitor.path}"
        if "does not support hotplugging" in error.reason:
            needed = "started with one more pcie-root-port that has an id"
            raise InvalidState(subject, "without a free port for hot plug", needed) from error
        if "lock" in error.reason:
            raise InvalidState(subject, f"refused ({error.reason})", "the only one with the file") from error
        raise


def _place(monitor: Monitor) -> dict[str, str]:
    """Choose an empty root port, which q35 needs; elsewhere there is none and QEMU chooses.

    From the object tree: `query-pci` shows what is behind a port only after the firmware has numbered it.
    """
    for port, kind in _children(monitor, "/machine/peripheral").items():
        if kind in _ROOT_PORTS and "child[0]" not in _children(monitor, f"/machine/peripheral/{port}/{port}"):
            return {"bus": port}
    return {}


def _children(monitor: Monitor, path: str) -> dict[str, str]:
    return {entry["name"]: entry["type"] for entry in monitor.execute("qom-list", {"path": path})}


def _remove_disk(monitor: Monitor, name: str, timeout_s: float) -> None:
    try:
        monitor.execute("device_del", {"id": name})
    except BackendError as error:
        if "in the process of unplug" not in error.reason and "not found" not in error.reason:
            raise
    try:
        process.wait_until(
            lambda: name not in _children(monitor, "/machine/peripheral"), timeout_s, f"disk {name} to go"
        )
    except OutcomeUnknown as error:
        kept = f"kept by the guest, which was asked {timeout_s:g} seconds ago"
        raise InvalidState(f"disk {name}", kept, "unmounted and released there") from error
