"""The LVM driver on a real volume group; run by test_lvm_lab.py in a lab machine, as its own pytest."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from voldrivers import process
from voldrivers.base import Completed, Run
from voldrivers.errors import (
    CommandFailed,
    InvalidInput,
    InvalidSize,
    InvalidState,
    NoSpace,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.lvm.driver import LVMDriver
from voldrivers.lvm.options import LVMOptions, LVMVolumeOptions
from voldrivers.model import ExtendReply, Volume
from voldrivers.sizes import GiB, KiB, MiB

EXTENT = 4 * MiB
#: How often an lvextend is killed, and where the random moments begin: 0 means anew each time.
KILLS = int(os.environ.get("VOLDRIVERS_TEST_KILLS", "4"))
SEED = int(os.environ.get("VOLDRIVERS_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)


def lvm(*argv: str) -> str:
    return process.run(argv, timeout_s=60).stdout


def driver(run: Run = process.run, group: str = "vg0", **options: object) -> LVMDriver:
    return LVMDriver("lvm", LVMOptions(group, target_ip_addresses="10.77.1.1", **options), run)  # type: ignore[arg-type] # by name


def volume(number: int = 1, size_bytes: int = 16 * MiB) -> Volume:
    return Volume(f"id-{number}", f"v{number}", "lvm", size_bytes)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Leave a volume group without volumes."""
    yield
    lvm("lvremove", "--yes", "--force", "vg0")


@pytest.fixture
def pool() -> str:
    lvm("lvcreate", "--quiet", "--size", "64m", "--thinpool", "vg0-pool", "vg0")
    return "vg0-pool"


def path(of: Volume) -> Path:
    return Path(f"/dev/vg0/volume-{of.id}")


def test_a_thick_volume_from_its_making_to_its_end() -> None:
    lvmdriver, one = driver(), volume()
    lvmdriver.create_volume(one, LVMVolumeOptions())
    lvmdriver.create_volume(one, LVMVolumeOptions())
    assert lvmdriver.list_volumes() == ["id-1"]
    assert lvmdriver.volume_size(one) == 16 * MiB
    with path(one).open("r+b") as open_device:  # it is in use all the time
        open_device.write(b"kept")
        open_device.flush()
        lvmdriver.check_extend(one, 24 * MiB)
        for _ in range(2):
            assert lvmdriver.extend_volume(one, 24 * MiB) is ExtendReply.EXTENDED
        assert lvmdriver.extend_volume(one, 16 * MiB) is ExtendReply.EXTENDED, "never smaller"
        assert os.lseek(open_device.fileno(), 0, os.SEEK_END) == 24 * MiB
        with pytest.raises(InvalidState, match="is open, must be closed"):
            lvmdriver.delete_volume(one)
    with path(one).open("rb") as device:
        assert device.read(4) == b"kept"
    assert lvmdriver.ledger_rows(one, 24 * MiB)[0].agrees
    for _ in range(2):
        lvmdriver.delete_volume(one)
    assert lvmdriver.list_volumes() == []
    with pytest.raises(NotFound):
        lvmdriver.volume_size(one)


def test_a_thin_volume_grows_without_room(pool: str) -> None:
    lvmdriver, one = driver(), volume(size_bytes=16 * MiB)
    lvmdriver.create_volume(one, LVMVolumeOptions())
    assert lvmdriver.ledger_rows(one, GiB)[0].note == "thin"
    assert lvmdriver.extend_volume(one, 1 * GiB) is ExtendReply.EXTENDED
    assert lvmdriver.volume_size(one) == GiB
    with pytest.raises(NoSpace):
        lvmdriver.check_extend(one, 20 * 64 * MiB + EXTENT)
    thick = volume(2)
    lvmdriver.create_volume(thick, LVMVolumeOptions(lvm_type="default"))
    assert lvmdriver.ledger_rows(thick, GiB)[0].note == "linear"


def test_a_thin_pool_that_is_full_or_gives_out_old_bytes_is_refused(pool: str) -> None:
    one, full = volume(), driver(thin_pool_full_percentage=15)
    full.create_volume(one, LVMVolumeOptions())
    lvm("dd", "if=/dev/urandom", f"of={path(one)}", "bs=1M", "count=12", "oflag=direct")
    with pytest.raises(InvalidState, match=r"full to 1[89]\.\d+ % in its data"):
        full.check_extend(one, 32 * MiB)
    lvm("lvchange", "--yes", "--zero", "n", "vg0/vg0-pool")
    with pytest.raises(NotSupported, match="bytes of other volumes"):
        driver().check_extend(one, 32 * MiB)


