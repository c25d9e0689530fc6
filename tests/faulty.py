"""A world in RAM that breaks at any outside call on demand, and that knows the truth.

`World` outlives engines, as arrays and machines outlive the processes that talk to them. Its drivers and
hosts are the memory ones, watched: each call from outside may be struck by a `Fault`, is checked against the
record (the phase is on disk before the act), and against the rules that keep data alive.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

from voldrivers import errors
from voldrivers.base import Driver, Host
from voldrivers.capabilities import Capabilities
from voldrivers.errors import BackendError, CommandFailed, InvalidState, OutcomeUnknown, VolDriverError
from voldrivers.extend.store import Store
from voldrivers.memory import MemoryArray, MemoryDriver, MemoryFileDriver, MemoryHost, MemoryMachine
from voldrivers.model import (
    Attachment,
    AttachmentState,
    Extend,
    ExtendReply,
    Phase,
    SnapshotStatus,
    Volume,
    VolumeStatus,
    utc_now,
)
from voldrivers.sizes import MiB

CAPACITY_BYTES = 48 * MiB
GRANULE_BYTES = 4 * MiB
INSTANCES = ("vm1", "vm2")
#: An instance by its host and name; a place by its host and the instance or None.
Instance = tuple[str, str]
Place = tuple[str, str | None]


class Killed(BaseException):
    """The process that works on a volume is gone, here and now."""


def sample(leaf: type[VolDriverError]) -> VolDriverError:
    """Build an error of any leaf."""
    values: dict[str, Any] = {"needed_bytes": 1, "free_bytes": 0}  # Any: the fields' own types
    defaults = {"current_bytes": None, "argv": ("lvextend",), "exit_code": 5}
    return leaf(**{f.name: (values | defaults).get(f.name, "injected") for f in fields(leaf)})


LEAVES = tuple(errors.leaves())
#: These say that something may have happened; the others promise that nothing has.
AFTER = (BackendError, CommandFailed, OutcomeUnknown)
DRIVER_CALLS = (
    *("create_volume", "delete_volume", "volume_size", "check_extend", "extend_volume", "probe_locks"),
    *("initialize_connection", "terminate_connection", "ledger_rows"),
    *("create_snapshot", "delete_snapshot", "snapshot_size", "revert_to_snapshot", "clone_volume"),
)
HOST_CALLS = (
    *("connector", "find_instance", "connect", "disconnect", "plug", "unplug", "ledger_rows", "hold"),
    *("instance_state", "check_extend", "rescan", "get_blockdev", "assist_extend", "cancel"),
    *("switch", "merge"),
)


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and where: at the `nth` call of that name, or of any, or from there on."""

    call: str
    nth: int
    what: str
    leaf: type[VolDriverError] = OutcomeUnknown
    forever: bool = False
    instance: Instance = ("h1", "vm1")


#: What happens around a call that itself goes well.
EVENTS = ("unreachable", "stop", "vanish", "start", "grown", "cancel", "completion", "rival", "slow")


@dataclass
class Request:
    """An assisted extend that its host has got and not yet acted on."""

    host: "MemoryHost"
    volume: Volume
    attachment: Attachment
    extend: Extend


