"""Killed at any point of an operation, voldrivers itself or a guest's QEMU, with real files and programs.

Sampled with the printed seed; exhaustive with `--tier full`.
"""

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sweeps
from killing import (
    DeadlyPoints,
    Scenario,
    Sweep,
    World,
    attach,
    attach_bare,
    chosen,
    create,
    delete,
    detach,
    extend,
    prepared,
)
from realsite import FULL, LARGE, NAME, QCOW2, SMALL, Child
from sweeps import Figures

from voldrivers import process
from voldrivers.model import VolumeStatus

pytestmark = [
    pytest.mark.needs("qemu-system-x86_64", "qemu-img", "qemu-io", "setpriv", "fallocate", "prlimit"),
    pytest.mark.slow,
    pytest.mark.timeout(3000),
]

IN_USE = [
    Scenario("extend raw in use", extend),
    Scenario("extend qcow2 in use", extend, QCOW2),
    Scenario("extend preallocated raw in use", extend, FULL),
    Scenario("extend raw in two guests", extend, guests=2),
    Scenario("attach raw", attach, attached=False),
    Scenario("attach qcow2", attach, QCOW2, attached=False),
    Scenario("detach raw", detach, detaches=True),
    Scenario("detach qcow2", detach, QCOW2, detaches=True),
]
NOT_IN_USE = [
    Scenario("extend raw, available", extend, guests=0),
    Scenario("extend qcow2, available", extend, QCOW2, guests=0),
    Scenario("extend preallocated raw, available", extend, FULL, guests=0),
    Scenario("extend raw, guest gone", extend, dead_guests=True),
    Scenario("extend qcow2, guest gone", extend, QCOW2, dead_guests=True),
    Scenario("attach without an instance", attach_bare, guests=0),
    Scenario("create raw", create, guests=0, creates=True),
    Scenario("create qcow2", create, QCOW2, guests=0, creates=True),
    Scenario("create preallocated raw", create, FULL, guests=0, creates=True),
    Scenario("delete raw", delete, guests=0),
]
#: Which of the programs that an operation starts run when it is recorded (before: a probe of the share).
PROGRAMS = {
    "extend preallocated raw in use": (2,),
    "extend raw, available": (1,),
    "extend qcow2, available": (1,),
    "extend preallocated raw, available": (2, 3),
    "extend raw, guest gone": (1,),
    "extend qcow2, guest gone": (1,),
    "create raw": (1,),
    "create qcow2": (1,),
    "create preallocated raw": (1, 2, 3),
}
SWEEP = "with real QEMUs and files"
_SAMPLES = {"quick": 2, "ci": 4, "full": 0}


@pytest.mark.parametrize("scenario", IN_USE + NOT_IN_USE, ids=str)
def test_killed_at_a_point_and_resumed_it_ends_as_if_undisturbed(
    scenario: Scenario, ram_path: Path, rng: random.Random, tier: str, request: pytest.FixtureRequest
) -> None:
    covered = Sweep(scenario, ram_path).kill_voldrivers(chosen(rng, tier, _SAMPLES[tier]))
    sweeps.count(request, Figures(SWEEP, f"{scenario}, voldrivers killed", *covered))


@pytest.mark.parametrize("scenario", IN_USE, ids=str)
def test_when_qemu_is_killed_at_a_point_the_records_tell_the_truth(
    scenario: Scenario, ram_path: Path, rng: random.Random, tier: str, request: pytest.FixtureRequest
) -> None:
    covered = Sweep(scenario, ram_path).kill_qemu(chosen(rng, tier, _SAMPLES[tier]), check_truth)
    sweeps.count(request, Figures(SWEEP, f"{scenario}, QEMU killed", *covered))


