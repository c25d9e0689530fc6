"""The engine through its public door: what it refuses, what it does, what it says."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import ClassVar

import pytest
from crashing import Image, World, hook

from voldrivers.capabilities import Capabilities
from voldrivers.config import Policy
from voldrivers.errors import (
    InvalidInput,
    InvalidSize,
    InvalidState,
    NoSpace,
    NotFound,
    NotSupported,
)
from voldrivers.extend import Engine, Progress
from voldrivers.extend.carrying import admit
from voldrivers.locks import exclusive
from voldrivers.memory import MemoryDriver, MemoryFileDriver, MemoryHost
from voldrivers.model import ConnectionInfo, Connector, ExtendReply, Phase, Volume, VolumeStatus
from voldrivers.sizes import LARGEST_BYTES, MiB, TiB

SMALL, LARGE = 8 * MiB, 16 * MiB
EXTENDABLE = (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE)


class OfflineDriver(MemoryDriver):
    """It extends what is detached only."""

    capabilities = Capabilities(multi_attach=True)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def engine(world: World, ram_path: Path) -> Iterator[Engine]:
    with world.engine(ram_path) as engine:
        engine.create_volume("v", SMALL, multi_attach=True)
        yield engine


@pytest.fixture
def unchanged(world: World, engine: Engine, ram_path: Path) -> Iterator[None]:
    """The test changes neither records nor the world."""
    image = Image(world, ram_path)
    before = image.seen()
    yield
    assert image.seen() == before


def set_status(engine: Engine, status: VolumeStatus) -> None:
    with engine.store.database.transaction():
        engine.store.database.change("UPDATE volumes SET status = ?", (status,))


def texts(engine: Engine) -> list[str]:
    return [message.text for message in engine.messages(engine.volume("v"))]


# --- refused with nothing touched


@pytest.mark.parametrize("status", [s for s in VolumeStatus if s not in EXTENDABLE])
def test_refuses_every_other_status_by_its_name(engine: Engine, status: VolumeStatus) -> None:
    set_status(engine, status)
    with pytest.raises(InvalidState) as caught:
        engine.extend("v", LARGE)
    assert str(caught.value) == f"volume v is {status}, must be available or in-use"
    assert engine.volume("v").status is status
    assert engine.last_extend(engine.volume("v")) is None


def test_refuses_in_use_without_the_capability_before_anything_is_asked(ram_path: Path) -> None:
    world = World(driver_type=OfflineDriver)
    with world.engine(ram_path) as engine:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")
        before = Image(world, ram_path).seen()
        world.machines["a"].reachable = False
        with pytest.raises(NotSupported) as caught:
            engine.extend("v", LARGE)
        world.machines["a"].reachable = True
        assert str(caught.value) == (
            "volume v: the driver of backend ram does not support extending a volume that is in-use"
        )
        assert Image(world, ram_path).seen() == before
        engine.detach("v")
        assert engine.extend("v", LARGE).phase is Phase.COMPLETED


def test_a_policy_turns_attached_extends_off(world: World, ram_path: Path) -> None:
    with world.engine(ram_path, policy=Policy(extend_attached=False)) as engine:
        engine.create_volume("v", SMALL)
        engine.extend("v", LARGE)
        engine.attach("v", "a", "vm")
        with pytest.raises(NotSupported, match=r"volume v: .*turned off \(policy extend_attached\)"):
            engine.extend("v", 2 * LARGE)
        assert (engine.volume("v").size_bytes, engine.volume("v").status) == (LARGE, VolumeStatus.IN_USE)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("asked_bytes", "asked"),
    [
        (0, "0 B"),
        (-1, "-1 B"),
        (-SMALL, "-8 MiB"),
        (4 * MiB, "4 MiB"),
        (LARGEST_BYTES + 1, "1152921504606846977 B"),
        (2**63, "8 EiB"),
    ],
)
def test_refuses_a_size_with_both_sizes_in_the_message(engine: Engine, asked_bytes: int, asked: str) -> None:
    with pytest.raises(InvalidSize) as caught:
        engine.extend("v", asked_bytes)
    assert str(caught.value).startswith(f"volume v: cannot be {asked}, it is 8 MiB: ")
    with pytest.raises(InvalidSize):
        engine.plan("v", asked_bytes)


@pytest.mark.usefixtures("unchanged")
def test_refuses_more_than_there_is_room_for(engine: Engine) -> None:
    with pytest.raises(NoSpace, match="volume v: no space"):
        engine.extend("v", 2 * TiB)


class EncryptedDriver(MemoryDriver):
    """A host has to decrypt what it gets."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        given = super().initialize_connection(volume, connector)
        return ConnectionInfo(given.driver_volume_type, {**given.properties, "encrypted": "True"})


