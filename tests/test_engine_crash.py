"""Killed before or after every call and commit, then resumed: the end of an undisturbed run."""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sweeps
from crashing import Image, Points, World
from sweeps import Figures

from voldrivers.errors import BackendError, InvalidState, VolDriverError
from voldrivers.extend import Engine
from voldrivers.memory import MemoryDriver, MemoryFileDriver, MemoryHost, MemoryImage
from voldrivers.model import Attachment, AttachmentState, ConnectionInfo, Extend, ExtendReply, Volume
from voldrivers.sizes import MiB

SMALL, LARGE = 8 * MiB, 16 * MiB
_SAMPLES = {"quick": 5, "ci": 50}
#: Operations that fail and are undone: their end is their beginning.
_UNDONE = {
    *("attach, the guest refuses", "attach, the device does not come", "detach, the guest keeps it"),
    *("snapshot, no room", "snapshot, not switched", "clone, no room"),
}


class GenerousDriver(MemoryDriver):
    """Its array gives more than its rule says."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if self.volume_size(volume) < new_size_bytes:
            self.array.resize(volume.id, new_size_bytes + 4 * MiB)
        return ExtendReply.EXTENDED


class StubbornHost(MemoryHost):
    """Its guests neither take a device nor give one back."""

    def plug(self, volume: Volume, attachment: Attachment) -> None:
        raise InvalidState(f"instance {attachment.place}", "full", "with a free slot")


class KeepingHost(MemoryHost):
    """Its guests do not let go of a device."""

    def unplug(self, volume: Volume, attachment: Attachment) -> None:
        raise InvalidState(f"instance {attachment.place}", "using the device", "done with it")


class UnswitchedHost(MemoryHost):
    """Its hypervisor refuses to write elsewhere."""

    def switch(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        raise BackendError(f"instance {attachment.place}", "it keeps what it has")


class LyingHost(MemoryHost):
    """It says that it is done and has done nothing."""

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        """Do nothing."""


class FlakyHost(MemoryHost):
    """Its kernel finds the device and then fails."""

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        super().connect(volume, attachment, connection_info)
        raise BackendError(f"host {self.name}", "the device did not come")


@dataclass(frozen=True)
class Scenario:
    """An operation and what comes before it; only the operation is killed.

    `admission` is the number of its commit that admits it: 0 when it was admitted before.
    """

    name: str
    operate: Callable[[Engine], object]
    prepare: Callable[[Engine, World], object] = lambda _engine, _world: None
    driver: type[MemoryDriver] = MemoryDriver
    host: type[MemoryHost] = MemoryHost
    admission: int = 1


def create(engine: Engine, *_world: World) -> None:
    engine.create_volume("v", SMALL)


def create_shared(engine: Engine, *_world: World) -> None:
    engine.create_volume("v", SMALL, multi_attach=True)


def attach(engine: Engine, *_world: World) -> None:
    create(engine)
    engine.attach("v", "a", "vm")


def attach_bare(engine: Engine, *_world: World) -> None:
    create(engine)
    engine.attach("v", "a")


def attach_twice(engine: Engine, *_world: World) -> None:
    create_shared(engine)
    engine.attach("v", "a", "vm")
    engine.attach("v", "b", "vm")


def attach_twice_to_one_host(engine: Engine, world: World) -> None:
    world.machines["a"].instances["other"] = {}
    create_shared(engine)
    engine.attach("v", "a", "vm")
    engine.attach("v", "a", "other")


def stop(engine: Engine, world: World) -> None:
    attach(engine)
    world.machines["a"].instances.clear()
    world.machines["a"].stopped.add("vm")


def stop_one(engine: Engine, world: World) -> None:
    attach_twice(engine)
    world.machines["b"].instances.clear()
    world.machines["b"].stopped.add("vm")


def lose_host(engine: Engine, world: World) -> None:
    attach_twice(engine)
    world.machines["b"].reachable = False


def lag(engine: Engine, world: World) -> None:
    attach(engine)
    engine.extend("v", LARGE)
    volume = engine.volume("v")
    world.machines["a"].devices[volume.id] = SMALL
    world.machines["a"].instances["vm"][volume.id] = SMALL


def grow_behind(engine: Engine, world: World) -> None:
    attach(engine)
    world.array.sizes[engine.volume("v").id] = SMALL + 4 * MiB


def admit(engine: Engine, *_world: World) -> None:
    attach(engine)
    engine.extend("v", LARGE, wait=False)


def admit_then_lose_host(engine: Engine, world: World) -> None:
    attach_twice(engine)
    engine.extend("v", LARGE, wait=False)
    world.machines["b"].reachable = False


def admit_then_lose_the_only_host(engine: Engine, world: World) -> None:
    admit(engine)
    world.machines["a"].reachable = False


def admit_then_fill(engine: Engine, world: World) -> None:
    admit(engine)
    world.array.capacity_bytes = SMALL


def fail_then_find_host(engine: Engine, world: World) -> None:
    admit_then_lose_host(engine, world)
    engine.resume()
    world.machines["b"].reachable = True


def fail_then_detach(engine: Engine, world: World) -> None:
    fail_then_find_host(engine, world)
    engine.detach("v", "b")


def admit_then_cancel(engine: Engine, *_world: World) -> None:
    admit(engine)
    engine.cancel("v")


def lose_answer_then_cancel(engine: Engine, world: World) -> None:
    admit(engine)
    volume = engine.volume("v")
    world.array.resize(volume.id, LARGE)
    engine.cancel("v")


def attached_once(engine: Engine, _world: World) -> None:
    create_shared(engine)
    engine.attach("v", "a", "vm")


def failed_detached(engine: Engine, world: World) -> None:
    fail_then_detach(engine, world)
    engine.detach("v", "a")


def begin_detach(engine: Engine, world: World) -> None:
    """Leave a detach in the records that a killed process had begun."""
    fail_then_find_host(engine, world)
    leaving = replace(engine.volume("v").attachments[1], state=AttachmentState.DETACHING)
    engine.store.update_attachment(leaving)


def begin_both_detaches(engine: Engine, world: World) -> None:
    """Leave two detaches from one host in the records."""
    attach_twice_to_one_host(engine, world)
    engine.extend("v", LARGE, wait=False)
    world.machines["a"].reachable = False
    engine.resume()
    world.machines["a"].reachable = True
    for attachment in engine.volume("v").attachments:
        engine.store.update_attachment(replace(attachment, state=AttachmentState.DETACHING))


def write(engine: Engine, world: World, name: str = "v") -> None:
    for offset_bytes in (0, MiB):
        world.array.write(engine.volume(name).id, offset_bytes, f"{offset_bytes} of {name}")


def snapshotted(engine: Engine, world: World) -> None:
    create(engine)
    write(engine, world)
    engine.create_snapshot("v", "first")
    engine.extend("v", LARGE)


def snapshotted_twice(engine: Engine, world: World) -> None:
    snapshotted(engine, world)
    world.array.write(engine.volume("v").id, 0, "later")
    engine.create_snapshot("v", "second")
    engine.attach("v", "a", "vm")


def foreign(_engine: Engine, world: World) -> None:
    world.array.foreign["old"] = MemoryImage(SMALL, {0: "old"})


def manage(engine: Engine, *_world: World) -> None:
    engine.manage_volume("v", "old")


def managed(engine: Engine, world: World) -> None:
    foreign(engine, world)
    manage(engine)


def fill(engine: Engine, world: World) -> None:
    attach(engine)
    world.array.capacity_bytes = SMALL


def force_then_resume(engine: Engine) -> None:
    engine.detach("v", "b", force=True)
    engine.resume()


def extend(engine: Engine) -> None:
    engine.extend("v", LARGE)


def extend_without_waiting(engine: Engine) -> None:
    engine.extend("v", LARGE, wait=False)
    engine.resume()


def extend_twice(engine: Engine) -> None:
    engine.extend("v", LARGE)
    engine.extend("v", LARGE)


def resume(engine: Engine) -> None:
    engine.resume()


FILE = MemoryFileDriver
SCENARIOS = [
    Scenario("create", create),
    Scenario("delete", lambda e: e.delete_volume("v"), create),
    Scenario("delete after a failed extend", lambda e: e.delete_volume("v"), failed_detached),
    Scenario("attach", lambda e: e.attach("v", "a", "vm"), create),
    Scenario("attach without an instance", lambda e: e.attach("v", "a"), create),
    Scenario("attach a second time", lambda e: e.attach("v", "b", "vm"), attached_once),
    Scenario("attach, the guest refuses", lambda e: e.attach("v", "a", "vm"), create, host=StubbornHost),
    Scenario("attach, the device does not come", lambda e: e.attach("v", "a"), create, host=FlakyHost),
    Scenario("detach", lambda e: e.detach("v"), attach),
    Scenario("detach without an instance", lambda e: e.detach("v"), attach_bare),
    Scenario("detach one of two", lambda e: e.detach("v", "a"), attach_twice),
    Scenario("detach one of two of a host", lambda e: e.detach("v", "a", "vm"), attach_twice_to_one_host),
    Scenario("detach, the guest keeps it", lambda e: e.detach("v"), attach, host=KeepingHost),
    Scenario("detach by force", lambda e: e.detach("v", "b", force=True), lose_host),
    Scenario("detach in error_extending", lambda e: e.detach("v", "b"), fail_then_find_host),
    Scenario("extend, available", extend, create),
    Scenario("extend, available, a file", extend, create, FILE),
    Scenario("extend by backend", extend, attach),
    Scenario("extend by hypervisor", extend, attach, FILE),
    Scenario("extend without an instance", extend, attach_bare),
    Scenario("extend a file without an instance", extend, attach_bare, FILE),
    Scenario("extend, instance stopped", extend, stop),
    Scenario("extend a file, instance stopped", extend, stop, FILE),
    Scenario("extend on two hosts", extend, attach_twice),
    Scenario("extend a file on two hosts", extend, attach_twice, FILE),
    Scenario("extend in two instances of a host", extend, attach_twice_to_one_host, FILE),
    Scenario("extend a file, one of two stopped", extend, stop_one, FILE),
    Scenario("extend, the size it has", lambda e: e.extend("v", SMALL), attach, FILE),
    Scenario("extend, a layer lags", extend, lag),
    Scenario("extend a file, a layer lags", extend, lag, FILE),
    Scenario("extend, grown behind our back", extend, grow_behind),
    Scenario("extend a file grown behind our back", extend, grow_behind, FILE),
    Scenario("extend to less than it has grown to", lambda e: e.extend("v", SMALL), grow_behind),
    Scenario("extend, larger than its rule", extend, attach, GenerousDriver),
    Scenario("extend without waiting", extend_without_waiting, attach, FILE),
    Scenario("carry on", resume, admit),
    Scenario("carry on with a file", resume, admit, FILE),
    Scenario("rolled back by a full backend", resume, admit_then_fill),
    Scenario("rolled back by a full share", resume, admit_then_fill, FILE),
    Scenario("rolled back, the host lied", extend, attach, FILE, LyingHost),
    Scenario("fence refused", resume, admit_then_lose_the_only_host, FILE),
    Scenario("failed after growth", resume, admit_then_lose_host),
    Scenario("failed after growth of a file", resume, admit_then_lose_host, FILE),
    Scenario("failed, the host lied", extend, attach, host=LyingHost),
    Scenario("retry", lambda e: e.retry("v"), fail_then_find_host),
    Scenario("retry with a file", lambda e: e.retry("v"), fail_then_find_host, FILE),
    Scenario("retry with those that are left", lambda e: e.retry("v"), fail_then_detach, FILE),
    Scenario("retry with a detach begun", lambda e: e.retry("v"), begin_detach, admission=2),
    Scenario("resume two detaches from one host", resume, begin_both_detaches, admission=0),
    Scenario("detach a lost host by force and go on", force_then_resume, admit_then_lose_host),
    Scenario("repair a layer", lambda e: e.repair("v"), lag),
    Scenario("snapshot", lambda e: e.create_snapshot("v", "s"), create),
    Scenario("snapshot in use", lambda e: e.create_snapshot("v", "s"), attach),
    Scenario("snapshot of a file in use", lambda e: e.create_snapshot("v", "s"), attach, FILE),
    Scenario("snapshot of a file in use on two", lambda e: e.create_snapshot("v", "s"), attach_twice, FILE),
    Scenario("snapshot of a file, instance stopped", lambda e: e.create_snapshot("v", "s"), stop, FILE),
    Scenario("snapshot, no room", lambda e: e.create_snapshot("v", "s"), fill, FILE),
    Scenario("snapshot, not switched", lambda e: e.create_snapshot("v", "s"), attach, FILE, UnswitchedHost),
    Scenario("delete a snapshot", lambda e: e.delete_snapshot("first"), snapshotted),
    Scenario("delete a snapshot in use", lambda e: e.delete_snapshot("first"), snapshotted_twice),
    Scenario("delete a snapshot of a file", lambda e: e.delete_snapshot("first"), snapshotted_twice, FILE),
    Scenario("revert", lambda e: e.revert_to_snapshot("first"), snapshotted),
    Scenario("revert a file", lambda e: e.revert_to_snapshot("first"), snapshotted, FILE),
    Scenario("clone", lambda e: e.clone_volume("w", "v"), snapshotted_twice),
    Scenario("clone a snapshot, larger", lambda e: e.clone_volume("w", None, "first", LARGE), snapshotted),
    Scenario("clone, no room", lambda e: e.clone_volume("w", "v"), fill),
    Scenario("manage", manage, foreign),
    Scenario("unmanage", lambda e: e.unmanage_volume("v"), managed),
    Scenario("extend with snapshots", lambda e: e.extend("v", 2 * LARGE), snapshotted_twice),
    Scenario("extend a file with snapshots", lambda e: e.extend("v", 2 * LARGE), snapshotted_twice, FILE),
    Scenario("cancelled before growth", resume, admit_then_cancel),
    Scenario("cancelled before growth of a file", resume, admit_then_cancel, FILE),
    Scenario("cancelled after growth", resume, lose_answer_then_cancel, FILE),
]


def named(scenario: Scenario) -> str:
    return scenario.name


@pytest.fixture(autouse=True)
def no_orphans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for none in /proc, which took a quarter of the time: nothing in RAM runs a program."""
    for module in ("engine", "resuming"):
        monkeypatch.setattr(f"voldrivers.extend.{module}.end_orphans", lambda _volume_id, timeout_s: None)


