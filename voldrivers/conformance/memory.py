"""The suite's own subject: drivers in RAM, an oracle that looks into the array, hosts in RAM."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.util import find_spec, module_from_spec
from operator import attrgetter
from typing import Any

from voldrivers.base import Completed, Driver, Run
from voldrivers.conformance.subject import Filesystem, Oracle, Place, Subject
from voldrivers.conformance.verdicts import NotRun
from voldrivers.extend.engine import Engine
from voldrivers.memory import PATHS, MemoryArray, MemoryDriver, MemoryHost, MemoryMachine
from voldrivers.model import Attachment, Volume, utc_now
from voldrivers.sizes import MiB, TiB

#: So small that it gets full.
CAPACITY_BYTES = 256 * MiB
_BLOCK_BYTES = 512
_VAST_BYTES = 64 * TiB


@dataclass
class MemoryOracle(Oracle):
    """Looks into the array."""

    array: MemoryArray
    tolerance_bytes: int = 0

    def objects(self) -> Mapping[str, int]:
        array = self.array
        kept = {name: image.size_bytes for name, image in (array.snapshots | array.foreign).items()}
        return {**array.sizes, **kept, **{f"export of {v} to {h}": 0 for v, h in array.exports}}

    def size_bytes(self, volume: Volume) -> int | None:
        return self.array.sizes.get(volume.id)

    def free_bytes(self) -> int:
        return self.array.free_bytes


class MemoryPlace(Place):
    """A host in RAM; what is written there are words in the array."""

    def __init__(self, host: MemoryHost, instance: str | None = "vm") -> None:
        """Look at a host, and into an instance on it."""
        self.host: MemoryHost = host
        self.instance = instance

    def device_bytes(self, volume: Volume, attachment: Attachment) -> int:
        return self.host.machine.devices.get(volume.id, 0)

    def guest_bytes(self, volume: Volume, attachment: Attachment) -> int | None:
        return self.host.machine.instances.get(attachment.instance or "", {}).get(volume.id, 0)

    def read(self, volume: Volume, attachment: Attachment, offset_bytes: int, size_bytes: int) -> bytes:
        self._check_let_in(volume)
        self._check_end(volume, attachment, offset_bytes + size_bytes)
        words = self.host.array.written.get(volume.id, {})
        content = bytearray(size_bytes)
        for at, word in list(words.items()):  # others write meanwhile
            raw = _raw(word)
            begin = at - offset_bytes
            if -len(raw) < begin < size_bytes:
                kept = raw[max(0, -begin) : size_bytes - begin]
                content[max(0, begin) : max(0, begin) + len(kept)] = kept
        return bytes(content)

    def write(self, volume: Volume, attachment: Attachment, offset_bytes: int, content: bytes) -> None:
        self._check_let_in(volume)
        self._check_end(volume, attachment, offset_bytes + len(content))
        self.host.array.write(volume.id, offset_bytes, content.hex())

    def residue(self) -> frozenset[str]:
        machine = self.host.machine
        nodes = {f"node {n} of {name}" for name, nodes in machine.instances.items() for n in nodes}
        return frozenset(nodes | {f"device {each}" for each in machine.devices} | machine.held)

    def _check_end(self, volume: Volume, attachment: Attachment, end_bytes: int) -> None:
        sizes = [self.device_bytes(volume, attachment), self.host.array.sizes.get(volume.id, 0)]
        if attachment.instance is not None:
            sizes.append(self.guest_bytes(volume, attachment) or 0)
        if end_bytes > min(sizes):
            raise OSError(f"the device ends at {min(sizes)}")

    def _check_let_in(self, volume: Volume) -> None:
        if self.host.machine.lost.issuperset(PATHS):
            raise OSError("no path is left")
        if (volume.id, self.host.name) not in self.host.array.exports:
            raise OSError(f"host {self.host.name} is not let in")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        machine, instance = self.host.machine, self.instance or ""
        nodes = machine.instances.pop(instance)
        machine.stopped.add(instance)
        try:
            yield
        finally:
            machine.stopped.discard(instance)
            still = {each: machine.devices[each] for each in nodes if each in machine.devices}
            machine.instances[instance] = still

    @contextmanager
    def filesystem(
        self, volume: Volume, attachment: Attachment, *, fresh: bool
    ) -> Iterator["MemoryFilesystem"]:
        mounted = MemoryFilesystem(self, volume, attachment)
        if fresh:
            mounted.make()
        yield mounted

    def discard(self, volume: Volume, attachment: Attachment, offset_bytes: int, size_bytes: int) -> None:
        self._check_let_in(volume)
        self.host.discard(volume, offset_bytes, size_bytes)

    def sector_bytes(self, volume: Volume, attachment: Attachment) -> tuple[int, int]:
        return self.host.sector_bytes(volume)

    def paths(self, volume: Volume, attachment: Attachment) -> Mapping[str, int]:
        return dict(self.host.machine.paths[volume.id])

    @contextmanager
    def lost(self, path: str) -> Iterator[None]:
        self.host.machine.lost.add(path)
        try:
            yield
        finally:
            self.host.machine.lost.discard(path)

    def kernel_log(self) -> Sequence[str]:
        return tuple(self.host.machine.log)


@dataclass
class MemoryFilesystem(Filesystem):
    """A file system whose first block tells its size and its files, of which both ends are written."""

    place: MemoryPlace
    volume: Volume
    attachment: Attachment

    def size_bytes(self) -> int:
        return int(self._table()["size"])

    def write(self, name: str, size_bytes: int) -> None:
        table = self._table()
        begin, end = int(table["used"]), int(table["used"]) + size_bytes
        if end > int(table["size"]):
            raise OSError(f"no room for {size_bytes} bytes")
        for at in (begin, end - _BLOCK_BYTES):
            self._write(at, f"{name} at {at}")
        self._write(0, json.dumps(table | {"used": end, name: [begin, end - _BLOCK_BYTES]}))

    def check(self, name: str) -> None:
        for at in self._table()[name]:
            if self._read(at) != f"{name} at {at}":
                raise OSError(f"{name} is damaged at {at}")

    def grow(self, *, online: bool) -> None:
        size_bytes = self.place.device_bytes(self.volume, self.attachment)
        self._write(0, json.dumps(self._table() | {"size": size_bytes}))

    def make(self) -> None:
        """Make it, as large as the device, without files."""
        self._write(0, json.dumps({"used": _BLOCK_BYTES}))
        self.grow(online=False)

    def _table(self) -> dict[str, Any]:  # Any: sizes, and offsets of files
        try:
            return dict(json.loads(self._read(0)))
        except ValueError as error:
            raise OSError(f"no file system is there: {error}") from error

    def _read(self, at: int) -> str:
        return self.place.read(self.volume, self.attachment, at, _BLOCK_BYTES).decode().rstrip()

    def _write(self, at: int, text: str) -> None:
        self.place.write(self.volume, self.attachment, at, text.encode().ljust(_BLOCK_BYTES))


@dataclass
class Clock:
    """Time that passes by sleeping only."""

    time: datetime = field(default_factory=lambda: utc_now() + timedelta(days=1))

    def now(self) -> datetime:
        """The time."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Let time pass at once."""
        self.time += timedelta(seconds=seconds)


