"""Extends that fail: who lies, who is lost, what grew, and how it is brought to an end."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from crashing import NOON, World, hook

from voldrivers.config import Policy
from voldrivers.errors import (
    BackendError,
    CommandFailed,
    InvalidState,
    NoSpace,
    OutcomeUnknown,
)
from voldrivers.extend import Engine
from voldrivers.memory import MemoryDriver, MemoryFileDriver, MemoryHost
from voldrivers.model import Attachment, Extend, ExtendReply, Phase, Volume, VolumeStatus, utc_now
from voldrivers.sizes import MiB

SMALL, LARGE = 8 * MiB, 16 * MiB


class IdleDriver(MemoryDriver):
    """It says EXTENDED and does nothing."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        return ExtendReply.EXTENDED


class DeferringDriver(MemoryFileDriver):
    """It leaves everything to hypervisors, those that do not exist too."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        return ExtendReply.DEFERRED


class WronglyDeferringDriver(MemoryDriver):
    """The backend grows its volumes, and yet it leaves one to a hypervisor."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        return ExtendReply.DEFERRED


class GenerousDriver(MemoryDriver):
    """Its array gives one granule more than its rule says."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if self.volume_size(volume) < new_size_bytes:
            self.array.resize(volume.id, new_size_bytes + 4 * MiB)
        return ExtendReply.EXTENDED


class HalfwayDriver(MemoryDriver):
    """Its array runs full in the middle."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if self.array.free_bytes < LARGE:
            self.array.sizes[volume.id] = SMALL + 4 * MiB
            raise NoSpace(volume.title, new_size_bytes, 0)
        return super().extend_volume(volume, new_size_bytes)


class FailingDriver(MemoryDriver):
    """Its array refuses."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        raise CommandFailed("lvextend", "no", argv=("lvextend", "v"), exit_code=5)


class LyingHost(MemoryHost):
    """It says that it is done and has done nothing."""

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        """Do nothing."""


class BlindHost(MemoryHost):
    """Its kernel never sees a new size."""

    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        """Do nothing."""


class NamelessHost(MemoryHost):
    """One of two fails, and its error does not say which."""

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        if self.name == "b":
            raise BackendError("QEMU", "it broke")
        super().assist_extend(volume, attachment, extend)


@contextmanager
def attached(
    directory: Path, driver: type[MemoryDriver], host: type[MemoryHost] = MemoryHost, *places: str
) -> Iterator[tuple[Engine, World]]:
    """An engine with the volume v of 8 MiB, attached to the instance vm of each place."""
    world = World(driver_type=driver, host_type=host)
    with world.engine(directory) as engine:
        engine.create_volume("v", SMALL, multi_attach=True)
        for place in places:
            engine.attach("v", place, "vm")
        yield engine, world


def lose_host(world: World, name: str) -> None:
    world.machines[name].reachable = False


def lose_answer(thing: object, method: str, number: int = 1) -> None:
    """Let the answer of one call get lost after it had its effect."""
    calls: list[None] = []

    def lose() -> None:
        calls.append(None)
        if len(calls) == number:
            raise OutcomeUnknown(method, "the answer was lost")

    hook(thing, method, after=lose)


def texts(engine: Engine) -> list[str]:
    return [message.text for message in engine.messages(engine.volume("v"))]


def status(engine: Engine) -> VolumeStatus:
    return engine.volume("v").status


def sizes(engine: Engine) -> tuple[int, int]:
    """The published size and the backend's."""
    volume = engine.volume("v")
    return volume.size_bytes, volume.backend_bytes


# --- nothing grew: rolled back


@pytest.mark.parametrize("places", [(), ("a",), ("a", "b")])
def test_a_failure_before_growth_gives_the_old_status_back(ram_path: Path, places: tuple[str, ...]) -> None:
    with attached(ram_path, FailingDriver, MemoryHost, *places) as (engine, world):
        before = status(engine)
        with pytest.raises(CommandFailed):
            engine.extend("v", LARGE)
        assert status(engine) is before
        assert sizes(engine) == (SMALL, SMALL)
        assert texts(engine) == [
            "the extend to 16 MiB was rolled back, nothing changed: lvextend ended with exit code 5: no"
        ]
        world.driver_type = MemoryDriver
        with world.engine(ram_path) as mended:
            assert mended.extend("v", LARGE).phase is Phase.COMPLETED


