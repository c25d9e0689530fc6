"""Killed at any point of an operation on snapshots, clones and files taken over, with real files and QEMUs.

Sampled with the printed seed; exhaustive with `--tier full`.
"""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import sweeps
from killing import PATTERN, Scenario, Sweep, World, chosen
from realsite import LARGE, NAME, QCOW2, RAW, Kind
from sweeps import Figures

from voldrivers.extend import Engine
from voldrivers.model import SnapshotStatus, VolumeStatus

pytestmark = [
    pytest.mark.needs("qemu-system-x86_64", "qemu-img", "qemu-io", "setpriv", "fallocate", "prlimit"),
    pytest.mark.slow,
    pytest.mark.timeout(3000),
]

SWEEP = "with layers of real files"
LATER, NOW = 0x11, 0x22
#: By quarters: what the first snapshot froze, the second one, and what the volume holds.
S, T = (PATTERN,) * 4, (LATER, PATTERN, PATTERN, PATTERN)
V = (LATER, NOW, PATTERN, PATTERN)
ONE, TWO = {"s": S}, {"s": S, "t": T}


def take_two(world: World) -> None:
    """Take two snapshots, and write before, between and after."""
    for quarter, (name, pattern) in enumerate((("s", LATER), ("t", NOW))):
        with world.site.engine() as engine:
            engine.create_snapshot(NAME, name)
        world.write(pattern, quarter)


def take_two_and_extend(world: World) -> None:
    take_two(world)
    world.site.extend()


def take_and_delete(world: World) -> None:
    take_two(world)
    with world.site.engine() as engine:
        engine.delete_snapshot("s")
        engine.delete_snapshot("t")


def give_up(world: World) -> None:
    with world.site.engine() as engine:
        engine.unmanage_volume(NAME)


def take(engine: Engine, _world: World) -> None:
    engine.create_snapshot(NAME, "s")


def take_third(engine: Engine, _world: World) -> None:
    engine.create_snapshot(NAME, "u")


def delete_oldest(engine: Engine, _world: World) -> None:
    engine.delete_snapshot("s")


def delete_newest(engine: Engine, _world: World) -> None:
    engine.delete_snapshot("t")


def revert(engine: Engine, _world: World) -> None:
    engine.revert_to_snapshot("t")


def extend(engine: Engine, _world: World) -> None:
    engine.extend(NAME, LARGE)


def attach(engine: Engine, world: World) -> None:
    engine.attach(NAME, monitor=world.guests[0].qmp_socket)


def detach(engine: Engine, _world: World) -> None:
    engine.detach(NAME)


def clone_snapshot(engine: Engine, _world: World) -> None:
    engine.clone_volume("copy", None, "t", None, {"format": "raw"})


def clone_volume(engine: Engine, _world: World) -> None:
    engine.clone_volume("copy", NAME, None, LARGE, {"format": "qcow2"})


def delete_volume(engine: Engine, _world: World) -> None:
    engine.delete_volume(NAME)


def unmanage(engine: Engine, _world: World) -> None:
    engine.unmanage_volume(NAME)


def manage(engine: Engine, world: World) -> None:
    (path,) = world.site.share.glob("unmanaged-*")
    engine.manage_volume(NAME, path.name, None, {"format": world.scenario.kind.format})


def layered(name: str, operate: "Scenario | object", kind: Kind = RAW, **more: object) -> Scenario:
    """A scenario that begins with two snapshots."""
    scenario = Scenario(name, operate, kind, prepare=take_two, content=V, kept=TWO)  # type: ignore[arg-type]  # see uses
    return replace(scenario, **more)  # type: ignore[arg-type]  # see uses


IN_USE = [
    Scenario("snapshot raw in use", take, kept=ONE),
    Scenario("snapshot qcow2 in use", take, QCOW2, kept=ONE),
    layered("snapshot layers in use", take_third, kept=TWO | {"u": V}),
    layered("delete oldest snapshot in use", delete_oldest, waits=True),
    layered("delete newest snapshot in use", delete_newest, QCOW2, waits=True),
    layered("delete a smaller snapshot in use", delete_newest, prepare=take_two_and_extend, waits=True),
    layered("extend layers in use", extend),
    layered("attach layers", attach, attached=False),
    layered("detach layers", detach, detaches=True),
    layered("clone a snapshot of a volume in use", clone_snapshot, copied=T),
]
NOT_IN_USE = [
    Scenario("snapshot raw", take, guests=0, kept=ONE),
    Scenario("snapshot qcow2, guest gone", take, QCOW2, dead_guests=True, kept=ONE),
    layered("delete oldest snapshot", delete_oldest, guests=0),
    layered("delete newest snapshot, guest gone", delete_newest, QCOW2, dead_guests=True),
    layered("revert", revert, guests=0, prepare=take_two_and_extend, content=T),
    layered("extend layers", extend, guests=0),
    layered("clone a volume", clone_volume, guests=0, copied=V),
    layered("delete volume", delete_volume, guests=0, prepare=take_and_delete),
    Scenario("unmanage", unmanage, QCOW2, guests=0),
    Scenario("manage", manage, guests=0, prepare=give_up),
]


@pytest.mark.parametrize("scenario", IN_USE + NOT_IN_USE, ids=str)
def test_killed_at_a_point_and_resumed_it_ends_as_if_undisturbed(
    scenario: Scenario, ram_path: Path, rng: random.Random, tier: str, request: pytest.FixtureRequest
) -> None:
    covered = Sweep(scenario, ram_path).kill_voldrivers(chosen(rng, tier, 1))
    sweeps.count(request, Figures(SWEEP, f"{scenario}, voldrivers killed", *covered))


@pytest.mark.parametrize("scenario", IN_USE, ids=str)
def test_when_qemu_is_killed_at_a_point_no_layer_is_lost(
    scenario: Scenario, ram_path: Path, rng: random.Random, tier: str, request: pytest.FixtureRequest
) -> None:
    covered = Sweep(scenario, ram_path).kill_qemu(chosen(rng, tier, 1), check_goes_on)
    sweeps.count(request, Figures(SWEEP, f"{scenario}, QEMU killed", *covered))


def check_goes_on(world: World) -> None:
    """Have everything be settled, its content be there, and whatever is left be done with it."""
    world.resume()  # an attach that has failed ends, and says so
    assert world.resume() == ""
    site = world.site
    volume = site.volume
    assert volume.status in (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE, VolumeStatus.ERROR_EXTENDING)
    assert {snapshot.status for snapshot in volume.snapshots} <= {SnapshotStatus.AVAILABLE}
    world.check_content()
    with site.engine() as engine:
        if volume.status is VolumeStatus.ERROR_EXTENDING:
            engine.retry(NAME)
        engine.extend(NAME, LARGE)
        for snapshot in volume.snapshots:
            engine.delete_snapshot(snapshot.name)
    world.check_content()
    site.check_steady(site.volume.status, LARGE)
    assert len([path for path in site.share.iterdir() if volume.id in path.name]) == 1


@pytest.mark.parametrize("victim", ["voldrivers", "QEMU"])
@pytest.mark.parametrize("scenario", [IN_USE[0], IN_USE[3]], ids=str)
def test_killed_at_any_moment(
    scenario: Scenario, ram_path: Path, rng: random.Random, tier: str, victim: str
) -> None:
    delays_s = [rng.uniform(0, 0.25) for _ in range({"quick": 1, "ci": 1, "full": 100}[tier])]
    if victim == "QEMU":
        Sweep(scenario, ram_path).kill_qemu_after(delays_s, check_goes_on)
    else:
        Sweep(scenario, ram_path).kill_voldrivers_after(delays_s)