@pytest.mark.parametrize("instance", [None, "vm"])
def test_refuses_an_encrypted_attachment_before_anything_grows(ram_path: Path, instance: str | None) -> None:
    world = World(driver_type=EncryptedDriver)
    with world.engine(ram_path) as engine:
        engine.create_volume("v", SMALL)
        place = engine.attach("v", "a", instance).place
        before = Image(world, ram_path).seen()
        said = f"volume v: it is encrypted on {place}, and decrypting is not built yet"
        for act in (engine.plan, engine.extend):
            with pytest.raises(NotSupported, match=said):
                act("v", LARGE)
        assert Image(world, ram_path).seen() == before
        engine.detach("v")
        engine.extend("v", LARGE)


def test_asks_every_host_before_anything_grows(world: World, engine: Engine, ram_path: Path) -> None:
    engine.attach("v", "a", "vm")
    engine.attach("v", "b", "vm")
    world.machines["b"].reachable = False
    with pytest.raises(InvalidState, match="host b is not answering, must be reachable"):
        engine.extend("v", LARGE)
    world.machines["b"].reachable = True
    engine.site.hosts["b"].version = 0
    with pytest.raises(NotSupported, match="host b: speaks protocol 0, 1 is needed"):
        engine.extend("v", LARGE)
    del world.machines["b"]
    with world.engine(ram_path) as other, pytest.raises(NotFound, match="host b does not exist"):
        other.extend("v", LARGE)
    assert engine.volume("v").status is VolumeStatus.IN_USE
    assert world.array.sizes == {engine.volume("v").id: SMALL}
    assert engine.last_extend(engine.volume("v")) is None


def test_refuses_an_instance_of_which_nothing_is_known(world: World, engine: Engine) -> None:
    engine.attach("v", "a", "vm")
    world.machines["a"].instances.clear()
    with pytest.raises(InvalidState, match="instance a/vm is unknown, must be running or provably stopped"):
        engine.extend("v", LARGE)
    assert engine.volume("v").status is VolumeStatus.IN_USE


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", ["", "a/b", "..", "-v", "a\nb", "a\0b", "'a'", "a b", "a" * 300])
def test_refuses_a_name_that_is_none(engine: Engine, name: str) -> None:
    with pytest.raises(InvalidInput):
        engine.create_volume(name, SMALL)
    with pytest.raises(NotFound):
        engine.extend(name, LARGE)


@pytest.mark.parametrize("operation", ["extend", "retry", "resume", "cancel", "delete_volume", "ledger"])
def test_a_deleted_volume_is_not_found(engine: Engine, operation: str) -> None:
    engine.delete_volume("v")
    with pytest.raises(NotFound, match="volume v does not exist"):
        getattr(engine, operation)(*(["v", LARGE] if operation == "extend" else ["v"]))


def test_a_volume_that_is_gone_from_its_backend_keeps_its_status(world: World, engine: Engine) -> None:
    world.array.sizes.clear()
    with pytest.raises(NotFound, match="volume v does not exist on backend ram"):
        engine.extend("v", LARGE)
    assert engine.volume("v").status is VolumeStatus.AVAILABLE


# --- what an extend does


