"""Real processes killed where they touch the world: voldrivers itself, or the QEMU it works with."""

import json
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from crashing import Points
from realsite import LARGE, NAME, RAW, SMALL, Child, Kind, RealSite, allocated_bytes, node_bytes

from voldrivers import process
from voldrivers.base import Completed
from voldrivers.errors import BackendError, NotFound, OutcomeUnknown
from voldrivers.extend import Engine
from voldrivers.filesystem import image_bytes
from voldrivers.guests.device import SECTOR_BYTES, DeviceGuest
from voldrivers.host.qmp import Monitor

PATTERN = 0x5A
QUARTER = SMALL // 4
Quarters = tuple[int, ...]
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


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
    #: Asks a guest or a job until something has happened, so not every run passes as many points.
    waits: bool = False
    prepare: Callable[["World"], object] = lambda _world: None
    #: What is in each quarter of the volume in the end, of its snapshots, by their names, and of a copy.
    content: Quarters = (PATTERN,) * 4
    kept: Mapping[str, Quarters] = field(default_factory=dict)
    copied: Quarters = (PATTERN,) * 4

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

    def left_over(self) -> list[str]:
        """Name what stands in the directory of temporary files for a volume; other tests have some too."""
        with self.site.engine() as engine:
            ids = [volume.id for volume in engine.volumes()]
        return [name for name in os.listdir(tempfile.gettempdir()) if any(each in name for each in ids)]

    @property
    def passed(self) -> list[str]:
        """The points that the operation passed, if it came to its end."""
        return (self.site.directory / "points").read_text().splitlines()

    def records(self) -> str:
        """What is recorded, ids and places left out."""
        with self.site.engine() as engine:
            rows = [self._row(engine, volume.name) for volume in engine.volumes()]
        return self._without_ids(json.dumps(rows, indent=1, default=str))

    def seen(self, *, hidden: bool = True) -> str:
        """Everything that must be equal at the end of two runs; a hidden file is one that was left over."""
        seen = [self.records(), self._files(hidden), self._guests()]
        return self._without_ids(json.dumps(seen, indent=1))

    def check_content(self) -> None:
        """Have the old range hold what was in it, the new one nothing, and the image be sound."""
        with self.site.engine() as engine:
            volumes = {volume.name: volume for volume in engine.volumes()}
        if NAME in volumes:
            self.site.check_image()
            old = (0,) * 4 if self.scenario.creates else self.scenario.content
            check_quarters(self.site.path, self.site.image_format, old)
            if (new := self.site.file_bytes - SMALL) > 0:
                qemu_io(self.site, f"read -P 0 {SMALL} {new}")
            for snapshot in volumes[NAME].snapshots:
                self._check_stored(snapshot.provider_data, self.scenario.kept[snapshot.name])
        if "copy" in volumes:
            self._check_stored(volumes["copy"].provider_data, self.scenario.copied)

    def write(self, pattern: int, quarter: int) -> None:
        """Fill a quarter of the old range, through the guest that has the volume if one has."""
        if not (self.guests and self.scenario.attached):
            qemu_io(self.site, f"write -P {pattern} {quarter * QUARTER} {QUARTER}")
            return
        disk = self.guests[0].disks()[0]
        disk.write(quarter * QUARTER // SECTOR_BYTES, bytes([pattern]) * QUARTER)

    def _check_stored(self, record: str, quarters: Quarters) -> None:
        stored = json.loads(record)
        check_quarters(self.site.share / stored["file"], stored["format"], quarters)

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
        kept = [[s.name, s.status, s.size_bytes, s.provider_data] for s in volume.snapshots]
        stored = [volume.provider_data, kept]
        return [name, volume.status, volume.multi_attach, *sizes, attachments, last, messages, stored]

    def _files(self, hidden: bool) -> list[Any]:  # Any: as above
        """Names of files, the sizes of what is in them, and whether all room is taken."""
        paths = [path for path in self.site.share.iterdir() if hidden or not path.name.startswith(".")]
        sizes = {path: image_bytes(path, _format(path)) for path in paths}
        return sorted([self._without_ids(p.name), sizes[p], allocated_bytes(p) >= sizes[p]] for p in paths)

    def _without_ids(self, text: str) -> str:
        """Put names in the place of ids and of the directory."""
        with self.site.engine() as engine:
            things = [(v.id, f"ID of {v.name}") for v in engine.volumes()]
            things += [(s.id, f"ID of {s.name}") for v in engine.volumes() for s in v.snapshots]
        for thing_id, shown in (*things, (str(self.site.directory), "DIRECTORY")):
            text = text.replace(thing_id, shown)
        return _UUID.sub("ID", text)  # of what is no more

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
            qemu_io(site, f"write -P {PATTERN} 0 {SMALL}")
        for guest in guests if scenario.attached else ():
            site.attach(guest.qmp_socket)
            guest.disks()
        world = World(scenario, site, guests)
        scenario.prepare(world)
        for guest in guests if scenario.dead_guests else ():
            guest.kill()
        yield world


def qemu_io(site: RealSite, command: str) -> None:
    read_image(site.path, site.image_format, command)


def check_quarters(path: Path, image_format: str, quarters: Quarters) -> None:
    for number, pattern in enumerate(quarters):
        read_image(path, image_format, f"read -P {pattern} {number * QUARTER} {QUARTER}")


def read_image(path: Path, image_format: str, command: str) -> None:
    """Have qemu-io read what is expected; or write."""
    options = ["--force-share", "--read-only"] if command.startswith("read") else []
    argv = ["qemu-io", *options, "-f", image_format, "-c", command, str(path)]
    assert "verification failed" not in process.run(argv, timeout_s=20).stdout, command


def _format(path: Path) -> str:
    return "qcow2" if ".qcow2" in path.name and path.stat().st_size else "raw"


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
        program = argv[argv.index("qemu-img") :] if "qemu-img" in argv else argv  # it runs inside limits
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


def where(moment: int, passed: list[str]) -> str:
    return f"killed {'after' if moment % 2 else 'before'} point {moment // 2}, {passed[moment // 2]}"


#: Chooses moments, two for each of the points that an undisturbed run has passed.
Choose = Callable[[list[str]], Sequence[int]]


def chosen(rng: random.Random, tier: str, samples: int) -> Choose:
    """Choose all moments in the full tier, else so many."""

    def choose(passed: list[str]) -> Sequence[int]:
        everything = range(2 * len(passed))
        return everything if tier == "full" else sorted(rng.sample(everything, min(samples, len(everything))))

    return choose


@dataclass(frozen=True)
class Sweep:
    """A scenario that is disturbed over and over, each time in a world of its own.

    What it covers is given as the moments killed at, and all that there are.
    """

    scenario: Scenario
    directory: Path

    def undisturbed(self) -> tuple[str, str, list[str]]:
        """Give what is seen before and after the operation, and the points it passes."""
        with prepared(self.scenario, self.directory / "u") as world:
            before = world.seen()
            assert world.end_of(world.run(DeadlyPoints())) == ""
            world.check_content()
            return before, world.seen(), world.passed

    def kill_voldrivers(self, choose: Choose) -> tuple[int, int]:
        """Kill voldrivers at points; resumed it must end as if nothing had happened."""
        before, after, passed = self.undisturbed()
        assert before != after
        killed = 0
        for moment in choose(passed):
            with prepared(self.scenario, self.directory / str(moment)) as world:
                began = world.records()
                answer = world.end_of(world.run(DeadlyPoints(moment)))
                killed += answer == "killed"
                varies = self.scenario.detaches or self.scenario.waits
                assert answer == "killed" or (varies and not answer), where(moment, passed)
                if world.records() == began:
                    # Not admitted. A probe of the share may leave its empty file, which the next one removes.
                    assert world.seen(hidden=False) == before, f"{where(moment, passed)}: done, not recorded"
                    assert world.end_of(world.run(DeadlyPoints())) == "", where(moment, passed)
                assert world.resume() == "", where(moment, passed)
                assert world.seen() == after, where(moment, passed)
                world.check_content()
                assert world.left_over() == []
        return killed, 2 * len(passed)

    def kill_qemu(self, choose: Choose, check: Callable[[World], object]) -> tuple[int, int]:
        """Kill the first guest's QEMU while voldrivers is at points."""
        _, _, passed = self.undisturbed()
        moments = choose(passed)
        for moment in moments:
            with prepared(self.scenario, self.directory / str(moment)) as world:
                world.end_of(world.run(DeadlyPoints(moment, victim=world.guests[0].pid)))
                try:
                    check(world)
                except AssertionError as error:
                    raise AssertionError(where(moment, passed)) from error
        return len(moments), 2 * len(passed)

    def kill_voldrivers_after(self, delays_s: Sequence[float]) -> None:
        """Kill voldrivers between points too: inside a program, a command, a write of the records."""
        before, after, _ = self.undisturbed()
        for n, delay_s in enumerate(delays_s):
            with self._later(n, delay_s) as (world, child):
                child.kill()
                world.end_of(child)
                assert world.resume() == "", f"after {delay_s} s"
                # Killed while it probed the share, before the admission, it may leave the probe's file.
                not_admitted = world.seen(hidden=False) == before
                assert not_admitted or world.seen() == after, f"after {delay_s} s"
                world.check_content()

    def kill_qemu_after(self, delays_s: Sequence[float], check: Callable[[World], object]) -> None:
        """Kill the first guest's QEMU, likewise."""
        for n, delay_s in enumerate(delays_s):
            with self._later(n, delay_s) as (world, child):
                end(world.guests[0].pid)
                world.end_of(child)
                check(world)

    @contextmanager
    def _later(self, n: int, delay_s: float) -> Iterator[tuple[World, Child]]:
        with prepared(self.scenario, self.directory / str(n)) as world:
            child = world.run(DeadlyPoints())
            time.sleep(delay_s)  # no waiting for anything: this is the moment
            yield world, child