@pytest.mark.parametrize(
    ("driver", "places", "reason"),
    [
        (IdleDriver, (), "said it was extended to 16 MiB, but it is 8 MiB"),
        (IdleDriver, ("a",), "said it was extended to 16 MiB, but it is 8 MiB"),
        (DeferringDriver, (), "left growing it to a hypervisor, but none has it"),
        (WronglyDeferringDriver, ("a",), "left growing it to a hypervisor, but none has it"),
    ],
)
def test_a_driver_that_lies_is_found_out(
    ram_path: Path, driver: type[MemoryDriver], places: tuple[str, ...], reason: str
) -> None:
    with attached(ram_path, driver, MemoryHost, *places) as (engine, world):
        before = status(engine)
        with pytest.raises(BackendError, match=reason):
            engine.extend("v", LARGE)
        assert (status(engine), *sizes(engine)) == (before, SMALL, SMALL)
        assert list(world.array.sizes.values()) == [SMALL]


def test_a_host_that_lies_about_growing_is_found_out(ram_path: Path) -> None:
    with attached(ram_path, MemoryFileDriver, LyingHost, "a") as (engine, _):
        fenced: list[None] = []
        hook(engine.site.hosts["a"], "cancel", lambda: fenced.append(None))
        with pytest.raises(BackendError, match="volume v: no hypervisor has grown it"):
            engine.extend("v", LARGE)
        assert (status(engine), *sizes(engine)) == (VolumeStatus.IN_USE, SMALL, SMALL)
        assert len(fenced) == 1
        assert engine.volume("v").extend_new_size_bytes is None


def test_a_host_refuses_what_has_expired(ram_path: Path) -> None:
    world = World(driver_type=MemoryFileDriver)
    yesterday = utc_now() - timedelta(days=1)
    with world.engine(ram_path, now=lambda: yesterday) as engine:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")
        with pytest.raises(InvalidState, match="extend 1 is expired or older"):
            engine.extend("v", LARGE)
        assert (status(engine), *sizes(engine)) == (VolumeStatus.IN_USE, SMALL, SMALL)


def test_resume_gives_it_new_time(ram_path: Path) -> None:
    world = World(driver_type=MemoryFileDriver)
    yesterday = utc_now() - timedelta(days=1)
    with world.engine(ram_path, now=lambda: yesterday) as engine:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")
        engine.extend("v", LARGE, wait=False)
    with world.engine(ram_path) as later:
        assert later.resume()[0].error is None
        assert (status(later), *sizes(later)) == (VolumeStatus.IN_USE, LARGE, LARGE)


def test_a_host_refuses_an_older_extend(ram_path: Path) -> None:
    with attached(ram_path, MemoryFileDriver, MemoryHost, "a") as (engine, world):
        world.machines["a"].newest[engine.volume("v").id] = 7
        with pytest.raises(InvalidState, match="extend 1 is expired or older"):
            engine.extend("v", LARGE)
        assert list(world.array.sizes.values()) == [SMALL]


# --- the fence


@pytest.mark.parametrize("grown", [False, True])
def test_without_a_fence_it_stays_extending(ram_path: Path, grown: bool) -> None:
    with attached(ram_path, MemoryFileDriver, MemoryHost, "a") as (engine, world):
        moment = "after" if grown else "before"
        hook(engine.site.hosts["a"], "assist_extend", **{moment: lambda: lose_host(world, "a")})
        with pytest.raises((OutcomeUnknown, BackendError, InvalidState)) as caught:
            engine.extend("v", LARGE)
        if not grown:
            assert isinstance(caught.value, OutcomeUnknown)
            assert "host a does not answer" in str(caught.value)
            assert (status(engine), *sizes(engine)) == (VolumeStatus.EXTENDING, SMALL, SMALL)
            assert engine.volume("v").extend_new_size_bytes == LARGE
            (again,) = engine.resume()
            assert isinstance(again.error, OutcomeUnknown)
        else:
            assert (status(engine), *sizes(engine)) == (VolumeStatus.ERROR_EXTENDING, SMALL, LARGE)
        world.machines["a"].reachable = True
    with world.engine(ram_path) as later:
        later.resume()
        assert later.repair("v")
        assert (status(later), *sizes(later)) == (VolumeStatus.IN_USE, LARGE, LARGE)