@pytest.mark.parametrize("driver_type", [MemoryDriver, MemoryFileDriver])
@pytest.mark.parametrize("places", [[], ["a"], ["a", "b"]])
def test_every_layer_agrees_after_an_extend(
    driver_type: type[MemoryDriver], places: list[str], ram_path: Path
) -> None:
    world = World(driver_type=driver_type)
    with world.engine(ram_path) as engine:
        engine.create_volume("v", SMALL, multi_attach=True)
        for place in places:
            engine.attach("v", place, "vm")
        extend = engine.extend("v", LARGE)
        volume = engine.volume("v")
        assert (extend.phase, extend.to_bytes) == (Phase.COMPLETED, LARGE)
        assert (volume.size_bytes, volume.backend_bytes) == (LARGE, LARGE)
        assert volume.status is (VolumeStatus.IN_USE if places else VolumeStatus.AVAILABLE)
        assert world.array.sizes == {volume.id: LARGE}
        for place in places:
            assert world.machines[place].devices == {volume.id: LARGE}
            assert world.machines[place].instances == {"vm": {volume.id: LARGE}}
        rows = engine.ledger("v")
        assert len(rows) == 1 + 2 * len(places)
        assert all(row.agrees for row in rows)


def test_rounds_once_and_remembers_what_was_asked(engine: Engine) -> None:
    extend = engine.extend("v", SMALL + 1)
    assert (extend.requested_bytes, extend.to_bytes) == (SMALL + 1, SMALL + 4 * MiB)
    assert engine.volume("v").size_bytes == SMALL + 4 * MiB


def test_the_same_size_brings_up_what_lags_and_grows_nothing(world: World, engine: Engine) -> None:
    engine.attach("v", "a", "vm")
    engine.extend("v", LARGE)
    volume_id = engine.volume("v").id
    world.machines["a"].devices[volume_id] = SMALL
    world.machines["a"].instances["vm"][volume_id] = SMALL
    assert [row.layer for row in engine.ledger("v") if row.stale] == ["device", "QEMU node"]
    assert engine.extend("v", LARGE).phase is Phase.COMPLETED
    assert not [row for row in engine.ledger("v") if row.stale]
    assert world.array.sizes == {volume_id: LARGE}


def test_the_size_it_has_is_not_rounded(world: World, engine: Engine) -> None:
    volume_id = engine.volume("v").id
    world.array.sizes[volume_id] = SMALL + 512
    engine.extend("v", SMALL)
    assert engine.volume("v").size_bytes == SMALL + 512
    engine.extend("v", SMALL + 512)
    assert world.array.sizes == {volume_id: SMALL + 512}


def test_repair_brings_up_what_lags(world: World, engine: Engine) -> None:
    engine.attach("v", "a", "vm")
    engine.extend("v", LARGE)
    world.machines["a"].instances["vm"][engine.volume("v").id] = SMALL
    assert all(row.agrees for row in engine.repair("v"))


@pytest.mark.parametrize(("asked_bytes", "end_bytes"), [(LARGE, LARGE), (SMALL, SMALL + 4 * MiB)])
def test_grown_behind_our_back_is_never_cut_and_reported(
    world: World, engine: Engine, asked_bytes: int, end_bytes: int
) -> None:
    engine.attach("v", "a", "vm")
    world.array.sizes[engine.volume("v").id] = SMALL + 4 * MiB
    engine.extend("v", asked_bytes)
    assert (engine.volume("v").size_bytes, engine.volume("v").backend_bytes) == (end_bytes, end_bytes)
    assert all(row.agrees for row in engine.ledger("v"))
    assert texts(engine) == ["the backend had 12 MiB instead of 8 MiB: it is kept"]


