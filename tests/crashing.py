"""A controller in RAM that can be killed at every point where it touches the world or its records.

The world (array, machines, state file) outlives it, as a real one outlives a killed process.
"""

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from voldrivers.abilities import INTERFACES, Layers
from voldrivers.base import Driver, Host
from voldrivers.config import Policy
from voldrivers.extend import Engine, Site, Store
from voldrivers.extend.database import Database
from voldrivers.memory import MemoryArray, MemoryDriver, MemoryHost, MemoryMachine, MemoryOptions
from voldrivers.model import Attachment, ConnectionInfo, Connector

Thing = TypeVar("Thing")
Hook = Callable[[], object]
_INTERFACES = (Driver, Host, Layers, *(interface for _, _, interface in INTERFACES))
#: The time of the controllers here. It stands still, so what must be waited for is looked at once: every
#: run of a scenario passes the same points. Hosts, which look at a real clock, find nothing expired.
NOON = datetime(2999, 1, 1, 12, tzinfo=UTC)


def _nothing() -> None:
    """Do nothing."""


class Killed(BaseException):
    """SIGKILL: nothing catches it, and nothing may act after it."""


@dataclass
class Points:
    """The points that a run passes; it is killed before or after one of them.

    `kill_at` is twice the number of the point, plus one for after it.
    """

    kill_at: int | None = None
    passed: list[str] = field(default_factory=list)
    commits: int = 0
    dead: bool = False

    @contextmanager
    def point(self, name: str) -> Iterator[None]:
        """Pass one point: what is inside happens between before and after, failing included."""
        assert not self.dead, f"{name} was called by a process that was killed"
        before = 2 * len(self.passed)
        self.passed.append(name)
        self._die_at(before)
        try:
            yield
        except Exception:
            self._die_at(before + 1)
            raise
        self.commits += name == "commit"
        self._die_at(before + 1)

    def __str__(self) -> str:
        if self.kill_at is None:
            return "nowhere"
        point, after = divmod(self.kill_at, 2)
        return f"{'after' if after else 'before'} point {point} of the run, {self.passed[point]}"

    def _die_at(self, moment: int) -> None:
        if moment == self.kill_at:
            self.dead = True
            raise Killed(str(self))


class CountedDatabase(Database):
    """A state file whose every COMMIT is a point."""

    def __init__(self, path: Path, points: Points) -> None:
        self.points = Points()
        super().__init__(path)
        self.points = points  # opening a file that is there already commits nothing

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with ExitStack() as committed, super().transaction():
            yield
            committed.enter_context(self.points.point("commit"))


class CountedStore(Store):
    """The records over a counted state file."""

    def __init__(self, path: Path, points: Points) -> None:
        self.database = CountedDatabase(path, points)


@dataclass
class World:
    """What outlives a process, the state file left out."""

    array: MemoryArray = field(default_factory=MemoryArray)
    machines: dict[str, MemoryMachine] = field(
        default_factory=lambda: {name: MemoryMachine(instances={"vm": {}}) for name in ("a", "b")}
    )
    driver_type: type[MemoryDriver] = MemoryDriver
    host_type: type[MemoryHost] = MemoryHost

    def engine(self, directory: Path, points: Points | None = None, **site: Any) -> Engine:  # Any: of Site
        """Start a controller over this world and the state file in `directory`."""
        driver: Driver = self.driver_type("ram", MemoryOptions(), no_programs, self.array)
        hosts: dict[str, Host] = {
            name: self.host_type(name, self.array, machine) for name, machine in self.machines.items()
        }
        path = directory / "voldrivers.db"
        store = Store(path) if points is None else CountedStore(path, points)
        if points is not None:
            driver, hosts = counted(driver, points), {n: counted(h, points) for n, h in hosts.items()}
        site = {"policy": Policy(deadline_s=0.0), "now": lambda: NOON, **site}
        return Engine(Site(store, {"ram": driver}, hosts, directory / "locks", **site))


