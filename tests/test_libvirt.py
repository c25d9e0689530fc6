"""Instances of a real libvirtd: found, plugged, extended in use, and refused where it would harm."""

import json
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from realsite import LARGE, NAME, QCOW2, RAW, SMALL, Kind, RealSite, check_filled, check_grown, disk_of, fill
from servicesite import ServiceSite

pytest.importorskip("libvirt", reason="libvirt-python is not installed; see `make setup`")

import libvirt
from libvirtsite import Domain, Libvirtd, LinuxDomain, running_libvirtd

from voldrivers import process
from voldrivers.errors import (
    BackendError,
    InvalidSize,
    InvalidState,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.filesystem import image_bytes
from voldrivers.host import blockdev, media
from voldrivers.host import libvirt as asked
from voldrivers.host.local import LocalHost
from voldrivers.host.media import DeviceMedium
from voldrivers.integrations.duties import Duties
from voldrivers.model import (
    Attachment,
    ConnectionInfo,
    Connector,
    Extend,
    InstanceState,
    Ledger,
    Phase,
    Volume,
    VolumeStatus,
    utc_now,
)
from voldrivers.options import read_options
from voldrivers.registry import load
from voldrivers.sizes import GiB, MiB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("/usr/sbin/libvirtd", "qemu-system-x86_64", "qemu-img", "setpriv", "unshare"),
]

VOLUME_ID = "0a4f5c3e-6f0b-4b1e-9d55-6c1f3f2f7a01"
CACHE = Path(__file__).parents[1] / "build" / "guest"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
RUNNING, STOPPED, UNKNOWN = InstanceState.RUNNING, InstanceState.STOPPED, InstanceState.UNKNOWN


@dataclass(frozen=True)
class Plugged:
    """A volume in a domain, with everything a test asks."""

    domain: Domain
    host: LocalHost
    volume: Volume
    attachment: Attachment

    @property
    def path(self) -> Path:
        return Path(str(self.attachment.device_path))

    @property
    def file_bytes(self) -> int:
        assert self.attachment.connection_info
        return image_bytes(self.path, self.attachment.connection_info.properties["format"])

    @property
    def guest_bytes(self) -> int:
        return self.domain.disk(VOLUME_ID).capacity_bytes()

    @property
    def state(self) -> InstanceState:
        return self.host.instance_state(self.attachment)

    def check(self) -> None:
        self.host.check_extend(self.volume, self.attachment)

    def assist(self, to_bytes: int, expires_in_s: float = 60) -> None:
        self.host.assist_extend(self.volume, self.attachment, extend_to(to_bytes, expires_in_s))

    def cancel(self) -> None:
        self.host.cancel(extend_to(2 * MiB), self.attachment)

    def rows(self, expected_bytes: int = MiB) -> Ledger:
        return self.host.ledger_rows(self.volume, self.attachment, expected_bytes)

    def shown_bytes(self) -> int | None:
        return self.rows()[0].observed_bytes

    @contextmanager
    def handle(self) -> Iterator[tuple[Any, str]]:
        """Give libvirt's handle and its name of the disk."""
        with self.domain.handle() as handle:
            yield handle, "vda"

    @property
    def xml(self) -> str:
        with self.domain.handle() as handle:
            return str(handle.XMLDesc())


def extend_to(to_bytes: int, expires_in_s: float = 60) -> Extend:
    expires_at = utc_now() + timedelta(seconds=expires_in_s)
    return Extend(1, VOLUME_ID, MiB, to_bytes, to_bytes, Phase.RESIZING, expires_at)


def local(daemon: Libvirtd, **options: object) -> LocalHost:
    limits: dict[str, object] = {"monitor_timeout_s": 1.0, "resize_timeout_s": 1.0, "unplug_timeout_s": 0.3}
    table = {"libvirt_uri": daemon.uri} | limits | options
    return LocalHost("here", read_options(LocalHost.options_type, table, "host here"), process.run)


def make_image(path: Path, image_format: str, *options: str) -> Path:
    path.unlink(missing_ok=True)
    process.run(["qemu-img", "create", "-q", "-f", image_format, *options, str(path), str(MiB)], timeout_s=20)
    return path


def plug(
    domain: Domain,
    path: Path,
    image_format: str = "raw",
    *,
    multi_attach: bool = False,
    volume_id: str = VOLUME_ID,
    **layers: str,
) -> Plugged:
    host = local(domain.daemon, resize_timeout_s=10.0)
    info = ConnectionInfo("file", {"path": str(path), "format": image_format, **layers})
    found = host.find_instance(Attachment("a1", volume_id, "here", instance=domain.uuid))
    attachment = replace(found, connection_info=info, device_path=str(path))
    volume = Volume(volume_id, "v", "b", MiB, attachments=(attachment,), multi_attach=multi_attach)
    host.plug(volume, attachment)
    return Plugged(domain, local(domain.daemon), volume, attachment)


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    with running_libvirtd() as daemon:
        yield daemon


@pytest.fixture
def daemon(libvirtd: Libvirtd) -> Libvirtd:
    """Give the daemon, alive whatever the test before did to it."""
    if libvirtd.process.poll() is not None:
        libvirtd.start()
    return libvirtd