def test_what_does_not_fit_is_refused_and_nothing_is_left() -> None:
    lvmdriver, one = driver(), volume()
    with pytest.raises(NoSpace):
        lvmdriver.create_volume(volume(size_bytes=9 * GiB), LVMVolumeOptions())
    lvmdriver.create_volume(one, LVMVolumeOptions())
    for call in (lvmdriver.check_extend, lvmdriver.extend_volume):
        with pytest.raises(NoSpace):
            call(one, 9 * GiB)
    with pytest.raises(InvalidSize, match="multiple of 4 MiB"):
        lvmdriver.check_extend(one, 17 * MiB)
    assert lvmdriver.volume_size(one) == 16 * MiB


@pytest.mark.parametrize(("protocol", "odd_id"), [("iscsi", "a_volume"), ("nvmet_tcp", "a+volume")])
def test_a_volume_that_could_not_be_exported_is_not_made(protocol: str, odd_id: str) -> None:
    lvmdriver, odd = driver(target_protocol=protocol), replace(volume(), id=odd_id)
    lvmdriver.create_volume(volume(), LVMVolumeOptions())
    acts: list[Callable[[], object]] = [
        lambda: lvmdriver.create_volume(odd, LVMVolumeOptions()),
        lambda: lvmdriver.clone_volume(odd, LVMVolumeOptions(), volume()),
        lambda: lvmdriver.manage_existing(odd, "volume-id-1", LVMVolumeOptions()),
    ]
    for act in acts:
        with pytest.raises(InvalidInput, match="its id cannot be in the name"):
            act()
    assert lvm("lvs", "--noheadings", "--options", "lv_name", "vg0").split() == ["volume-id-1"]


def test_stripes_are_in_the_rounding() -> None:
    assert driver(stripes=3).size_rule.granularity_bytes == 3 * EXTENT
    assert driver().size_rule.granularity_bytes == EXTENT


def test_what_is_not_ours_is_never_touched() -> None:
    lvm("lvcreate", "--quiet", "--yes", "--size", "16m", "--name", "volume-id-1", "vg0")
    lvmdriver, one = driver(), volume()
    assert lvmdriver.list_volumes() == []
    for call in (
        lambda: lvmdriver.create_volume(one, LVMVolumeOptions()),
        lambda: lvmdriver.extend_volume(one, 24 * MiB),
        lambda: lvmdriver.delete_volume(one),
    ):
        with pytest.raises(InvalidState, match="without the tag voldrivers"):
            call()
    with pytest.raises(NotFound, match="volume group nope"):
        LVMDriver("lvm", LVMOptions("nope", target_ip_addresses="10.77.1.1"), process.run).list_volumes()


def test_a_thick_origin_is_refused_before_anything_happens() -> None:
    lvmdriver, one = driver(), volume()
    lvmdriver.create_volume(one, LVMVolumeOptions())
    lvm("lvcreate", "--quiet", "--yes", "--size", "8m", "--snapshot", "--name", "s", "vg0/volume-id-1")
    with path(one).open("rb"), pytest.raises(NotSupported, match="with a snapshot"):
        lvmdriver.check_extend(one, 24 * MiB)
    with pytest.raises(InvalidState, match="origin of s"):
        lvmdriver.delete_volume(one)
    assert "a" in lvm("lvs", "--noheadings", "--options", "lv_attr", "vg0/volume-id-1").strip()[4]