def test_the_phase_is_on_disk_before_the_act(world: World, ram_path: Path) -> None:
    seen: list[tuple[str, Phase]] = []
    with world.engine(ram_path) as engine, world.engine(ram_path) as watcher:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")

        def look(act: str) -> None:
            extend = watcher.last_extend(watcher.volume("v"))
            assert extend is not None
            assert watcher.volume("v").status is VolumeStatus.EXTENDING
            seen.append((act, extend.phase))

        hook(engine.site.drivers["ram"], "extend_volume", lambda: look("extend_volume"))
        for act in ("rescan", "assist_extend"):
            hook(engine.site.hosts["a"], act, partial(look, act))
        engine.extend("v", LARGE)
    assert seen == [
        ("extend_volume", Phase.GROWING),
        ("rescan", Phase.RESCANNING),
        ("assist_extend", Phase.RESIZING),
    ]


def test_records_the_new_size_while_the_hypervisor_must_grow(ram_path: Path) -> None:
    world = World(driver_type=MemoryFileDriver)
    seen: list[tuple[str, int | None, int]] = []
    with world.engine(ram_path) as engine, world.engine(ram_path) as watcher:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")

        def look(act: str) -> None:
            volume = watcher.volume("v")
            seen.append((act, volume.extend_new_size_bytes, volume.size_bytes))

        hook(engine.site.drivers["ram"], "extend_volume", lambda: look("extend_volume"))
        hook(engine.site.hosts["a"], "assist_extend", lambda: look("assist_extend"))
        engine.extend("v", LARGE)
        look("end")
    assert seen == [
        ("extend_volume", None, SMALL),
        ("assist_extend", LARGE, SMALL),
        ("extend_volume", LARGE, SMALL),
        ("end", None, LARGE),
    ]


def test_shows_its_steps(world: World, ram_path: Path) -> None:
    steps: list[Progress] = []
    with world.engine(ram_path, progress=steps.append) as engine:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")
        engine.extend("v", LARGE)
    assert [(step.step, step.text) for step in steps] == [
        ("creating", "8 MiB"),
        ("attaching", "a/vm"),
        *((phase, "16 MiB") for phase in ("growing", "rescanning", "resizing", "settling")),
    ]


def test_a_plan_says_what_would_happen_and_changes_nothing(
    world: World, engine: Engine, ram_path: Path
) -> None:
    engine.attach("v", "a", "vm")
    before = Image(world, ram_path).seen()
    plan = engine.plan("v", SMALL + 1)
    assert (plan.from_bytes, plan.requested_bytes, plan.to_bytes) == (SMALL, SMALL + 1, SMALL + 4 * MiB)
    assert plan.steps == (
        "growing: backend ram makes it 12 MiB",
        "rescanning: host a reads the new size",
        "resizing: QEMU shows it to a/vm",
        "settling: every layer shows exactly that size",
    )
    assert Image(world, ram_path).seen() == before


def test_without_waiting_it_is_admitted_and_carried_on_later(world: World, engine: Engine) -> None:
    assert engine.extend("v", LARGE, wait=False).phase is Phase.GROWING
    assert engine.volume("v").status is VolumeStatus.EXTENDING
    assert list(world.array.sizes.values()) == [SMALL]
    (resumed,) = engine.resume()
    assert (resumed.what, resumed.outcome, resumed.error) == ("extending", "extended, 16 MiB", None)
    assert engine.volume("v").status is VolumeStatus.AVAILABLE
    assert engine.resume() == ()


# --- creating, deleting, attaching, detaching


def test_a_volume_that_cannot_be_made_leaves_nothing(world: World, engine: Engine) -> None:
    with pytest.raises(NoSpace):
        engine.create_volume("huge", 2 * TiB)
    assert [volume.name for volume in engine.volumes()] == ["v"]
    assert len(world.array.sizes) == 1
    assert engine.create_volume("huge", SMALL).status is VolumeStatus.AVAILABLE


@pytest.mark.usefixtures("unchanged")
def test_a_name_is_given_once(engine: Engine) -> None:
    with pytest.raises(InvalidState, match="volume v is there already"):
        engine.create_volume("v", LARGE)


