"""The same trace through the engine and through Cinder ends in the same state."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pytest
from cinderclient import exceptions
from cindersite import CinderSite, new_guest
from servicesite import SOON_S

from voldrivers.errors import VolDriverError
from voldrivers.extend import Engine, Site, Store
from voldrivers.guests.device import SECTOR_BYTES, DeviceGuest
from voldrivers.host.local import LocalHost, LocalOptions
from voldrivers.nfs.driver import NFSDriver
from voldrivers.nfs.options import NFSOptions
from voldrivers.process import run, wait_until
from voldrivers.sizes import GiB

pytestmark = [pytest.mark.slow, pytest.mark.needs("qemu-system-x86_64", "qemu-img")]
#: What a walk is made of, and how often.
WORDS = {
    "create": 1,
    "extend": 2,
    "snapshot": 2,
    "copy": 1,
    "clone": 1,
    "attach": 2,
    "write": 2,
    "detach": 1,
    "delete_snapshot": 1,
    "revert": 1,
    "delete": 1,
    "extend_smaller": 1,
}


#: By name: status, size in GiB, snapshots from the oldest with the size of each.
Seen = dict[str, tuple[str, int, list[tuple[str, int]]]]


class Platform(Protocol):
    """One way to do things with volumes; each refuses with an error of its own."""

    guest: DeviceGuest

    def create(self, name: str, size_gib: int) -> None: ...
    def extend(self, name: str, size_gib: int) -> None: ...
    def snapshot(self, name: str, snapshot: str) -> None: ...
    def delete_snapshot(self, snapshot: str) -> None: ...
    def clone(self, name: str, source: str, size_gib: int) -> None: ...
    def copy(self, name: str, snapshot: str, size_gib: int) -> None: ...
    def revert(self, snapshot: str) -> None: ...
    def attach(self, name: str) -> None: ...
    def detach(self, name: str) -> None: ...
    def delete(self, name: str) -> None: ...
    def serial(self, name: str) -> str: ...
    def seen(self) -> Seen:
        """Give status, size in GiB and snapshots of every volume."""
        ...


REFUSALS = (VolDriverError, exceptions.ClientException)


@dataclass
class ByEngine:
    """The engine with records of its own."""

    directory: Path
    guest: DeviceGuest

    def __post_init__(self) -> None:
        (self.directory / "share").mkdir(parents=True)
        driver = NFSDriver("files", NFSOptions(str(self.directory / "share")), run)
        host = LocalHost("here", LocalOptions(), run)
        store = Store(self.directory / "voldrivers.db")
        self.engine = Engine(Site(store, {"files": driver}, {"here": host}, self.directory / "locks"))

    def create(self, name: str, size_gib: int) -> None:
        self.engine.create_volume(name, size_gib * GiB)

    def extend(self, name: str, size_gib: int) -> None:
        self.engine.extend(name, size_gib * GiB)

    def snapshot(self, name: str, snapshot: str) -> None:
        self.engine.create_snapshot(name, snapshot)

    def delete_snapshot(self, snapshot: str) -> None:
        self.engine.delete_snapshot(snapshot)

    def clone(self, name: str, source: str, size_gib: int) -> None:
        self.engine.clone_volume(name, source, size_bytes=size_gib * GiB)

    def copy(self, name: str, snapshot: str, size_gib: int) -> None:
        self.engine.clone_volume(name, snapshot=snapshot, size_bytes=size_gib * GiB)

    def revert(self, snapshot: str) -> None:
        self.engine.revert_to_snapshot(snapshot)

    def attach(self, name: str) -> None:
        self.engine.attach(name, monitor=self.guest.qmp_socket)

    def detach(self, name: str) -> None:
        with ThreadPoolExecutor(1) as beside:
            leaving = beside.submit(self.engine_of_its_own, name)
            self.guest.eject(SOON_S)
            leaving.result()

    def engine_of_its_own(self, name: str) -> None:
        """Detach with an engine of this thread: a store is its thread's."""
        Engine(replace(self.engine.site, store=Store(self.directory / "voldrivers.db"))).detach(name)

    def delete(self, name: str) -> None:
        self.engine.delete_volume(name)

    def serial(self, name: str) -> str:
        return self.engine.volume(name).id

    def seen(self) -> Seen:
        return {
            each.name: (
                str(each.status),
                each.size_bytes // GiB,
                [(s.name, s.size_bytes // GiB) for s in each.snapshots],
            )
            for each in self.engine.volumes()
        }


@dataclass
class ByCinder:
    """A real Cinder; names are its display names."""

    site: CinderSite
    guest: DeviceGuest
    attached: dict[str, Any] = field(default_factory=dict)  # Any: contexts

    @property
    def client(self) -> Any:  # Any: cinderclient has no types
        return self.site.client()

    def serial(self, name: str) -> str:
        return str(self.client.volumes.find(name=name).id)

    def create(self, name: str, size_gib: int) -> None:
        self.site.create(size_gib, name=name)

    def extend(self, name: str, size_gib: int) -> None:
        volume = self.client.volumes.find(name=name)
        self.site.extend(volume.id, size_gib)
        self.site.wait(volume.id, volume.status)

    def snapshot(self, name: str, snapshot: str) -> None:
        made = self.client.volume_snapshots.create(self.serial(name), force=True, name=snapshot)
        self._wait_for(made.id)

    def _wait_for(self, snapshot_id: str) -> None:
        def is_there() -> bool:
            status = self.client.volume_snapshots.get(snapshot_id).status
            assert status in ("creating", "available"), self.site.log[-3000:]
            return bool(status == "available")

        wait_until(is_there, SOON_S, "the snapshot")

    def delete_snapshot(self, snapshot: str) -> None:
        self.client.volume_snapshots.delete(self.client.volume_snapshots.find(name=snapshot))
        gone = lambda: snapshot not in [s.name for s in self.client.volume_snapshots.list()]  # noqa: E731
        wait_until(gone, 4 * SOON_S, "the snapshot to go")

    def clone(self, name: str, source: str, size_gib: int) -> None:
        self.site.create(size_gib, name=name, source_volid=self.serial(source))

    def copy(self, name: str, snapshot: str, size_gib: int) -> None:
        found = self.client.volume_snapshots.find(name=snapshot)
        self.site.create(size_gib, name=name, snapshot_id=found.id)

    def revert(self, snapshot: str) -> None:
        found = self.client.volume_snapshots.find(name=snapshot)
        volume = self.client.volumes.get(found.volume_id)
        self.client.volumes.revert_to_snapshot(volume, found)
        self.site.wait(volume.id, "available")

    def attach(self, name: str) -> None:
        self.attached[name] = self.site.attached(self.serial(name), self.guest)
        self.attached[name].__enter__()

    def detach(self, name: str) -> None:
        volume_id = self.serial(name)
        self.attached.pop(name).__exit__(None, None, None)
        self.site.wait(volume_id, "available")

    def delete(self, name: str) -> None:
        self.site.delete(self.serial(name))

    def seen(self) -> Seen:
        kept = self.client.volume_snapshots.list()
        return {
            each.name: (
                each.status,
                each.size,
                by_age((s.name, s.size) for s in kept if s.volume_id == each.id),
            )
            for each in self.client.volumes.list()
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CinderSite]:
    made = CinderSite(tmp_path_factory.mktemp("cinder"))
    yield made
    made.end()


@pytest.fixture
def platforms(site: CinderSite) -> Iterator[tuple[Platform, Platform]]:
    with new_guest(site.directory) as ours, new_guest(site.directory) as theirs:
        yield ByEngine(site.directory / ours.name[:8], ours), ByCinder(site, theirs)


@pytest.mark.parametrize("walk", [0, *(pytest.param(each, marks=pytest.mark.full) for each in range(1, 8))])
def test_a_trace_ends_in_the_same_state(
    platforms: tuple[Platform, Platform], rng: random.Random, tier: str, walk: int
) -> None:
    for number in range(40 if tier == "full" else 16):
        step, act = drawn(platforms[0], rng, number)
        print(f"{walk}.{number}: {step}")
        done = [is_done(act, platform) for platform in platforms]
        assert done[0] == done[1], step
        ours, theirs = (platform.seen() for platform in platforms)
        assert ours == theirs, step
        for name, (status, size_gib, _) in ours.items():
            if status == "in-use":
                disks = [platform.guest.disk(platform.serial(name)[:20]) for platform in platforms]
                assert {disk.capacity_bytes() for disk in disks} == {size_gib * GiB}, step
                assert len({content(disk) for disk in disks}) == 1, step
    for platform in platforms:
        empty(platform)


def by_age(snapshots: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Sort snapshots with their sizes: each name has the number of its step."""
    return sorted(snapshots, key=lambda snapshot: int(snapshot[0][1:]))


def drawn(model: Platform, rng: random.Random, number: int) -> tuple[str, Callable[[Platform], None]]:
    """Draw a step that makes sense for what is there."""
    seen = model.seen()
    word = rng.choices(list(WORDS), list(WORDS.values()))[0] if seen else "create"
    name, new = rng.choice(sorted(seen) or [""]), f"v{number}"
    status, size_gib, snapshots = seen.get(name, ("", 0, []))
    oldest, newest = (snapshots[0], snapshots[-1]) if snapshots else (("", 0), ("", 0))
    larger, first_byte = size_gib + 1, rng.randrange(1, 255)
    sector = rng.choice([0, 2**10, max(size_gib, 1) * GiB // SECTOR_BYTES - 1])
    steps: dict[str, tuple[bool, Callable[[Platform], None]]] = {
        "create": (len(seen) < 4, lambda on: on.create(new, 1)),
        "extend": (True, lambda on: on.extend(name, larger)),
        "extend_smaller": (True, lambda on: on.extend(name, size_gib - 1)),
        "snapshot": (True, lambda on: on.snapshot(name, f"s{number}")),
        "delete_snapshot": (bool(snapshots), lambda on: on.delete_snapshot(oldest[0])),
        "copy": (bool(snapshots) and len(seen) < 4, lambda on: on.copy(new, newest[0], larger)),
        "clone": (len(seen) < 4 and status == "available", lambda on: on.clone(new, name, larger)),
        # Cinder's API refuses what has grown since its snapshot, before any driver is asked.
        "revert": (newest[1] == size_gib, lambda on: on.revert(newest[0])),
        "attach": (status == "available", lambda on: on.attach(name)),
        "write": (
            status == "in-use",
            lambda on: on.guest.disk(on.serial(name)[:20]).write(sector, bytes([first_byte]) * SECTOR_BYTES),
        ),
        "detach": (status == "in-use", lambda on: on.detach(name)),
        "delete": (True, lambda on: on.delete(name)),
    }
    fits, act = steps[word]
    return (f"{word} {name} {larger}", act) if fits else drawn(model, rng, number)


def is_done(act: Callable[[Platform], None], platform: Platform) -> bool:
    try:
        act(platform)
    except REFUSALS as error:
        print(f"  {type(platform).__name__}: {error}")
        return False
    return True


def content(disk: Any) -> str:  # Any: a disk of a guest
    sectors = (0, 2**10, *(each * GiB // SECTOR_BYTES - 1 for each in range(1, 4)))
    last = disk.capacity_bytes() // SECTOR_BYTES
    return hashlib.sha256(b"".join(disk.read(each) for each in sectors if each < last)).hexdigest()


def empty(platform: Platform) -> None:
    """Take everything away."""
    for name, (status, _, snapshots) in platform.seen().items():
        if status == "in-use":
            platform.detach(name)
        for snapshot, _ in reversed(snapshots):
            platform.delete_snapshot(snapshot)
        platform.delete(name)
    assert platform.seen() == {}