def test_a_fence_refused_by_one_host_keeps_it_extending(ram_path: Path) -> None:
    with attached(ram_path, MemoryFileDriver, LyingHost, "a", "b") as (engine, world):
        hook(
            engine.site.hosts["b"],
            "assist_extend",
            after=lambda: setattr(world.machines["b"], "reachable", False),
        )
        with pytest.raises(OutcomeUnknown, match="host b does not answer"):
            engine.extend("v", LARGE)
        assert status(engine) is VolumeStatus.EXTENDING
        world.machines["b"].reachable = True
        (resumed,) = engine.resume()
        assert status(engine) is VolumeStatus.EXTENDING
        assert isinstance(resumed.error, OutcomeUnknown)
    world.machines["b"].reachable = True
    with world.engine(ram_path) as later:
        (resumed,) = later.resume()
        assert isinstance(resumed.error, BackendError)
        assert (status(later), *sizes(later)) == (VolumeStatus.IN_USE, SMALL, SMALL)


# --- lost answers


@pytest.mark.parametrize(
    ("driver", "side", "method", "number"),
    [
        (MemoryDriver, "ram", "extend_volume", 1),
        (MemoryDriver, "ram", "volume_size", 3),
        (MemoryDriver, "ram", "volume_size", 5),
        (MemoryDriver, "a", "instance_state", 3),
        (MemoryDriver, "a", "get_blockdev", 1),
        (MemoryDriver, "a", "get_blockdev", 2),
        (MemoryDriver, "a", "rescan", 1),
        (MemoryDriver, "a", "assist_extend", 1),
        (MemoryFileDriver, "ram", "extend_volume", 1),
        (MemoryFileDriver, "ram", "extend_volume", 2),
        (MemoryFileDriver, "a", "assist_extend", 1),
    ],
)
def test_a_lost_answer_is_looked_for_by_resume(
    ram_path: Path, driver: type[MemoryDriver], side: str, method: str, number: int
) -> None:
    with attached(ram_path, driver, MemoryHost, "a") as (engine, _):
        lose_answer(engine.site.drivers["ram"] if side == "ram" else engine.site.hosts["a"], method, number)
        with pytest.raises(OutcomeUnknown):
            engine.extend("v", LARGE)
        assert status(engine) is VolumeStatus.EXTENDING
        (resumed,) = engine.resume()
        assert resumed.error is None
        assert (status(engine), *sizes(engine)) == (VolumeStatus.IN_USE, LARGE, LARGE)
        assert all(row.agrees for row in engine.ledger("v"))
        assert texts(engine) == []


def test_a_lost_answer_of_one_of_several_keeps_it_extending(ram_path: Path) -> None:
    with attached(ram_path, MemoryDriver, MemoryHost, "a", "b") as (engine, world):
        lose_answer(engine.site.hosts["a"], "assist_extend")
        with pytest.raises(OutcomeUnknown, match="a/vm: the outcome of assist_extend is unknown"):
            engine.extend("v", LARGE)
        assert status(engine) is VolumeStatus.EXTENDING
        assert world.machines["b"].instances["vm"] == {engine.volume("v").id: LARGE}
        assert engine.resume()[0].error is None


@pytest.mark.parametrize(("side", "method"), [("ram", "extend_volume"), ("a", "rescan")])
def test_a_bug_after_growth_leaves_what_resume_ends(ram_path: Path, side: str, method: str) -> None:
    with attached(ram_path, MemoryDriver, MemoryHost, "a") as (engine, world):
        faulty = engine.site.drivers["ram"] if side == "ram" else engine.site.hosts["a"]
        hook(faulty, method, after=lambda: {"a": "bug"}["b"])
        with pytest.raises(KeyError):
            engine.extend("v", LARGE)
        assert status(engine) is VolumeStatus.EXTENDING
        assert list(world.array.sizes.values()) == [LARGE]
    with world.engine(ram_path) as later:
        assert later.resume()[0].error is None
        assert sizes(later) == (LARGE, LARGE)


