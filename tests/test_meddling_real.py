"""What others do behind the records' back: to a volume's file, to its QEMU, to the configuration."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from realsite import (
    LARGE,
    NAME,
    QCOW2,
    RAW,
    SMALL,
    Kind,
    RealSite,
    attached,
    check_grown,
    check_untouched,
    disk_of,
    node_bytes,
)

from voldrivers import process
from voldrivers.errors import InvalidState, NotFound, VolDriverError
from voldrivers.guests.device import DeviceGuest
from voldrivers.model import VolumeStatus

pytestmark = pytest.mark.needs("qemu-system-x86_64", "qemu-img", "setpriv", "fallocate", "prlimit")
THIN = pytest.mark.parametrize("kind", [RAW, QCOW2], ids=lambda kind: kind.name)


@contextmanager
def refused(site: RealSite, guest: DeviceGuest, reason: str) -> Iterator[None]:
    """Have an extend, and the plan of one, be refused for this reason, with no layer touched."""
    shown, size_bytes = node_bytes(guest), site.file_bytes
    for act in ("plan", "extend"):
        with site.engine() as engine, pytest.raises(InvalidState, match=reason):
            getattr(engine, act)(NAME, LARGE)
    assert (node_bytes(guest), site.file_bytes, site.volume.status) == (
        shown,
        size_bytes,
        VolumeStatus.IN_USE,
    )
    yield


@THIN
def test_a_file_that_was_replaced_under_its_qemu_is_not_extended(
    site: RealSite, guest: DeviceGuest, kind: Kind
) -> None:
    attached(site, guest, kind)
    original, copy = site.path.with_name("original"), site.path.with_name("copy")
    shutil.copy(site.path, copy)
    site.path.rename(original)
    copy.rename(site.path)
    with refused(site, guest, "is of a file that is no longer"):
        original.rename(site.path)
    site.extend()
    check_grown(site, guest)


def test_a_share_that_moved_in_the_configuration_is_not_mistaken_for_the_attached_one(
    site: RealSite, guest: DeviceGuest
) -> None:
    attached(site, guest, RAW)
    moved = replace(site, share=site.share.with_name("share2"))
    shutil.copytree(site.share, moved.share)
    with refused(moved, guest, f"attached to here/guest from {site.path}"):
        pass
    check_untouched(site, guest)


def test_a_raw_disk_that_its_qemu_takes_for_qcow2_is_not_attached(site: RealSite) -> None:
    """A guest wrote the header; a QEMU that was started without a format believes it (CVE-2008-2004)."""
    site.create(RAW)
    forged = site.share / "forged"
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", str(forged), "1T"], timeout_s=20)
    with site.path.open("r+b") as file:
        file.write(forged.read_bytes())
    believing = ["-drive", f"if=none,id=d,file={site.path},format=qcow2", "-device", "virtio-blk-pci,drive=d"]
    with DeviceGuest(site.directory, arguments=believing) as guest:
        with pytest.raises(InvalidState, match="is opened as qcow2, must be opened as raw"):
            site.attach(guest.qmp_socket)
        assert (site.volume.status, site.volume.attachments) == (VolumeStatus.AVAILABLE, ())
    assert site.path.stat().st_size == SMALL


@pytest.mark.parametrize("act", ["extend", "repair"])
def test_a_file_that_was_cut_under_its_qemu_is_made_whole_again(
    site: RealSite, guest: DeviceGuest, act: str
) -> None:
    attached(site, guest, RAW)
    os.truncate(site.path, SMALL // 2)
    with site.engine() as engine:
        engine.extend(NAME, SMALL) if act == "extend" else engine.repair(NAME)
    site.check_steady(VolumeStatus.IN_USE, SMALL)
    assert "had only 2 MiB of 4 MiB: what was beyond is lost" in site.messages


@THIN
def test_a_file_larger_than_its_records_is_attached_and_kept(
    site: RealSite, guest: DeviceGuest, kind: Kind
) -> None:
    """As an extend leaves it that nobody has ended; the guest can use all of it."""
    site.create(kind)
    process.run(["qemu-img", "resize", "-f", kind.format, str(site.path), str(LARGE)], timeout_s=20)
    site.attach(guest.qmp_socket)
    assert (disk_of(site, guest).capacity_bytes(), site.volume.size_bytes) == (LARGE, SMALL)
    assert [row.layer for row in site.ledger if row.stale]
    site.extend(SMALL)
    site.check_steady(VolumeStatus.IN_USE, LARGE)
    assert "the backend had 8 MiB instead of 4 MiB: it is kept" in site.messages


def test_an_odd_size_is_brought_to_whole_sectors_when_it_is_attached(
    site: RealSite, guest: DeviceGuest
) -> None:
    site.create(RAW)
    os.truncate(site.path, LARGE + 1)
    with site.engine() as engine:
        engine.extend(NAME, SMALL)
        engine.attach(NAME, monitor=guest.qmp_socket)
        engine.repair(NAME)
    site.check_steady(VolumeStatus.IN_USE, LARGE + 512)


def test_a_second_disk_of_the_same_guest_is_brought_up_too(site: RealSite, guest: DeviceGuest) -> None:
    site.create(RAW, multi_attach=True)
    site.attach(guest.qmp_socket)
    node = {"node-name": "again", "driver": "raw", "file": {"driver": "file", "filename": str(site.path)}}
    guest.execute("blockdev-add", node)
    guest.execute("device_add", {"driver": "virtio-blk-pci", "id": "d2", "drive": "again", "share-rw": True})
    site.extend()
    assert node_bytes(guest) == [LARGE, LARGE]
    site.check_steady(VolumeStatus.IN_USE, LARGE)


# what is refused leaves nothing behind that is done later


def test_a_delete_that_is_refused_is_not_done_later(site: RealSite, guest: DeviceGuest) -> None:
    attached(site, guest, RAW)
    with site.engine() as engine:
        engine.detach(NAME, force=True)
        with pytest.raises(InvalidState, match="held by a QEMU"):
            engine.delete_volume(NAME)
        assert engine.volume(NAME).status is VolumeStatus.AVAILABLE
        guest.kill()
        assert engine.resume() == ()
    assert site.path.stat().st_size == SMALL


def test_a_create_that_the_share_refuses_is_not_done_later(site: RealSite) -> None:
    site.share.rename(site.share.with_name("elsewhere"))
    with pytest.raises(VolDriverError):
        site.create(RAW)
    site.share.with_name("elsewhere").rename(site.share)
    with site.engine() as engine:
        assert (engine.volumes(), engine.resume()) == ((), ())
    assert list(site.share.iterdir()) == []


def test_a_plan_refuses_what_a_forgotten_guest_still_holds(site: RealSite, guest: DeviceGuest) -> None:
    attached(site, guest, RAW)
    with site.engine() as engine:
        engine.detach(NAME, force=True)
        for act in (engine.plan, engine.extend):
            with pytest.raises(InvalidState, match="held by a QEMU"):
                act(NAME, LARGE)
        assert engine.last_extend(engine.volume(NAME)) is None


def test_a_detach_without_its_host_leaves_the_volume_attached(site: RealSite, guest: DeviceGuest) -> None:
    attached(site, guest, RAW)
    with site.engine() as engine:
        hosts = engine.site.hosts
        engine.site = replace(engine.site, hosts={})
        with pytest.raises(NotFound, match="host here does not exist"):
            engine.detach(NAME)
        engine.site = replace(engine.site, hosts=hosts)
        assert engine.volume(NAME).status is VolumeStatus.IN_USE


def test_an_attachment_without_an_instance_can_be_named_beside_others(
    site: RealSite, guest: DeviceGuest
) -> None:
    site.create(RAW, multi_attach=True)
    site.attach(guest.qmp_socket)
    site.attach(None)
    with site.engine() as engine:
        engine.detach(NAME, "here", "")
        assert [a.instance for a in engine.volume(NAME).attachments] == ["guest"]


def test_an_open_file_has_the_name_that_people_know(site: RealSite) -> None:
    site.create(QCOW2)
    with site.path.open("r+b") as file:
        file.seek(72)
        file.write((1 << 5).to_bytes(8, "big"))  # an incompatible feature that nobody knows
    with pytest.raises(VolDriverError) as caught:
        site.extend()
    assert "/proc/" not in str(caught.value)
    assert str(site.path) in str(caught.value)