def test_only_a_shared_volume_is_attached_twice(engine: Engine) -> None:
    engine.create_volume("own", SMALL)
    engine.attach("own", "a", "vm")
    with pytest.raises(InvalidState, match="volume own is in-use, must be available"):
        engine.attach("own", "b", "vm")
    engine.attach("v", "a", "vm")
    with pytest.raises(InvalidState, match="volume v is attached to a/vm already"):
        engine.attach("v", "a", "vm")
    with pytest.raises(NotFound, match="instance none does not exist on host b"):
        engine.attach("v", "b", "none")


def test_a_detach_names_what_it_means(world: World, engine: Engine) -> None:
    engine.attach("v", "a", "vm")
    engine.attach("v", "b", "vm")
    with pytest.raises(InvalidInput, match="is attached to a/vm, b/vm: name the host and the instance"):
        engine.detach("v")
    with pytest.raises(NotFound, match="attachment of volume v to c does not exist"):
        engine.detach("v", "c")
    engine.detach("v", "b")
    assert engine.volume("v").status is VolumeStatus.IN_USE
    engine.detach("v")
    assert engine.volume("v").status is VolumeStatus.AVAILABLE
    assert not world.array.exports
    assert not world.machines["a"].devices
    assert not world.machines["b"].instances["vm"]


def test_a_host_keeps_its_device_until_the_last_attachment_there_is_gone(
    world: World, engine: Engine
) -> None:
    engine.attach("v", "a", "vm")
    engine.attach("v", "a")
    engine.detach("v", "a", "")
    assert world.machines["a"].devices
    assert world.array.exports
    engine.detach("v", "a", "vm")
    assert not world.machines["a"].devices
    assert not world.array.exports


class NamedHost(MemoryHost):
    """It says more of itself than its name."""

    def connector(self) -> Connector:
        self._answer()
        return Connector(self.name, "192.0.2.1", f"iqn.2026-01.org.example:{self.name}", multipath=True)


class RememberingDriver(MemoryDriver):
    """It remembers to whom it closed a volume."""

    closed_to: ClassVar[list[Connector]] = []

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        self.closed_to.append(connector)
        super().terminate_connection(volume, connector)


@pytest.mark.parametrize("force", [False, True], ids=["in order", "by force"])
def test_a_volume_is_closed_to_whom_it_was_opened(
    ram_path: Path, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RememberingDriver, "closed_to", [])
    world = World(driver_type=RememberingDriver, host_type=NamedHost)
    with world.engine(ram_path) as engine:
        engine.create_volume("v", SMALL)
        opened_to = engine.attach("v", "a", "vm").connector
    assert opened_to == Connector("a", "192.0.2.1", "iqn.2026-01.org.example:a", multipath=True)
    world.machines["a"].reachable = not force
    if not force:  # its initiator has another name by now
        world.host_type = MemoryHost
    with world.engine(ram_path) as engine:
        engine.detach("v", force=force)
        assert engine.volume("v").attachments == ()
    assert RememberingDriver.closed_to == [opened_to]


@pytest.mark.parametrize("status", [VolumeStatus.EXTENDING, VolumeStatus.ERROR_EXTENDING])
def test_attach_is_refused_while_extending(engine: Engine, status: VolumeStatus) -> None:
    set_status(engine, status)
    with pytest.raises(InvalidState, match=f"volume v is {status}, must be available"):
        engine.attach("v", "a", "vm")


def test_who_is_about_to_let_go_is_waited_for_and_who_works_is_not(world: World, ram_path: Path) -> None:
    with world.engine(ram_path) as engine:
        volume = engine.create_volume("w", SMALL)
        engine.site = replace(engine.site, patience_s=60.0)
        held = ExitStack()
        held.enter_context(exclusive(engine.site.lock_dir, f"volume-{volume.id}", "w"))
        threading.Timer(0.2, held.close).start()
        engine.extend("w", LARGE, wait=False)
        with (
            exclusive(engine.site.lock_dir, f"volume-{volume.id}", "w"),
            pytest.raises(InvalidState, match="being worked on by another process"),
        ):
            engine.delete_volume("w")


