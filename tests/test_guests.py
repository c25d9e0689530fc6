"""The guests: what they see of a disk that QEMU really grows."""

import itertools
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from voldrivers import process
from voldrivers.errors import (
    BackendError,
    CommandFailed,
    InvalidInput,
    NotFound,
    NotSupported,
    OutcomeUnknown,
)
from voldrivers.guests import qtest
from voldrivers.guests.device import SECTOR_BYTES, DeviceGuest
from voldrivers.guests.image import prepare
from voldrivers.guests.linux import LinuxGuest
from voldrivers.guests.machine import Machine
from voldrivers.host.qmp import Monitor
from voldrivers.sizes import MiB

pytestmark = pytest.mark.needs("qemu-system-x86_64")

CACHE = Path(__file__).parents[1] / "build" / "guest"


@pytest.fixture
def guest(ram_path: Path) -> Iterator[DeviceGuest]:
    with DeviceGuest(ram_path) as running:
        yield running


@pytest.fixture(scope="module")
def linux() -> Iterator[LinuxGuest]:
    with (
        tempfile.TemporaryDirectory(prefix="vold-") as directory,
        LinuxGuest(Path(directory), "linux", CACHE) as running,
    ):
        yield running


def plug(guest: Machine, name: str, size_bytes: int = MiB) -> None:
    """Hot-plug a new file as a disk, as the product does: node, device and serial are called `name`."""
    path = guest.directory / f"{name}.raw"
    path.touch()
    os.truncate(path, size_bytes)
    node = {"node-name": name, "driver": "raw", "file": {"driver": "file", "filename": str(path)}}
    guest.execute("blockdev-add", node)
    guest.execute("device_add", {"driver": "virtio-blk-pci", "id": name, "drive": name, "serial": name})


def has_device(guest: Machine, name: str) -> bool:
    return any(
        device["name"] == name for device in guest.execute("qom-list", {"path": "/machine/peripheral"})
    )


def test_a_disk_shows_its_new_capacity_and_announces_it_only_after_the_resize(guest: DeviceGuest) -> None:
    plug(guest, "vol-1")
    disk = guest.disk("vol-1")
    os.truncate(guest.directory / "vol-1.raw", 2 * MiB)
    assert (disk.config_changed(), disk.capacity_bytes()) == (False, MiB)
    guest.execute("block_resize", {"node-name": "vol-1", "size": 2 * MiB})
    assert (disk.config_changed(), disk.capacity_bytes()) == (True, 2 * MiB)
    assert not disk.config_changed()


def test_sectors_go_to_the_file_and_come_back_and_beyond_the_end_is_refused(guest: DeviceGuest) -> None:
    plug(guest, "vol-1")
    disk, path, last_new = guest.disk("vol-1"), guest.directory / "vol-1.raw", 2 * MiB // SECTOR_BYTES - 1
    disk.write(7, b"old" * SECTOR_BYTES)
    for refused in (lambda: disk.read(last_new), lambda: disk.write(last_new, bytes(SECTOR_BYTES))):
        with pytest.raises(BackendError, match=f"status 1 for 512 bytes at sector {last_new}"):
            refused()
    guest.execute("block_resize", {"node-name": "vol-1", "size": 2 * MiB})
    assert disk.read(last_new) == bytes(SECTOR_BYTES)
    disk.write(last_new, b"n" * SECTOR_BYTES)
    assert disk.read(7, 3) == b"old" * SECTOR_BYTES
    content = path.read_bytes()
    assert content[7 * SECTOR_BYTES :][: 3 * SECTOR_BYTES] == b"old" * SECTOR_BYTES
    assert content[-SECTOR_BYTES:] == b"n" * SECTOR_BYTES