# --- something grew: error_extending, then retry


def test_half_an_extend_is_an_error_with_the_size_that_is_there(ram_path: Path) -> None:
    with attached(ram_path, HalfwayDriver, MemoryHost, "a") as (engine, world):
        hook(
            engine.site.hosts["a"],
            "check_extend",
            lambda: setattr(world.array, "capacity_bytes", LARGE + 4 * MiB),
        )
        with pytest.raises(NoSpace):
            engine.extend("v", LARGE)
        assert (status(engine), *sizes(engine)) == (VolumeStatus.ERROR_EXTENDING, SMALL, SMALL + 4 * MiB)
        (text,) = texts(engine)
        assert text.startswith("the extend to 16 MiB is not complete: volume v: no space")
        with pytest.raises(InvalidState, match="volume v is error_extending, must be available or in-use"):
            engine.extend("v", LARGE)
        world.array.capacity_bytes = 10 * LARGE
        assert engine.retry("v").phase is Phase.COMPLETED
        assert (status(engine), *sizes(engine)) == (VolumeStatus.IN_USE, LARGE, LARGE)


def test_a_backend_that_gives_more_is_reported_and_counts_for_all(ram_path: Path) -> None:
    with attached(ram_path, GenerousDriver, MemoryHost, "a", "b") as (engine, _):
        extend = engine.extend("v", LARGE)
        assert (extend.requested_bytes, extend.to_bytes) == (LARGE, LARGE + 4 * MiB)
        assert sizes(engine) == (LARGE + 4 * MiB, LARGE + 4 * MiB)
        assert all(row.agrees for row in engine.ledger("v"))
        assert texts(engine) == ["the backend has 20 MiB instead of 16 MiB: it is kept"]


def test_more_than_its_rule_is_reported_when_the_rest_fails_too(ram_path: Path) -> None:
    with attached(ram_path, GenerousDriver, LyingHost, "a") as (engine, _):
        with pytest.raises(BackendError):
            engine.extend("v", LARGE)
        (text,) = texts(engine)
        assert text.startswith(
            "the backend has 20 MiB instead of 16 MiB: it is kept; the extend to 20 MiB is not"
        )


def test_a_host_that_lies_about_showing_is_named(ram_path: Path) -> None:
    with attached(ram_path, MemoryDriver, LyingHost, "a") as (engine, world):
        with pytest.raises(BackendError, match="QEMU node a/vm shows 8 MiB, must show 16 MiB"):
            engine.extend("v", LARGE)
        assert (status(engine), *sizes(engine)) == (VolumeStatus.ERROR_EXTENDING, SMALL, LARGE)
        world.host_type = MemoryHost
        with world.engine(ram_path) as mended:
            assert all(row.agrees for row in mended.repair("v"))
            assert status(mended) is VolumeStatus.IN_USE


def test_waits_until_the_deadline_and_says_for_what(ram_path: Path) -> None:
    world = World(host_type=BlindHost)
    slept: list[float] = []
    with world.engine(ram_path, policy=Policy(deadline_s=7.0), sleep=slept.append) as engine:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")
        with pytest.raises(BackendError, match="volume v: waited in vain for a/vm to see 16 MiB"):
            engine.extend("v", LARGE)
        assert 7.0 <= sum(slept) < 7.2
        assert (status(engine), *sizes(engine)) == (VolumeStatus.ERROR_EXTENDING, SMALL, LARGE)


def test_a_clock_that_is_set_back_does_not_make_it_wait_longer(ram_path: Path) -> None:
    world, slept, clock = World(host_type=BlindHost), list[float](), [NOON]
    with world.engine(
        ram_path, policy=Policy(deadline_s=7.0), sleep=slept.append, now=lambda: clock[0]
    ) as engine:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")
        hook(engine.site.hosts["a"], "rescan", lambda: clock.insert(0, NOON - timedelta(hours=1)))
        with pytest.raises(BackendError, match="waited in vain"):
            engine.extend("v", LARGE)
        assert 6.5 < sum(slept) < 7.2