@pytest.fixture
def domain(daemon: Libvirtd) -> Iterator[Domain]:
    with Domain(daemon) as running:
        yield running


@pytest.fixture
def raw(domain: Domain) -> Plugged:
    return plug(domain, make_image(domain.directory / "v.raw", "raw"))


@pytest.fixture
def qcow2(domain: Domain) -> Plugged:
    return plug(domain, make_image(domain.directory / "v.qcow2", "qcow2"), "qcow2")


@pytest.fixture(params=["raw", "qcow2"])
def plugged(request: pytest.FixtureRequest) -> Plugged:
    found: Plugged = request.getfixturevalue(request.param)
    return found


def refused(acts: Plugged, match: str) -> None:
    """Have an extend refused at admission and right before the act, with nothing done."""
    before = acts.file_bytes
    for act in (acts.check, lambda: acts.assist(4 * MiB)):
        with pytest.raises(InvalidState, match=match):
            act()
    assert acts.file_bytes == before


# finding


def test_a_domain_is_found_by_uuid_and_by_name_and_its_qemu_is_known(domain: Domain) -> None:
    host = local(domain.daemon)
    by_uuid, by_name = (
        host.find_instance(Attachment("a", "v", "here", instance=name)) for name in (domain.uuid, domain.name)
    )
    assert replace(by_uuid, instance=domain.name) == by_name
    assert by_name.monitor == f"libvirt:{domain.daemon.uri}"
    assert by_name.instance_process == f"{domain.uuid} {domain.identity}"


@pytest.mark.parametrize("name", ["nobody", "00000000-1111-2222-3333-444444444444", "../guest", ""])
def test_an_instance_that_libvirt_does_not_know_is_not_found(daemon: Libvirtd, name: str) -> None:
    for options in ({}, {"qmp_dir": "/no/such/directory"}):
        with pytest.raises(NotFound):
            local(daemon, **options).find_instance(Attachment("a", "v", "here", instance=name))


def test_a_domain_that_is_shut_off_is_refused(daemon: Libvirtd) -> None:
    with Domain(daemon, kept=True) as domain:
        domain.destroy()
        with pytest.raises(InvalidState, match=r"shutoff \(destroyed\), must be running"):
            local(daemon).find_instance(Attachment("a", "v", "here", instance=domain.name))


def test_a_qmp_socket_comes_before_libvirt(domain: Domain, ram_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(ram_path / f"{domain.name}.qmp"))
        with pytest.raises(InvalidState, match=r"monitor .*\.qmp"):
            local(domain.daemon, qmp_dir=str(ram_path)).find_instance(Attachment("a", "v", "h", domain.name))


def test_without_any_monitor_nothing_grows(raw: Plugged) -> None:
    bare = LocalHost("here", read_options(LocalHost.options_type, {}, "host here"), process.run)
    unknown = replace(raw.attachment, monitor=None)
    for attachment, reason in ((unknown, "has no monitor"), (raw.attachment, "not the libvirt_uri")):
        for act in (bare.check_extend, lambda v, a: bare.assist_extend(v, a, extend_to(2 * MiB))):
            with pytest.raises(NotSupported, match=reason):
                act(raw.volume, attachment)
    with pytest.raises(NotSupported, match="neither qmp_dir nor libvirt_uri"):
        bare.find_instance(Attachment("a", "v", "here", instance="guest"))
    assert (raw.file_bytes, raw.guest_bytes) == (MiB, MiB)


def test_only_the_connection_of_this_host_is_ever_opened(raw: Plugged, ram_path: Path) -> None:
    """A URI can name a program to run, and attachments come over the network."""
    evil = f"qemu+ext:///system?command=/usr/bin/touch%20{ram_path}/ran"
    attachment = replace(raw.attachment, monitor=f"libvirt:{evil}")
    with pytest.raises(NotSupported, match="not the libvirt_uri"):
        raw.host.check_extend(raw.volume, attachment)