def check_truth(world: World) -> None:
    """Have the records say what is: old size or new, never between, the image sound; and have it go on."""
    world.resume()
    volume, file_bytes = world.site.volume, world.site.file_bytes
    assert file_bytes in (SMALL, LARGE)
    assert volume.backend_bytes == file_bytes
    if volume.status is VolumeStatus.ERROR_EXTENDING:
        assert (volume.size_bytes, file_bytes) == (SMALL, LARGE)
        with world.site.engine() as engine:
            engine.retry(NAME)
    attached = VolumeStatus.IN_USE if world.site.volume.attachments else VolumeStatus.AVAILABLE
    world.site.check_steady(attached, file_bytes)
    world.check_content()
    if attached is VolumeStatus.IN_USE or world.scenario.operate is extend:
        world.site.extend(LARGE)
        world.site.check_steady(attached, LARGE)


# at any moment


@pytest.mark.parametrize("victim", ["voldrivers", "QEMU"])
@pytest.mark.parametrize("scenario", IN_USE[:3], ids=str)
def test_killed_at_any_moment(
    scenario: Scenario, ram_path: Path, rng: random.Random, tier: str, victim: str
) -> None:
    delays_s = [rng.uniform(0, 0.15) for _ in range({"quick": 1, "ci": 4, "full": 100}[tier])]
    if victim == "QEMU":
        Sweep(scenario, ram_path).kill_qemu_after(delays_s, check_truth)
    else:
        Sweep(scenario, ram_path).kill_voldrivers_after(delays_s)


# with a program that outlives its parent