@dataclass(frozen=True)
class Image:
    """A world and its state file at one moment; the start of any number of runs."""

    world: World
    directory: Path

    def copy(self, directory: Path) -> "Image":
        """Take the state file as a kill leaves it: its log is not written back, no lock is held."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        for name in ("voldrivers.db", "voldrivers.db-wal"):
            if (self.directory / name).exists():
                shutil.copyfile(self.directory / name, directory / name)
        return Image(deepcopy(self.world), directory)

    def run(self, operate: Callable[[Engine], object], kill_at: int | None = None) -> Points:
        """Let a new controller operate, and kill it at `kill_at`; it dies without closing anything."""
        points = Points(kill_at)
        engine = self.world.engine(self.directory, points)
        try:
            operate(engine)
        except Killed:
            assert kill_at is not None
            left = self.copy(self.directory.with_name("left"))
            engine.store.close()
            Image(self.world, left.directory).copy(self.directory)
        else:
            engine.store.close()
        return points

    def seen(self) -> str:
        """Everything that must be equal at the end of two runs: records and world, ids and times left out."""
        with self.world.engine(self.directory) as engine:
            volumes = engine.volumes()
            rows = [
                {
                    **_fields(replace(volume, attachments=(), snapshots=())),
                    "snapshots": [_fields(snapshot) for snapshot in volume.snapshots],
                    "attachments": [_fields(replace(a, id="")) for a in volume.attachments],
                    "messages": [message.text for message in engine.messages(volume)],
                    "extend": _fields(engine.last_extend(volume)),
                }
                for volume in volumes
            ]
        world = [asdict(self.world.array), {n: asdict(m) for n, m in self.world.machines.items()}]
        text = json.dumps([rows, world], indent=1, sort_keys=True, default=_shown)
        snapshots = [snapshot for volume in volumes for snapshot in volume.snapshots]
        for thing_id, name in [(v.id, v.name) for v in volumes] + [(s.id, s.name) for s in snapshots]:
            text = text.replace(thing_id, f"id of {name}")
        return json.dumps(json.loads(text), indent=1, sort_keys=True)  # sorted by ids until now


def counted(thing: Thing, points: Points) -> Thing:
    """Make every method of a driver or host, as `base.py` names them, a point."""
    for name, method in inspect.getmembers(thing, inspect.ismethod):
        if any(name in vars(interface) for interface in _INTERFACES):
            label = f"{type(thing).__name__} {getattr(thing, 'name', '')} {name}"
            if not name.startswith("_"):
                wrapped = _counted_hold if name == "hold" else _counted_call
                setattr(thing, name, wrapped(points, label, method))
    return thing


def hook(thing: object, method: str, before: Hook = _nothing, after: Hook = _nothing) -> None:
    """Let something else happen right before or after each call of one method."""
    hooked = getattr(thing, method)

    @wraps(hooked)
    def call(*arguments: object) -> object:
        before()
        answer = hooked(*arguments)
        after()
        return answer

    setattr(thing, method, call)


def no_programs(*_argv: object, **_limits: object) -> Any:  # Any: never returns
    """Stand where drivers in RAM get their way to run programs."""
    raise AssertionError("nothing in RAM runs a program")


def _counted_call(points: Points, label: str, method: Callable[..., object]) -> Callable[..., object]:
    @wraps(method)
    def call(*arguments: object) -> object:
        with points.point(label):
            return method(*arguments)

    return call


def _counted_hold(
    points: Points, label: str, hold: Callable[[Attachment], AbstractContextManager[None]]
) -> Callable[[Attachment], AbstractContextManager[None]]:
    @contextmanager
    def held(attachment: Attachment) -> Iterator[None]:
        # The stack lets go when its holder is killed, as the kernel does with a lock.
        with ExitStack() as kept:
            with points.point(label):
                kept.enter_context(hold(attachment))
            yield
            with points.point(f"{label} ends"):
                kept.close()

    return held


def _fields(thing: Any) -> dict[str, object]:  # Any: any of the model's dataclasses
    names = [] if thing is None else [f.name for f in fields(thing) if f.name != "expires_at"]
    return {name: getattr(thing, name) for name in names}


def _shown(thing: object) -> object:
    if isinstance(thing, set | frozenset):
        return sorted(map(repr, thing))
    if isinstance(thing, Connector):
        return repr(thing)
    if isinstance(thing, ConnectionInfo):
        return [thing.driver_volume_type, dict(thing.properties)]
    raise TypeError(f"cannot compare {thing!r}")