@pytest.fixture
def start(scenario: Scenario, ram_path: Path) -> Image:
    """The moment before the operation."""
    world = World(driver_type=scenario.driver, host_type=scenario.host)
    directory = ram_path / "start"
    with world.engine(directory) as engine:
        scenario.prepare(engine, world)
    return Image(world, directory)


@dataclass(frozen=True)
class Ends:
    """The ends that a scenario may have: not begun, not begun but resumed, undisturbed."""

    untouched: str
    resumed: str
    undisturbed: str
    points: Points


def operate(scenario: Scenario) -> Callable[[Engine], None]:
    def run(engine: Engine) -> None:
        with suppress(VolDriverError):
            scenario.operate(engine)

    return run


def ends_of(scenario: Scenario, start: Image) -> Ends:
    directory = start.directory.with_name("undisturbed")
    idle = start.copy(directory)
    untouched = idle.seen()
    idle.run(resume)
    resumed = idle.seen()
    ran = start.copy(directory)
    points = ran.run(operate(scenario))
    return Ends(untouched, resumed, ran.seen(), points)


def kill(scenario: Scenario, start: Image, moment: int) -> tuple[Image, Points]:
    image = start.copy(start.directory.with_name("run"))
    points = image.run(operate(scenario), moment)
    assert points.dead
    return image, points