def test_detach_and_delete_are_refused_while_extending(engine: Engine) -> None:
    engine.attach("v", "a", "vm")
    engine.extend("v", LARGE, wait=False)
    with pytest.raises(InvalidState, match="volume v is extending"):
        engine.detach("v")
    with pytest.raises(InvalidState, match="volume v is extending"):
        engine.delete_volume("v")
    assert len(engine.volume("v").attachments) == 1


def test_an_attached_volume_is_not_deleted(engine: Engine) -> None:
    engine.attach("v", "a", "vm")
    with pytest.raises(InvalidState, match="volume v is in-use, must be available or error_extending"):
        engine.delete_volume("v")
    assert engine.volume("v").status is VolumeStatus.IN_USE


# --- several at once


def test_a_second_thread_is_refused_while_the_first_extends(world: World, ram_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()
    ended: list[Phase] = []

    def wait() -> None:
        inside.set()
        assert go_on.wait(30)

    def extend_first() -> None:
        with world.engine(ram_path) as first:
            hook(first.site.drivers["ram"], "extend_volume", wait)
            ended.append(first.extend("v", LARGE).phase)

    with world.engine(ram_path) as second:
        second.create_volume("v", SMALL)
        thread = threading.Thread(target=extend_first)
        thread.start()
        try:
            assert inside.wait(30)
            for refused in (second.delete_volume, second.detach, second.attach, second.retry):
                with pytest.raises(InvalidState, match="volume v is being worked on by another process"):
                    refused("v")
            with pytest.raises(InvalidState, match="volume v is being worked on by another process"):
                second.extend("v", 2 * LARGE)
            (resumed,) = second.resume()
            assert isinstance(resumed.error, InvalidState)
        finally:
            go_on.set()
            thread.join(30)
        assert ended == [Phase.COMPLETED]
        assert second.volume("v").size_bytes == LARGE


def extend_in_a_process(world: World, directory: Path, start: Barrier, results: "Queue[int | str]") -> None:
    start.wait()
    with world.engine(directory) as engine:
        try:
            results.put(engine.extend("v", LARGE, wait=False).id)
        except InvalidState as error:
            results.put(str(error))


def test_one_of_two_processes_wins(world: World, engine: Engine, ram_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        start = context.Barrier(2)
        results: Queue[int | str] = context.Queue()
        arguments = (world, ram_path, start, results)
        processes = [context.Process(target=extend_in_a_process, args=arguments) for _ in range(2)]
        for process in processes:
            process.start()
        answers = [results.get(timeout=30) for _ in processes]
        for process in processes:
            process.join(30)
        extend = engine.last_extend(engine.volume("v"))
        assert extend is not None
        assert extend.phase is Phase.GROWING
        (refused,) = [answer for answer in answers if isinstance(answer, str)]
        assert extend.id in answers
        assert refused.startswith(("volume v is being worked on", "volume v is extending, must be"))
        engine.cancel("v")
        engine.resume()
        assert engine.volume("v").status is VolumeStatus.AVAILABLE


@contextmanager
def holder_of(engine: Engine) -> Iterator[subprocess.Popen[str]]:
    """A real process that works on the volume."""
    holding = (
        "import pathlib, sys\n"
        "from voldrivers.locks import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1]), sys.argv[2], 'it'):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", holding, str(engine.site.lock_dir), f"volume-{engine.volume('v').id}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        yield holder
        holder.kill()


def test_a_lock_is_free_when_its_holder_is_killed(engine: Engine) -> None:
    with holder_of(engine) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InvalidState, match="volume v is being worked on by another process"):
            engine.extend("v", LARGE)
        assert engine.volume("v").status is VolumeStatus.AVAILABLE
        os.kill(holder.pid, signal.SIGKILL)
    assert engine.extend("v", LARGE).phase is Phase.COMPLETED


def test_an_earlier_refusal_does_not_drop_a_later_lock(engine: Engine) -> None:
    refusals: list[InvalidState] = []
    with holder_of(engine) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InvalidState) as caught:
            engine.extend("v", LARGE)
        refusals.append(caught.value)
        del caught
    with engine.site.working_on("v"):
        refusals.clear()
        gc.collect()
        with holder_of(engine) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "", "the lock of this process was lost"


@pytest.mark.parametrize("method", ["unplug", "delete_volume"])
def test_an_extend_during_detach_or_delete_is_refused(
    world: World, engine: Engine, ram_path: Path, method: str
) -> None:
    refused: list[InvalidState] = []
    with world.engine(ram_path) as other:

        def try_to_extend() -> None:
            with pytest.raises(InvalidState) as caught:
                other.extend("v", LARGE)
            refused.append(caught.value)

        engine.attach("v", "a", "vm")
        hook(
            engine.site.hosts["a"] if method == "unplug" else engine.site.drivers["ram"],
            method,
            try_to_extend,
        )
        engine.detach("v")
        engine.delete_volume("v")
    assert len(refused) == 1
    assert engine.volumes() == ()
    assert not world.array.sizes


def test_a_backend_that_goes_away_right_after_it_made_a_volume_is_looked_at_again(
    world: World, engine: Engine, ram_path: Path
) -> None:
    class Away(MemoryDriver):
        def volume_size(self, volume: Volume) -> int:
            raise InvalidState("the array", "away", "there")

        def delete_volume(self, volume: Volume) -> None:
            self.volume_size(volume)

    with World(array=world.array, driver_type=Away).engine(ram_path) as away, pytest.raises(InvalidState):
        away.create_volume("w", SMALL)
    assert engine.volume("w").status is VolumeStatus.CREATING
    assert [resumed.error for resumed in engine.resume("w")] == [None]
    engine.delete_volume("w")
    assert world.array.sizes.keys() == {engine.volume("v").id}


def test_a_changed_attachment_voids_the_admission(world: World, engine: Engine) -> None:
    engine.attach("v", "a", "vm")
    volume = engine.volume("v")
    plan = engine.plan("v", LARGE)
    engine.detach("v")
    engine.attach("v", "a", "vm")
    with pytest.raises(InvalidState, match="volume v is being attached or detached"):
        admit(engine.site, volume, plan)  # as if the lock had not been there
    assert engine.volume("v").status is VolumeStatus.IN_USE


def test_resume_goes_on_past_one_that_is_locked(world: World, engine: Engine, ram_path: Path) -> None:
    engine.create_volume("w", SMALL)
    engine.extend("v", LARGE, wait=False)
    engine.extend("w", LARGE, wait=False)
    with world.engine(ram_path) as other, other.site.working_on("v"):
        first, second = engine.resume()
    assert (first.volume.name, first.outcome) == ("v", "left as it is")
    assert isinstance(first.error, InvalidState)
    assert (second.volume.name, second.outcome) == ("w", "extended, 16 MiB")


# --- completions and cancels


@pytest.mark.parametrize("moment", ["check_extend", "instance_state", "assist_extend", "ledger_rows"])
def test_a_completion_changes_nothing_whenever_it_comes(moment: str, ram_path: Path) -> None:
    """Early, late, twice, of an earlier extend; it never waits for the lock of the one at work."""
    ends = []
    for hinted in (False, True):
        world, directory = World(driver_type=MemoryFileDriver), ram_path / str(hinted)
        with world.engine(directory) as engine, world.engine(directory) as other:
            engine.create_volume("v", SMALL)
            engine.attach("v", "a", "vm")
            first = engine.extend("v", LARGE)

            def complete(other: Engine = other, first: int = first.id, hinted: bool = hinted) -> None:
                for extend_id in (first, first + 1, first + 1, first + 2) if hinted else ():
                    other.completion("v", extend_id)

            hook(engine.site.hosts["a"], moment, complete, complete)
            engine.extend("v", 2 * LARGE)
            complete()
        ends.append(Image(world, directory).seen())
    assert ends[0] == ends[1]


def test_a_completion_is_no_evidence(world: World, ram_path: Path) -> None:
    world.driver_type = MemoryFileDriver
    with world.engine(ram_path) as engine:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")
        extend = engine.extend("v", LARGE, wait=False)
        engine.completion("v", extend.id)
        assert engine.volume("v").status is VolumeStatus.EXTENDING
        assert engine.volume("v").size_bytes == SMALL
        with pytest.raises(NotFound):
            engine.completion("none", extend.id)


def cancel_when_extending(engine: Engine) -> None:
    if engine.volume("v").status is VolumeStatus.EXTENDING:
        engine.cancel("v")


@pytest.mark.parametrize("driver_type", [MemoryDriver, MemoryFileDriver])
def test_a_cancel_before_growth_rolls_back(driver_type: type[MemoryDriver], ram_path: Path) -> None:
    world = World(driver_type=driver_type)
    with world.engine(ram_path) as engine, world.engine(ram_path) as other:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")
        hook(engine.site.hosts["a"], "instance_state", lambda: cancel_when_extending(other))
        with pytest.raises(InvalidState, match="volume v is asked to cancel its extend"):
            engine.extend("v", LARGE)
        volume = engine.volume("v")
        assert (volume.status, volume.size_bytes) == (VolumeStatus.IN_USE, SMALL)
        assert world.array.sizes == {volume.id: SMALL}
        assert texts(engine) == [
            "the extend to 16 MiB was rolled back, nothing changed: "
            "volume v is asked to cancel its extend, must be left to go on"
        ]


def test_a_cancelled_extend_ends_what_a_killed_one_left_and_grows_nothing(
    ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    grow = MemoryDriver.extend_volume

    def counted(driver: MemoryDriver, volume: Volume, size_bytes: int) -> ExtendReply:
        asked.append(size_bytes)
        return grow(driver, volume, size_bytes)

    monkeypatch.setattr(MemoryDriver, "extend_volume", counted)
    with World().engine(ram_path) as engine:
        before = engine.create_volume("v", 8 * MiB).size_bytes
        engine.extend("v", 16 * MiB, wait=False)
        engine.cancel("v")
        engine.resume()
        assert asked == [before]
        assert engine.volume("v").backend_bytes == before


def test_a_plan_has_the_notes_of_its_driver(ram_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryDriver, "extend_notes", lambda self, volume, size: (f"{size} is much",))
    with World().engine(ram_path) as engine:
        engine.create_volume("v", 8 * MiB)
        assert engine.plan("v", 16 * MiB).notes == (f"{16 * MiB} is much",)
        assert engine.plan("v", 8 * MiB).notes == ()


def test_a_cancel_right_before_the_hypervisor_is_asked_rolls_back(ram_path: Path) -> None:
    world = World(driver_type=MemoryFileDriver)
    with world.engine(ram_path) as engine, world.engine(ram_path) as other:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")
        hook(engine.site.drivers["ram"], "extend_volume", after=lambda: other.cancel("v"))
        with pytest.raises(InvalidState, match="asked to cancel"):
            engine.extend("v", LARGE)
        assert list(world.array.sizes.values()) == [SMALL]


def test_a_cancel_after_growth_comes_too_late(world: World, engine: Engine, ram_path: Path) -> None:
    with world.engine(ram_path) as other:
        engine.attach("v", "a", "vm")
        hook(engine.site.hosts["a"], "rescan", lambda: other.cancel("v"))
        assert engine.extend("v", LARGE).phase is Phase.COMPLETED
    assert engine.volume("v").size_bytes == LARGE


def test_a_cancel_is_for_one_extend_only(engine: Engine) -> None:
    with pytest.raises(InvalidState, match="volume v is available, must be extending"):
        engine.cancel("v")
    engine.extend("v", LARGE, wait=False)
    engine.cancel("v")
    (resumed,) = engine.resume()
    assert (resumed.outcome, resumed.error) == ("cancelled, nothing has grown", None)
    assert engine.extend("v", LARGE).phase is Phase.COMPLETED