def test_waits_for_a_layer_that_is_late(ram_path: Path) -> None:
    world = World(host_type=BlindHost)

    def arrive(_seconds: float) -> None:
        world.machines["a"].devices.update(world.array.sizes)

    with world.engine(ram_path, policy=Policy(deadline_s=7.0), sleep=arrive) as engine:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a")
        assert engine.extend("v", LARGE).phase is Phase.COMPLETED


# --- several attachments


@pytest.mark.parametrize("driver", [MemoryDriver, MemoryFileDriver])
def test_the_host_that_failed_is_named_and_retry_does_what_is_behind(
    ram_path: Path, driver: type[MemoryDriver]
) -> None:
    with attached(ram_path, driver, MemoryHost, "a", "b") as (engine, world):
        engine.extend("v", LARGE, wait=False)
        world.machines["b"].reachable = False
        (resumed,) = engine.resume()
        assert "host b is not answering" in str(resumed.error)
        assert (status(engine), *sizes(engine)) == (VolumeStatus.ERROR_EXTENDING, SMALL, LARGE)
        assert world.machines["a"].instances["vm"] == {engine.volume("v").id: LARGE}
        assert {row.place for row in engine.ledger("v") if row.stale} == {"b"}
        world.machines["b"].reachable = True
        rescanned: list[str] = []
        for name, host in engine.site.hosts.items():
            hook(host, "rescan", partial(rescanned.append, name))
        assert engine.retry("v").phase is Phase.COMPLETED
        assert rescanned == ["b"]
        assert (status(engine), *sizes(engine)) == (VolumeStatus.IN_USE, LARGE, LARGE)


def test_the_place_is_named_when_its_error_does_not(ram_path: Path) -> None:
    with attached(ram_path, MemoryDriver, NamelessHost, "a", "b") as (engine, _):
        with pytest.raises(BackendError, match="b/vm: QEMU: it broke"):
            engine.extend("v", LARGE)
        assert "a/vm" not in texts(engine)[0]


@pytest.mark.parametrize("failing", ["vm", "vm2"])
def test_one_of_two_guests_of_a_host_fails_and_the_other_one_is_shown_the_size(
    ram_path: Path, failing: str
) -> None:
    """Whichever of them is asked first."""
    with attached(ram_path, MemoryDriver, MemoryHost, "a") as (engine, world):
        guests, volume_id = world.machines["a"].instances, engine.volume("v").id
        guests["vm2"] = {}
        engine.attach("v", "a", "vm2")
        del guests[failing][volume_id]
        with pytest.raises(BackendError, match=f"a/{failing}: instance a/{failing} is without volume v"):
            engine.extend("v", LARGE)
        (other,) = guests.keys() - {failing}
        assert guests[other] == {volume_id: LARGE}
        assert {row.place for row in engine.ledger("v") if row.stale} == {f"a/{failing}"}
        guests[failing][volume_id] = SMALL
        assert engine.retry("v").phase is Phase.COMPLETED
        assert guests[failing] == {volume_id: LARGE}


def test_only_an_instance_is_asked_to_show_the_size(ram_path: Path) -> None:
    with attached(ram_path, MemoryDriver, MemoryHost, "a") as (engine, world):
        engine.attach("v", "b")
        asked: list[str] = []
        for name, host in engine.site.hosts.items():
            hook(host, "assist_extend", partial(asked.append, name))
        assert engine.extend("v", LARGE).phase is Phase.COMPLETED
        assert asked == ["a"]
        assert {name: list(each.devices.values()) for name, each in world.machines.items()} == {
            "a": [LARGE],
            "b": [LARGE],
        }


def test_a_lost_host_is_detached_by_force_and_the_rest_goes_on(ram_path: Path) -> None:
    with attached(ram_path, MemoryFileDriver, MemoryHost, "a", "b") as (engine, world):
        engine.extend("v", LARGE, wait=False)
        world.machines["b"].reachable = False
        engine.resume()
        with pytest.raises(InvalidState, match="host b is not answering"):
            engine.detach("v", "b")
        assert len(engine.volume("v").attachments) == 2
        engine.detach("v", "b", force=True)
        assert status(engine) is VolumeStatus.ERROR_EXTENDING
        assert {host for _, host in world.array.exports} == {"a"}
        assert engine.retry("v").phase is Phase.COMPLETED
        assert texts(engine)[1:] == ["detached from b/vm by force, without asking the host"]