def subject(
    driver_class: type[MemoryDriver],
    host_class: type[MemoryHost] = MemoryHost,
    capacity_bytes: int = CAPACITY_BYTES,
    engine_class: type[Engine] = Engine,
) -> Subject:
    """Make a subject of a driver in RAM, with two hosts and an array of its own."""
    array, clock = MemoryArray(capacity_bytes), Clock()
    machines = [MemoryMachine(instances={"vm": {}}) for _ in range(2)]
    hosts = [host_class(name, array, machine) for name, machine in zip("ab", machines, strict=True)]

    def make(kind: type[Driver], run: Run) -> Driver:
        assert issubclass(kind, MemoryDriver)
        return kind("subject", None, run, array)

    @contextmanager
    def outage() -> Iterator[None]:
        array.reachable = False
        try:
            yield
        finally:
            array.reachable = True

    def elsewhere(method: str, *things: object) -> Any:  # Any: each method has its own answer
        """Ask a driver of the same code, read anew; the array alone is the same."""
        return getattr(_read_anew(driver_class)("subject", None, _pretend, array), method)(*things)

    return Subject(
        driver_class,
        make,
        [MemoryPlace(host) for host in hosts],
        MemoryOracle(array),
        max_bytes=capacity_bytes,
        now=clock.now,
        sleep=clock.sleep,
        run=_pretend,
        deadline_s=5.0,
        engine_class=engine_class,
        outage=outage,
        elsewhere=elsewhere,
        vast=lambda: subject(driver_class, host_class, _VAST_BYTES, engine_class),
    )


def _read_anew(kind: type[MemoryDriver]) -> Callable[..., MemoryDriver]:
    """Read the module of a class once more, for itself, and give its class. Raises NotRun for a local one."""
    spec = find_spec(kind.__module__)
    if "<locals>" in kind.__qualname__ or spec is None or spec.loader is None:
        raise NotRun(f"{kind.__qualname__} cannot be imported by another process")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Callable[..., MemoryDriver] = attrgetter(kind.__qualname__)(module)
    return made


def _pretend(argv: Sequence[str], *, timeout_s: float) -> Completed:  # noqa: ARG001 - as `Run` has them
    """Run nothing, and say that it went well."""
    return Completed("", "")


def _raw(word: str) -> bytes:
    try:
        return bytes.fromhex(word)
    except ValueError:
        return word.encode()
