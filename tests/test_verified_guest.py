"""The guest that works on its disks: it goes on through growth and refusals, and notices what is lost."""

import os

import pytest
from working import WAIT_S, Working

from voldrivers import process
from voldrivers.errors import BackendError
from voldrivers.guests.verified import BLOCK_BYTES
from voldrivers.host.qmp import Monitor
from voldrivers.sizes import MiB

pytestmark = [pytest.mark.slow, pytest.mark.needs("qemu-system-x86_64")]


def test_it_works_through_a_growth_and_uses_what_was_added(working: Working) -> None:
    working.plug()
    os.truncate(working.image, 2 * MiB)
    working.ask("block_resize", {"node-name": "n", "size": 2 * MiB})
    process.wait_until(lambda: working.disk().capacity_bytes == 2 * MiB, WAIT_S, "the new size")
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
    process.wait_until(lambda: bool(working.disk().problems), WAIT_S, "the problem")
    assert "not what" in working.disk().problems[0]
    assert working.end() == 1


def test_it_notices_bytes_of_others_in_a_new_range(working: Working) -> None:
    working.plug()
    with working.image.open("r+b") as image:
        image.truncate(2 * MiB)
        image.seek(2 * MiB - BLOCK_BYTES)
        image.write(b"secret")
    working.ask("block_resize", {"node-name": "n", "size": 2 * MiB})
    process.wait_until(lambda: bool(working.disk().problems), WAIT_S, "the problem")
    assert b"secret".hex() in working.disk().problems[0]


def test_it_notices_a_disk_that_became_smaller(working: Working) -> None:
    working.plug()
    working.ask("block_resize", {"node-name": "n", "size": MiB // 2})
    process.wait_until(lambda: bool(working.disk().problems), WAIT_S, "the problem")
    assert "smaller" in working.disk().problems[0]


def test_a_refused_request_is_counted_and_no_loss(working: Working) -> None:
    # blkdebug (QEMU docs/devel/blkdebug.rst): five writes fail, the others are done.
    refusals = [{"event": "none", "iotype": "write", "errno": 5, "once": True} for _ in range(5)]
    working.plug(lambda file: {"driver": "blkdebug", "image": file, "inject-error": refusals})
    process.wait_until(lambda: working.disk().writes > 20, WAIT_S, "work")
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

    process.wait_until(removed, WAIT_S, "the disk to be gone")
    working.plug()
    process.wait_until(lambda: len(working.report().disks) == 2, WAIT_S, "the second disk")
    working.wait_for_work()
    assert working.end() == 0


def test_it_ends_with_its_qemu(working: Working) -> None:
    working.plug()
    with Monitor(working.directory / "guest.qmp") as monitor:
        monitor.execute("quit")
    assert working.process.wait(WAIT_S) == 1
    assert "QEMU" in (working.directory / "printed").read_text()
