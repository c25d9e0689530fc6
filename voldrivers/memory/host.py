"""Hosts in RAM: what their kernels show of each volume, and the block nodes of their instances."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from voldrivers.abilities import Layers, Merge
from voldrivers.base import Host
from voldrivers.errors import BackendError, InvalidState, NotFound, OutcomeUnknown
from voldrivers.memory.array import MemoryArray
from voldrivers.model import (
    Attachment,
    ConnectionInfo,
    Connector,
    Extend,
    InstanceState,
    Ledger,
    LedgerRow,
    Volume,
    utc_now,
)

#: The ways from every machine to its volumes.
PATHS = ("path 1", "path 2")


@dataclass
class MemoryMachine:
    """A machine: size and layer of each volume in its kernel, and its instances' block nodes.

    `paths` has the size of a volume on each way to it, `lost` the ways that are broken; `log` is what the
    kernel says. `instances` maps the name of an instance to the size of each volume's node in it; a stopped
    instance is not in there. A machine that is not `reachable` answers nothing.
    """

    devices: dict[str, int] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    paths: dict[str, dict[str, int]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    instances: dict[str, dict[str, int]] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    newest: dict[str, int] = field(default_factory=dict)
    reachable: bool = True


class MemoryHost(Host, Layers):
    """A host in RAM, with the array that its volumes come from at hand."""

    def __init__(self, name: str, array: MemoryArray, machine: MemoryMachine | None = None) -> None:
        """Use `machine`, or make one with one running instance, `vm`."""
        super().__init__(name, None, _no_programs)
        self.array = array
        self.machine = machine or MemoryMachine(instances={"vm": {}})
        array.instances[name] = self.machine.instances

    def connector(self) -> Connector:
        return Connector(self.name)

    def find_instance(self, attachment: Attachment) -> Attachment:
        self._answer()
        if attachment.instance is not None and attachment.instance not in self.machine.instances:
            raise NotFound("instance", attachment.instance, f" on host {self.name}")
        return attachment

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        self._answer()
        if (volume.id, self.name) not in self.array.exports:
            raise BackendError(volume.title, f"is not exported to host {self.name}")
        self.machine.devices.setdefault(volume.id, self.array.sizes[volume.id])
        self.machine.paths.setdefault(volume.id, dict.fromkeys(PATHS, self.array.sizes[volume.id]))
        self.machine.layers.setdefault(volume.id, connection_info.properties.get("layer", ""))
        return f"/dev/memory/{volume.id}"

    def disconnect(self, volume: Volume, attachment: Attachment) -> None:
        self._answer()
        self.machine.devices.pop(volume.id, None)
        self.machine.paths.pop(volume.id, None)
        self.machine.layers.pop(volume.id, None)

    def plug(self, volume: Volume, attachment: Attachment) -> None:
        self._answer()
        if attachment.instance is not None:
            nodes = self._nodes(attachment)
            nodes.setdefault(volume.id, self.machine.devices[volume.id])

    def unplug(self, volume: Volume, attachment: Attachment) -> None:
        self._answer()
        if attachment.instance and self.instance_state(attachment) is not InstanceState.STOPPED:
            self._nodes(attachment).pop(volume.id, None)

    def ledger_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        if not self.machine.reachable:
            row = LedgerRow("device", self.name, None, expected_bytes, note="the host does not answer")
            return (row,)
        rows = [LedgerRow("device", self.name, self.machine.devices.get(volume.id), expected_bytes)]
        if attachment.instance in self.machine.instances:
            seen = self.machine.instances[attachment.instance].get(volume.id)
            rows.append(LedgerRow("QEMU node", attachment.place, seen, expected_bytes))
        return tuple(rows)

    def instance_state(self, attachment: Attachment) -> InstanceState:
        if not self.machine.reachable:
            return InstanceState.UNKNOWN
        if attachment.instance in self.machine.instances:
            return InstanceState.RUNNING
        gone = attachment.instance in self.machine.stopped
        return InstanceState.STOPPED if gone else InstanceState.UNKNOWN

    @contextmanager
    def hold(self, attachment: Attachment) -> Iterator[None]:
        self._answer()
        self.machine.held.add(attachment.id)
        try:
            yield
        finally:
            self.machine.held.discard(attachment.id)

    def check_extend(self, volume: Volume, attachment: Attachment) -> None:
        self._answer()
        for path in sorted(self.machine.lost):
            raise InvalidState(f"{path} to {volume.title} on host {self.name}", "lost", "there")
        if attachment.instance and self.instance_state(attachment) is InstanceState.UNKNOWN:
            raise InvalidState(f"instance {attachment.place}", "unknown", "running or provably stopped")

    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        self._answer()
        for path in self.machine.paths.get(volume.id, {}):
            self.rescan_path(volume, path)
        self.machine.devices[volume.id] = self.array.sizes[volume.id]

    def rescan_path(self, volume: Volume, path: str) -> None:
        """Read a volume's size on one way to it. Raises BackendError for one that is lost."""
        if path in self.machine.lost:
            raise BackendError(volume.title, f"{path} on host {self.name} is lost")
        self.machine.paths[volume.id][path] = self.array.sizes[volume.id]

    def discard(self, volume: Volume, offset_bytes: int, size_bytes: int) -> None:
        """Have a range of a volume read as zeros."""
        written = self.array.written.get(volume.id, {})
        for at in [each for each in written if offset_bytes <= each < offset_bytes + size_bytes]:
            del written[at]

    def sector_bytes(self, volume: Volume) -> tuple[int, int]:
        """Give the logical and the physical sector size of a volume's device."""
        return 512, 4096

    def get_blockdev(self, volume: Volume, attachment: Attachment) -> int:
        self._answer()
        if volume.id not in self.machine.devices:
            raise NotFound("device", volume.name, f" on host {self.name}")
        return self.machine.devices[volume.id]

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        self._answer()
        if extend.expired(utc_now()) or extend.id < self.machine.newest.get(volume.id, 0):
            raise InvalidState(f"extend {extend.id}", "expired or older", "the newest, within its time")
        self.machine.newest[volume.id] = extend.id
        nodes = self._nodes(attachment)
        if volume.id not in nodes:
            raise InvalidState(f"instance {attachment.place}", f"without {volume.title}", "using it")
        if self.array.sizes[volume.id] < extend.to_bytes:
            self.array.resize(volume.id, extend.to_bytes)
        for path in self.machine.paths.get(volume.id, {}).keys() - self.machine.lost:
            self.rescan_path(volume, path)
        self.machine.devices[volume.id] = self.array.sizes[volume.id]
        nodes[volume.id] = self.machine.devices[volume.id]

    def switch(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        self._answer()
        if attachment.may_run:
            self._nodes(attachment)
        self.machine.layers[volume.id] = connection_info.properties["layer"]
        return f"/dev/memory/{volume.id}"

    def merge(self, volume: Volume, attachment: Attachment, merge: Merge) -> int:
        self._nodes(attachment)
        self.array.merged.add(merge.merged)
        return 0

    def cancel(self, extend: Extend, attachment: Attachment) -> None:
        if self.instance_state(attachment) is InstanceState.STOPPED:
            return
        if not self.machine.reachable:
            raise OutcomeUnknown(f"extend {extend.id}", f"host {self.name} does not answer")

    def _nodes(self, attachment: Attachment) -> dict[str, int]:
        nodes = self.machine.instances.get(attachment.instance or "")
        if nodes is None:
            raise InvalidState(f"instance {attachment.place}", "not running", "running")
        return nodes

    def _answer(self) -> None:
        if not self.machine.reachable:
            raise InvalidState(f"host {self.name}", "not answering", "reachable")


def _no_programs(*_argv: object, **_limits: object) -> Any:  # Any: never returns
    raise BackendError("a host in RAM", "runs no programs")