def secret(of: Volume, size_bytes: int) -> None:
    """Fill a volume with bytes that nobody else may see."""
    with path(of).open("r+b") as device:
        for _ in range(size_bytes // MiB):
            device.write(b"secret.." * (MiB // 8))
        os.fsync(device.fileno())


def is_clean(of: Volume) -> bool:
    content = subprocess.run(["grep", "--quiet", "--text", "secret", str(path(of))], check=False)
    return content.returncode == 1


def test_stale_bytes_are_cleared_at_delete() -> None:
    lvmdriver, one, two = driver(), volume(1), volume(2)
    lvmdriver.create_volume(one, LVMVolumeOptions())
    secret(one, 16 * MiB)
    lvmdriver.delete_volume(one)
    lvmdriver.create_volume(two, LVMVolumeOptions())
    assert is_clean(two)
    lvmdriver.extend_volume(two, 24 * MiB)
    assert is_clean(two)


def test_stale_bytes_of_others_are_cleared_before_they_are_given_out() -> None:
    lvmdriver, two = driver(volume_clear="before-use"), volume(2)
    one = volume(1, 32 * MiB)
    driver().create_volume(one, LVMVolumeOptions())
    secret(one, 32 * MiB)
    lvm("lvremove", "--yes", "vg0/volume-id-1")  # by somebody who does not clear
    lvmdriver.create_volume(two, LVMVolumeOptions())
    assert is_clean(two)
    lvmdriver.extend_volume(two, 24 * MiB)
    assert lvmdriver.volume_size(two) == 24 * MiB
    assert is_clean(two)
    assert "clearing" not in lvm("lvs", "--noheadings", "--options", "lv_name", "vg0")


def test_a_clearing_that_was_interrupted_is_done_again() -> None:
    made: list[str] = []

    def run_until_clearing(argv: list[str], *, timeout_s: float) -> object:
        made.append(argv[0])
        if argv[0] == "blkdiscard":
            raise CommandFailed("blkdiscard", "killed")
        return process.run(argv, timeout_s=timeout_s)

    one = volume(1, 32 * MiB)
    driver().create_volume(one, LVMVolumeOptions())
    secret(one, 32 * MiB)
    lvm("lvremove", "--yes", "vg0/volume-id-1")
    two, options = volume(2), LVMOptions("vg0", target_ip_addresses="10.77.1.1", volume_clear="before-use")
    killed = LVMDriver("lvm", options, run_until_clearing)  # type: ignore[arg-type]
    with pytest.raises(CommandFailed):
        killed.create_volume(two, LVMVolumeOptions())
    lvmdriver = LVMDriver("lvm", options, process.run)
    assert lvmdriver.list_volumes() == []
    lvmdriver.create_volume(two, LVMVolumeOptions())
    assert is_clean(two)
    with pytest.raises(CommandFailed):
        killed.extend_volume(two, 24 * MiB)
    assert lvmdriver.volume_size(two) == 16 * MiB
    lvmdriver.extend_volume(replace(two), 24 * MiB)
    assert lvmdriver.volume_size(two) == 24 * MiB
    assert is_clean(two)
    assert lvmdriver.list_volumes() == ["id-2"]


#: In the order in which lvm suspends them, after the volume.
POOL = ("vg0-vg0--pool-tpool", "vg0-vg0--pool_tdata", "vg0-vg0--pool_tmeta")
#: What an lvextend from 16 to 24 MiB leaves when killed: the kind, the metadata's size, what is suspended.
STEPS = {
    "thick, a table waits": ("default", 16, ()),
    "thick, suspended": ("default", 16, ("vg0-volume--id--1",)),
    "thick, committed": ("default", 24, ("vg0-volume--id--1",)),
    "thin, suspended": ("thin", 16, ("vg0-volume--id--1", *POOL)),
}


@pytest.fixture
def interrupted(request: pytest.FixtureRequest) -> Volume:
    """Give a volume with what a kill of its lvextend has left, as it was seen after real ones (below)."""
    kind, metadata_mib, suspended = STEPS[request.param]
    if kind == "thin":
        request.getfixturevalue("pool")
    one = volume()
    driver().create_volume(one, LVMVolumeOptions(lvm_type=kind))
    write_pattern(one)
    leave_halfway(metadata_mib, suspended)
    return one


def leave_halfway(metadata_mib: int, suspended: Sequence[str]) -> None:
    name = "vg0-volume--id--1"
    small = lvm("dmsetup", "table", name)
    if metadata_mib > 16:
        lvm("lvextend", "--quiet", "--size", f"{metadata_mib}m", "vg0/volume-id-1")
        lvm("dmsetup", "load", name, "--table", small)
        lvm("dmsetup", "resume", name)
    lvm("dmsetup", "load", name, "--table", small.replace(str(16 * 2048), str(24 * 2048)))
    for each in suspended:
        lvm("dmsetup", "suspend", each)


def write_pattern(of: Volume) -> None:
    path(of).write_bytes(b"kept" * (MiB // 4))


def check_whole(of: Volume, size_bytes: int) -> None:
    """Nothing waits or is suspended, device and metadata are so large, and the data is there."""
    waiting = lvm("dmsetup", "info", "--columns", "--noheadings", "--options", "name,suspended,tables_loaded")
    assert [line for line in waiting.split() if not line.endswith(":Active:Live")] == []
    (row,) = driver().ledger_rows(of, size_bytes)
    assert row.agrees, row
    assert "interrupted" not in row.note
    with path(of).open("rb") as device:
        assert device.read(MiB) == b"kept" * (MiB // 4)
        assert device.seek(0, os.SEEK_END) == size_bytes


@pytest.mark.parametrize("interrupted", STEPS, indirect=True)
def test_an_lvextend_killed_at_a_known_step_is_ended(interrupted: Volume) -> None:
    lvmdriver = driver()
    committed = lvmdriver.volume_size(interrupted) == 24 * MiB
    rows = lvmdriver.ledger_rows(interrupted, 24 * MiB)
    assert rows[0].stale, "the guest sees the old size"
    assert [row.layer for row in rows[1:]] == (["LV metadata"] if committed else [])
    # Asked for what it has: nothing grows, and nothing is left that hangs or grows by accident.
    lvmdriver.extend_volume(interrupted, 16 * MiB)
    check_whole(interrupted, (24 if committed else 16) * MiB)
    lvm("lvchange", "--refresh", "vg0/volume-id-1")
    lvmdriver.extend_volume(interrupted, 24 * MiB)
    check_whole(interrupted, 24 * MiB)


@pytest.mark.parametrize("kind", ["default", "thin"])
def test_an_lvextend_killed_at_any_moment_is_ended(kind: str, request: pytest.FixtureRequest) -> None:
    print("seed", SEED)
    if kind == "thin":
        request.getfixturevalue("pool")
    chance, one, lvmdriver = random.Random(SEED), volume(), driver()
    lvmdriver.create_volume(one, LVMVolumeOptions(lvm_type=kind))
    write_pattern(one)
    size_bytes, left = 16 * MiB, []
    for number in range(KILLS):
        # Every other time once the device is suspended: that is short, and it is where things break.
        kill_an_lvextend(chance, suspended=number % 2 == 1)
        before_bytes, size_bytes = size_bytes, size_bytes + EXTENT
        left.append(what_is_left())
        assert lvmdriver.volume_size(one) in (before_bytes, size_bytes)
        lvmdriver.extend_volume(one, size_bytes)
        check_whole(one, size_bytes)
    print(*left, sep="\n")


def kill_an_lvextend(chance: random.Random, *, suspended: bool) -> None:
    """Start an lvextend by one extent, and SIGKILL it."""
    state = Path("/sys/block", path(volume()).resolve().name, "dm/suspended")
    # Else it ends before we look: there is one CPU.
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(50))
    argv = ["lvextend", "--quiet", "--yes", "--extents", "+1", "vg0/volume-id-1"]
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while suspended and child.poll() is None and state.read_text() == "0\n":
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.03 if suspended else 1.0))
    finally:
        child.send_signal(signal.SIGKILL)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        child.wait()


def what_is_left() -> str:
    fields = "lv_size,lv_suspended,lv_inactive_table"
    return lvm("lvs", "--noheadings", "--options", fields, "vg0/volume-id-1").strip()


def before_lvextend(act: Callable[[], None]) -> Run:
    """Give a way to run programs where something happens between the driver's look and its act."""

    def run(argv: Sequence[str], *, timeout_s: float) -> Completed:
        if argv[0] == "lvextend":
            act()
        return process.run(argv, timeout_s=timeout_s)

    return run


def after_lvextend(error: VolDriverError, act: Callable[[], None] = lambda: None) -> Run:
    """Give one where lvextend does its work, or `act`, and then fails."""

    def run(argv: Sequence[str], *, timeout_s: float) -> Completed:
        if argv[0] != "lvextend":
            return process.run(argv, timeout_s=timeout_s)
        act()
        raise error

    return run


def test_room_that_is_taken_after_the_look_is_no_space() -> None:
    one, lvmdriver = volume(), driver(before_lvextend(take_all))
    lvmdriver.create_volume(one, LVMVolumeOptions())
    write_pattern(one)
    with pytest.raises(NoSpace) as caught:
        lvmdriver.extend_volume(one, 24 * MiB)
    assert isinstance(caught.value.__context__, CommandFailed)
    check_whole(one, 16 * MiB)


def take_all() -> None:
    lvm("lvcreate", "--quiet", "--yes", "--extents", "100%FREE", "--name", "other", "vg0")


def test_an_lvextend_that_hangs_or_fails_leaves_nothing_suspended() -> None:
    one = volume()
    driver().create_volume(one, LVMVolumeOptions())
    write_pattern(one)
    hung = after_lvextend(
        OutcomeUnknown("lvextend", "it hung"), lambda: leave_halfway(*STEPS["thick, suspended"][1:])
    )
    with pytest.raises(OutcomeUnknown):
        driver(hung).extend_volume(one, 24 * MiB)
    check_whole(one, 16 * MiB)

    def extend() -> None:
        lvm("lvextend", "--quiet", "--size", "24m", "vg0/volume-id-1")

    grown = after_lvextend(CommandFailed("lvextend", "later"), extend)
    with pytest.raises(CommandFailed):
        driver(grown).extend_volume(one, 24 * MiB)
    check_whole(one, 24 * MiB)


def test_a_thin_pool_that_fills_up_after_the_look_lets_the_volume_grow() -> None:
    """Its size is only a promise; whoever writes more than there is fails, and the next extend is refused."""
    lvm("lvcreate", "--quiet", "--size", "32m", "--thinpool", "vg0-pool", "--errorwhenfull", "y", "vg0")
    one = volume(size_bytes=64 * MiB)
    driver().create_volume(one, LVMVolumeOptions())
    write_pattern(one)

    def fill() -> None:
        with pytest.raises(CommandFailed, match=r"No space left|Input/output error"):
            lvm("dd", "if=/dev/zero", f"of={path(one)}", "bs=1M", "seek=1", "count=40", "oflag=direct")

    driver(before_lvextend(fill)).extend_volume(one, 96 * MiB)
    check_whole(one, 96 * MiB)
    with pytest.raises(InvalidState, match="thin pool vg0/vg0-pool is out_of_data"):
        driver().check_extend(one, 128 * MiB)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[str]:
    """Give a volume group with room for 30 KB of metadata."""
    file = tmp_path / "pv"
    with file.open("wb") as made:
        made.truncate(64 * MiB)
    device = lvm("losetup", "--find", "--show", str(file)).strip()
    lvm("pvcreate", "--quiet", "--metadatasize", "4k", "--dataalignment", "64k", device)
    lvm("vgcreate", "--quiet", "tiny", device)
    yield "tiny"
    lvm("vgremove", "--quiet", "--yes", "--force", "tiny")
    lvm("losetup", "--detach", device)


def test_full_metadata_is_no_space_before_anything_happens(tiny: str) -> None:
    lvmdriver, one = driver(group=tiny), volume(size_bytes=8 * MiB)
    lvmdriver.create_volume(one, LVMVolumeOptions())
    fill_metadata(tiny, 8192)
    with pytest.raises(NoSpace, match="in the metadata of volume group tiny"):
        lvmdriver.create_volume(volume(2, 8 * MiB), LVMVolumeOptions())
    lvmdriver.extend_volume(one, 12 * MiB)  # what is there can still grow
    fill_metadata(tiny, 1024)
    for call in (lvmdriver.check_extend, lvmdriver.extend_volume):
        with pytest.raises(NoSpace, match="in the metadata of volume group tiny"):
            call(one, 16 * MiB)
    assert lvmdriver.volume_size(one) == 12 * MiB


def fill_metadata(group: str, left_bytes: int) -> None:
    """Fill it with tags until fewer bytes are left; lvm takes up to 1,024 for one."""
    size, many = 900, (metadata_free_bytes(group) - left_bytes - 4 * KiB) // 904
    add_tags(group, [size] * max(many, 0))
    while metadata_free_bytes(group) >= left_bytes:
        try:
            add_tags(group, [size])
        except CommandFailed:  # what is said to be free is more than can be had
            size //= 2


def add_tags(group: str, sizes: Sequence[int]) -> None:
    tags = [f"{os.urandom(4).hex()}{'x' * (size - 8)}" for size in sizes]
    words = [word for tag in tags for word in ("--addtag", tag)]
    if words:
        lvm("vgchange", "--quiet", *words, group)


def metadata_free_bytes(group: str) -> int:
    fields = ["--noheadings", "--nosuffix", "--units", "b", "--options", "vg_mda_free"]
    return int(lvm("vgs", *fields, group))


def test_the_number_of_programs_does_not_grow(pool: str) -> None:
    one, ran = volume(), []

    def run(argv: Sequence[str], *, timeout_s: float) -> Completed:
        ran.append(argv[1] if argv[0] == "lvm" else argv[0])
        return process.run(argv, timeout_s=timeout_s)

    lvmdriver = driver(run)
    lvmdriver.create_volume(one, LVMVolumeOptions(lvm_type="default"))
    for number in range(2, 5):
        driver().create_volume(volume(number), LVMVolumeOptions(lvm_type="thin"))
    for call, expected in (
        (lambda: lvmdriver.check_extend(one, 24 * MiB), ["fullreport"]),
        (lambda: lvmdriver.extend_volume(one, 24 * MiB), ["lvextend", "sync"]),  # admission has just looked
        (lambda: lvmdriver.extend_volume(one, 24 * MiB), ["fullreport"]),
        (lambda: lvmdriver.volume_size(one), []),
        (lambda: lvmdriver.ledger_rows(one, 24 * MiB), []),
        (lambda: lvmdriver.ledger_rows(one, 28 * MiB), ["fullreport"]),
        (lvmdriver.list_volumes, ["fullreport"]),
    ):
        ran.clear()
        call()
        assert ran == expected
