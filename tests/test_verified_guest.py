"""The guest that works on its disks: it goes on through growth and refusals, and notices what is lost."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from voldrivers import process
from voldrivers.errors import BackendError
from voldrivers.guests.verified import BLOCK_BYTES, DiskReport, Report, read_report
from voldrivers.host.qmp import Monitor
from voldrivers.sizes import MiB

pytestmark = [pytest.mark.slow, pytest.mark.needs("qemu-system-x86_64")]

Node = dict[str, object]

_WAIT_S = 20.0


class Working:
    """A guest in a process of its own, with one disk."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.image = directory, directory / "disk.raw"
        argv = [sys.executable, "-m", "voldrivers.guests.verified", str(directory), "guest"]
        self.process: Popen[bytes] = process.start(argv, output=directory / "printed")
        process.wait_until((directory / "guest.report").exists, _WAIT_S, "the guest")

    def ask(self, command: str, arguments: dict[str, object]) -> object:
        with Monitor(self.directory / "guest.qmp") as monitor:
            return monitor.execute(command, arguments)

    def plug(self, over: Callable[[Node], Node] = lambda file: file) -> None:
        self.image.touch()
        os.truncate(self.image, MiB)
        file = over({"driver": "file", "filename": str(self.image)})
        self.ask("blockdev-add", {"node-name": "n", "driver": "raw", "file": file})
        self.ask("device_add", {"driver": "virtio-blk-pci", "id": "d", "drive": "n", "serial": "vol-1"})
        self.wait_for_work()

    def report(self) -> Report:
        return read_report((self.directory / "guest.report").read_text())

    def disk(self) -> DiskReport:
        return self.report().disks[-1]

    def wait_for_work(self, turns: int = 3) -> None:
        """Wait until the disk is there and so many more turns are done."""
        process.wait_until(lambda: bool(self.report().disks), _WAIT_S, "the disk")
        until = self.report().turns + turns
        process.wait_until(lambda: self.report().turns >= until, _WAIT_S, "work")

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(_WAIT_S)


@pytest.fixture
def working(ram_path: Path) -> Iterator[Working]:
    begun = Working(ram_path)
    yield begun
    begun.process.kill()
    begun.process.wait()


def test_it_works_through_a_growth_and_uses_what_was_added(working: Working) -> None:
    working.plug()
    os.truncate(working.image, 2 * MiB)
    working.ask("block_resize", {"node-name": "n", "size": 2 * MiB})
    process.wait_until(lambda: working.disk().capacity_bytes == 2 * MiB, _WAIT_S, "the new size")
    working.wait_for_work(30)
    assert any(working.image.read_bytes()[MiB:])
    assert working.end() == 0
    report = working.report()
    assert (report.ended, report.is_good, report.disks[0].errors) == (True, True, 0)
    assert report.disks[0].writes > 30


def test_it_notices_what_somebody_else_wrote(working: Working) -> None:
    working.plug()
    working.wait_for_work(20)
    with working.image.open("r+b") as image:
        image.write(b"x" * MiB)
    process.wait_until(lambda: bool(working.disk().problems), _WAIT_S, "the problem")
    assert "not what" in working.disk().problems[0]
    assert working.end() == 1


def test_it_notices_bytes_of_others_in_a_new_range(working: Working) -> None:
    working.plug()
    with working.image.open("r+b") as image:
        image.truncate(2 * MiB)
        image.seek(2 * MiB - BLOCK_BYTES)
        image.write(b"secret")
    working.ask("block_resize", {"node-name": "n", "size": 2 * MiB})
    process.wait_until(lambda: bool(working.disk().problems), _WAIT_S, "the problem")
    assert b"secret".hex() in working.disk().problems[0]


def test_it_notices_a_disk_that_became_smaller(working: Working) -> None:
    working.plug()
    working.ask("block_resize", {"node-name": "n", "size": MiB // 2})
    process.wait_until(lambda: bool(working.disk().problems), _WAIT_S, "the problem")
    assert "smaller" in working.disk().problems[0]


def test_a_refused_request_is_counted_and_no_loss(working: Working) -> None:
    # blkdebug (QEMU docs/devel/blkdebug.rst): five writes fail, the others are done.
    refusals = [{"event": "none", "iotype": "write", "errno": 5, "once": True} for _ in range(5)]
    working.plug(lambda file: {"driver": "blkdebug", "image": file, "inject-error": refusals})
    process.wait_until(lambda: working.disk().writes > 20, _WAIT_S, "work")
    assert working.end() == 0
    assert working.disk().errors == 5


def test_it_lets_go_of_a_disk_and_takes_another_one(working: Working) -> None:
    working.plug()
    working.ask("device_del", {"id": "d"})

    def removed() -> bool:
        try:
            working.ask("blockdev-del", {"node-name": "n"})
        except BackendError:  # in use
            return False
        return True

    process.wait_until(removed, _WAIT_S, "the disk to be gone")
    working.plug()
    process.wait_until(lambda: len(working.report().disks) == 2, _WAIT_S, "the second disk")
    working.wait_for_work()
    assert working.end() == 0


def test_it_ends_with_its_qemu(working: Working) -> None:
    working.plug()
    with Monitor(working.directory / "guest.qmp") as monitor:
        monitor.execute("quit")
    assert working.process.wait(_WAIT_S) == 1
    assert "QEMU" in (working.directory / "printed").read_text()
