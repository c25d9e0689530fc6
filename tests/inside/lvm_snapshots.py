"""Snapshots, reverts, clones and what is taken over, on a real volume group; run as lvm_driver.py is."""

import itertools
import os
import random
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from voldrivers import process
from voldrivers.base import Completed, Run
from voldrivers.errors import (
    InvalidInput,
    InvalidSize,
    InvalidState,
    NoSpace,
    NotFound,
    NotSupported,
    VolDriverError,
)
from voldrivers.lvm.driver import LVMDriver
from voldrivers.lvm.options import LVMOptions, LVMVolumeOptions
from voldrivers.model import Attachment, Snapshot, Volume
from voldrivers.sizes import MiB

EXTENT, SMALL, LARGE = 4 * MiB, 8 * MiB, 16 * MiB
THICK, THIN = LVMVolumeOptions(lvm_type="default"), LVMVolumeOptions(lvm_type="thin")
#: So much of the disk is looked at for bytes that must be gone; lvm takes the first extents that are free.
_LOOKED_AT_MIB = 192
#: No test has more extents.
_USED_BYTES = 384 * MiB
#: How often programs are killed, and where random choices begin: 0 means anew each time.
KILLS = int(os.environ.get("VOLDRIVERS_TEST_KILLS", "2"))
SEED = int(os.environ.get("VOLDRIVERS_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)


def lvm(*argv: str) -> str:
    return process.run(argv, timeout_s=60).stdout


def driver(run: Run = process.run, **options: object) -> LVMDriver:
    return LVMDriver("lvm", LVMOptions("vg0", target_ip_addresses="10.77.1.1", **options), run)  # type: ignore[arg-type] # by name


def volume(number: int = 1, size_bytes: int = SMALL) -> Volume:
    return Volume(f"id-{number}", f"v{number}", "lvm", size_bytes)


def snapshot(number: int = 1, size_bytes: int = SMALL) -> Snapshot:
    return Snapshot(f"s-{number}", f"s{number}", "id-1", size_bytes)


ONE, S1, S2 = volume(), snapshot(1), snapshot(2)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Leave a volume group without volumes, and none of their bytes: that is what the driver relies on."""
    yield
    empty()


def empty() -> None:
    lvm("lvremove", "--quiet", "--yes", "--force", "vg0")
    where = ["--offset", str(MiB), "--length", str(_USED_BYTES), "/dev/mapper/lab-pv"]
    lvm("blkdiscard", "--zeroout", "--force", *where)


@pytest.fixture
def pool() -> str:
    lvm("lvcreate", "--quiet", "--size", "256m", "--thinpool", "vg0-pool", "vg0")
    return "vg0-pool"


def names() -> list[str]:
    return sorted(lvm("lvs", "--noheadings", "--options", "lv_name", "vg0").split())


def device(name: str) -> Path:
    return Path("/dev/mapper/vg0-" + name.replace("-", "--"))


def content(seed: str, size_bytes: int = SMALL) -> bytes:
    """Give bytes that nobody else has, `secret` in each of their pieces."""
    return random.Random(seed).randbytes(4096 - 6).join([b"secret"] * (size_bytes // 4096 + 1))[:size_bytes]


def write(name: str, what: bytes, at: int = 0) -> None:
    with device(name).open("r+b") as open_device:
        open_device.seek(at)
        open_device.write(what)
        open_device.flush()
        os.fsync(open_device.fileno())
    lvm("udevadm", "settle")  # it looks at what was written


def read(name: str) -> bytes:
    """Read all of a logical volume; one that is inactive is active afterwards."""
    if not device(name).exists():
        # Of a thick snapshot this is about its volume too: lvm asks.
        lvm("lvchange", "--quiet", "--yes", "--activate", "y", "--ignoreactivationskip", f"vg0/{name}")
    return device(name).read_bytes()


@dataclass
class World:
    """A driver, and all that must be there: the content of each logical volume by its name."""

    driver: LVMDriver
    options: LVMVolumeOptions
    there: dict[str, bytes] = field(default_factory=dict)

    def check(self) -> None:
        """Find exactly what must be there, byte for byte."""
        found = [name for name in names() if not name.endswith("-pool") and not name.startswith("former-")]
        assert found == sorted(self.there)
        for name, expected in self.there.items():
            seen = read(name)
            assert (name, len(seen)) == (name, len(expected))
            assert seen == expected, name
        ours = {
            *(f"volume-{each}" for each in self.driver.list_volumes()),
            *(f"snap-{each}" for each in self.driver.list_snapshots()),
        }
        assert ours == {name for name in self.there if not name.startswith("unmanaged-")}

    def end(self) -> None:
        """Delete all; nothing is left then, not even a byte."""
        for name in sorted(self.there):  # snapshots first
            self.delete(name)
        assert [name for name in names() if not name.endswith("-pool")] == []
        assert is_thin(self) or not secrets_on_the_disk()

    def write(self, name: str, what: bytes, at: int = 0) -> None:
        write(name, what, at)
        was = self.there[name]
        self.there[name] = was[:at] + what + was[at + len(what) :]

    def create(self, of: Volume = ONE) -> None:
        self.driver.create_volume(of, self.options)
        self.there[f"volume-{of.id}"] = bytes(of.size_bytes)

    def keep(self, kept: Snapshot) -> None:
        self.driver.create_snapshot(ONE, kept)
        self.there[f"snap-{kept.id}"] = self.there["volume-id-1"]

    def clone(
        self, into: Volume, of: Snapshot | None = None, options: LVMVolumeOptions | None = None
    ) -> None:
        begins = self.there["volume-id-1" if of is None else f"snap-{of.id}"]
        self.driver.clone_volume(into, options or self.options, ONE, of)
        self.there[f"volume-{into.id}"] = begins.ljust(into.size_bytes, b"\0")

    def extend(self, size_bytes: int) -> None:
        self.driver.check_extend(ONE, size_bytes)
        self.driver.extend_volume(ONE, size_bytes)
        self.there["volume-id-1"] = self.there["volume-id-1"].ljust(size_bytes, b"\0")

    def revert(self, to: Snapshot) -> None:
        self.driver.revert_to_snapshot(ONE, to)
        self.there["volume-id-1"] = self.there[f"snap-{to.id}"]

    def delete(self, name: str) -> None:
        kind, _, number = name.partition("-")
        if kind == "snap":
            assert self.driver.delete_snapshot(ONE, replace(S1, id=number)) is None
        else:
            self.driver.delete_volume(replace(ONE, id=number))
        del self.there[name]


@pytest.fixture(params=["thick", "thin"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "thin":
        request.getfixturevalue("pool")
    return World(driver(), THIN if request.param == "thin" else THICK)


def is_thin(world: World) -> bool:
    return world.options is THIN


def secrets_on_the_disk() -> bool:
    """Tell whether what was written can still be read somewhere where it is nobody's."""
    look = f"dd if=/dev/mapper/lab-pv bs=1M count={_LOOKED_AT_MIB} iflag=direct status=none"
    return subprocess.run(["bash", "-c", f"{look} | grep --quiet --text secret"], check=False).returncode == 0


def test_a_volume_its_snapshot_and_its_clone_go_their_own_ways(world: World) -> None:
    world.create()
    world.write("volume-id-1", content("a"))
    with device("volume-id-1").open("rb"):
        world.keep(S1)
        if is_thin(world):
            world.extend(LARGE)
        else:
            with pytest.raises(NotSupported, match="with a snapshot cannot be extended while it is in use"):
                world.driver.check_extend(ONE, LARGE)
    world.write("volume-id-1", content("b", EXTENT))
    world.clone(volume(2, LARGE), S1)
    world.write("volume-id-2", content("c", EXTENT))
    if not is_thin(world):
        world.extend(LARGE)
    world.check()
    order = ["snap-s-1", "volume-id-1"]
    order.insert(random.Random(SEED).randrange(3), "volume-id-2")
    print("seed", SEED)
    for name in order[:2]:
        world.delete(name)
        world.check()
    world.end()


def test_a_snapshot_keeps_a_moment_of_a_volume_in_use_and_a_revert_gives_it_back(world: World) -> None:
    world.create()
    world.write("volume-id-1", content("a"))
    with device("volume-id-1").open("rb"):
        for _ in range(2):
            world.keep(S1)
        assert world.driver.snapshot_size(ONE, S1) == SMALL
        world.write("volume-id-1", content("b", EXTENT))
        if is_thin(world):
            world.extend(LARGE)
        else:
            with pytest.raises(NotSupported, match="with a snapshot cannot be extended while it is in use"):
                world.extend(LARGE)
        with pytest.raises(InvalidState, match="in use"):
            world.revert(S1)
    if not is_thin(world):
        attached = replace(ONE, attachments=(Attachment("a", ONE.id, "h"),))
        with pytest.raises(NotSupported, match="with a snapshot cannot be extended while it is in use"):
            world.driver.check_extend(attached, LARGE)
        world.extend(LARGE)
    world.write("volume-id-1", content("c"), at=SMALL)
    world.keep(replace(S2, size_bytes=LARGE))
    world.write("volume-id-1", content("d", LARGE))
    world.check()
    with pytest.raises(InvalidState, match=r"origin of snap-s-1, snap-s-2"):
        world.driver.delete_volume(ONE)
    for kept in (S1, S2):  # the second one is larger
        world.revert(kept)
        assert world.driver.volume_size(ONE) == world.driver.snapshot_size(ONE, kept)
        world.check()
    world.extend(LARGE + EXTENT)
    for name in chosen(["snap-s-1", "snap-s-2"]):
        world.delete(name)
        world.check()
    world.end()


def test_two_clones_of_a_snapshot_depend_on_nothing(world: World) -> None:
    two, three = volume(2), volume(3, LARGE)
    world.create()
    world.write("volume-id-1", content("a"))
    world.keep(S1)
    world.write("volume-id-1", content("b", EXTENT))
    for _ in range(2):
        world.clone(two, S1)
    world.clone(three, S1)
    world.write("volume-id-2", content("c", EXTENT))
    world.write("volume-id-3", content("d"), at=SMALL)
    world.check()
    world.driver.extend_volume(two, LARGE)
    world.there["volume-id-2"] = world.there["volume-id-2"].ljust(LARGE, b"\0")
    with pytest.raises(InvalidSize, match="must be at least as large"):
        world.clone(volume(4, EXTENT), S1)
    order = chosen(["snap-s-1", "volume-id-2", "volume-id-3"])
    # The volume goes when its snapshot has gone.
    order.insert(random.Random(SEED).randrange(order.index("snap-s-1") + 1, 4), "volume-id-1")
    for name in order:
        world.delete(name)
        world.check()
    world.end()


def chosen(order: Sequence[str]) -> list[str]:
    """Give one order of all that there are."""
    print("seed", SEED)
    return random.Random(SEED).choice([list(each) for each in itertools.permutations(order)])


def test_a_volume_in_use_is_copied_as_it_is_at_one_moment(pool: str) -> None:
    def run(argv: Sequence[str], *, timeout_s: float) -> Completed:
        if argv[0] == "dd":
            busy.write("volume-id-1", content("written meanwhile"))
        return process.run(argv, timeout_s=timeout_s)

    busy = World(driver(run), THICK)
    busy.create()
    busy.write("volume-id-1", content("a"))
    with device("volume-id-1").open("rb"):
        busy.clone(volume(2, LARGE), options=THIN)
    busy.check()
    assert 1 < data_percent("volume-id-2") < 51, "what is zero takes no room"
    # One that rests is copied itself; what the copy's other extents held is cleared before they are its own.
    resting = World(driver(volume_clear="before-use"), THICK, busy.there)
    lvm("dd", "if=/dev/urandom", "of=/dev/mapper/lab-pv", "bs=1M", "seek=280", "count=64", "oflag=direct")
    resting.clone(volume(3, LARGE))
    resting.check()


def data_percent(name: str) -> float:
    return float(lvm("lvs", "--noheadings", "--options", "data_percent", f"vg0/{name}"))


def test_a_thin_volume_is_copied_into_a_thick_one(pool: str) -> None:
    world = World(driver(), THIN)
    world.create()
    world.write("volume-id-1", content("a", EXTENT))
    world.keep(S1)
    world.clone(volume(2, LARGE), S1, THICK)
    with device("volume-id-1").open("rb"):
        world.clone(volume(3), options=THICK)
        world.clone(volume(4))
    assert not device("snap-s-1").exists(), "it is inactive again"
    world.check()
    assert lvm("lvs", "--noheadings", "--options", "segtype", "vg0/volume-id-2").split() == ["linear"]


def test_a_snapshot_that_could_not_be_kept_is_not_used() -> None:
    world = World(driver(), THICK)
    world.create()
    named = ["--name", "snap-s-1", "--addtag", "voldrivers", "vg0/volume-id-1"]
    lvm("lvcreate", "--quiet", "--yes", "--snapshot", "--extents", "1", *named)
    world.write("volume-id-1", content("a"))
    for call in (
        lambda: world.driver.snapshot_size(ONE, S1),
        lambda: world.driver.revert_to_snapshot(ONE, S1),
        lambda: world.driver.clone_volume(volume(2), THICK, ONE, S1),
    ):
        with pytest.raises(InvalidState, match="snapshot s1 is invalid"):
            call()
    world.driver.delete_snapshot(ONE, S1)
    world.check()


def test_what_does_not_fit_is_refused_and_nothing_is_left(pool: str) -> None:
    thick, thin = World(driver(), THICK), World(driver(max_over_subscription_ratio=1.0), THIN)
    thick.create()
    leave_extents(5)
    with device("volume-id-1").open("rb"), pytest.raises(NoSpace):  # its moment fits, its copy does not
        thick.clone(volume(2, LARGE))
    leave_extents(2)
    with pytest.raises(NoSpace):
        thick.keep(S1)
    with pytest.raises(NoSpace):
        thick.clone(volume(2, LARGE))
    thin.driver.create_volume(volume(3, 160 * MiB), THIN)
    with pytest.raises(NoSpace):
        thin.driver.create_snapshot(volume(3), S1)
    ours = [name for name in names() if not name.startswith("theirs")]
    assert ours == ["vg0-pool", "volume-id-1", "volume-id-3"]
    with pytest.raises(NotFound):
        thin.driver.snapshot_size(ONE, S1)


def leave_extents(left: int) -> None:
    """Let others take what is free but for so many extents."""
    free = int(lvm("vgs", "--noheadings", "--options", "vg_free_count", "vg0"))
    lvm("lvcreate", "--quiet", "--yes", "--extents", str(free - left), "--name", f"theirs{left}", "vg0")


def test_what_is_there_becomes_a_volume_and_nobodys_again() -> None:
    lvm("lvcreate", "--quiet", "--yes", "--size", "8m", "--addtag", "theirs", "--name", "old", "vg0")
    check_managed("old", THICK)
    assert lvm("lvs", "--noheadings", "--options", "lv_tags", "vg0/unmanaged-id-1").strip() == "theirs"


def test_what_is_there_in_the_pool_becomes_a_volume_and_nobodys_again(pool: str) -> None:
    where = ["--virtualsize", "8m", "--thinpool", "vg0-pool", "vg0"]
    lvm("lvcreate", "--quiet", "--yes", "--name", "thinorigin", *where)
    lvm("lvcreate", "--quiet", "--yes", "--snapshot", "--name", "oldthin", "vg0/thinorigin")
    lvm("lvchange", "--quiet", "--activate", "y", "--ignoreactivationskip", "vg0/oldthin")
    check_managed("oldthin", THIN)
    assert "skip" not in lvm("lvs", "--options", "lv_skip_activation", "vg0/unmanaged-id-1")
    assert driver().existing_size("unmanaged-id-1", THIN) == LARGE


def check_managed(name: str, kind: LVMVolumeOptions) -> None:
    """Have it become a volume, be extended, and be given up: each twice, with all its bytes."""
    lvmdriver = driver()
    write(name, content(name))
    assert lvmdriver.existing_size(f"vg0/{name}", kind) == SMALL
    for _ in range(2):
        lvmdriver.manage_existing(ONE, name, LVMVolumeOptions())
    assert lvmdriver.list_volumes() == ["id-1"]
    lvmdriver.extend_volume(ONE, LARGE)
    assert read("volume-id-1") == content(name).ljust(LARGE, b"\0")
    for _ in range(2):
        assert lvmdriver.unmanage(ONE) == "vg0/unmanaged-id-1"
    assert lvmdriver.list_volumes() == []
    assert read("unmanaged-id-1") == content(name).ljust(LARGE, b"\0")


def test_what_cannot_be_a_volume_is_refused_and_left_alone(pool: str) -> None:
    lvmdriver = driver()
    make = ("lvcreate", "--quiet", "--yes", "--size", "8m")
    lvmdriver.create_volume(ONE, THICK)
    lvm(*make, "--name", "origin", "vg0")
    lvm(*make, "--snapshot", "--name", "cow", "vg0/origin")
    lvm(*make, "--permission", "r", "--name", "readonly", "vg0")
    lvm(*make, "--name", "open", "vg0")
    lvm(*make, "--thinpool", "otherpool", "vg0")
    lvm(
        "lvcreate", "--quiet", "--yes", "--virtualsize", "8m", "--thinpool", "otherpool", "--name", "t", "vg0"
    )
    before = names(), tags()
    refused: list[tuple[str, LVMVolumeOptions, type[VolDriverError], str]] = [
        ("nope", THICK, NotFound, "logical volume vg0/nope does not exist"),
        ("vg0-pool_tdata", THICK, NotFound, "does not exist"),
        ("other/origin", THICK, InvalidInput, "NAME or vg0/NAME"),
        ("--yes", THICK, InvalidInput, "NAME or vg0/NAME"),
        ("../origin", THICK, InvalidInput, "NAME or vg0/NAME"),
        ("volume-id-1", THICK, InvalidState, "ours already"),
        ("origin", THICK, InvalidState, "origin of cow"),
        ("cow", THICK, InvalidState, "of kind snapshot"),
        ("vg0-pool", THIN, InvalidState, "of kind thin-pool"),
        ("readonly", THICK, InvalidState, "read-only"),
        ("open", THICK, InvalidState, "is open"),
        ("t", THIN, InvalidState, "in thin pool otherpool"),
        ("readonly", THIN, InvalidState, "of kind linear, must be of lvm_type thin"),
    ]
    with device("open").open("rb"):
        looking_once = driver(reporting_once())
        for reference, options, error, match in refused:
            with pytest.raises(error, match=match):
                looking_once.manage_existing(volume(2), reference, options)
        with pytest.raises(InvalidState, match="is open"):
            lvmdriver.existing_size("open", THICK)
    with pytest.raises(InvalidSize, match="multiple of 12 MiB"):
        driver(stripes=3).existing_size("open", THICK)
    lvmdriver.create_snapshot(ONE, S1)
    with pytest.raises(InvalidState, match="origin of snap-s-1"):
        lvmdriver.unmanage(ONE)
    lvmdriver.delete_snapshot(ONE, S1)
    with device("volume-id-1").open("rb"), pytest.raises(InvalidState, match="is open"):
        lvmdriver.unmanage(ONE)
    assert (names(), tags()) == before


def reporting_once() -> Run:
    """Give a way to run programs where lvm's first report is good for all."""
    printed: list[Completed] = []

    def run(argv: Sequence[str], *, timeout_s: float) -> Completed:
        assert argv[1] == "fullreport", argv
        if not printed:
            printed.append(process.run(argv, timeout_s=timeout_s))
        return printed[0]

    return run


def tags() -> list[str]:
    return sorted(lvm("lvs", "--noheadings", "--options", "lv_name,lv_tags", "vg0").splitlines())


# --- kills


@dataclass(frozen=True)
class Deed:
    """What is done, to what it is done, and how the same is done undisturbed."""

    name: str
    thin: bool
    prepare: Callable[[World], None]
    do: Callable[[World], None]


def prepare_volume(world: World) -> None:
    world.create()
    world.write("volume-id-1", content("a"))


def prepare_snapshot(world: World) -> None:
    prepare_volume(world)
    world.keep(S1)
    world.write("volume-id-1", content("b", EXTENT))


def prepare_larger(world: World) -> None:
    prepare_snapshot(world)
    world.extend(LARGE)
    world.keep(S2)


def prepare_reverted(world: World) -> None:
    prepare_snapshot(world)
    world.revert(S1)


def prepare_foreign(world: World) -> None:
    lvm("lvcreate", "--quiet", "--yes", "--size", "8m", "--name", "foreign", "vg0")
    write("foreign", content("f"))


def take_over(world: World) -> None:
    world.driver.manage_existing(ONE, "foreign", world.options)
    world.there["volume-id-1"] = content("f")


def give_up(world: World) -> None:
    assert world.driver.unmanage(ONE) == "vg0/unmanaged-id-1"
    world.there["unmanaged-id-1"] = world.there.pop("volume-id-1")


DEEDS = (
    Deed("thick snapshot", False, prepare_volume, lambda world: world.keep(S1)),
    Deed("thin snapshot", True, prepare_volume, lambda world: world.keep(S1)),
    Deed("thick deleted", False, prepare_reverted, lambda world: world.delete("snap-s-1")),
    Deed("thin deleted", True, prepare_reverted, lambda world: world.delete("snap-s-1")),
    Deed("thick revert", False, prepare_larger, lambda world: world.revert(S1)),
    Deed("thin revert", True, prepare_larger, lambda world: world.revert(S1)),
    Deed("thick clone", False, prepare_snapshot, lambda world: world.clone(volume(2, LARGE), S1)),
    Deed("thin clone", True, prepare_snapshot, lambda world: world.clone(volume(2, LARGE), S1)),
    Deed("thick extend", False, prepare_snapshot, lambda world: world.extend(LARGE)),
    Deed("manage", False, prepare_foreign, take_over),
    Deed("unmanage", False, prepare_volume, give_up),
)


@pytest.fixture(params=DEEDS, ids=lambda deed: deed.name.replace(" ", "-"))
def deed(request: pytest.FixtureRequest) -> Deed:
    chosen_deed: Deed = request.param
    return chosen_deed


@pytest.fixture
def deeds_world(deed: Deed, request: pytest.FixtureRequest) -> World:
    if deed.thin:
        request.getfixturevalue("pool")
    return World(driver(), THIN if deed.thin else THICK)


def test_a_deed_that_is_killed_again_and_again_is_ended(deed: Deed, deeds_world: World) -> None:
    """First after its first program that changes something; begun again, after the second one; and so on."""
    deed.prepare(deeds_world)
    before, after = dict(deeds_world.there), done(deed, deeds_world)
    killed = 0
    while (ran := killed_after(deed, deeds_world, killed + 1)) is not None:
        print(f"killed after {ran}")
        killed += 1
        check_listed(deeds_world, before, after)
    assert killed, "it changes something"
    check_done(deed, deeds_world, after)


def test_a_deed_that_is_killed_at_one_point_is_ended(deed: Deed) -> None:
    """At each of them, each time with all anew; last not killed at all, and done twice."""
    for point in itertools.count(1):
        world = fresh(deed)
        deed.prepare(world)
        before, after = dict(world.there), done(deed, world)
        ran = killed_after(deed, world, point)
        print(f"point {point}: {ran}")
        check_listed(world, before, after)
        check_done(deed, world, after)
        if ran is None:
            assert point > 1, "it changes something"
            return


def test_programs_that_are_killed_at_any_moment_are_ended(deed: Deed, deeds_world: World) -> None:
    """The program that runs too is killed, wherever it is; what that leaves of devices is ended first."""
    print("seed", SEED)
    chance = random.Random(SEED)
    deed.prepare(deeds_world)
    before, after = dict(deeds_world.there), done(deed, deeds_world)
    for number in range(KILLS):
        # Every other time once a device is suspended: that is short, and it is where things break.
        kill_with_programs(deed, deeds_world, chance, suspended=number % 2 == 1)
    if not any(map(is_suspended, suspensions())):  # else who reads waits
        check_listed(deeds_world, before, after)
    check_done(deed, deeds_world, after)


def fresh(deed: Deed) -> World:
    """Give a group without volumes, but with the pool."""
    empty()
    if deed.thin:
        lvm("lvcreate", "--quiet", "--size", "256m", "--thinpool", "vg0-pool", "vg0")
    return World(driver(), THIN if deed.thin else THICK)


def done(deed: Deed, world: World) -> dict[str, bytes]:
    """Give what will be there, without doing it."""
    nothing: Any = NothingDone()  # Any: in place of a driver
    would = World(nothing, world.options, dict(world.there))
    deed.do(would)
    return would.there


class NothingDone:
    """Answers, and does nothing."""

    def __getattr__(self, name: str) -> Callable[..., str | None]:
        return lambda *_given: "vg0/unmanaged-id-1" if name == "unmanage" else None


def killed_after(deed: Deed, world: World, point: int) -> str | None:
    """Do it in a process that is killed after so many programs that change something; give the last of them.

    None for one that came to its end.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        deadly = World(driver(deadly_run(point, writer)), world.options, dict(world.there))
        failed = True
        try:
            deed.do(deadly)
            failed = False
        finally:
            if failed:
                traceback.print_exc()
            os._exit(failed)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as told:
        ran = told.read()
    assert os.WIFSIGNALED(status) or status == 0
    return ran.split()[-1] if os.WIFSIGNALED(status) else None


def deadly_run(point: int, writer: int) -> Run:
    changed = []

    def run(argv: Sequence[str], *, timeout_s: float) -> Completed:
        completed = process.run(argv, timeout_s=timeout_s)
        if argv[:2] != ["lvm", "fullreport"] and argv[0] != "sync":
            changed.append(argv[0])
            os.write(writer, f" {argv[0]}".encode())
        if len(changed) == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return completed

    return run


def kill_with_programs(deed: Deed, world: World, chance: random.Random, *, suspended: bool) -> None:
    watched = suspensions()
    child = os.fork()
    if child == 0:
        os.close(1)
        os.close(2)
        with process.marked(ONE.id):
            deed.do(World(driver(), world.options, dict(world.there)))
        os._exit(0)
    # Else the programs go on while we look: there is one CPU.
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(50))
    try:
        time.sleep(chance.uniform(0.3, 4.0 if suspended else 8.0))
        while suspended and not has_ended(child) and not any(map(is_suspended, watched)):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.03) if suspended else 0)
        os.kill(child, signal.SIGKILL)
        process.end_orphans(ONE.id, timeout_s=0.0)
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.waitpid(child, 0)
    fields = ["--columns", "--noheadings", "--options", "name,suspended,tables_loaded,open"]
    print("left:", lvm("dmsetup", "info", *fields), lvm("lvs", "--noheadings", "vg0"), sep="\n")


def has_ended(child: int) -> bool:
    """Tell whether it has; whoever waits for it can still do so."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def suspensions() -> list[Path]:
    return [each / "dm/suspended" for each in Path("/sys/block").glob("dm-*")]


def is_suspended(state: Path) -> bool:
    try:
        return state.read_text() == "1\n"
    except OSError:  # its device has gone
        return False


def check_listed(world: World, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """What is listed is whole: as before, or as after."""
    listed = [f"volume-{each}" for each in world.driver.list_volumes()]
    listed += [f"snap-{each}" for each in world.driver.list_snapshots()]
    for name in listed:
        was_active = device(name).exists()
        assert read(name) in (before.get(name), after.get(name)), name
        if not was_active:
            lvm("lvchange", "--quiet", "--yes", "--activate", "n", f"vg0/{name}")
    # What both have is there all the time; a volume that is being reverted is nowhere for a moment.
    missing = {*before} & {*after} - {*listed} - {"volume-id-1"}
    assert not missing


def check_done(deed: Deed, world: World, after: dict[str, bytes]) -> None:
    deed.do(world)
    assert world.there == after
    world.check()
    if "unmanaged-id-1" not in after:
        world.end()