@pytest.mark.parametrize("scenario", SCENARIOS, ids=named)
def test_killed_anywhere_and_resumed(
    scenario: Scenario, start: Image, rng: random.Random, tier: str, request: pytest.FixtureRequest
) -> None:
    ends = ends_of(scenario, start)
    assert (ends.undisturbed == ends.untouched) is (scenario.name in _UNDONE)
    moments = range(2 * len(ends.points.passed))
    pairs: list[tuple[int, int]] = []
    for moment in moments:
        resuming = check_killed_once(scenario, start, ends, moment)
        pairs += [(moment, second) for second in range(2 * len(resuming.passed))]
    sampled = pairs if tier == "full" else rng.sample(pairs, min(len(pairs), _SAMPLES[tier]))
    for first, second in sampled:
        check_killed_twice(scenario, start, ends, first, second)
    points = len(moments)
    sweeps.count(request, Figures("in RAM", scenario.name, points, points, len(sampled), len(pairs)))


def check_killed_once(scenario: Scenario, start: Image, ends: Ends, moment: int) -> Points:
    image, points = kill(scenario, start, moment)
    if points.commits < scenario.admission == 1:
        assert image.seen() == ends.untouched, f"killed {points}: not admitted, but something happened"
    resuming = image.run(resume)
    assert image.seen() == expected_end(scenario, ends, points), (
        f"killed {points}: not the end of an undisturbed run"
    )
    return resuming


def check_killed_twice(scenario: Scenario, start: Image, ends: Ends, first: int, second: int) -> None:
    image, points = kill(scenario, start, first)
    again = image.run(resume, second)
    assert again.dead
    image.run(resume)
    assert image.seen() == expected_end(scenario, ends, points), f"killed {points}, then {again}"


def expected_end(scenario: Scenario, ends: Ends, killed: Points) -> str:
    """What was not admitted did not happen; what was admitted is ended."""
    return ends.undisturbed if killed.commits >= scenario.admission else ends.resumed