@pytest.fixture
def slow_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["SlowPrograms"]:
    programs = SlowPrograms(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    yield programs
    programs.let_go()


class SlowPrograms:
    """Stand for qemu-img and fallocate; the one to be held opens its file, then waits to be let go.

    So it changes the very file that it was given, also when its parent has long been gone.
    """

    _SCRIPT = """#!/bin/sh
case {name}-$1 in
    qemu-img-info | qemu-img-check) exec {real} "$@" ;;
esac
for argument; do file=$before; before=$argument; done
[ {name} = fallocate ] && file=$argument
exec 9<>"$file"
echo $$ >> {place}/started
number=$(wc -l < {place}/started)
while [ "$(cat {place}/held)" = "$number" ]; do sleep 0.02; done
[ {name} = fallocate ] && exec {real} --length "$2" /proc/self/fd/9
exec {real} "$1" -q -f "$4" /proc/self/fd/9 "$argument"
"""

    def __init__(self, place: Path) -> None:
        self._started, self._held = place / "started", place / "held"
        for name in ("qemu-img", "fallocate"):
            real = process.run(["which", name], timeout_s=10).stdout.strip()
            (place / name).write_text(self._SCRIPT.format(name=name, place=place, real=real))
            (place / name).chmod(0o755)
        self.hold(0)

    @property
    def started(self) -> list[int]:
        return [int(pid) for pid in self._started.read_text().split()]

    def hold(self, number: int) -> None:
        """Count from here; let the program with this number, from 1, wait, and all others go."""
        self._held.write_text(str(number))
        self._started.write_text("")

    def wait_for(self, number: int) -> int:
        process.wait_until(lambda: len(self.started) >= number, 10, "the program to start")
        return self.started[number - 1]

    def let_go(self) -> None:
        self._held.write_text("0")


def kill_beside(world: World, programs: SlowPrograms, number: int) -> str:
    """Kill the operation while its program of this number runs; give that program's identity."""
    programs.hold(number)
    child = world.run(DeadlyPoints())
    orphan = process.identity(programs.wait_for(number))
    child.kill()
    assert child.answer() == "killed"
    assert not process.is_gone(orphan)
    return orphan


#: Programs that are run after the operation is recorded: their numbers.
WITH_PROGRAMS = [
    (scenario, number) for scenario in [*IN_USE, *NOT_IN_USE] for number in PROGRAMS.get(scenario.name, ())
]


@pytest.mark.parametrize(("scenario", "number"), WITH_PROGRAMS, ids=str)
def test_a_program_that_outlives_its_parent_is_waited_for(
    scenario: Scenario, number: int, ram_path: Path, slow_programs: SlowPrograms
) -> None:
    _, after, _ = Sweep(scenario, ram_path).undisturbed()
    with prepared(scenario, ram_path / "k") as world:
        orphan = kill_beside(world, slow_programs, number)
        records = world.records()
        resuming = Child(world.resume_here)
        assert not process.holds_within(lambda: not resuming.is_running, 0.5)
        assert (process.is_gone(orphan), world.records()) == (False, records)
        slow_programs.let_go()
        assert resuming.answer() == ""
        assert process.is_gone(orphan)
        assert world.seen() == after
        world.check_content()


@pytest.mark.parametrize(("scenario", "number"), WITH_PROGRAMS[::4], ids=str)
def test_a_program_that_outlives_its_parent_and_hangs_is_ended(
    scenario: Scenario,
    number: int,
    ram_path: Path,
    slow_programs: SlowPrograms,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("voldrivers.extend.resuming.ORPHAN_S", 0.3)
    _, after, _ = Sweep(scenario, ram_path).undisturbed()
    with prepared(scenario, ram_path / "k") as world:
        orphan = kill_beside(world, slow_programs, number)
        resuming = Child(world.resume_here)
        process.wait_until(lambda: process.is_gone(orphan), 10, "the orphan to be ended")
        slow_programs.let_go()
        assert resuming.answer() == ""
        assert world.seen() == after
        world.check_content()


@pytest.mark.parametrize(
    "act", ["resume", f"extend {LARGE}", "delete_volume", "attach"], ids=lambda act: str(act.split()[0])
)
def test_one_at_work_is_left_alone_by_all_others(
    act: str, ram_path: Path, slow_programs: SlowPrograms
) -> None:
    scenario = Scenario("extend raw, available", extend, guests=0)
    _, after, _ = Sweep(scenario, ram_path).undisturbed()
    with prepared(scenario, ram_path / "k") as world:
        slow_programs.hold(1)
        child = world.run(DeadlyPoints())
        slow_programs.wait_for(1)
        assert "being worked on by another process" in Child(lambda: do(world, act)).answer()
        slow_programs.let_go()
        assert child.answer() == ""
        assert world.seen() == after


def do(world: World, act: str) -> None:
    if act == "resume":
        return world.resume_here()
    method, *sizes = act.split()
    with world.site.engine() as engine:
        getattr(engine, method)(NAME, *map(int, sizes))
    return None


def test_the_command_killed_beside_its_program_is_carried_on_by_resume(
    ram_path: Path, slow_programs: SlowPrograms
) -> None:
    """The same with programs that share nothing, as an operator has them."""
    config = ram_path / "voldrivers.toml"
    config.write_text(f'state_dir = "{ram_path}/state"\n[backend.b]\ndriver = "nfs"\nshare = "{ram_path}"\n')
    voldrivers = [str(Path(sys.executable).with_name("voldrivers")), "--config", str(config)]
    process.run([*voldrivers, "volume", "create", "v", str(SMALL)], timeout_s=30)
    slow_programs.hold(1)
    killed = process.start([*voldrivers, "extend", "v", str(LARGE)], output=ram_path / "log")
    orphan = process.identity(slow_programs.wait_for(1))
    killed.kill()
    killed.wait()
    resuming = process.start([*voldrivers, "resume"], output=ram_path / "log")
    assert not process.holds_within(lambda: resuming.poll() is not None, 1.0)
    assert not process.is_gone(orphan)
    slow_programs.let_go()
    assert resuming.wait(30) == 0
    shown = process.run([*voldrivers, "volume", "show", "v", "--json"], timeout_s=30).stdout
    volume = json.loads(shown)
    assert (volume["status"], volume["size_bytes"], volume["backend_bytes"]) == ("available", LARGE, LARGE)
