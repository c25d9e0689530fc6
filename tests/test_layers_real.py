"""Snapshots and their layers, end to end: engine, NFS driver, local host, real files, real QEMUs."""

import itertools
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faultyqmp import Fault, FaultyMonitor
from realsite import (
    LARGE,
    NAME,
    QCOW2,
    RAW,
    SMALL,
    Child,
    Kind,
    RealSite,
    attached,
    check_filled,
    disk_of,
    fill_up,
    mounted,
)
from working import Working

from voldrivers import process
from voldrivers.abilities import Layers, Merge
from voldrivers.errors import (
    BackendError,
    InvalidState,
    NoSpace,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.extend import Engine
from voldrivers.guests.device import SECTOR_BYTES, DeviceGuest, Disk
from voldrivers.host import blocknode
from voldrivers.host.qmp import Monitor
from voldrivers.model import Connector, SnapshotStatus, Volume, VolumeStatus
from voldrivers.sizes import MiB

pytestmark = pytest.mark.needs("qemu-system-x86_64", "qemu-img", "setpriv", "fallocate", "prlimit")

AVAILABLE, IN_USE = VolumeStatus.AVAILABLE, VolumeStatus.IN_USE
THIN = pytest.mark.parametrize("kind", [RAW, QCOW2], ids=lambda kind: kind.name)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def snapshot(site: RealSite, name: str) -> None:
    with site.engine() as engine:
        engine.create_snapshot(NAME, name)


def delete(site: RealSite, name: str) -> None:
    with site.engine() as engine:
        engine.delete_snapshot(name)


def clone(site: RealSite, name: str, of: str | None = None, size_bytes: int | None = None) -> None:
    """Copy a snapshot, or the volume itself, into a raw file."""
    source = NAME if of is None else None
    with site.engine() as engine:
        engine.clone_volume(name, source, of, size_bytes, {"format": "raw"})


def content(site: RealSite, name: str) -> bytes:
    with site.engine() as engine:
        return (site.share / str(json.loads(engine.volume(name).provider_data)["file"])).read_bytes()


def content_of_snapshot(site: RealSite, name: str) -> bytes:
    clone(site, "looked-at", name)
    found = content(site, "looked-at")
    with site.engine() as engine:
        engine.delete_volume("looked-at")
    return found


def names(site: RealSite) -> list[str]:
    """Name the files, the volume's id left out."""
    return sorted(path.name.replace(site.volume.id, "ID") for path in site.share.iterdir())


def nodes(guest: DeviceGuest) -> list[str]:
    """Name the nodes with a format."""
    named = guest.execute("query-named-block-nodes", {"flat": True})
    return [node["node-name"] for node in named if node["drv"] in ("raw", "qcow2")]


def open_as(guest: DeviceGuest, path: Path) -> list[str]:
    """Give the descriptors by which QEMU has a file."""
    return [entry.name for entry in os.scandir(f"/proc/{guest.pid}/fd") if os.readlink(entry) == str(path)]


def has_ended(guest: DeviceGuest) -> bool:
    return all(job["status"] == "concluded" for job in guest.execute("query-jobs"))


@contextmanager
def spoilt(guest: DeviceGuest, faults: dict[str, str]) -> Iterator[FaultyMonitor]:
    """Stand between voldrivers and the guest's QEMU."""
    real = guest.qmp_socket.with_suffix(".real")
    guest.qmp_socket.rename(real)
    try:
        with FaultyMonitor(guest.qmp_socket, real, faults) as faulty:
            yield faulty
    finally:
        guest.qmp_socket.unlink()
        real.rename(guest.qmp_socket)


def detach(site: RealSite, guest: DeviceGuest) -> None:
    """Detach, the guest letting go."""

    def act() -> None:
        with site.engine() as engine:
            engine.detach(NAME)

    leaving = Child(act)
    guest.eject()
    assert leaving.answer() == ""


def stamp(number: int) -> bytes:
    return f"write {number:09d}".encode().ljust(SECTOR_BYTES, b".")


# taken in use

_PLACES = 64


def check_one_moment(seen: bytes) -> int:
    """Have 64 sectors hold the last 64 of the writes that were made one after the other; give the last."""
    numbers = [
        int(seen[at * SECTOR_BYTES :][6:15]) if seen[at * SECTOR_BYTES] else -1 for at in range(_PLACES)
    ]
    last = max(numbers)
    expected = {number % _PLACES: number for number in range(max(0, last - _PLACES + 1), last + 1)}
    assert numbers == [expected.get(at, -1) for at in range(_PLACES)]
    return last


@THIN
def test_a_snapshot_of_a_running_guest_is_its_disk_at_one_moment(
    site: RealSite, guest: DeviceGuest, kind: Kind
) -> None:
    site.create(kind)
    site.attach(guest.qmp_socket)
    disk, number, moments = disk_of(site, guest), 0, []
    for act in (snapshot, delete):
        for name in ("one", "two"):
            acting = Child(partial(act, site, name))
            while acting.is_running or number % 100:
                disk.write(number % _PLACES, stamp(number))
                number += 1
            assert acting.answer() == ""
        if act is snapshot:
            moments = [check_one_moment(content_of_snapshot(site, name)) for name in ("one", "two")]
    assert 0 < moments[0] < moments[1] < number
    assert check_one_moment(everything(disk)) == number - 1
    site.check_steady(IN_USE, SMALL)
    guest.kill()
    with site.engine() as engine:
        engine.detach(NAME)
    clone(site, "copy")
    assert check_one_moment(content(site, "copy")) == number - 1


def test_the_volume_goes_on_in_an_overlay_that_the_records_know(site: RealSite, guest: DeviceGuest) -> None:
    attached(site, guest, RAW)
    snapshot(site, "s")
    volume = site.volume
    (kept,) = volume.snapshots
    assert json.loads(volume.provider_data)["format"] == "qcow2"
    assert json.loads(kept.provider_data) == {
        "format": "raw",
        "preallocated": False,
        "file": f"volume-{volume.id}",
    }
    (attachment,) = volume.attachments
    assert attachment.device_path == str(site.path)
    assert (kept.status, kept.size_bytes) == (SnapshotStatus.AVAILABLE, SMALL)
    assert names(site) == ["volume-ID", f"volume-ID.{kept.id}.qcow2", f"volume-ID.{kept.id}.snapshot"]
    check_filled(disk_of(site, guest), SMALL)


# sizes, and deleting in any order


def three_snapshots(site: RealSite, disk: Disk) -> dict[str, bytes]:
    """Extend before, between and after; give what each snapshot holds."""
    held: dict[str, bytes] = {}
    for number, name in enumerate(("a", "b", "c"), start=1):
        disk.write(number, stamp(number))
        disk.write(0, stamp(number))
        disk.write(disk.capacity_bytes() // SECTOR_BYTES - 1, stamp(number))
        snapshot(site, name)
        held[name] = everything(disk)
        site.extend(SMALL + number * MiB)
    disk.write(9, stamp(9))
    return held


def everything(disk: Disk) -> bytes:
    step = MiB // SECTOR_BYTES
    return b"".join(disk.read(first, step) for first in range(0, disk.capacity_bytes() // SECTOR_BYTES, step))


def check_held(site: RealSite, held: dict[str, bytes]) -> None:
    with site.engine() as engine:
        kept = {each.name: each.size_bytes for each in engine.volume(NAME).snapshots}
        assert kept == {name: len(content) for name, content in held.items()}
    for name, content in held.items():
        assert content_of_snapshot(site, name) == content, name


#: One of them in every run, two in CI: the others check the same with more patience.
ORDERS = [
    pytest.param(order, marks=[] if n == 3 else [pytest.mark.slow] if n == 4 else [pytest.mark.full])
    for n, order in enumerate(itertools.permutations("abc"))
]


@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_deleted_in_any_order_in_use_all_others_stay(
    site: RealSite, guest: DeviceGuest, order: Sequence[str]
) -> None:
    site.create(RAW if order[0] != "b" else QCOW2)
    site.attach(guest.qmp_socket)
    disk = disk_of(site, guest)
    held = three_snapshots(site, disk)
    now = everything(disk)
    check_held(site, held)
    for name in order:
        delete(site, name)
        del held[name]
        assert everything(disk) == now
        check_held(site, held)
    assert [name.endswith(".qcow2") for name in names(site)] == [True]
    site.extend(SMALL + 5 * MiB)
    assert everything(disk) == now + bytes(2 * MiB)
    site.check_steady(IN_USE, SMALL + 5 * MiB)
    assert len(nodes(guest)) == 1
    assert guest.execute("query-jobs") == []


@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_deleted_in_any_order_detached_all_others_stay(
    site: RealSite, guest: DeviceGuest, order: Sequence[str]
) -> None:
    site.create(RAW if order[0] != "b" else QCOW2)
    site.attach(guest.qmp_socket)
    held = three_snapshots(site, disk_of(site, guest))
    now = everything(disk_of(site, guest))
    if order[0] == "a":
        guest.kill()
    else:
        detach(site, guest)
        assert nodes(guest) == []
    for name in order:
        delete(site, name)
        del held[name]
        check_held(site, held)
        site.check_image()
    assert [name.endswith(".qcow2") for name in names(site)] == [True]
    site.extend(SMALL + 5 * MiB)
    if order[0] == "a":
        with site.engine() as engine:
            engine.detach(NAME)
    clone(site, "copy")
    assert content(site, "copy") == now + bytes(2 * MiB)


@THIN
def test_extended_while_nobody_has_it_only_the_active_layer_grows(site: RealSite, kind: Kind) -> None:
    site.create(kind)
    snapshot(site, "a")
    site.extend()
    snapshot(site, "b")
    site.extend(LARGE + MiB)
    assert [each.size_bytes for each in site.volume.snapshots] == [SMALL, LARGE]
    assert content_of_snapshot(site, "a") == bytes(SMALL)
    assert content_of_snapshot(site, "b") == bytes(LARGE)
    site.check_steady(AVAILABLE, LARGE + MiB)


# plugging what lies in layers


def test_plugged_again_a_guest_finds_all_layers(site: RealSite, guest: DeviceGuest) -> None:
    attached(site, guest, RAW)
    disk = disk_of(site, guest)
    snapshot(site, "a")
    disk.write(100, stamp(1))
    snapshot(site, "b")
    disk.write(200, stamp(2))
    now = everything(disk)
    detach(site, guest)
    assert nodes(guest) == []
    site.attach(guest.qmp_socket)
    disk = disk_of(site, guest)
    assert everything(disk) == now
    assert (
        content_of_snapshot(site, "b")
        == now[: 200 * SECTOR_BYTES] + bytes(SECTOR_BYTES) + now[201 * SECTOR_BYTES :]
    )
    snapshot(site, "c")  # over layers that were opened at once
    disk.write(300, stamp(3))
    for name in ("b", "c", "a"):
        delete(site, name)
    site.extend()
    assert disk.read(300) == stamp(3)
    assert everything(disk)[: 300 * SECTOR_BYTES] == now[: 300 * SECTOR_BYTES]
    site.check_steady(IN_USE, LARGE)
    detach(site, guest)
    assert nodes(guest) == []


@pytest.mark.slow
def test_many_layers_are_not_too_many(site: RealSite, guest: DeviceGuest) -> None:
    """QEMU cuts the name of a file over so many others."""
    attached(site, guest, RAW)
    disk = disk_of(site, guest)
    for number in range(24):
        snapshot(site, f"s{number}")
        disk.write(number, stamp(number))
    shown = guest.execute("query-block")[0]["inserted"]["file"]
    assert shown.startswith("json:")
    assert shown.endswith("...")
    site.extend()
    delete(site, "s12")
    snapshot(site, "last")
    detach(site, guest)
    assert nodes(guest) == []
    site.attach(guest.qmp_socket)
    assert [disk_of(site, guest).read(number) for number in range(24)] == [stamp(n) for n in range(24)]
    site.check_steady(IN_USE, LARGE)


# clones


def test_two_clones_of_one_snapshot_are_independent_both_ways(site: RealSite, guest: DeviceGuest) -> None:
    attached(site, guest, RAW)
    disk = disk_of(site, guest)
    disk.write(10, stamp(1))
    snapshot(site, "s")
    then = everything(disk)
    clone(site, "one", "s")
    clone(site, "two", "s", LARGE)
    disk.write(10, stamp(2))
    with site.engine() as engine:
        engine.attach("one", monitor=guest.qmp_socket)
        mine = guest.disk(engine.volume("one").id)
        mine.write(10, stamp(3))
        engine.extend("one", LARGE)
    assert content(site, "two") == then + bytes(LARGE - SMALL)
    assert content_of_snapshot(site, "s") == then
    assert [disk.read(10), mine.read(10)] == [stamp(2), stamp(3)]
    delete(site, "s")
    assert content(site, "two") == then + bytes(LARGE - SMALL)
    assert [disk.read(10), mine.read(10)] == [stamp(2), stamp(3)]
    site.check_steady(IN_USE, SMALL)


def test_an_attached_volume_is_not_copied_but_its_snapshot_is(site: RealSite, guest: DeviceGuest) -> None:
    attached(site, guest, RAW)
    with pytest.raises(InvalidState, match="detached to be copied; or take a snapshot and copy that"):
        clone(site, "copy")
    assert names(site) == ["volume-ID"]
    with site.engine() as engine:
        assert [volume.name for volume in engine.volumes()] == [NAME]


# reverting


def test_reverted_to_its_newest_snapshot_it_is_what_it_was(site: RealSite, guest: DeviceGuest) -> None:
    attached(site, guest, RAW)
    disk = disk_of(site, guest)
    snapshot(site, "a")
    disk.write(50, stamp(1))
    snapshot(site, "b")
    then = everything(disk)
    disk.write(50, stamp(2))
    site.extend()
    with site.engine() as engine, pytest.raises(InvalidState):
        engine.revert_to_snapshot("b")
    detach(site, guest)
    with site.engine() as engine, pytest.raises(NotSupported, match="newest snapshot only"):
        engine.revert_to_snapshot("a")
    for _ in range(2):
        with site.engine() as engine:
            assert engine.revert_to_snapshot("b").size_bytes == SMALL
    site.check_steady(AVAILABLE, SMALL)
    site.attach(guest.qmp_socket)
    assert everything(disk_of(site, guest)) == then
    delete(site, "b")
    delete(site, "a")
    assert everything(disk_of(site, guest)) == then


# what forbids it


def check_nothing_taken(site: RealSite, status: VolumeStatus = IN_USE) -> None:
    assert site.volume.snapshots == ()
    assert names(site) == ["volume-ID"]
    site.check_steady(status, SMALL)


def test_without_an_instance_it_is_refused(site: RealSite) -> None:
    site.create(RAW)
    site.attach(None)
    with pytest.raises(NotSupported, match="without an instance, which may write its file: detach it"):
        snapshot(site, "s")
    check_nothing_taken(site)


def test_of_a_volume_for_several_guests_it_is_refused(site: RealSite) -> None:
    site.create(RAW, multi_attach=True)
    with pytest.raises(NotSupported, match="attached twice has no snapshots"):
        snapshot(site, "s")
    check_nothing_taken(site, AVAILABLE)


def test_a_file_that_a_qemu_holds_unknown_to_us_is_not_frozen(site: RealSite, guest: DeviceGuest) -> None:
    site.create(RAW)
    guest.execute(
        "blockdev-add",
        {"node-name": "thief", "driver": "raw", "file": {"driver": "file", "filename": str(site.path)}},
    )
    guest.execute("device_add", {"driver": "virtio-blk-pci", "id": "thief", "drive": "thief"})
    with pytest.raises(InvalidState, match="held by a QEMU"):
        snapshot(site, "s")
    check_nothing_taken(site, AVAILABLE)


def test_a_disk_and_a_file_of_two_sizes_are_not_switched(site: RealSite, guest: DeviceGuest) -> None:
    """Somebody made the file larger, and QEMU does not know."""
    attached(site, guest, RAW)
    os.truncate(site.path, LARGE)
    with pytest.raises(InvalidState, match="must be of one size"):
        snapshot(site, "s")
    assert names(site) == ["volume-ID"]
    assert disk_of(site, guest).capacity_bytes() == SMALL


def test_an_instance_that_does_not_answer_is_left_alone(site: RealSite, guest: DeviceGuest) -> None:
    site.answer_s = 0.5
    attached(site, guest, RAW)
    real = guest.qmp_socket.rename(guest.qmp_socket.with_suffix(".away"))
    with pytest.raises(InvalidState, match="nobody knows whether it runs"):
        snapshot(site, "s")
    real.rename(guest.qmp_socket)
    check_nothing_taken(site)


@AS_ROOT
def test_a_full_share_takes_no_snapshot_and_merges_when_there_is_room(ram_path: Path) -> None:
    share = ram_path / "full"
    share.mkdir()
    with (
        mounted("tmpfs", "-o", "size=12m", "none", point=share),
        DeviceGuest(ram_path) as guest,
    ):
        site = RealSite(ram_path, share)
        attached(site, guest, QCOW2)
        disk = disk_of(site, guest)
        for first in range(0, SMALL // SECTOR_BYTES, 2048):
            disk.write(first, b"x" * MiB)
        snapshot(site, "s")
        disk.write(0, stamp(1))
        ballast = fill_up(share)
        with pytest.raises(NoSpace):
            snapshot(site, "t")
        assert [each.name for each in site.volume.snapshots] == ["s"]
        with pytest.raises(NoSpace):
            delete(site, "s")
        assert disk.read(0) == stamp(1)
        ballast.unlink()
        assert site.resume() is None
        assert (disk.read(0), disk.read(2048)) == (stamp(1), b"x" * SECTOR_BYTES)
        site.check_steady(IN_USE, SMALL)
        assert site.volume.snapshots == ()


# a monitor that cannot be trusted


@pytest.mark.parametrize("fault", [Fault.LIED, "Operation not possible"])
def test_what_was_not_switched_is_taken_back(site: RealSite, guest: DeviceGuest, fault: str) -> None:
    attached(site, guest, RAW)
    with spoilt(guest, {"blockdev-snapshot": fault}), pytest.raises(BackendError):
        snapshot(site, "s")
    check_nothing_taken(site)
    assert len(nodes(guest)) == 1
    snapshot(site, "s")
    check_filled(disk_of(site, guest), SMALL)


@pytest.mark.parametrize("fault", [Fault.ANSWER_LOST, Fault.SWALLOWED, Fault.HUNG_UP_AFTER])
def test_a_lost_answer_is_looked_into(site: RealSite, guest: DeviceGuest, fault: str) -> None:
    site.answer_s = 1.0
    attached(site, guest, RAW)
    disk = disk_of(site, guest)
    with spoilt(guest, {"blockdev-snapshot": fault}), pytest.raises(OutcomeUnknown):
        snapshot(site, "s")
    disk.write(100, stamp(7))
    with pytest.raises(InvalidState):  # nothing else happens to it meanwhile
        site.extend()
    assert site.resume() is None
    assert disk.read(100) == stamp(7)
    assert content_of_snapshot(site, "s")[100 * SECTOR_BYTES :][:1] == (
        b"\0" if fault != Fault.SWALLOWED else stamp(7)[:1]
    )
    site.extend()
    site.check_steady(IN_USE, LARGE)


def test_a_refusal_after_the_switch_is_not_believed(site: RealSite, guest: DeviceGuest) -> None:
    """QEMU says no, and writes to the overlay: that is never removed."""
    attached(site, guest, RAW)
    disk = disk_of(site, guest)
    with spoilt(guest, {"blockdev-snapshot": Fault.DENIED}), pytest.raises(VolDriverError):
        snapshot(site, "s")
    disk.write(100, stamp(7))
    assert site.resume() is None
    assert disk.read(100) == stamp(7)
    assert content_of_snapshot(site, "s")[100 * SECTOR_BYTES] == 0


def test_written_and_then_lost_before_it_was_recorded_nothing_is_lost(
    site: RealSite, guest: DeviceGuest
) -> None:
    """The guest wrote to the overlay and died: nobody holds it, and no record names it."""
    site.answer_s = 1.0
    attached(site, guest, RAW)
    with spoilt(guest, {"blockdev-snapshot": Fault.ANSWER_LOST}), pytest.raises(OutcomeUnknown):
        snapshot(site, "s")
    disk_of(site, guest).write(100, stamp(7))
    guest.kill()
    with site.engine() as engine:
        volume = engine.volume(NAME)
        with pytest.raises(InvalidState, match="without an end of its snapshot s, must be resumed first"):
            engine.site.driver(volume).initialize_connection(volume, Connector("here"))
        with pytest.raises(InvalidState, match="written to already"):
            engine.site.driver(volume).delete_snapshot(volume, volume.snapshots[0])  # type: ignore[attr-defined]  # NFS
    assert site.resume() is None
    with site.engine() as engine:
        engine.detach(NAME)
    clone(site, "copy")
    assert content(site, "copy")[100 * SECTOR_BYTES :][:SECTOR_BYTES] == stamp(7)
    assert content_of_snapshot(site, "s")[100 * SECTOR_BYTES] == 0


def test_a_job_in_the_way_is_named(site: RealSite, guest: DeviceGuest) -> None:
    attached(site, guest, RAW)
    target = guest.directory / "target.raw"
    target.write_bytes(bytes(SMALL))
    (disk,) = guest.execute("query-block")
    file = {"driver": "file", "filename": str(target)}
    guest.execute("blockdev-add", {"node-name": "target", "driver": "raw", "file": file})
    copy = {"job-id": "copying", "device": disk["inserted"]["node-name"], "target": "target", "sync": "full"}
    guest.execute("blockdev-mirror", {**copy, "speed": 1})
    with pytest.raises(InvalidState, match="in use by mirror job copying"):
        snapshot(site, "s")
    guest.execute("block-job-cancel", {"device": "copying", "force": True})
    process.wait_until(lambda: not guest.execute("query-block-jobs"), 5, "the job to end")
    check_nothing_taken(site)


def test_a_merge_under_way_is_waited_for_and_nothing_is_resized_meanwhile(
    site: RealSite, guest: DeviceGuest
) -> None:
    site.deadline_s = 1.0
    attached(site, guest, RAW)
    disk = disk_of(site, guest)
    disk.write(0, b"x" * MiB)
    disk.write(2 * MiB // SECTOR_BYTES, b"y" * MiB)
    snapshot(site, "s")
    begun = Path(site.path)
    job = f"{blocknode.node_name(site.volume.id, begun)}-merge"
    node = guest.execute("query-block")[0]["inserted"]["node-name"]
    guest.execute("block-stream", {"job-id": job, "device": node, "speed": 1})
    with pytest.raises(InvalidState, match=f"in use by stream job {job}"):
        site.extend()
    with pytest.raises(OutcomeUnknown, match="are left and nothing moves"):
        delete(site, "s")
    assert isinstance(site.resume(), OutcomeUnknown)
    guest.execute("block-job-set-speed", {"device": job, "speed": 0})
    assert site.resume() is None
    assert disk.read(0, 2048) + disk.read(2 * MiB // SECTOR_BYTES, 2048) == b"x" * MiB + b"y" * MiB
    assert names(site) == [begun.name.replace(site.volume.id, "ID")]
    site.extend()
    site.check_steady(IN_USE, LARGE)
    assert guest.execute("query-jobs") == []


@pytest.mark.parametrize("above", [False, True], ids=["the active layer", "one below it"])
def test_a_guest_reads_zeroes_beyond_a_smaller_layer_while_that_is_merged(
    site: RealSite, guest: DeviceGuest, monkeypatch: pytest.MonkeyPatch, *, above: bool
) -> None:
    """QEMU 7.2 by itself says that such a read succeeded, and leaves the guest's memory as it was.

    The file that the guest writes stays open as it is: closed and opened anew, it would refuse some write.
    """
    attached(site, guest, RAW)
    disk, seen, opened = disk_of(site, guest), list[bytes](), list[list[str]]()
    snapshot(site, "s")
    site.extend()
    if above:
        snapshot(site, "t")
    execute = Monitor.execute

    def reading(monitor: Monitor, command: str, *arguments: Any) -> Any:  # Any: as of execute
        opened.append(open_as(guest, Path(site.path)))
        if command == "job-finalize":
            disk.write(0, b"x" * SECTOR_BYTES)
            seen.append(disk.read(LARGE // SECTOR_BYTES - 1))
        answer = execute(monitor, command, *arguments)
        if command == "job-finalize":
            process.wait_until(lambda: has_ended(guest), 5, "the job to end")
            nodes(guest)  # the death of a QEMU 7.2 whose ended job is still there
        return answer

    monkeypatch.setattr(Monitor, "execute", reading)
    delete(site, "s")
    assert seen == [bytes(SECTOR_BYTES)]
    assert [open_as(guest, Path(site.path))] * len(opened) == opened
    assert not any(name.endswith(".merging") for name in names(site))
    assert len(nodes(guest)) == 1 + above
    assert disk.read(0) == b"x" * SECTOR_BYTES
    site.check_steady(IN_USE, LARGE)


def test_a_smaller_layer_is_not_merged_into_one_that_others_opened(
    site: RealSite, guest: DeviceGuest
) -> None:
    """Its file is no node by itself, so reopening the layer would cost the guest a write."""
    site.create(RAW)
    snapshot(site, "s")
    site.extend()
    base = {
        "driver": "raw",
        "file": {"driver": "file", "filename": str(site.share / f"volume-{site.volume.id}")},
    }
    file = {"driver": "file", "filename": str(site.path)}
    node = {"node-name": "theirs", "driver": "qcow2", "file": file, "backing": base}
    guest.execute("blockdev-add", node)
    guest.execute("device_add", {"driver": "virtio-blk-pci", "drive": "theirs", "serial": "theirs"})
    site.attach(guest.qmp_socket)
    with pytest.raises(
        InvalidState, match=r"opened by who started QEMU.*must be detached and attached again"
    ):
        delete(site, "s")
    assert guest.execute("query-jobs") == []
    assert len(nodes(guest)) == 2
    guest.kill()
    assert site.resume() is None
    assert site.volume.snapshots == ()
    assert [name.endswith(".qcow2") for name in names(site)] == [True]


def test_a_node_that_a_killed_merge_left_open_is_closed(site: RealSite, guest: DeviceGuest) -> None:
    """The job ended well, and nobody came to close what it had merged: the next one does."""
    attached(site, guest, RAW)
    snapshot(site, "s")
    top = guest.execute("query-block")[0]["inserted"]["node-name"]
    guest.execute("block-stream", {"job-id": "by-hand", "device": top})
    process.wait_until(lambda: not guest.execute("query-block-jobs"), 5, "the job to end")
    delete(site, "s")
    assert [name.endswith(".qcow2") for name in names(site)] == [True]
    assert len(nodes(guest)) == 2
    snapshot(site, "t")
    (now,) = guest.execute("query-block")
    assert set(nodes(guest)) == {now["inserted"]["node-name"], top}
    delete(site, "t")
    assert len(nodes(guest)) == 1
    check_filled(disk_of(site, guest), SMALL)


def test_a_chain_that_is_not_the_recorded_one_is_not_merged(site: RealSite, guest: DeviceGuest) -> None:
    """Somebody else merged all layers in QEMU."""
    attached(site, guest, RAW)
    snapshot(site, "a")
    snapshot(site, "b")
    top = guest.execute("query-block")[0]["inserted"]["node-name"]
    guest.execute("block-stream", {"job-id": "by-hand", "device": top})
    process.wait_until(lambda: not guest.execute("query-block-jobs"), 5, "the job to end")
    with pytest.raises(VolDriverError, match="its backing file is none"):
        delete(site, "a")
    check_filled(disk_of(site, guest), SMALL)


@pytest.mark.parametrize("name", ["older", "newest"])
def test_what_was_merged_is_on_disk_when_qemu_is_killed_right_after(
    site: RealSite, guest: DeviceGuest, name: str
) -> None:
    """QEMU by itself would have changed the header only, and kept the rest in its caches."""
    attached(site, guest, RAW)
    disk = disk_of(site, guest)
    disk.write(0, b"x" * MiB)
    snapshot(site, "older")
    disk.write(MiB // SECTOR_BYTES, b"y" * MiB)
    snapshot(site, "newest")
    disk.write(2 * MiB // SECTOR_BYTES, b"z" * MiB)
    now, then = everything(disk), content_of_snapshot(site, "newest")
    delete(site, name)
    guest.kill()
    with site.engine() as engine:
        engine.detach(NAME)
    clone(site, "copy")
    assert content(site, "copy") == now
    if name == "older":
        assert content_of_snapshot(site, "newest") == then


def test_a_merge_that_would_skip_a_layer_is_not_begun(site: RealSite, guest: DeviceGuest) -> None:
    attached(site, guest, RAW)
    for name in ("a", "b"):
        snapshot(site, name)
    with site.engine() as engine:
        volume = engine.volume(NAME)
        attachment = volume.attachments[0]
        files = [site.path.name, *(json.loads(s.provider_data)["file"] for s in reversed(volume.snapshots))]
        host = engine.site.host("here")
        assert isinstance(host, Layers)
        for wrong in (
            Merge(files[0], files[1], None, None),
            Merge(files[0], files[2], None, None),
            Merge("volume-2", files[1], files[2], "raw"),
        ):
            with pytest.raises(InvalidState, match="chain"):
                host.merge(volume, attachment, wrong)
    assert guest.execute("query-jobs") == []
    assert len(nodes(guest)) == 3


# at random, while a guest works


def extend_a_little(engine: Engine) -> None:
    engine.extend(NAME, engine.volume(NAME).size_bytes + MiB // 2)


def choose(volume: Volume, rng: random.Random, turn: int) -> Callable[[Engine], object]:
    """Choose what can be done with a volume of any number of snapshots."""
    acts: list[Callable[[Engine], object]] = [
        partial(Engine.delete_snapshot, name=each.name) for each in volume.snapshots
    ]
    if len(acts) < 4:
        acts += [partial(Engine.create_snapshot, volume_name=NAME, name=f"s{turn}")] * 2
    if volume.size_bytes < 512 * MiB:
        acts.append(extend_a_little)
    return rng.choice(acts)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kills", [0.0, 0.5], ids=["undisturbed", "killed"])
def test_whatever_is_done_the_guest_at_work_loses_nothing(
    site: RealSite, working: Working, rng: random.Random, tier: str, kills: float
) -> None:
    site.create(RAW)
    site.attach(working.directory / "guest.qmp")
    for turn in range({"quick": 5, "ci": 40, "full": 600}[tier]):
        act = choose(site.volume, rng, turn)

        def done(act: Callable[[Engine], object] = act) -> None:
            with site.engine() as engine:
                act(engine)

        if rng.random() < kills:
            child = Child(done)
            time.sleep(rng.uniform(0, 0.4))  # no waiting for anything: this is the moment
            child.kill()
            child.answer()
            with site.engine() as engine:
                assert [resumed.error for resumed in engine.resume()] in ([], [None])
        else:
            done()
        working.wait_for_work()
        seen = working.disk()
        assert (seen.problems, seen.errors) == ([], 0), f"turn {turn}, {act}"
    assert working.end() == 0
    site.check_steady(IN_USE, site.volume.size_bytes)
