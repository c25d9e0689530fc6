"""Snapshots, clones, reverting and managing by the engine, over drivers in RAM that can do all of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from crashing import Image, World

from voldrivers.abilities import Clones, Manages, Merge, Reverts, Snapshots
from voldrivers.base import Driver
from voldrivers.capabilities import Capabilities
from voldrivers.errors import (
    BackendError,
    InvalidInput,
    InvalidSize,
    InvalidState,
    NoSpace,
    NotFound,
    NotSupported,
    OutcomeUnknown,
)
from voldrivers.extend import Engine
from voldrivers.memory import MemoryDriver, MemoryFileDriver, MemoryHost, MemoryImage
from voldrivers.model import Attachment, SnapshotStatus, Volume, VolumeStatus
from voldrivers.sizes import MiB

SMALL, LARGE = 8 * MiB, 16 * MiB


@pytest.fixture(params=[MemoryDriver, MemoryFileDriver])
def world(request: pytest.FixtureRequest) -> World:
    return World(driver_type=request.param)


@pytest.fixture
def engine(world: World, ram_path: Path) -> Iterator[Engine]:
    with world.engine(ram_path) as engine:
        engine.create_volume("v", SMALL)
        write(world, engine, "v", "before")
        yield engine


@pytest.fixture
def unchanged(world: World, engine: Engine, ram_path: Path) -> Iterator[None]:
    """The test changes neither records nor the world."""
    image = Image(world, ram_path)
    before = image.seen()
    yield
    assert image.seen() == before


def write(world: World, engine: Engine, name: str, word: str) -> None:
    world.array.write(engine.volume(name).id, 0, word)


def read(world: World, engine: Engine, name: str) -> str | None:
    return world.array.written.get(engine.volume(name).id, {}).get(0)


def held(world: World, engine: Engine, name: str) -> MemoryImage:
    return world.array.snapshots[engine.snapshot(name).id]


@pytest.mark.parametrize("instance", [None, "vm"])
def test_a_snapshot_keeps_size_and_content(world: World, engine: Engine, instance: str | None) -> None:
    if instance is not None:
        engine.attach("v", "a", instance)
    snapshot = engine.create_snapshot("v", "s")
    write(world, engine, "v", "after")
    engine.extend("v", LARGE)
    assert (snapshot.size_bytes, snapshot.status) == (SMALL, SnapshotStatus.AVAILABLE)
    assert held(world, engine, "s") == MemoryImage(SMALL, {0: "before"})
    (recorded,) = engine.volume("v").snapshots
    assert recorded == snapshot
    engine.delete_snapshot("s")
    assert (engine.volume("v").snapshots, world.array.snapshots) == ((), {})
    assert (engine.volume("v").size_bytes, read(world, engine, "v")) == (LARGE, "after")


def test_an_instance_goes_on_in_the_layer_that_is_recorded(ram_path: Path) -> None:
    world = World(driver_type=MemoryFileDriver)
    with world.engine(ram_path) as engine:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")
        snapshot = engine.create_snapshot("v", "s")
        volume = engine.volume("v")
        assert volume.provider_data == f"over {snapshot.id}" == world.machines["a"].layers[volume.id]
        (attachment,) = volume.attachments
        assert attachment.connection_info is not None
        assert attachment.connection_info.properties["layer"] == volume.provider_data
        engine.delete_snapshot("s")
        assert engine.volume("v").provider_data == volume.provider_data


@pytest.mark.usefixtures("unchanged")
def test_what_cannot_be_taken_leaves_nothing(world: World, engine: Engine) -> None:
    for name in ("", "-s", "a/b"):
        with pytest.raises(InvalidInput, match="snapshot name"):
            engine.create_snapshot("v", name)
    with pytest.raises(NotFound):
        engine.create_snapshot("w", "s")
    capacity_bytes, world.array.capacity_bytes = world.array.capacity_bytes, SMALL
    with pytest.raises(NoSpace):
        engine.create_snapshot("v", "s")
    world.array.capacity_bytes = capacity_bytes
    with pytest.raises(NotFound, match="snapshot s does not exist"):
        engine.delete_snapshot("s")


def test_a_name_is_taken_once(engine: Engine) -> None:
    engine.create_snapshot("v", "s")
    engine.create_volume("w", SMALL)
    with pytest.raises(InvalidState, match="snapshot s is there already"):
        engine.create_snapshot("w", "s")


def test_a_volume_with_snapshots_is_neither_deleted_nor_given_up(engine: Engine) -> None:
    engine.create_snapshot("v", "s")
    for remove in (engine.delete_volume, engine.unmanage_volume):
        with pytest.raises(InvalidState, match="volume v is with the snapshots s, must be without snapshots"):
            remove("v")
    assert engine.volume("v").status is VolumeStatus.AVAILABLE


def test_reverting_brings_content_and_size_back(world: World, engine: Engine) -> None:
    engine.create_snapshot("v", "s")
    write(world, engine, "v", "after")
    engine.extend("v", LARGE)
    for _ in range(2):
        volume = engine.revert_to_snapshot("s")
        assert (volume.size_bytes, volume.backend_bytes, volume.status) == (SMALL, SMALL, "available")
        assert read(world, engine, "v") == "before"
    engine.extend("v", LARGE)
    assert engine.volume("v").size_bytes == LARGE


def test_an_attached_volume_is_not_reverted(world: World, engine: Engine) -> None:
    engine.create_snapshot("v", "s")
    engine.attach("v", "a", "vm")
    with pytest.raises(InvalidState, match="volume v is in-use, must be available"):
        engine.revert_to_snapshot("s")
    assert engine.snapshot("s").status is SnapshotStatus.AVAILABLE


def test_a_refused_revert_changes_nothing(ram_path: Path) -> None:
    with World(driver_type=MemoryFileDriver).engine(ram_path) as engine:
        engine.create_volume("v", SMALL)
        engine.create_snapshot("v", "first")
        engine.create_snapshot("v", "second")
        before = engine.volume("v")
        with pytest.raises(NotSupported, match="only the newest"):
            engine.revert_to_snapshot("first")
        assert engine.volume("v") == before


def test_a_refused_revert_is_taken_back_after_a_kill_too(ram_path: Path) -> None:
    with World(driver_type=MemoryFileDriver).engine(ram_path) as engine:
        engine.create_volume("v", SMALL)
        first = engine.create_snapshot("v", "first")
        engine.create_snapshot("v", "second")
        before = engine.volume("v")
        engine.store.begin_revert(before, first)  # and then it was killed
        (resumed,) = engine.resume()
        assert "only the newest" in str(resumed.error)
        assert engine.volume("v") == before
        assert not engine.resume()


def test_clones_are_independent_both_ways(world: World, engine: Engine) -> None:
    engine.create_snapshot("v", "s")
    write(world, engine, "v", "after")
    assert engine.clone_volume("one", snapshot="s").size_bytes == SMALL
    assert engine.clone_volume("two", snapshot="s", size_bytes=LARGE - 1).size_bytes == world_rounded(world)
    engine.clone_volume("now", "v")
    write(world, engine, "one", "of one")
    assert [read(world, engine, name) for name in ("v", "one", "two", "now")] == [
        *("after", "of one", "before", "after"),
    ]
    engine.delete_snapshot("s")
    engine.delete_volume("v")
    engine.extend("two", LARGE)
    assert (read(world, engine, "two"), engine.volume("one").size_bytes) == ("before", SMALL)


def world_rounded(world: World) -> int:
    return LARGE if world.driver_type is MemoryDriver else LARGE - 512 + 512


def test_a_clone_is_never_smaller_than_its_source(engine: Engine) -> None:
    engine.create_snapshot("v", "s")
    with pytest.raises(InvalidSize, match="at least as large as snapshot s, 8 MiB"):
        engine.clone_volume("w", snapshot="s", size_bytes=SMALL // 2)
    with pytest.raises(NotFound, match="volume w does not exist"):
        engine.volume("w")


def test_what_is_copied_is_left_alone(engine: Engine) -> None:
    """As a killed clone leaves it: its source cannot go before that has ended."""
    engine.create_snapshot("v", "s")
    clone = engine.clone_volume("w", snapshot="s")
    with engine.store.database.transaction():
        engine.store.database.change("UPDATE volumes SET status = 'creating' WHERE id = ?", (clone.id,))
    with pytest.raises(InvalidState, match="snapshot s is copied to volume w"):
        engine.delete_snapshot("s")
    engine.resume()
    engine.delete_snapshot("s")


def test_managing_keeps_every_byte(world: World, engine: Engine) -> None:
    world.array.foreign["old"] = MemoryImage(SMALL, {0: "old"})
    volume = engine.manage_volume("w", "old")
    assert (volume.size_bytes, volume.status, read(world, engine, "w")) == (SMALL, "available", "old")
    assert world.array.foreign == {}
    reference = engine.unmanage_volume("w")
    assert world.array.foreign == {reference: MemoryImage(SMALL, {0: "old"})}
    assert [each.name for each in engine.volumes()] == ["v"]
    assert engine.manage_volume("again", reference).size_bytes == SMALL


@pytest.mark.usefixtures("unchanged")
def test_what_is_not_there_is_not_managed(engine: Engine) -> None:
    with pytest.raises(NotFound, match="object none does not exist"):
        engine.manage_volume("w", "none")


def test_what_failed_while_it_was_managed_is_never_removed(world: World, ram_path: Path) -> None:
    class Failing(world.driver_type):  # type: ignore[name-defined, misc]  # a type that a parameter chose
        def volume_size(self, volume: Volume) -> int:
            raise BackendError(volume.title, "cannot be read")

    world.array.foreign["old"] = MemoryImage(SMALL, {0: "old"})
    failing = World(array=world.array, driver_type=Failing)
    with failing.engine(ram_path) as engine, pytest.raises(BackendError):
        engine.manage_volume("w", "old")
    with world.engine(ram_path) as engine:
        assert engine.volume("w").status is VolumeStatus.MANAGING
        (resumed,) = engine.resume()
        assert (resumed.error, engine.volume("w").status) == (None, VolumeStatus.AVAILABLE)
        assert read(world, engine, "w") == "old"


def test_an_unfinished_snapshot_keeps_others_away(world: World, engine: Engine) -> None:
    engine.create_snapshot("v", "s")
    with engine.store.database.transaction():
        engine.store.database.change("UPDATE snapshots SET status = 'deleting'", ())
    for act in (
        lambda: engine.extend("v", LARGE),
        lambda: engine.attach("v", "a", "vm"),
        lambda: engine.delete_volume("v"),
        lambda: engine.create_snapshot("v", "t"),
    ):
        with pytest.raises(InvalidState, match="snapshot s, which is deleting"):
            act()
    assert [resumed.error for resumed in engine.resume()] == [None]
    assert engine.volume("v").snapshots == ()


def test_a_merge_that_stands_still_is_left_to_resume(ram_path: Path) -> None:
    class Stuck(MemoryHost):
        def merge(self, volume: Volume, attachment: Attachment, merge: Merge) -> int:
            return MiB

    world = World(driver_type=MemoryFileDriver, host_type=Stuck)
    with world.engine(ram_path) as engine:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")
        engine.create_snapshot("v", "s")
        with pytest.raises(OutcomeUnknown, match="1 MiB are left and nothing moves"):
            engine.delete_snapshot("s")
        assert engine.snapshot("s").status is SnapshotStatus.DELETING
    world.host_type = MemoryHost
    with world.engine(ram_path) as engine:
        (resumed,) = engine.resume()
        was, now = "in-use, its snapshot s deleting", "in-use, its snapshot s gone"
        assert (resumed.what, resumed.outcome, resumed.error) == (was, now, None)
        assert engine.volume("v").snapshots == ()


def test_a_host_that_lies_about_a_merge_is_found_out(ram_path: Path) -> None:
    class Lying(MemoryHost):
        def merge(self, volume: Volume, attachment: Attachment, merge: Merge) -> int:
            return 0

    with World(driver_type=MemoryFileDriver, host_type=Lying).engine(ram_path) as engine:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a", "vm")
        engine.create_snapshot("v", "s")
        with pytest.raises(BackendError, match="its layers are not merged"):
            engine.delete_snapshot("s")


def test_a_file_attached_without_an_instance_is_refused(ram_path: Path) -> None:
    with World(driver_type=MemoryFileDriver).engine(ram_path) as engine:
        engine.create_volume("v", SMALL)
        engine.attach("v", "a")
        with pytest.raises(NotSupported, match="attached to a without an instance"):
            engine.create_snapshot("v", "s")
        assert engine.volume("v").snapshots == ()


def test_a_backend_without_them_says_so(ram_path: Path) -> None:
    class Plain(MemoryDriver):
        capabilities = Capabilities()

    # What is declared counts, not what a class happens to have.
    with World(driver_type=Plain).engine(ram_path) as engine:
        engine.create_volume("v", SMALL)
        with pytest.raises(NotSupported, match="backend ram"):
            engine.create_snapshot("v", "s")
        with pytest.raises(NotSupported, match="backend ram"):
            engine.clone_volume("w", "v")
        with pytest.raises(NotSupported, match="backend ram"):
            engine.manage_volume("w", "old")
        with pytest.raises(NotSupported, match="backend ram"):
            engine.unmanage_volume("v")


@pytest.mark.parametrize(
    ("declared", "interface"),
    [
        (Capabilities(snapshots=True), Snapshots),
        (Capabilities(revert=True), Reverts),
        (Capabilities(clones=True), Clones),
        (Capabilities(manage=True), Manages),
    ],
)
def test_what_is_declared_must_be_there(declared: Capabilities, interface: type) -> None:
    with pytest.raises(TypeError, match=f"=True but is no {interface.__name__}"):
        type("Boaster", (Driver,), {"capabilities": declared})