@dataclass
class World:
    """The truth: the array, the machines, the instances that run unseen, the requests in flight."""

    array: MemoryArray = field(default_factory=lambda: MemoryArray(CAPACITY_BYTES))
    machines: dict[str, MemoryMachine] = field(
        default_factory=lambda: {
            host: MemoryMachine(instances={name: {} for name in INSTANCES}) for host in ("h1", "h2")
        }
    )
    vanished: dict[Instance, dict[str, int]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    #: What drivers have had a chance to allocate, by volume.
    allocated: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    time: datetime = field(default_factory=lambda: utc_now() + timedelta(days=1))
    waiting: list[Callable[[], object]] = field(default_factory=list)
    fault: Fault | None = None
    struck: list[str] = field(default_factory=list)
    called: list[str] = field(default_factory=list)
    happened: bool = False
    store: Store | None = None
    rival: Callable[[str, Volume], None] = lambda what, volume: None
    _count: int = 0
    _inside: bool = False
    _sizes: dict[tuple[str, ...], int] = field(default_factory=dict)

    # --- what an engine needs

    def drivers(self) -> dict[str, Driver]:
        """Give new driver objects over the same array."""
        kinds = {"block": WatchedBlock, "file": WatchedFile, "plain": WatchedPlain}
        return {name: kind(name, None, self, self.array) for name, kind in kinds.items()}

    def hosts(self) -> dict[str, Host]:
        """Give new host objects over the same machines."""
        made: dict[str, Host] = {}
        for name, machine in self.machines.items():
            made[name] = host = WatchedHost(name, self.array, machine)
            host.world = self
        return made

    def now(self) -> datetime:
        """The time, which passes only by sleeping."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Let time pass at once; what a kernel was slow to do is done."""
        self.time += timedelta(seconds=seconds)
        acts, self.waiting = self.waiting, []
        for act in acts:
            with suppress(VolDriverError):
                act()

    # --- what happens by itself

    def stop(self, instance: Instance) -> None:
        """End an instance's process, provably; its requests end with it."""
        host, name = instance
        self.machines[host].instances.pop(name, None)
        self.vanished.pop(instance, None)
        self.machines[host].stopped.add(name)
        self.requests = [r for r in self.requests if (r.host.name, r.attachment.instance) != instance]

    def vanish(self, instance: Instance) -> None:
        """Let an instance be lost from sight: it runs on, and nobody can prove anything."""
        host, name = instance
        nodes = self.machines[host].instances.pop(name, None)
        if nodes is not None:
            self.vanished[instance] = nodes

    def start(self, instance: Instance) -> None:
        """Start a stopped instance, or see a vanished one again; one that is held does not start."""
        host, name = instance
        machine = self.machines[host]
        if instance in self.vanished:
            machine.instances[name] = self.vanished.pop(instance)
        elif name in machine.stopped and not any(a.id in machine.held for a in self._attached(instance)):
            machine.stopped.discard(name)
            opened = [a.volume_id for a in self._attached(instance) if a.volume_id in machine.devices]
            machine.instances[name] = {volume_id: machine.devices[volume_id] for volume_id in opened}

    def lose(self, place: Place, volume_id: str, others: Sequence[Place]) -> None:
        """Forget one attachment, as a machine does that was really lost before it was detached by force."""
        host, name = place
        if all(other[0] != host for other in others):
            self.machines[host].devices.pop(volume_id, None)
        if name is not None:
            self.machines[host].instances.get(name, {}).pop(volume_id, None)
            self.vanished.get((host, name), {}).pop(volume_id, None)
        gone = [
            r
            for r in self.requests
            if (r.host.name, r.attachment.instance, r.volume.id) == (*place, volume_id)
        ]
        self.requests = [r for r in self.requests if r not in gone]

    def grow(self, volume_id: str, more_bytes: int = GRANULE_BYTES) -> None:
        """Grow a volume behind everybody's back."""
        if volume_id in self.array.sizes and self.array.free_bytes >= more_bytes:
            self.array.sizes[volume_id] += more_bytes

    def deliver(self) -> None:
        """Let every request in flight arrive, also where the controller cannot reach the host."""
        arriving, self.requests = self.requests, []
        for request in arriving:
            instance = (request.host.name, request.attachment.instance or "")
            machine = request.host.machine
            reachable, machine.reachable = machine.reachable, True
            unseen = self.vanished.get(instance)
            if unseen is not None:
                machine.instances[instance[1]] = unseen
            try:
                self._assist(request)
            except VolDriverError:
                pass  # refused: too old, or the instance has let go of it
            finally:
                machine.reachable = reachable
                if unseen is not None:
                    del machine.instances[instance[1]]

    def heal(self) -> None:
        """Make everything reachable and known again."""
        for machine in self.machines.values():
            machine.reachable = True
        for instance in list(self.vanished):
            self.start(instance)

    # --- the truth

    def sizes(self) -> dict[tuple[str, ...], int]:
        """Every size in every layer."""
        found: dict[tuple[str, ...], int] = {}
        found |= {("array", volume_id): size for volume_id, size in self.array.sizes.items()}
        for host, machine in self.machines.items():
            found |= {("device", host, volume_id): size for volume_id, size in machine.devices.items()}
            for name, nodes in machine.instances.items():
                found |= {("node", host, name, volume_id): size for volume_id, size in nodes.items()}
        for (host, name), nodes in self.vanished.items():
            found |= {("node", host, name, volume_id): size for volume_id, size in nodes.items()}
        return found

    def snapshot(self) -> object:
        """Everything outside of the engine that an operation could change."""
        stopped = [sorted(machine.stopped) for machine in self.machines.values()]
        array = self.array
        held = {name: (each.size_bytes, dict(each.written)) for name, each in array.snapshots.items()}
        written = {name: dict(words) for name, words in array.written.items() if words}
        return self.sizes(), held, written, sorted(array.exports), stopped, len(self.requests)

    def users(self, volume_id: str) -> list[Instance]:
        """The instances that have a volume open, whether anybody sees them or not."""
        return [(key[1], key[2]) for key in self.sizes() if key[0] == "node" and key[3] == volume_id]

    def watch_sizes(self) -> None:
        """Note a size that fell."""
        sizes = self.sizes()
        for layer, size in sizes.items():
            if size < self._sizes.get(layer, 0):
                self.violations.append(f"{layer} fell from {self._sizes[layer]} to {size}")
        self._sizes = sizes

    @property
    def fired(self) -> bool:
        """Tell whether the last operation met its fault."""
        return bool(self.struck)

    # --- calls

    def arm(self, fault: Fault | None) -> None:
        """Have the next operation meet a fault."""
        self.fault, self.happened, self._count = fault, False, 0
        self.struck, self.called = [], []

    def outside(
        self, who: Any, call: str, method: Callable[..., Any], args: Sequence[Any]
    ) -> Any:  # Any: all calls
        """Make a call from the engine, as it goes wrong or well."""
        if self._inside:
            return method(who, *args)
        self._inside = True
        try:
            self._check_record(call, args)
            return self._strike(who, call, method, args)
        finally:
            self.watch_sizes()
            self._inside = False

    def _strike(
        self, who: Any, call: str, method: Callable[..., Any], args: Sequence[Any]
    ) -> Any:  # Any: all calls
        fault = self._due(call)
        if fault is None:
            return self._act(who, call, method, args)
        if fault.what in EVENTS:
            self._happen(fault, args)
            return self._act(who, call, method, args)
        if fault.what == "generous" and call == "driver.extend_volume":
            return self._act(who, call, method, (args[0], args[1] + GRANULE_BYTES))
        if fault.what == "lie" and call in ("driver.extend_volume", "host.rescan", "host.assist_extend"):
            return ExtendReply.EXTENDED if call == "driver.extend_volume" else None
        if fault.what == "lazy" and call == "host.rescan":
            self.waiting.append(lambda: method(who, *args))
            return None
        if fault.what.startswith("late") and call == "host.assist_extend":
            self.requests.append(Request(who, *args))
        if fault.what.endswith("after"):
            self._act(who, call, method, args)
        if fault.what in ("error", "error-after"):
            raise sample(fault.leaf)
        if fault.what.startswith(("kill", "late-kill")):
            raise Killed
        if fault.what == "late":
            raise OutcomeUnknown("an injected request", "no answer")
        return self._act(who, call, method, args)

    def _act(
        self, who: Any, call: str, method: Callable[..., Any], args: Sequence[Any]
    ) -> Any:  # Any: all calls
        if call == "host.assist_extend":
            return self._assist(Request(who, *args))
        self.called.append(call)
        before = self.array.sizes.get(args[0].id, 0) if args and isinstance(args[0], Volume) else 0
        result = method(who, *args)
        if call == "driver.revert_to_snapshot":  # it may become smaller by this, and by nothing else
            self._sizes.pop(("array", args[0].id), None)
        if call == "driver.extend_volume":
            if result is ExtendReply.EXTENDED:
                self.allocated[args[0].id] = self.array.sizes[args[0].id]
            if self.array.sizes[args[0].id] > before:
                self._check_growth(who, args[0])
        if call == "host.cancel":
            self._forget(who, *args)
        return result

    def _due(self, call: str) -> Fault | None:
        fault = self.fault
        if fault is None or fault.call not in ("", call):
            return None
        self._count += 1
        due = self._count > fault.nth if fault.forever else self._count == fault.nth + 1
        if not due:
            return None
        self.struck.append(call)
        return fault

    def _happen(self, fault: Fault, args: Sequence[Any]) -> None:
        self.happened = True
        volume = next((a for a in args if isinstance(a, Volume)), None)
        if fault.what == "unreachable":
            self.machines[fault.instance[0]].reachable = False
        elif fault.what == "slow":
            self.sleep(60.0)
        elif fault.what == "grown":
            if volume is not None:
                self.grow(volume.id)
        elif fault.what in ("cancel", "completion", "rival"):
            if volume is not None:
                self.rival(fault.what, volume)
        else:
            {"stop": self.stop, "vanish": self.vanish, "start": self.start}[fault.what](fault.instance)

    def _assist(self, request: Request) -> None:
        """Do what an agent does: refuse an expired request, right before the act."""
        if request.extend.expired(self.time):
            raise InvalidState(f"extend {request.extend.id}", "expired", "within its time")
        volume = request.volume
        before = self.array.sizes[volume.id]
        MemoryHost.assist_extend(request.host, volume, request.attachment, request.extend)
        if self.array.sizes[volume.id] > before and volume.backend != "file":
            self.violations.append(f"{volume.title} was grown by a hypervisor, which cannot grow a LUN")

    def _forget(self, host: MemoryHost, extend: Extend, attachment: Attachment) -> None:
        self.requests = [
            r
            for r in self.requests
            if (r.host.name, r.attachment.id) != (host.name, attachment.id) or r.extend.id > extend.id
        ]

    # --- the rules that keep data alive

    def _check_record(self, call: str, args: Sequence[Any]) -> None:
        """What is about to be done must be on disk."""
        assert self.store is not None
        if call not in _RECORDED:
            return
        volume = self.store.volume(args[0].id)
        extend = self.store.last_extend(volume)
        states = {*(a.state for a in volume.attachments), *(s.status for s in volume.snapshots)}
        needed = _RECORDED[call]
        shown = {volume.status, extend.phase if extend else None, *states}
        if not needed & shown:
            self.violations.append(
                f"{call} with only {sorted(map(str, shown))} on disk, not {sorted(needed)}"
            )

    def _check_growth(self, driver: Driver, volume: Volume) -> None:
        """A file is grown by its driver only while nobody has it and nobody can start to."""
        if not isinstance(driver, MemoryFileDriver):
            return
        if users := self.users(volume.id):
            self.violations.append(f"{volume.title} was grown by its driver while {users} have it open")
        if volume.attachments and "driver.probe_locks" not in self.called:
            self.violations.append(f"{volume.title} was grown without a look at its locks")
        for attachment in volume.attachments:
            if attachment.id not in self.machines[attachment.host].held:
                self.violations.append(f"{volume.title} was grown while {attachment.place} could start")

    def _attached(self, instance: Instance) -> Iterator[Attachment]:
        assert self.store is not None
        for volume in self.store.volumes():
            for attachment in volume.attachments:
                here = (attachment.host, attachment.instance) == instance
                if here and attachment.state is AttachmentState.ATTACHED:
                    yield attachment


_ATTACHING, _DETACHING = {AttachmentState.ATTACHING}, {AttachmentState.ATTACHING, AttachmentState.DETACHING}
#: What must be on disk, as a status, a phase or the state of an attachment, before each act.
_RECORDED: dict[str, set[Any]] = {  # Any: words of three enums
    "driver.create_volume": {VolumeStatus.CREATING},
    "driver.delete_volume": {VolumeStatus.CREATING, VolumeStatus.DELETING},
    "driver.extend_volume": {Phase.GROWING, Phase.SETTLING},
    # An export that was lost is given back to those who are recorded as having it.
    "driver.initialize_connection": _ATTACHING | {AttachmentState.ATTACHED},
    "driver.create_snapshot": {SnapshotStatus.CREATING},
    "driver.delete_snapshot": {SnapshotStatus.CREATING, SnapshotStatus.DELETING},
    "driver.revert_to_snapshot": {VolumeStatus.REVERTING},
    "driver.clone_volume": {VolumeStatus.CREATING},
    "host.switch": {SnapshotStatus.CREATING},
    "host.merge": {SnapshotStatus.DELETING},
    "host.connect": _ATTACHING,
    "host.plug": _ATTACHING,
    "host.unplug": _DETACHING,
    "host.disconnect": _DETACHING,
    "host.rescan": {Phase.RESCANNING},
    "host.assist_extend": {Phase.RESIZING},
}


def _watched(call: str, method: Callable[..., Any]) -> Callable[..., Any]:  # Any: all calls
    def watched(self: Any, *args: Any) -> Any:  # Any: all calls
        return self.world.outside(self, call, method, args)

    return watched


class _Watched(MemoryDriver):
    """A driver whose world watches it."""

    def __init__(self, name: str, options: None, world: World, array: MemoryArray) -> None:
        super().__init__(name, options, no_programs, array)
        self.world = world


class PlainDriver(MemoryDriver):
    """A backend that can neither grow a volume in use nor attach it twice."""

    capabilities = Capabilities()


class WatchedBlock(_Watched):
    """The backend grows it."""


class WatchedPlain(_Watched, PlainDriver):
    """Nobody grows it while it is in use."""


class WatchedFile(_Watched, MemoryFileDriver):
    """The hypervisor grows it."""


class WatchedHost(MemoryHost):
    """A host whose world watches it."""

    world: World


def no_programs(*_argv: object, **_limits: object) -> Any:  # Any: never returns
    """Run nothing."""
    raise BackendError("a world in RAM", "runs no programs")


for _class in (WatchedBlock, WatchedPlain, WatchedFile):
    for _name in DRIVER_CALLS:
        if hasattr(_class, _name):
            setattr(_class, _name, _watched(f"driver.{_name}", getattr(_class, _name)))
for _name in HOST_CALLS:
    setattr(WatchedHost, _name, _watched(f"host.{_name}", getattr(MemoryHost, _name)))
