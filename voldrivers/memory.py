"""A backend and hosts in RAM: complete, for tests, documentation and the suite's own tests.

The array and the machine outlive the driver and host objects, as a real array outlives the process
that talks to it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from voldrivers.base import Driver, GrownByHypervisor, Host, Run
from voldrivers.capabilities import Capabilities, InUseExtend
from voldrivers.errors import BackendError, InvalidState, NoSpace, NotFound, OutcomeUnknown
from voldrivers.model import (
    Attachment,
    ConnectionInfo,
    Connector,
    Extend,
    ExtendReply,
    InstanceState,
    Ledger,
    LedgerRow,
    Pool,
    Volume,
    utc_now,
)
from voldrivers.options import SizeBytes, option
from voldrivers.sizes import MiB, SizeRule, TiB


@dataclass
class MemoryArray:
    """An array: the size of each volume by id, and who may reach it."""

    capacity_bytes: int = TiB
    sizes: dict[str, int] = field(default_factory=dict)
    exports: set[tuple[str, str]] = field(default_factory=set)

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return self.capacity_bytes - sum(self.sizes.values())

    def resize(self, volume_id: str, new_size_bytes: int) -> None:
        """Give a volume its size. Raises NoSpace."""
        more_bytes = new_size_bytes - self.sizes.get(volume_id, 0)
        if more_bytes > self.free_bytes:
            raise NoSpace("the array", more_bytes, self.free_bytes)
        self.sizes[volume_id] = new_size_bytes


@dataclass(frozen=True)
class MemoryOptions:
    """The options of a backend in RAM."""

    capacity: SizeBytes = option("room of the array", SizeBytes(TiB))


class MemoryDriver(Driver):
    """Volumes in RAM that the backend grows, in use too."""

    capabilities = Capabilities(in_use_extend=InUseExtend.BY_BACKEND, multi_attach=True)
    options_type = MemoryOptions
    size_rule = SizeRule(granularity_bytes=4 * MiB)

    def __init__(
        self, name: str, options: Any, run: Run, array: MemoryArray | None = None
    ) -> None:  # Any: base
        """Use `array`, or make one."""
        super().__init__(name, options, run)
        self.array = array or MemoryArray(options.capacity)

    def create_volume(self, volume: Volume, options: object) -> str:
        if volume.id not in self.array.sizes:
            self.array.resize(volume.id, volume.size_bytes)
        return "in RAM"

    def delete_volume(self, volume: Volume) -> None:
        if any(volume_id == volume.id for volume_id, _ in self.array.exports):
            raise InvalidState(volume.title, "exported", "not exported")
        self.array.sizes.pop(volume.id, None)

    def list_volumes(self) -> tuple[str, ...]:
        return tuple(self.array.sizes)

    def volume_size(self, volume: Volume) -> int:
        if volume.id not in self.array.sizes:
            raise NotFound("volume", volume.name, f" on backend {self.name}")
        return self.array.sizes[volume.id]

    def pool(self) -> Pool:
        allocated_bytes = sum(self.array.sizes.values())
        return Pool(self.array.capacity_bytes, self.array.free_bytes, allocated_bytes)

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        more_bytes = new_size_bytes - self.volume_size(volume)
        if more_bytes > self.array.free_bytes:
            raise NoSpace(volume.title, more_bytes, self.array.free_bytes)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if self.volume_size(volume) < new_size_bytes:
            self.array.resize(volume.id, new_size_bytes)
        return ExtendReply.EXTENDED

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        self.array.exports.add((volume.id, connector.host))
        return ConnectionInfo("memory", {"volume_id": volume.id})

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        if all(a.host != connector.host for a in volume.attachments):
            self.array.exports.discard((volume.id, connector.host))


class MemoryFileDriver(MemoryDriver, GrownByHypervisor):
    """Volumes in RAM that behave like files: while an instance runs, only its hypervisor may grow them."""

    capabilities = Capabilities(in_use_extend=InUseExtend.BY_HYPERVISOR, multi_attach=True)
    size_rule = SizeRule(granularity_bytes=512)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if self.volume_size(volume) < new_size_bytes and not volume.nobody_runs:
            return ExtendReply.DEFERRED
        return super().extend_volume(volume, new_size_bytes)

    def probe_locks(self, volume: Volume) -> None:
        self.volume_size(volume)


@dataclass
class MemoryMachine:
    """A machine: the size its kernel shows of each volume, and its instances' block nodes.

    `instances` maps the name of an instance to the size of each volume's node in it; a stopped
    instance is not in there. A machine that is not `reachable` answers nothing.
    """

    devices: dict[str, int] = field(default_factory=dict)
    instances: dict[str, dict[str, int]] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    newest: dict[str, int] = field(default_factory=dict)
    reachable: bool = True


class MemoryHost(Host):
    """A host in RAM, with the array that its volumes come from at hand."""

    def __init__(self, name: str, array: MemoryArray, machine: MemoryMachine | None = None) -> None:
        """Use `machine`, or make one with one running instance, `vm`."""
        super().__init__(name, None, _no_programs)
        self.array = array
        self.machine = machine or MemoryMachine(instances={"vm": {}})

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
        return f"/dev/memory/{volume.id}"

    def disconnect(self, volume: Volume, attachment: Attachment) -> None:
        self._answer()
        if all(a.host != self.name for a in volume.attachments):
            self.machine.devices.pop(volume.id, None)

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
        if attachment.instance and self.instance_state(attachment) is InstanceState.UNKNOWN:
            raise InvalidState(f"instance {attachment.place}", "unknown", "running or provably stopped")

    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        self._answer()
        self.machine.devices[volume.id] = self.array.sizes[volume.id]

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
        self.machine.devices[volume.id] = self.array.sizes[volume.id]
        nodes[volume.id] = self.machine.devices[volume.id]

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