def test_an_attachment_that_is_being_forgotten_keeps_no_device(ram_path: Path) -> None:
    with attached(ram_path, MemoryDriver, LyingHost, "a") as (engine, world):
        engine.attach("v", "a")
        with pytest.raises(BackendError):
            engine.extend("v", LARGE)
        lose_answer(engine.site.hosts["a"], "unplug")
        with pytest.raises(OutcomeUnknown):
            engine.detach("v", "a", "vm")
        lose_answer(engine.site.drivers["ram"], "terminate_connection")
        with pytest.raises(OutcomeUnknown):
            engine.detach("v", "a", "", force=True)
        assert [a.state for a in engine.volume("v").attachments] == ["detaching", "forgetting"]
        engine.resume()
        assert engine.volume("v").attachments == ()
        assert world.machines["a"].devices == {}
        assert not world.array.exports


def test_detach_goes_in_error_extending_and_retry_ends_available(ram_path: Path) -> None:
    with attached(ram_path, MemoryDriver, LyingHost, "a") as (engine, _):
        with pytest.raises(BackendError):
            engine.extend("v", LARGE)
        engine.detach("v")
        assert status(engine) is VolumeStatus.ERROR_EXTENDING
        assert engine.retry("v").phase is Phase.COMPLETED
        assert (status(engine), *sizes(engine)) == (VolumeStatus.AVAILABLE, LARGE, LARGE)


def test_retry_is_for_failed_extends_only(ram_path: Path) -> None:
    not_failed = pytest.raises(InvalidState, match="volume v is available, must be error_extending")
    with attached(ram_path, MemoryDriver) as (engine, _), not_failed:
        engine.retry("v")


# --- instances that have stopped


@pytest.fixture
def stopped(ram_path: Path) -> Iterator[tuple[Engine, World, list[tuple[str, bool]]]]:
    """A file whose instance has provably stopped, and who was called while it was held."""
    with attached(ram_path, MemoryFileDriver, MemoryHost, "a") as (engine, world):
        machine, calls = world.machines["a"], list[tuple[str, bool]]()
        machine.instances.clear()
        machine.stopped.add("vm")
        for method in ("probe_locks", "extend_volume"):

            def note(method: str = method) -> None:
                calls.append((method, bool(machine.held)))

            hook(engine.site.drivers["ram"], method, note)
        yield engine, world, calls


Stopped = tuple[Engine, World, list[tuple[str, bool]]]


def test_a_stopped_file_is_grown_while_held_and_after_a_probe(stopped: Stopped) -> None:
    engine, world, calls = stopped
    assert engine.extend("v", LARGE).phase is Phase.COMPLETED
    assert calls == [("probe_locks", True), ("extend_volume", True)]
    assert not world.machines["a"].held


@pytest.mark.parametrize("method", ["probe_locks", "hold"])
def test_without_proof_a_stopped_file_does_not_grow(stopped: Stopped, method: str) -> None:
    engine, world, calls = stopped

    def refuse() -> None:
        raise InvalidState("volume v", "held by somebody", "free")

    hook(engine.site.drivers["ram"] if method == "probe_locks" else engine.site.hosts["a"], method, refuse)
    with pytest.raises(InvalidState, match="held by somebody"):
        engine.extend("v", LARGE)
    assert "extend_volume" not in dict(calls)
    assert (status(engine), *sizes(engine)) == (VolumeStatus.IN_USE, SMALL, SMALL)
    assert not world.machines["a"].held


def test_an_instance_that_vanishes_is_not_taken_for_stopped(ram_path: Path) -> None:
    with attached(ram_path, MemoryFileDriver, MemoryHost, "a") as (engine, world):
        engine.extend("v", LARGE, wait=False)
        world.machines["a"].instances.clear()
        (resumed,) = engine.resume()
        assert isinstance(resumed.error, InvalidState)
        assert list(world.array.sizes.values()) == [SMALL]
        assert (status(engine), *sizes(engine)) == (VolumeStatus.IN_USE, SMALL, SMALL)