def test_a_megabyte_goes_in_one_request_and_no_more(guest: DeviceGuest) -> None:
    plug(guest, "vol-1", 4 * MiB)
    disk, content = guest.disk("vol-1"), os.urandom(MiB)
    disk.write(4096, content)
    assert disk.read(4096, MiB // SECTOR_BYTES) == content
    assert disk.read(4095) == bytes(SECTOR_BYTES)
    with pytest.raises(ValueError, match="at most 1048576 bytes"):
        disk.read(0, MiB // SECTOR_BYTES + 1)


def test_disks_are_found_by_serial_and_stay_set_up(guest: DeviceGuest) -> None:
    long_name = "vol-0123456789-0123456789"  # QEMU shows a guest 20 bytes of it
    plug(guest, "vol-1", MiB)
    plug(guest, long_name, 2 * MiB)
    first = guest.disk("vol-1")
    assert guest.disk(long_name).capacity_bytes() == 2 * MiB
    guest.execute("block_resize", {"node-name": "vol-1", "size": 3 * MiB})
    assert guest.disk("vol-1").config_changed(), "looking again must not reset the disk"
    first.write(0, b"1" * SECTOR_BYTES)
    assert guest.disk("vol-1").read(0) == b"1" * SECTOR_BYTES
    with pytest.raises(NotFound, match="disk vol-2 does not exist in guest guest"):
        guest.disk("vol-2")


def test_a_device_is_gone_when_the_guest_lets_go_of_it_and_not_before(guest: DeviceGuest) -> None:
    with pytest.raises(OutcomeUnknown, match="device_del in guest guest"):
        guest.eject(timeout_s=0.05)
    plug(guest, "vol-1")
    plug(guest, "vol-2")
    guest.disk("vol-1")
    guest.execute("device_del", {"id": "vol-1"})
    assert has_device(guest, "vol-1")
    guest.eject()
    process.wait_until(lambda: not has_device(guest, "vol-1"), 5.0, "the device to go")
    assert [disk.serial for disk in guest.disks()] == ["vol-2"]


def test_a_slot_can_be_used_again(guest: DeviceGuest) -> None:
    plug(guest, "vol-1")
    used = guest.disk("vol-1")
    for _ in range(300):  # the queue has 256 places
        used.write(0, b"1" * SECTOR_BYTES)
    guest.execute("device_del", {"id": "vol-1"})
    guest.eject()
    process.wait_until(lambda: not has_device(guest, "vol-1"), 5.0, "the device to go")
    plug(guest, "vol-2", 2 * MiB)
    disk = guest.disk("vol-2")
    assert (disk.slot, disk.capacity_bytes()) == (used.slot, 2 * MiB)
    disk.write(0, b"2" * SECTOR_BYTES)
    assert disk.read(0) == b"2" * SECTOR_BYTES


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Raise KeyboardInterrupt before the so-many-th instruction that is taken in the bus."""
    left = itertools.count(step, -1)

    def trace(frame: FrameType, event: str, _: object) -> Any:  # Any: itself, whose type has no name
        if frame.f_code.co_filename != qtest.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(left) == 0:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_question_that_is_interrupted_anywhere_spoils_no_later_answer(guest: DeviceGuest) -> None:
    plug(guest, "vol-1", 3 * MiB)
    disk = guest.disk("vol-1")
    for step in itertools.count():
        try:
            with interrupted_at(step):
                disk.capacity_bytes()
        except KeyboardInterrupt:
            assert disk.capacity_bytes() == 3 * MiB, f"after an interruption at {step}"
        else:
            break
    assert step > 100


def test_a_large_write_that_is_interrupted_spoils_no_later_answer(ram_path: Path) -> None:
    with DeviceGuest(ram_path, answer_s=0.3) as guest:
        plug(guest, "vol-1", 3 * MiB)
        disk, content = guest.disk("vol-1"), os.urandom(MiB)
        for _ in range(3):
            os.kill(guest.pid, signal.SIGSTOP)
            for unanswered in (lambda: disk.write(0, content), disk.capacity_bytes):
                with pytest.raises(OutcomeUnknown, match=r"no answer within 0\.3 seconds"):
                    unanswered()
            os.kill(guest.pid, signal.SIGCONT)
            assert disk.capacity_bytes() == 3 * MiB
        disk.write(0, content)
        assert disk.read(0, MiB // SECTOR_BYTES) == content
        guest.kill()
        with pytest.raises(BackendError, match="QEMU"):
            disk.capacity_bytes()


def test_the_guests_own_calls_leave_the_qmp_socket_free(guest: DeviceGuest) -> None:
    with Monitor(guest.qmp_socket) as product:
        assert product.peer_pid == guest.pid
        plug(guest, "vol-1")
        assert product.execute("query-status")["status"] == "running"


def test_guests_stand_side_by_side(ram_path: Path) -> None:
    with DeviceGuest(ram_path, "one") as one, DeviceGuest(ram_path, "two", arguments=["-S"]) as two:
        plug(one, "vol-1")
        assert one.disk("vol-1").capacity_bytes() == MiB
        assert two.disks() == []
        assert two.execute("query-status")["status"] == "prelaunch"


def test_a_killed_guest_is_gone_and_says_so(ram_path: Path) -> None:
    with DeviceGuest(ram_path) as guest:
        plug(guest, "vol-1")
        identity = process.identity(guest.pid)
        guest.kill()
        guest.kill()
        assert not guest.is_running
        assert process.is_gone(identity)
        assert guest.wait(1.0) == -9
        with pytest.raises(BackendError, match="QEMU ended with exit code -9"):
            guest.wait_until(lambda: False, 1.0, "anything")


def test_a_guest_dies_with_the_process_that_started_it(ram_path: Path) -> None:
    script = """if True:
        import os, pathlib, sys
        from voldrivers import process
        from voldrivers.guests.device import DeviceGuest
        guest = DeviceGuest(pathlib.Path(sys.argv[1]))
        print(process.identity(guest.pid), flush=True)
        os.kill(os.getpid(), 9)"""
    with pytest.raises(CommandFailed) as killed:
        process.run([sys.executable, "-c", script, str(ram_path)], timeout_s=30)
    assert killed.value.exit_code == -9
    printed = killed.value.reason
    process.wait_until(lambda: process.is_gone(printed), 5.0, "QEMU to end")


def test_qemus_own_words_are_in_the_error(ram_path: Path) -> None:
    with pytest.raises(BackendError, match=r"QEMU ended with exit code 1: .*'no-such-device' is not a valid"):
        DeviceGuest(ram_path, arguments=["-device", "no-such-device"])


def test_a_path_that_qemu_cannot_take_is_refused(ram_path: Path) -> None:
    room = 107 - len(f"{ram_path}/.control")
    for name in ("x" * (room + 1), "x" * 120, "a,b"):
        with pytest.raises(InvalidInput, match="at most 107 bytes and no comma"):
            DeviceGuest(ram_path, name)
    with DeviceGuest(ram_path, "x" * room) as guest:
        assert guest.is_running


def test_the_linux_kernel_itself_reports_the_new_size(linux: LinuxGuest) -> None:
    plug(linux, "vol-grow", MiB)
    assert "2048 512-byte" in linux.wait_for_line(r"\[vd[a-z]\] \d+ 512-byte", 60)
    assert "new size" not in linux.console_text()
    linux.execute("block_resize", {"node-name": "vol-grow", "size": 2 * MiB})
    assert "[vda] new size: 4096 512-byte logical blocks" in linux.wait_for_line("new size", 60)
    assert linux.shell("cat /sys/block/vda/size") == "4096\n"
    unplug(linux, "vol-grow")


def test_a_real_agent_answers_beside_the_qmp_socket(linux: LinuxGuest) -> None:
    assert linux.agent_socket == linux.qmp_socket.with_suffix(".qga")
    plug(linux, "vol-asked", 3 * MiB)
    linux.shell("until [ -e /sys/block/vda/serial ]; do usleep 10000; done")
    with Monitor(linux.agent_socket, timeout_s=60, greeting=False) as agent:
        assert [disk["name"] for disk in agent.execute("guest-get-disks")] == ["/dev/vda"]
        handle = agent.execute("guest-file-open", {"path": "/sys/block/vda/size"})
        assert agent.execute("guest-file-read", {"handle": handle})["buf-b64"] == "NjE0NAo="  # 6144
    unplug(linux, "vol-asked")


def test_a_shell_command_tells_its_output_and_its_failure(linux: LinuxGuest) -> None:
    assert linux.shell("printf 'a\\nb'; echo c >&2") == "a\nbc\n"
    with pytest.raises(CommandFailed) as failed:
        linux.shell("echo wrong; exit 3")
    assert (failed.value.exit_code, failed.value.reason) == (3, "wrong")
    with pytest.raises(InvalidInput, match="one line"):
        linux.shell("true\ntrue")


def test_the_guest_runs_under_the_accelerator_that_was_proved(linux: LinuxGuest) -> None:
    assert linux.accelerator.reason
    assert linux.execute("query-kvm")["enabled"] is (linux.accelerator.name == "kvm")


def test_the_guest_is_made_once(monkeypatch: pytest.MonkeyPatch, linux: LinuxGuest) -> None:
    monkeypatch.setenv("PATH", "")
    assert prepare(CACHE).kernel.stat().st_size > MiB


def test_a_guest_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotSupported, match="apt-get is not installed"):
        prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.needs("qemu-img")
def test_the_demonstration_ends_well_and_shows_the_kernels_own_line() -> None:
    demo = Path(__file__).parents[1] / "demo" / "demo.py"
    shown = process.run([sys.executable, str(demo)], timeout_s=240).stdout
    assert "ok: file, QEMU node, guest show 128 MiB" in shown
    assert "[vda] new size: 262144 512-byte logical blocks" in shown
    assert "everything was as it must be" in shown


def unplug(guest: LinuxGuest, name: str) -> None:
    guest.execute("device_del", {"id": name})
    process.wait_until(lambda: not has_device(guest, name), 60, "the kernel to let go of the disk")