def test_without_the_library_the_extra_is_named(daemon: Libvirtd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(NotSupported, match=r"pip install 'voldrivers\[libvirt\]'"):
        local(daemon).find_instance(Attachment("a", "v", "here", instance="guest"))


def test_libvirt_prints_nothing_of_its_own(daemon: Libvirtd) -> None:
    """In a process of its own: here the tests have silenced it."""
    code = (
        "from voldrivers.errors import NotFound\n"
        "from voldrivers.host.libvirt import Connection\n"
        f"with Connection({daemon.uri!r}, 5.0) as connection:\n"
        "    try: connection.domain('nobody')\n"
        "    except NotFound: print('not found')\n"
    )
    done = process.run([sys.executable, "-c", code], timeout_s=20)
    assert (done.stdout, done.stderr) == ("not found\n", "")


# plugging


def test_plugging_twice_is_plugging_once(plugged: Plugged) -> None:
    plugged.host.plug(plugged.volume, plugged.attachment)
    assert [(disk.serial, disk.capacity_bytes()) for disk in plugged.domain.disks()] == [
        (VOLUME_ID[:20], MiB)
    ]
    assert f"type='{plugged.path.suffix[1:]}' cache='none' io='threads'" in plugged.xml


def test_a_second_volume_gets_the_next_place(raw: Plugged) -> None:
    path = make_image(raw.domain.directory / "second.raw", "raw")
    second = plug(raw.domain, path, volume_id="another")
    assert sorted(disk.serial for disk in raw.domain.disks()) == [VOLUME_ID[:20], "another"]
    second.host.assist_extend(second.volume, second.attachment, extend_to(2 * MiB))
    assert (path.stat().st_size, raw.file_bytes) == (2 * MiB, MiB)


def test_no_header_is_believed(domain: Domain) -> None:
    """Neither what a guest wrote into a raw disk, nor what the lowest layer says that it lies on."""
    secret, base = domain.directory / "secret", domain.directory / "base"
    secret.write_bytes(b"S" * MiB)
    make_image(base, "qcow2", "-u", "-b", str(secret), "-F", "raw")
    as_raw = plug(domain, base)
    assert domain.disk(VOLUME_ID).read(0)[:4] == b"QFI\xfb"
    unplug_with_guest(as_raw)
    as_qcow2 = plug(domain, base, "qcow2")
    assert domain.disk(VOLUME_ID).read(0) == bytes(512)
    unplug_with_guest(as_qcow2)
    over = make_image(domain.directory / "over", "qcow2", "-u", "-b", str(secret), "-F", "raw")
    layered = plug(domain, over, "qcow2", layers=json.dumps([["base", "qcow2"]]))
    assert domain.disk(VOLUME_ID).read(0) == bytes(512)
    layered.assist(2 * MiB)
    assert (layered.guest_bytes, layered.file_bytes) == (2 * MiB, 2 * MiB)


def unplug_with_guest(plugged: Plugged) -> None:
    with ThreadPoolExecutor() as threads:
        released = threads.submit(plugged.domain.eject)
        local(plugged.domain.daemon, resize_timeout_s=10.0).unplug(plugged.volume, plugged.attachment)
        released.result()


def test_a_guest_that_lets_go_loses_disk_and_file(qcow2: Plugged) -> None:
    unplug_with_guest(qcow2)
    assert qcow2.domain.disks() == []
    process.run(["qemu-img", "resize", "-f", "raw", str(qcow2.path), str(4 * MiB)], timeout_s=20)
    qcow2.host.unplug(qcow2.volume, qcow2.attachment)


def test_a_guest_that_keeps_the_disk_is_named(raw: Plugged) -> None:
    host = local(raw.domain.daemon, resize_timeout_s=10.0)
    with pytest.raises(InvalidState, match="kept by the guest"):
        host.unplug(raw.volume, raw.attachment)
    assert raw.shown_bytes() == MiB


def test_a_disk_of_somebody_else_is_used_and_not_unplugged(domain: Domain) -> None:
    path = make_image(domain.directory / "v.raw", "raw")
    attach_by_hand(domain, path, "raw")
    foreign = plug(domain, path)
    foreign.assist(2 * MiB)
    assert [disk.capacity_bytes() for disk in domain.disks()] == [2 * MiB]
    with pytest.raises(InvalidState, match="unplugged by who plugged it"):
        foreign.host.unplug(foreign.volume, foreign.attachment)


def attach_by_hand(domain: Domain, path: Path, image_format: str, more: str = "") -> None:
    with domain.handle() as handle:
        handle.attachDeviceFlags(
            f"<disk type='file' device='disk'><driver name='qemu' type='{image_format}'/>"
            f"<source file='{path}'/><backingStore/><target dev='vda' bus='virtio'/>{more}</disk>",
            libvirt.VIR_DOMAIN_AFFECT_LIVE,
        )


def test_a_second_domain_gets_the_file_only_when_it_is_shared(daemon: Libvirtd) -> None:
    path = make_image(daemon.directory / "v.raw", "raw")
    with Domain(daemon) as one, Domain(daemon) as two:
        first = plug(one, path)
        with pytest.raises(InvalidState, match="lock"):
            plug(two, path)
        unplug_with_guest(first)
        shared = [plug(each, path, multi_attach=True) for each in (one, two)]
        shared[0].assist(2 * MiB)
        assert [each.shown_bytes() for each in shared] == [2 * MiB, MiB]
        shared[1].assist(2 * MiB)
        assert [each.guest_bytes for each in shared] == [2 * MiB, 2 * MiB]


def test_a_held_instance_is_not_plugged(raw: Plugged) -> None:
    with raw.host.hold(raw.attachment), pytest.raises(InvalidState, match="held by another voldrivers"):
        raw.host.plug(raw.volume, raw.attachment)


def test_a_libvirtd_killed_while_it_attaches_leaves_the_outcome_unknown(
    raw: Plugged, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_image(raw.domain.directory / "second.raw", "raw")
    with monkeypatch.context() as patched:
        before(patched, "attach", raw.domain.daemon.kill)
        with pytest.raises(OutcomeUnknown, match="the connection to libvirt broke"):
            plug(raw.domain, path, volume_id="another")
    raw.domain.daemon.start()
    plug(raw.domain, path, volume_id="another")
    assert len(raw.domain.disks()) == 2


# the extend


def test_the_guest_sees_the_new_size_and_can_use_all_of_it(plugged: Plugged) -> None:
    disk = plugged.domain.disk(VOLUME_ID)
    disk.write(0, b"old!" * 128)
    plugged.check()
    plugged.assist(3 * MiB)
    assert (disk.config_changed(), disk.capacity_bytes()) == (True, 3 * MiB)
    assert (disk.read(0), disk.read(3 * MiB // 512 - 1)) == (b"old!" * 128, bytes(512))
    disk.write(3 * MiB // 512 - 1, b"new!" * 128)
    assert disk.read(3 * MiB // 512 - 1) == b"new!" * 128
    assert (plugged.shown_bytes(), plugged.file_bytes) == (3 * MiB, 3 * MiB)
    assert plugged.host.get_blockdev(plugged.volume, plugged.attachment) == 3 * MiB
    assert "urn:voldrivers" not in plugged.xml


@AS_ROOT
def test_a_block_device_that_has_grown_is_shown_to_the_guest(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_image(domain.directory / "v.raw", "raw")
    device = process.run(["losetup", "--find", "--show", str(path)], timeout_s=10).stdout.strip()
    monkeypatch.setattr(media, "medium_of", lambda run, attachment: LoopMedium(run, Path(device), "raw"))
    try:
        found = plug(domain, Path(device))
        assert "cache='none' io='native'" in found.xml
        assert f"<source dev='{device}'" in found.xml
        with pytest.raises((InvalidState, BackendError)):
            found.assist(2 * MiB)  # the device has not grown yet
        os.truncate(path, 2 * MiB)
        process.run(["losetup", "--set-capacity", device], timeout_s=10)
        assert found.guest_bytes == MiB
        found.assist(2 * MiB)
        assert (found.guest_bytes, found.shown_bytes()) == (2 * MiB, 2 * MiB)
        found.assist(MiB)
        assert found.guest_bytes == 2 * MiB
    finally:
        domain.destroy()
        process.run(["losetup", "--detach", device], timeout_s=10)


class LoopMedium(DeviceMedium):
    """A loop device in the place of one from a target."""

    def check_works(self) -> None:
        pass

    def size_bytes(self) -> int:
        return blockdev.device_bytes(str(self.path))

    def rescan(self) -> None:
        pass

    def rows(self, place: str, expected_bytes: int) -> Ledger:
        return ()


def test_nothing_is_ever_cut(plugged: Plugged) -> None:
    for to_bytes in (2 * MiB, MiB, 512, 1):
        plugged.assist(to_bytes)
        assert (plugged.shown_bytes(), plugged.file_bytes) == (2 * MiB, 2 * MiB)


@pytest.mark.parametrize(("grown_bytes", "then_bytes"), [(4 * MiB, 4 * MiB), (4 * MiB + 1, 4 * MiB + 512)])
def test_a_file_grown_behind_the_back_of_qemu_is_never_cut(
    raw: Plugged, grown_bytes: int, then_bytes: int
) -> None:
    os.truncate(raw.path, grown_bytes)
    assert raw.shown_bytes() == MiB  # QEMU's own figure, not libvirt's look at the file
    raw.assist(2 * MiB)
    assert (raw.shown_bytes(), raw.file_bytes) == (then_bytes, then_bytes)


def test_a_qcow2_grown_behind_the_back_of_qemu_is_never_cut(qcow2: Plugged) -> None:
    with qcow2.path.open("r+b") as image:
        image.seek(24)
        image.write((4 * MiB).to_bytes(8, "big"))
    assert qcow2.shown_bytes() == MiB
    qcow2.assist(2 * MiB)
    assert (qcow2.shown_bytes(), qcow2.file_bytes) == (4 * MiB, 4 * MiB)


def test_a_disk_is_not_cut_to_a_file_that_somebody_cut(raw: Plugged) -> None:
    raw.assist(4 * MiB)
    os.truncate(raw.path, MiB)
    raw.assist(2 * MiB)
    assert (raw.shown_bytes(), raw.file_bytes) == (4 * MiB, 4 * MiB)


def test_an_expired_extend_is_refused_with_nothing_done(qcow2: Plugged) -> None:
    with pytest.raises(InvalidState, match="expired"):
        qcow2.assist(2 * MiB, expires_in_s=-1)
    assert (qcow2.shown_bytes(), qcow2.file_bytes) == (MiB, MiB)
    assert "urn:voldrivers" not in qcow2.xml


def test_a_size_that_the_file_system_cannot_hold_is_refused(raw: Plugged) -> None:
    resource.prlimit(raw.domain.qemu_pid, resource.RLIMIT_FSIZE, (2 * MiB, 2 * MiB))
    with pytest.raises(InvalidSize, match="File too large"):
        raw.assist(3 * MiB)
    assert (raw.shown_bytes(), raw.file_bytes) == (MiB, MiB)
    assert "urn:voldrivers" not in raw.xml


def test_a_resize_that_did_nothing_is_found_out(raw: Plugged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked.Domain, "resize", lambda *_: None)
    with pytest.raises(BackendError, match=r"said 2 MiB, but it is 1 MiB"):
        raw.assist(2 * MiB)


def test_a_paused_guest_can_be_extended(qcow2: Plugged) -> None:
    with qcow2.domain.handle() as handle:
        handle.suspend()
    qcow2.check()
    qcow2.assist(2 * MiB)
    assert (qcow2.guest_bytes, qcow2.state) == (2 * MiB, RUNNING)


# what is in the way


def test_a_guest_that_is_being_backed_up_is_never_asked(raw: Plugged) -> None:
    at, scratch = raw.domain.directory / "nbd", raw.domain.directory / "scratch"
    backup = f"<domainbackup mode='pull'><server transport='unix' socket='{at}'/><disks>"
    backup += f"<disk name='vda' type='file'><scratch file='{scratch}'/></disk></disks></domainbackup>"
    with raw.domain.handle() as handle:
        handle.backupBegin(backup, None)
        refused(raw, "busy with a backup job")
        handle.abortJob()
        process.wait_until(lambda: handle.jobStats()["type"] == libvirt.VIR_DOMAIN_JOB_NONE, 5, "its end")
    raw.assist(2 * MiB)


def test_a_guest_that_is_being_saved_is_never_asked(raw: Plugged) -> None:
    """Saving is a migration to a file; this one fills a pipe that nobody empties."""
    raw.domain.fill_memory()
    pipe = raw.domain.directory / "saved"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with ThreadPoolExecutor(1) as beside, raw.domain.handle() as handle:
        try:
            saved = beside.submit(handle.save, str(pipe))
            under_way = (libvirt.VIR_DOMAIN_JOB_UNBOUNDED, libvirt.VIR_DOMAIN_JOB_BOUNDED)
            with raw.domain.handle() as other:
                process.wait_until(lambda: other.jobInfo()[0] in under_way, 10, "the saving to begin")
                refused(raw, "paused|busy")
                assert raw.state is RUNNING
                other.abortJob()
        finally:
            os.close(reader)
        with pytest.raises(libvirt.libvirtError):
            saved.result(20)
    raw.assist(2 * MiB)
    assert raw.guest_bytes == 2 * MiB


def test_a_block_job_in_the_way_is_named(domain: Domain) -> None:
    path, copy = domain.directory / "v.raw", domain.directory / "copy.raw"
    path.write_bytes(os.urandom(8 * MiB))
    copy.write_bytes(bytes(8 * MiB))
    raw = plug(domain, path)
    target = f"<disk type='file'><source file='{copy}'/><driver type='raw'/></disk>"
    with domain.handle() as handle:
        flags = libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB | libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
        handle.blockCopy("vda", target, {"bandwidth": 1}, flags)
        refused(raw, "disk vda is in use by a copy job")
        handle.blockJobAbort("vda")
    raw.assist(9 * MiB)
    assert raw.shown_bytes() == 9 * MiB


@pytest.mark.parametrize(
    ("image_format", "more", "match"),
    [("raw", "<readonly/>", "is read-only"), ("qcow2", "", "opened as qcow2, must be opened as raw")],
)
def test_a_disk_that_is_not_the_volume_to_be_written_is_refused(
    domain: Domain, image_format: str, more: str, match: str
) -> None:
    path = make_image(domain.directory / "v", "qcow2")
    attach_by_hand(domain, path, image_format, more)
    info = ConnectionInfo("file", {"path": str(path), "format": "raw"})
    found = local(domain.daemon).find_instance(Attachment("a1", VOLUME_ID, "here", instance=domain.name))
    attachment = replace(found, connection_info=info, device_path=str(path))
    refused(Plugged(domain, local(domain.daemon), Volume(VOLUME_ID, "v", "b", MiB), attachment), match)


def test_a_volume_that_is_elsewhere_by_now_is_refused(raw: Plugged) -> None:
    over = raw.domain.directory / "over.qcow2"
    snapshot = (
        f"<domainsnapshot><disks><disk name='vda'><source file='{over}'/></disk></disks></domainsnapshot>"
    )
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    with raw.domain.handle() as handle:
        handle.snapshotCreateXML(snapshot, flags)
    refused(raw, r"stored in .*over.qcow2, must be stored in")
    over.unlink()


def test_a_file_that_was_replaced_is_refused(raw: Plugged) -> None:
    raw.path.rename(raw.path.with_name("moved"))
    make_image(raw.path, "raw")
    refused(raw, "of a file that is no longer")


def test_a_volume_that_is_not_there_is_refused(raw: Plugged) -> None:
    unplug_with_guest(raw)
    refused(raw, "is not in the instance")


# layers


def overlay_of(acts: Plugged, size_bytes: int = MiB) -> ConnectionInfo:
    """Make an overlay over the volume; give how a host reaches it."""
    assert acts.attachment.connection_info
    image_format = acts.attachment.connection_info.properties["format"]
    path = acts.path.with_name("over")
    over = ["-b", acts.path.name, "-F", image_format]
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", *over, str(path), str(size_bytes)], timeout_s=20)
    return ConnectionInfo("file", {"path": str(path), "format": "qcow2"})


def switched(acts: Plugged, info: ConnectionInfo) -> Plugged:
    path = acts.host.switch(acts.volume, acts.attachment, info)
    attachment = replace(acts.attachment, connection_info=info, device_path=path)
    return replace(acts, attachment=attachment)


def test_an_overlay_is_laid_over_a_disk_once(plugged: Plugged) -> None:
    disk, other = plugged.domain.disk(VOLUME_ID), plugged.domain.directory / "other.raw"
    plug(plugged.domain, make_image(other, "raw"), volume_id=VOLUME_ID[::-1])
    disk.write(0, b"b" * 512)
    then = switched(plugged, overlay_of(plugged))
    assert then.attachment.connection_info
    assert switched(plugged, then.attachment.connection_info) == then
    disk.write(0, b"a" * 512)
    assert disk.read(0, 1) == b"a" * 512
    assert f"source file='{then.path}'" in then.xml
    assert f"source file='{other}'" in then.xml
    assert "urn:voldrivers" not in then.xml
    then.assist(2 * MiB)
    assert (then.file_bytes, then.guest_bytes, plugged.file_bytes) == (2 * MiB, 2 * MiB, MiB)
    unplug_with_guest(then)


def test_an_overlay_of_another_size_is_refused(raw: Plugged) -> None:
    with pytest.raises(InvalidState, match="must be of one size"):
        switched(raw, overlay_of(raw, 2 * MiB))
    assert "over" not in raw.xml


def test_an_overlay_that_is_none_leaves_the_disk_as_it_was(raw: Plugged) -> None:
    info = overlay_of(raw)
    raw.path.with_name("over").write_bytes(b"no qcow2" * 1000)
    with pytest.raises(VolDriverError):
        switched(raw, info)
    assert "over" not in raw.xml
    raw.check()


@pytest.mark.parametrize("end", ["killed", "libvirtd killed", "frozen"])
def test_an_end_while_an_overlay_is_laid_over_is_told(
    raw: Plugged, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr("voldrivers.host.domain._JOB_WAIT_S", 0.1)
    info = overlay_of(raw)
    with ExitStack() as frozen, monkeypatch.context() as patched:
        ends: dict[str, Callable[[], object]] = {
            "killed": partial(os.kill, raw.domain.qemu_pid, signal.SIGKILL),
            "libvirtd killed": raw.domain.daemon.kill,
            "frozen": lambda: frozen.enter_context(raw.domain.frozen()),
        }
        before(patched, "lay_over", ends[end])
        with pytest.raises((OutcomeUnknown, InvalidState)):
            switched(raw, info)
    if end == "libvirtd killed":
        raw.domain.daemon.start()
    if end != "killed":
        assert f"source file='{raw.path.with_name('over')}'" in switched(raw, info).xml


# what is known of an instance


@pytest.mark.parametrize(("kept", "end"), [(True, "destroyed"), (False, "killed")])
def test_a_domain_that_has_ended_is_stopped_with_proof(daemon: Libvirtd, kept: bool, end: str) -> None:
    with Domain(daemon, kept=kept) as domain:
        raw = plug(domain, make_image(daemon.directory / "v.raw", "raw"))
        assert raw.state is RUNNING
        if end == "destroyed":
            domain.destroy()
        else:
            os.kill(domain.qemu_pid, signal.SIGKILL)
        process.wait_until(lambda: raw.state is STOPPED, 5, "libvirt to notice")
        raw.check()
        raw.cancel()
        raw.host.unplug(raw.volume, raw.attachment)
        assert raw.rows() == ()
        with pytest.raises((InvalidState, NotFound)):
            raw.assist(2 * MiB)
        assert raw.file_bytes == MiB


@pytest.fixture
def kept(daemon: Libvirtd) -> Iterator[Plugged]:
    """Give a volume in a domain that libvirt knows also when it does not run."""
    with Domain(daemon, kept=True) as domain:
        yield plug(domain, make_image(daemon.directory / "v.raw", "raw"))


def test_libvirts_word_is_no_proof_while_the_qemu_lives(raw: Plugged, kept: Plugged) -> None:
    """A record that names a living process is believed more than libvirt."""
    myself = process.identity(os.getpid())
    for plugged, of_unknown in ((kept, STOPPED), (raw, UNKNOWN)):
        plugged.domain.destroy()
        for known, state in ((myself, UNKNOWN), ("", of_unknown)):
            process_known = f"{plugged.domain.uuid} {known}".strip()
            attachment = replace(plugged.attachment, instance_process=process_known)
            assert plugged.host.instance_state(attachment) is state


def test_a_domain_started_anew_is_running_without_the_volume(kept: Plugged) -> None:
    kept.domain.destroy()
    with kept.domain.handle() as handle:
        handle.create()
        assert kept.state is RUNNING
        refused(kept, "is not in the instance")
        handle.destroy()


def unreachable(found: Plugged) -> None:
    raw = replace(found, host=local(found.domain.daemon, monitor_timeout_s=0.3))
    began = time.monotonic()
    assert raw.state is UNKNOWN
    for act in (raw.check, lambda: raw.assist(2 * MiB)):
        with pytest.raises(InvalidState, match="libvirt at"):
            act()
    with pytest.raises(OutcomeUnknown):
        raw.cancel()
    (row,) = raw.rows()
    assert (row.observed_bytes, row.required, "libvirt at" in row.note) == (None, True, True)
    assert time.monotonic() - began < 5
    assert raw.file_bytes == MiB


def test_a_killed_libvirtd_proves_nothing_and_a_new_one_goes_on(raw: Plugged) -> None:
    raw.domain.daemon.kill()
    unreachable(raw)
    raw.domain.daemon.start()
    raw.assist(2 * MiB)
    assert (raw.guest_bytes, raw.file_bytes) == (2 * MiB, 2 * MiB)


def test_a_frozen_libvirtd_is_an_error_in_time(raw: Plugged) -> None:
    with raw.domain.daemon.frozen():
        unreachable(raw)
    raw.assist(2 * MiB)
    assert raw.guest_bytes == 2 * MiB


def test_calls_that_hang_are_refused_when_they_are_too_many(
    raw: Plugged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voldrivers.host.limited._HANGING_AT_MOST", 1)
    with raw.domain.daemon.frozen():
        assert raw.state is UNKNOWN
        threads, began = threading.active_count(), time.monotonic()
        assert raw.state is UNKNOWN
        assert (threading.active_count(), time.monotonic() - began < 0.5) == (threads, True)
    process.wait_until(lambda: raw.state is RUNNING, 5, "the thread that hung to end")


# an outcome that is not known


def before(monkeypatch: pytest.MonkeyPatch, method: str, act: Callable[[], object]) -> None:
    """Have something happen right before libvirt is asked for one thing."""
    asking = getattr(asked.Domain, method)

    def acting(*arguments: object) -> None:
        act()
        asking(*arguments)

    monkeypatch.setattr(asked.Domain, method, acting)


def test_a_frozen_qemu_leaves_the_outcome_unknown_until_the_fence(
    qcow2: Plugged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voldrivers.host.domain._JOB_WAIT_S", 0.1)
    with ExitStack() as frozen:
        before(monkeypatch, "resize", lambda: frozen.enter_context(qcow2.domain.frozen()))
        with pytest.raises(OutcomeUnknown, match="did not answer within 1 second"):
            qcow2.assist(2 * MiB)
        assert qcow2.file_bytes == MiB
        with pytest.raises(OutcomeUnknown):
            qcow2.cancel()
    monkeypatch.undo()
    monkeypatch.setattr("voldrivers.host.domain._JOB_WAIT_S", 0.1)
    qcow2.cancel()
    # What was sent has taken effect by now, not later.
    assert (qcow2.file_bytes, qcow2.guest_bytes) == (2 * MiB, 2 * MiB)
    assert "urn:voldrivers" not in qcow2.xml
    qcow2.assist(3 * MiB)
    assert qcow2.guest_bytes == 3 * MiB


def test_a_frozen_libvirtd_leaves_the_outcome_unknown_until_the_fence(
    raw: Plugged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voldrivers.host.domain._JOB_WAIT_S", 0.1)
    with ExitStack() as frozen, monkeypatch.context() as patched:
        before(patched, "resize", lambda: frozen.enter_context(raw.domain.daemon.frozen()))
        began = time.monotonic()
        with pytest.raises(OutcomeUnknown, match="did not answer"):
            raw.assist(2 * MiB)
        assert time.monotonic() - began < 1.9  # one limit, not another one for the disconnecting
        with pytest.raises(OutcomeUnknown):
            raw.cancel()
    raw.cancel()
    assert (raw.file_bytes, raw.guest_bytes) == (2 * MiB, 2 * MiB)


def test_who_finds_a_mark_waits_until_nobody_can_wait_for_the_domain(
    raw: Plugged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill: nothing is known of the process that sent it, nor of its request."""
    waited: list[float] = []
    monkeypatch.setattr("voldrivers.host.domain.time.sleep", waited.append)
    before(monkeypatch, "resize", partial(die, "killed here"))
    with pytest.raises(RuntimeError, match="killed here"):
        raw.assist(2 * MiB)
    assert "urn:voldrivers" in raw.xml
    raw.domain.daemon.kill()
    raw.domain.daemon.start()
    raw.cancel()
    assert waited == [31.0]
    assert "urn:voldrivers" not in raw.xml
    raw.cancel()
    assert waited == [31.0]


def die(reason: str) -> None:
    raise RuntimeError(reason)


@pytest.mark.parametrize("end", ["destroyed", "killed", "libvirtd killed"])
def test_an_end_in_the_middle_is_told(raw: Plugged, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    ends: dict[str, Callable[[], object]] = {
        "destroyed": raw.domain.destroy,
        "killed": partial(os.kill, raw.domain.qemu_pid, signal.SIGKILL),
        "libvirtd killed": raw.domain.daemon.kill,
    }
    with monkeypatch.context() as patched:
        before(patched, "resize", ends[end])
        with pytest.raises((OutcomeUnknown, InvalidState)):
            raw.assist(2 * MiB)
    if end == "libvirtd killed":
        assert raw.state is UNKNOWN
        return
    process.wait_until(lambda: raw.state is STOPPED, 5, "libvirt to notice")
    raw.cancel()
    assert raw.file_bytes == MiB


# all together


@pytest.mark.parametrize("kind", [RAW, QCOW2], ids=lambda kind: kind.name)
def test_a_file_in_use_is_extended_by_the_engine(daemon: Libvirtd, domain: Domain, kind: Kind) -> None:
    site = site_of(daemon)
    site.create(kind)
    with site.engine() as engine:
        attachment = engine.attach(NAME, instance=domain.name)
    assert attachment.place == f"here/{domain.name}"
    fill(disk_of(site, domain), SMALL)
    extend = site.extend()
    assert (extend.phase, extend.deferred) == (Phase.COMPLETED, True)
    check_grown(site, domain)
    domain.destroy()
    assert not site.extend(LARGE + MiB).deferred
    with site.engine() as engine:
        engine.detach(NAME)
    site.check_steady(VolumeStatus.AVAILABLE, LARGE + MiB)


@pytest.mark.parametrize("kind", [RAW, QCOW2], ids=lambda kind: kind.name)
def test_a_snapshot_of_a_file_in_use_is_what_it_was(daemon: Libvirtd, domain: Domain, kind: Kind) -> None:
    site = site_of(daemon)
    site.create(kind)
    with site.engine() as engine:
        engine.attach(NAME, instance=domain.name)
        disk = disk_of(site, domain)
        fill(disk, SMALL)
        first = engine.create_snapshot(NAME, "first")
        disk.write(0, b"later".ljust(512, b"."))
        engine.create_snapshot(NAME, "second")
    assert site.extend().phase is Phase.COMPLETED
    assert disk.capacity_bytes() == LARGE
    with site.engine() as engine:
        copy = engine.clone_volume("copy", None, first.id)
        assert copy.size_bytes == SMALL
        engine.attach("copy", instance=domain.name)
        check_filled(domain.disk(copy.id), SMALL)
        assert disk.read(0, 1) == b"later".ljust(512, b".")
        with pytest.raises(NotSupported, match="merged over a QMP socket only"):
            engine.delete_snapshot(first.id)
    site.check_steady(VolumeStatus.IN_USE, LARGE)
    domain.destroy()
    with site.engine() as engine:
        engine.detach(NAME)
        engine.delete_snapshot(first.id)
        assert [each.name for each in engine.volume(NAME).snapshots] == ["second"]
    site.check_steady(VolumeStatus.AVAILABLE, LARGE)


def test_a_platform_copies_nothing_by_a_snapshot_that_would_stay(daemon: Libvirtd, domain: Domain) -> None:
    directory = daemon.directory / f"platform-{time.monotonic_ns()}"
    (directory / "share").mkdir(parents=True)
    (directory / "v.toml").write_text(
        'state_dir = "state"\n[backend.files]\ndriver = "nfs"\nshare = "share"\n'
        f'[host.here]\nkind = "local"\nlibvirt_uri = "{daemon.uri}"\n'
    )
    duties = Duties(load(directory / "v.toml"), "files")
    empty = Volume(VOLUME_ID, "v", "files", MiB)
    volume = replace(empty, provider_data=duties.create_volume(empty, {}))
    duties.check_copy(volume)
    plug(domain, directory / "share" / f"volume-{VOLUME_ID}")
    attached = Attachment("a1", VOLUME_ID, "here", domain.uuid, connector=Connector("here"))
    with pytest.raises(NotSupported, match="its snapshot would stay"):
        duties.check_copy(replace(volume, attachments=(attached,)))


@pytest.mark.parametrize("by_events", [False, True], ids=["assist_extend", "volume-extended"])
def test_the_services_extend_a_file_that_a_domain_has(
    daemon: Libvirtd, domain: Domain, by_events: bool
) -> None:
    with tempfile.TemporaryDirectory(dir=daemon.directory) as name:
        site = ServiceSite(Path(name), by_events=by_events, agent_keys=f'libvirt_uri = "{daemon.uri}"\n')
        try:
            volume_id = site.create(volume_type="files")
            attachment = site.attach(volume_id, domain)
            fill(site.disk(volume_id, domain), GiB)
            site.extend(volume_id, 2)
            assert site.wait(volume_id, "in-use")["size"] == 2
            assert site.disk(volume_id, domain).capacity_bytes() == 2 * GiB == site.file_bytes(volume_id)
            site.detach(attachment, domain)
            site.done("DELETE", f"volumes/{volume_id}")
        finally:
            site.end()


def site_of(daemon: Libvirtd) -> RealSite:
    directory = daemon.directory / f"site-{time.monotonic_ns()}"
    (directory / "share").mkdir(parents=True)

    def make_host(run: object) -> LocalHost:
        return local(daemon, monitor_timeout_s=5.0, resize_timeout_s=10.0)

    return RealSite(directory, directory / "share", make_host=make_host)


def test_a_real_kernel_and_its_agent_see_the_new_size(daemon: Libvirtd) -> None:
    with LinuxDomain(daemon, CACHE) as guest:
        raw = plug(guest, make_image(daemon.directory / "v.raw", "raw"))
        process.wait_until(lambda: "vda" in guest.shell("ls /sys/block"), 10, "the disk in the guest")
        raw.assist(8 * MiB)
        assert int(guest.shell("cat /sys/block/vda/size")) * 512 == 8 * MiB
        assert [(row.layer, row.observed_bytes, row.note) for row in raw.rows(8 * MiB)] == [
            ("QEMU node", 8 * MiB, "vda"),
            ("guest", 8 * MiB, ""),
        ]
        local(daemon, resize_timeout_s=10.0, unplug_timeout_s=5.0).unplug(raw.volume, raw.attachment)
        assert "vda" not in guest.shell("ls /sys/block")
