"""Extends in use, end to end: engine, NFS driver, local host, real files, real QEMUs whose guests look."""

import os
import re
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from faultyqmp import Fault, FaultyMonitor
from realsite import (
    FULL,
    LARGE,
    NAME,
    QCOW2,
    RAW,
    SMALL,
    Child,
    Kind,
    RealSite,
    allocated_bytes,
    attached,
    check_filled,
    check_grown,
    check_untouched,
    disk_of,
    fill,
    fill_up,
    mounted,
    node_bytes,
)

from voldrivers import process
from voldrivers.errors import (
    BackendError,
    CommandFailed,
    InvalidState,
    NoSpace,
    NotFound,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.guests.device import DeviceGuest
from voldrivers.model import Phase, VolumeStatus
from voldrivers.sizes import MiB

pytestmark = pytest.mark.needs("qemu-system-x86_64", "qemu-img", "setpriv", "fallocate", "prlimit")

AVAILABLE, IN_USE = VolumeStatus.AVAILABLE, VolumeStatus.IN_USE
EXTENDING, ERROR_EXTENDING = VolumeStatus.EXTENDING, VolumeStatus.ERROR_EXTENDING
KINDS = pytest.mark.parametrize("kind", [RAW, QCOW2, FULL], ids=lambda kind: kind.name)
THIN = pytest.mark.parametrize("kind", [RAW, QCOW2], ids=lambda kind: kind.name)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and changing the user need root")


@contextmanager
def spoilt(guest: DeviceGuest, faults: Mapping[str, str]) -> Iterator[FaultyMonitor]:
    """Stand between voldrivers and the guest's QEMU."""
    real = guest.qmp_socket.with_suffix(".real")
    guest.qmp_socket.rename(real)
    try:
        with FaultyMonitor(guest.qmp_socket, real, faults) as faulty:
            yield faulty
    finally:
        guest.qmp_socket.unlink()
        real.rename(guest.qmp_socket)


@contextmanager
def frozen(guest: DeviceGuest) -> Iterator[None]:
    os.kill(guest.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(guest.pid, signal.SIGCONT)


@contextmanager
def away(path: Path) -> Iterator[None]:
    """Let a file be somewhere else for a while."""
    path.rename(path.with_name("elsewhere"))
    try:
        yield
    finally:
        path.with_name("elsewhere").rename(path)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Be the one client of a monitor."""
    with socket.socket(socket.AF_UNIX) as somebody:
        somebody.connect(str(path))
        somebody.recv(1)
        yield


# while it runs


@KINDS
def test_the_guest_can_use_all_of_the_new_size_and_keeps_the_old(
    site: RealSite, guest: DeviceGuest, kind: Kind
) -> None:
    attached(site, guest, kind)
    disk = disk_of(site, guest)
    assert not disk.config_changed()
    extend = site.extend()
    assert (extend.phase, extend.deferred) == (Phase.COMPLETED, True)
    assert disk.config_changed()
    check_grown(site, guest)


@pytest.mark.parametrize(("kind", "allocated"), [(RAW, 4096), (FULL, LARGE)], ids=["raw", "preallocated raw"])
def test_a_preallocated_volume_stays_so_and_a_sparse_one_too(
    site: RealSite, guest: DeviceGuest, kind: Kind, allocated: int
) -> None:
    site.create(kind)
    site.attach(guest.qmp_socket)
    site.extend()
    assert allocated_bytes(site.path) == allocated  # qemu-img writes the first block of a new raw file
    assert disk_of(site, guest).read(LARGE // 512 - 1) == bytes(512)


@KINDS
def test_five_extends_in_a_row(site: RealSite, guest: DeviceGuest, kind: Kind) -> None:
    attached(site, guest, kind)
    disk = disk_of(site, guest)
    for size_bytes in range(SMALL + MiB, SMALL + 6 * MiB, MiB):
        site.extend(size_bytes)
        assert (disk.capacity_bytes(), disk.config_changed()) == (size_bytes, True)
    check_grown(site, guest, SMALL + 5 * MiB)


@THIN
def test_qemu_img_is_refused_by_the_lock_of_the_file(site: RealSite, guest: DeviceGuest, kind: Kind) -> None:
    attached(site, guest, kind)
    path = site.path
    with pytest.raises(CommandFailed) as caught:
        process.run(["qemu-img", "resize", "-f", kind.format, str(path), str(LARGE)], timeout_s=20)
    assert (caught.value.exit_code, caught.value.reason) == (
        1,
        f"qemu-img: Could not open '{path}': Failed to get \"write\" lock\n"
        f"Is another process using the image [{path}]?",
    )
    check_untouched(site, guest)


def test_two_guests_on_one_volume_both_see_it_grow(site: RealSite, ram_path: Path) -> None:
    with DeviceGuest(ram_path, "one") as one, DeviceGuest(ram_path, "two") as two:
        site.create(RAW, multi_attach=True)
        for guest in (one, two):
            site.attach(guest.qmp_socket)
        disks = [disk_of(site, guest) for guest in (one, two)]
        fill(disks[0], SMALL)
        site.extend()
        assert [disk.config_changed() for disk in disks] == [True, True]
        check_grown(site, one)
        disks[0].write(LARGE // 512 - 1, b"seen" * 128)
        assert disks[1].read(LARGE // 512 - 1) == b"seen" * 128
        assert disks[1].capacity_bytes() == LARGE


def test_a_guest_that_was_not_told_is_named_and_brought_up_by_retry(site: RealSite, ram_path: Path) -> None:
    with DeviceGuest(ram_path, "one") as one, DeviceGuest(ram_path, "two") as two:
        site.create(RAW, multi_attach=True)
        for guest in (one, two):
            site.attach(guest.qmp_socket)
        fill(disk_of(site, one), SMALL)
        with (
            spoilt(two, {"block_resize": "Operation not possible"}),
            pytest.raises(BackendError, match=r"here/two: .*Operation not possible"),
        ):
            site.extend()
        volume = site.volume
        shown = (volume.status, volume.size_bytes, volume.backend_bytes)
        assert shown == (ERROR_EXTENDING, SMALL, LARGE)
        assert [node_bytes(guest) for guest in (one, two)] == [[LARGE], [SMALL]]
        with site.engine() as engine:
            engine.retry(NAME)
        check_grown(site, one)
        assert disk_of(site, two).capacity_bytes() == LARGE


@KINDS
def test_attached_without_an_instance_the_driver_grows(site: RealSite, kind: Kind) -> None:
    site.create(kind)
    site.attach(None)
    assert not site.extend().deferred
    site.check_steady(IN_USE, LARGE)


@KINDS
def test_a_guest_that_is_provably_gone_is_not_waited_for(
    site: RealSite, guest: DeviceGuest, ram_path: Path, kind: Kind
) -> None:
    attached(site, guest, kind)
    guest.kill()
    assert not site.extend().deferred
    site.check_steady(IN_USE, LARGE)
    assert allocated_bytes(site.path) == LARGE or not kind.preallocated


def test_a_file_in_another_qemus_hands_is_not_grown_though_its_instance_is_gone(
    site: RealSite, guest: DeviceGuest, ram_path: Path
) -> None:
    attached(site, guest, RAW)
    guest.kill()
    node = f"driver=raw,node-name=thief,file.driver=file,file.filename={site.path}"
    # With share-rw the lock is one that qemu-img would not mind.
    disk = ["-blockdev", node, "-device", "virtio-blk-pci,drive=thief,share-rw=on"]
    with DeviceGuest(ram_path, "thief", arguments=disk):
        with pytest.raises(InvalidState, match="held by a QEMU"):
            site.extend()
        site.check_steady(IN_USE, SMALL)
    site.extend()
    site.check_steady(IN_USE, LARGE)


# what forbids it


def check_refused(site: RealSite, match: str) -> None:
    """Have it refused at admission, with nothing recorded."""
    with pytest.raises(InvalidState, match=match):
        site.extend()
    assert (site.volume.status, site.volume.size_bytes, site.file_bytes) == (IN_USE, SMALL, SMALL)
    with site.engine() as engine:
        assert engine.last_extend(engine.volume(NAME)) is None


def test_a_vanished_monitor_of_a_living_guest_grows_nothing(site: RealSite, guest: DeviceGuest) -> None:
    site.answer_s = 1.0
    attached(site, guest, RAW)
    with away(guest.qmp_socket):
        check_refused(site, "monitor .* is unreachable")
        assert site.file_bytes == SMALL
    site.admit()
    with away(guest.qmp_socket):
        assert isinstance(site.resume(), OutcomeUnknown)
        assert (site.volume.status, site.file_bytes) == (EXTENDING, SMALL)
    assert site.resume() is None
    check_grown(site, guest)


def test_a_monitor_held_by_another_client_grows_nothing(site: RealSite, guest: DeviceGuest) -> None:
    site.answer_s = 1.0
    attached(site, guest, RAW)
    with held(guest.qmp_socket):
        check_refused(site, "held by another client")
    site.admit()
    with held(guest.qmp_socket):
        assert isinstance(site.resume(), OutcomeUnknown)
        assert (site.volume.status, site.file_bytes) == (EXTENDING, SMALL)
    assert site.resume() is None
    check_grown(site, guest)


def test_a_frozen_guest_is_refused_in_time(site: RealSite, guest: DeviceGuest) -> None:
    site.answer_s = 1.0
    attached(site, guest, RAW)
    with frozen(guest):
        check_refused(site, "frozen")
    site.extend()
    check_grown(site, guest)


@THIN
def test_a_guest_frozen_in_the_act_leaves_it_open_until_it_thaws(
    site: RealSite, guest: DeviceGuest, kind: Kind
) -> None:
    site.answer_s = 1.0
    attached(site, guest, kind)
    with spoilt(guest, {}) as faulty:
        faulty.before = lambda command: (
            os.kill(guest.pid, signal.SIGSTOP) if command == "block_resize" else None
        )
        with pytest.raises(OutcomeUnknown):
            site.extend()
    assert (site.volume.status, site.volume.size_bytes) == (EXTENDING, SMALL)
    assert isinstance(site.resume(), OutcomeUnknown)
    assert (site.volume.status, site.volume.size_bytes) == (EXTENDING, SMALL)
    os.kill(guest.pid, signal.SIGCONT)
    assert site.resume() is None
    check_grown(site, guest)


def test_a_guest_that_is_migrating_in_is_never_asked_and_lives(site: RealSite, ram_path: Path) -> None:
    with DeviceGuest(ram_path, arguments=["-incoming", "defer"]) as guest:
        site.create(RAW)
        site.attach(guest.qmp_socket)
        with spoilt(guest, {}) as faulty:
            check_refused(site, "is inmigrate")
            assert "block_resize" not in faulty.passed
        site.check_steady(IN_USE, SMALL)
        assert guest.is_running


@THIN
def test_a_block_job_in_the_way_is_named_and_nothing_grows(
    site: RealSite, guest: DeviceGuest, kind: Kind
) -> None:
    attached(site, guest, kind)
    start_mirror(guest)
    check_refused(site, "in use by mirror job copying")
    end_mirror(guest)
    site.admit()
    start_mirror(guest)
    error = site.resume()
    assert isinstance(error, InvalidState)
    assert "in use by mirror job copying" in str(error)
    assert "nothing changed: " in site.messages
    check_untouched(site, guest)
    end_mirror(guest)
    site.extend()
    check_grown(site, guest)


def start_mirror(guest: DeviceGuest) -> None:
    target = guest.directory / "target.raw"
    target.touch()
    os.truncate(target, SMALL)
    (disk,) = guest.execute("query-block")
    file = {"driver": "file", "filename": str(target)}
    guest.execute("blockdev-add", {"node-name": "target", "driver": "raw", "file": file})
    copy = {"job-id": "copying", "device": disk["inserted"]["node-name"], "target": "target", "sync": "full"}
    guest.execute("blockdev-mirror", {**copy, "speed": 1})


def end_mirror(guest: DeviceGuest) -> None:
    guest.execute("block-job-cancel", {"device": "copying", "force": True})
    process.wait_until(lambda: not guest.execute("query-block-jobs"), 5, "the job to end")
    guest.execute("blockdev-del", {"node-name": "target"})


# a monitor that cannot be trusted


@pytest.mark.parametrize(
    "fault",
    [
        Fault.SWALLOWED,
        Fault.HUNG_UP_BEFORE,
        Fault.GARBAGE,
        Fault.ANSWER_LOST,
        Fault.HUNG_UP_AFTER,
        Fault.PASSED_LATE,
    ],
)
@THIN
def test_an_answer_that_does_not_come_leaves_it_open_until_somebody_looks(
    site: RealSite, guest: DeviceGuest, kind: Kind, fault: Fault
) -> None:
    site.answer_s = 1.0
    attached(site, guest, kind)
    with spoilt(guest, {"block_resize": fault}) as faulty:
        with pytest.raises(OutcomeUnknown):
            site.extend()
        volume = site.volume
        shown = (volume.status, volume.size_bytes, volume.extend_new_size_bytes)
        assert shown == (EXTENDING, SMALL, LARGE)
        if fault is not Fault.PASSED_LATE:
            done = fault in (Fault.ANSWER_LOST, Fault.HUNG_UP_AFTER)
            assert site.file_bytes == (LARGE if done else SMALL)
        faulty.faults.clear()
        assert site.resume() is None
        assert faulty.passed.count("block_resize") == 1
    assert site.messages == ""
    check_grown(site, guest)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.LIED, BackendError),
        (Fault.NONSENSE, BackendError),
        ("Failed to grow the L1 table: No space left on device", NoSpace),
        ("Could not resize file: Read-only file system", InvalidState),
        ("Could not stat file: Stale file handle", BackendError),
    ],
)
@THIN
def test_an_answer_without_growth_rolls_back(
    site: RealSite, guest: DeviceGuest, kind: Kind, fault: str, error: type[VolDriverError]
) -> None:
    attached(site, guest, kind)
    with spoilt(guest, {"block_resize": fault}) as faulty:
        with pytest.raises(error):
            site.extend()
        assert "block_resize" not in faulty.passed
    assert "was rolled back, nothing changed: " in site.messages
    check_untouched(site, guest)
    site.extend()
    check_grown(site, guest)


@THIN
def test_an_answer_given_twice_confuses_nobody(site: RealSite, guest: DeviceGuest, kind: Kind) -> None:
    attached(site, guest, kind)
    with spoilt(guest, {"block_resize": Fault.ANSWERED_TWICE}):
        site.extend()
    check_grown(site, guest)


@THIN
def test_a_refusal_after_growth_is_not_believed(site: RealSite, guest: DeviceGuest, kind: Kind) -> None:
    """The answer says no, the file says yes: something grew, so it is not rolled back."""
    attached(site, guest, kind)
    with spoilt(guest, {"block_resize": Fault.DENIED}):
        with pytest.raises(BackendError):
            site.extend()
        volume = site.volume
        assert (volume.status, volume.size_bytes, volume.backend_bytes) == (ERROR_EXTENDING, SMALL, LARGE)
    with site.engine() as engine:
        engine.retry(NAME)
    check_grown(site, guest)


# others who touch the file


@pytest.mark.parametrize("grown_bytes", [LARGE, LARGE + 2 * MiB, LARGE + 512, LARGE + 1])
def test_what_somebody_else_made_larger_is_never_cut(
    site: RealSite, guest: DeviceGuest, grown_bytes: int
) -> None:
    attached(site, guest, RAW)
    os.truncate(site.path, grown_bytes)
    os.pwrite(fd := os.open(site.path, os.O_WRONLY), b"X", LARGE - 1)
    os.close(fd)
    site.extend(LARGE)
    size_bytes = -(-grown_bytes // 512) * 512
    site.check_steady(IN_USE, size_bytes)
    disk = disk_of(site, guest)
    assert disk.capacity_bytes() == size_bytes
    check_filled(disk, SMALL)
    assert disk.read(LARGE // 512 - 1)[-1:] == b"X"
    assert "it is kept" in site.messages


def test_what_somebody_else_makes_larger_at_the_last_moment_is_never_cut(
    site: RealSite, guest: DeviceGuest
) -> None:
    """After everybody has looked but the host, right before QEMU is asked."""
    attached(site, guest, RAW)
    site.admit()
    with spoilt(guest, {}) as faulty:
        faulty.before = lambda command: (
            os.truncate(site.path, LARGE + 2 * MiB) if command == "query-status" else None
        )
        assert site.resume() is None
    assert "it is kept" in site.messages
    check_grown(site, guest, LARGE + 2 * MiB)


def test_a_qcow2_that_somebody_else_made_larger_is_never_cut(site: RealSite, guest: DeviceGuest) -> None:
    attached(site, guest, QCOW2)
    with site.path.open("r+b") as image:
        image.seek(24)  # the size, QEMU docs/interop/qcow2.txt
        image.write((LARGE + MiB).to_bytes(8, "big"))
    site.extend(LARGE)
    assert "it is kept" in site.messages
    check_grown(site, guest, LARGE + MiB)


@pytest.mark.parametrize("grown_bytes", [LARGE + 2 * MiB, LARGE + 1])
def test_what_somebody_else_made_larger_meanwhile_is_never_cut(
    site: RealSite, guest: DeviceGuest, grown_bytes: int
) -> None:
    attached(site, guest, RAW)
    site.admit()
    os.truncate(site.path, grown_bytes)
    assert site.resume() is None
    size_bytes = -(-grown_bytes // 512) * 512
    site.check_steady(IN_USE, size_bytes)
    assert disk_of(site, guest).capacity_bytes() == size_bytes
    assert "it is kept" in site.messages


@THIN
def test_a_file_that_vanished_is_missed_and_goes_on_when_it_is_back(
    site: RealSite, guest: DeviceGuest, kind: Kind
) -> None:
    attached(site, guest, kind)
    path = site.path
    with away(path), pytest.raises(NotFound, match=str(path)):
        site.extend()
    check_untouched(site, guest)
    site.admit()
    with away(path):
        assert isinstance(site.resume(), OutcomeUnknown)
        assert site.volume.status is EXTENDING
    assert site.resume() is None
    check_grown(site, guest)


# a share in trouble


@AS_ROOT
@pytest.mark.parametrize("kind", [QCOW2, FULL], ids=lambda kind: kind.name)
def test_a_full_share_is_no_space_and_works_again(site: RealSite, guest: DeviceGuest, kind: Kind) -> None:
    with mounted("tmpfs", "-o", "size=24m", "none", point=site.share):
        attached(site, guest, kind)
        ballast = fill_up(site.share)
        with pytest.raises(NoSpace):
            site.extend()
        check_untouched(site, guest)
        ballast.unlink()
        site.extend()
        check_grown(site, guest)
        guest.kill()


@AS_ROOT
def test_a_share_that_fills_up_after_admission_is_no_space_in_qemu(
    site: RealSite, guest: DeviceGuest
) -> None:
    """A larger table of a qcow2 needs room at once, so QEMU itself refuses and nothing has grown."""
    site.options["max_over_subscription_ratio"] = 1e9
    with mounted("tmpfs", "-o", "size=24m", "none", point=site.share):
        attached(site, guest, QCOW2)
        site.admit(1 << 40)
        ballast = fill_up(site.share)
        assert isinstance(site.resume(), NoSpace)
        check_untouched(site, guest)
        ballast.unlink()
        site.extend()
        check_grown(site, guest)
        guest.kill()


@AS_ROOT
def test_a_preallocated_volume_whose_room_is_gone_since_admission_is_not_grown(
    site: RealSite, guest: DeviceGuest
) -> None:
    """Else QEMU would grow the file, and then its blocks could not be had."""
    with mounted("tmpfs", "-o", "size=24m", "none", point=site.share):
        attached(site, guest, FULL)
        site.admit()
        ballast = fill_up(site.share)
        assert isinstance(site.resume(), NoSpace)
        check_untouched(site, guest)
        ballast.unlink()
        site.extend()
        check_grown(site, guest)
        assert allocated_bytes(site.path) == LARGE
        guest.kill()


@AS_ROOT
@THIN
def test_a_read_only_share_is_refused_and_works_again(site: RealSite, guest: DeviceGuest, kind: Kind) -> None:
    attached(site, guest, kind)
    with mounted("none", "-o", "bind", str(site.share), point=site.share):
        process.run(["mount", "-o", "remount,bind,ro", str(site.share)], timeout_s=10)
        with pytest.raises(InvalidState, match="Read-only file system"):
            site.extend()
        check_untouched(site, guest)
    site.extend()
    check_grown(site, guest)


@AS_ROOT
@THIN
def test_an_unmounted_share_is_missed_and_works_again(
    site: RealSite, guest: DeviceGuest, ram_path: Path, kind: Kind
) -> None:
    site.options["must_be_mounted"] = True
    behind = ram_path / "behind"
    behind.mkdir()
    with mounted("none", "-o", "bind", str(behind), point=site.share):
        attached(site, guest, kind)
    with pytest.raises(InvalidState, match="is not mounted, must be mounted"):
        site.extend()
    assert (site.volume.status, site.volume.size_bytes) == (IN_USE, SMALL)
    with mounted("none", "-o", "bind", str(behind), point=site.share):
        check_untouched(site, guest)
        site.extend()
        check_grown(site, guest)


@AS_ROOT
@THIN
def test_permission_denied_is_refused_and_works_again(
    site: RealSite, guest: DeviceGuest, ram_path: Path, kind: Kind
) -> None:
    """Root is denied nothing, so somebody else asks, who has all but the file."""
    attached(site, guest, kind)
    path = site.path
    process.run(["chmod", "--recursive", "a+rwX", str(ram_path)], timeout_s=10)
    path.chmod(0o600)
    answer = Child(lambda: as_nobody(site)).answer()
    assert re.search("InvalidState: .*closed to us \\(Permission denied\\)", answer), answer
    check_untouched(site, guest)
    site.extend()
    check_grown(site, guest)


def as_nobody(site: RealSite) -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    site.extend()


# two at once


@pytest.mark.parametrize("attempt", range(3))
@THIN
def test_of_two_processes_one_wins_and_nothing_is_mixed_up(
    site: RealSite, guest: DeviceGuest, kind: Kind, attempt: int
) -> None:
    attached(site, guest, kind)
    sizes = (LARGE, LARGE + MiB)
    children = [Child(partial(site.extend, size_bytes)) for size_bytes in sizes]
    answers = [child.answer() for child in children]
    won = [size for size, answer in zip(sizes, answers, strict=True) if not answer]
    assert won
    assert all(re.match("(|InvalidState: .*|InvalidSize: .*)$", answer) for answer in answers), answers
    check_grown(site, guest, max(won))
