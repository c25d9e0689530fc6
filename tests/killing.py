"""Real processes killed where they touch the world: voldrivers itself, or the QEMU it works with."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from crashing import Points
from realsite import LARGE, NAME, RAW, SMALL, Child, Kind, RealSite, allocated_bytes, node_bytes

from voldrivers import process
from voldrivers.base import Completed
from voldrivers.errors import BackendError, NotFound, OutcomeUnknown
from voldrivers.extend import Engine
from voldrivers.guests.device import DeviceGuest
from voldrivers.host.qmp import Monitor

_PATTERN = 0x5A


@dataclass
class DeadlyPoints(Points):
    """Points at one of which a process is killed for good: this one, or `victim` if there is one."""

    victim: int | None = None

    def _die_at(self, moment: int) -> None:
        if moment == self.kill_at:
            if self.victim is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                end(self.victim)


def end(pid: int) -> None:
    """Kill a process that is not ours and wait until it is gone; its parent may not have noticed."""
    with suppress(NotFound, ProcessLookupError):
        victim = process.identity(pid)
        os.kill(pid, signal.SIGKILL)
        process.wait_until(lambda: process.is_gone(victim), 5, f"process {pid} to end")


@dataclass(frozen=True)
class Scenario:
    """What is done, and to whom: `guests` have the volume unless the operation gives it to the first."""

    name: str
    operate: Callable[[Engine, "World"], object]
    kind: Kind = RAW
    attached: bool = True
    guests: int = 1
    dead_guests: bool = False
    detaches: bool = False
    creates: bool = False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class World:
    """One site with its guests, from the moment before the operation on."""

    scenario: Scenario
    site: RealSite
    guests: Sequence[DeviceGuest]

    def run(self, points: Points) -> Child:
        """Begin the operation in a process of its own that counts its points."""
        return Child(lambda: self._operate(points))

    def end_of(self, child: Child) -> str:
        """Give what a process ended with; the guests give back meanwhile what they are asked for."""
        process.wait_until(lambda: self._let_go() or not child.is_running, 120, "the child to end")
        return child.answer()

    def resume(self) -> str:
        """Resume in another new process."""
        return self.end_of(Child(self.resume_here))

    def resume_here(self) -> None:
        """Resume in this process; raise what did not end well."""
        with self.site.engine() as engine:
            for resumed in engine.resume():
                if resumed.error is not None:
                    raise resumed.error

    @property
    def passed(self) -> list[str]:
        """The points that the operation passed, if it came to its end."""
        return (self.site.directory / "points").read_text().splitlines()

    def records(self) -> str:
        """What is recorded, ids and places left out."""
        with self.site.engine() as engine:
            rows = [self._row(engine, volume.name) for volume in engine.volumes()]
            ids = [volume.id for volume in engine.volumes()]
        text = json.dumps(rows, indent=1, default=str).replace(str(self.site.directory), "DIRECTORY")
        for volume_id in ids:
            text = text.replace(volume_id, "ID")
        return text

    def seen(self, *, hidden: bool = True) -> str:
        """Everything that must be equal at the end of two runs; a hidden file is one that was left over."""
        return json.dumps([self.records(), self._files(hidden), self._guests()], indent=1)

    def check_content(self) -> None:
        """Have the old range hold what was in it, the new one nothing, and the image be sound."""
        if self.site.share.exists() and os.listdir(self.site.share):
            self.site.check_image()
            old = 0 if self.scenario.creates else _PATTERN
            qemu_io(self.site, f"read -P {old} 0 {SMALL}")
            if (new := self.site.file_bytes - SMALL) > 0:
                qemu_io(self.site, f"read -P 0 {SMALL} {new}")

    def _operate(self, points: Points) -> None:
        with pytest.MonkeyPatch.context() as patch:
            count_monitor(patch, points)
            try:
                with self.site.engine(points, counted_run(points)) as engine:
                    self.scenario.operate(engine, self)
            finally:
                (self.site.directory / "points").write_text("\n".join(points.passed))

    def _let_go(self) -> bool:
        if self.scenario.detaches:
            for guest in self.guests:
                with suppress(OutcomeUnknown, BackendError):  # not asked for anything, or dead
                    guest.eject(timeout_s=0)
        return False

    def _row(self, engine: Engine, name: str) -> list[Any]:  # Any: whatever JSON can take
        volume, extend = engine.volume(name), engine.last_extend(engine.volume(name))
        sizes = [volume.size_bytes, volume.backend_bytes, volume.extend_new_size_bytes]
        attachments = [[a.place, a.state, a.monitor, a.device_path] for a in volume.attachments]
        last = extend and [extend.phase, extend.from_bytes, extend.to_bytes, extend.deferred, extend.reason]
        messages = [message.text for message in engine.messages(volume)]
        return [name, volume.status, volume.multi_attach, *sizes, attachments, last, messages]

    def _files(self, hidden: bool) -> list[Any]:  # Any: as above
        """Kinds of files, their real sizes, and whether all room is taken."""
        paths = [path for path in self.site.share.iterdir() if hidden or not path.name.startswith(".")]
        return [
            [path.suffix, self.site.file_bytes, allocated_bytes(path) >= self.site.file_bytes]
            for path in paths
        ]

    def _guests(self) -> list[Any]:  # Any: as above
        return [
            [guest.is_running, node_bytes(guest), [disk.capacity_bytes() for disk in guest.disks()]]
            for guest in self.guests
            if not self.scenario.dead_guests
        ]


@contextmanager
def prepared(scenario: Scenario, directory: Path) -> Iterator[World]:
    """Give a new world at the moment before the operation."""
    (directory / "share").mkdir(parents=True)
    site = RealSite(directory, directory / "share")
    with ExitStack() as running:
        guests = [running.enter_context(DeviceGuest(directory, f"g{n}")) for n in range(scenario.guests)]
        if not scenario.creates:
            site.create(scenario.kind, multi_attach=scenario.guests > 1)
            qemu_io(site, f"write -P {_PATTERN} 0 {SMALL}")
        for guest in guests if scenario.attached else ():
            site.attach(guest.qmp_socket)
            guest.disks()
            if scenario.dead_guests:
                guest.kill()
        yield World(scenario, site, guests)


def qemu_io(site: RealSite, command: str) -> None:
    options = ["--force-share", "--read-only"] if command.startswith("read") else []
    argv = ["qemu-io", *options, "-f", site.image_format, "-c", command, str(site.path)]
    assert "verification failed" not in process.run(argv, timeout_s=20).stdout, command


def count_monitor(patch: pytest.MonkeyPatch, points: Points) -> None:
    """Make every connection to a QEMU and every command a point."""
    execute, enter = Monitor.execute, Monitor.__enter__

    def counted_execute(self: Monitor, command: str, *arguments: Any) -> Any:  # Any: as of execute
        with points.point(f"QMP {command}"):
            return execute(self, command, *arguments)

    def counted_enter(self: Monitor) -> Monitor:
        with points.point("QMP connection"):
            return enter(self)

    patch.setattr(Monitor, "execute", counted_execute)
    patch.setattr(Monitor, "__enter__", counted_enter)


def counted_run(points: Points) -> Callable[..., Completed]:
    """Make every program a point."""

    def run(argv: Sequence[str], *, timeout_s: float) -> Completed:
        # After prlimit and its limits, if there are any, comes the program.
        program = argv[argv.index("--") + 1 :] if argv[0] == "prlimit" else argv
        with points.point(f"run {program[0]} {program[1]}"):
            return process.run(argv, timeout_s=timeout_s)

    return run


def extend(engine: Engine, _world: World) -> None:
    engine.extend(NAME, LARGE)


def attach(engine: Engine, world: World) -> None:
    engine.attach(NAME, monitor=world.guests[0].qmp_socket)


def attach_bare(engine: Engine, _world: World) -> None:
    engine.attach(NAME)


def detach(engine: Engine, _world: World) -> None:
    engine.detach(NAME)


def create(engine: Engine, world: World) -> None:
    engine.create_volume(NAME, SMALL, options=world.scenario.kind.options)


def delete(engine: Engine, _world: World) -> None:
    engine.delete_volume(NAME)
