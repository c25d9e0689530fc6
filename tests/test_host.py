"""The local host against real QEMUs: it finds, plugs, looks, resizes, and refuses what would harm."""

import base64
import json
import os
import resource
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from faultyqmp import Fault, FaultyMonitor

from voldrivers import process
from voldrivers.base import Completed
from voldrivers.errors import (
    BackendError,
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
from voldrivers.filesystem import image_bytes
from voldrivers.guests.device import DeviceGuest
from voldrivers.guests.machine import Machine, write_rom
from voldrivers.host.local import LocalHost
from voldrivers.model import (
    Attachment,
    ConnectionInfo,
    Extend,
    InstanceState,
    LedgerRow,
    Phase,
    Volume,
    utc_now,
)
from voldrivers.options import read_options
from voldrivers.sizes import MiB

pytestmark = pytest.mark.needs("qemu-system-x86_64", "qemu-img", "setpriv")

VOLUME_ID = "0a4f5c3e-6f0b-4b1e-9d55-6c1f3f2f7a01"


@dataclass(frozen=True)
class Plugged:
    """A volume in a guest, with everything a test asks."""

    guest: Machine
    host: LocalHost
    volume: Volume
    attachment: Attachment

    def at(self, name: str) -> Path:
        return self.guest.directory / name

    @property
    def path(self) -> Path:
        return Path(str(self.attachment.device_path))

    @property
    def file_bytes(self) -> int:
        assert self.attachment.connection_info
        return image_bytes(self.path, self.attachment.connection_info.properties["format"])

    def check(self) -> None:
        self.host.check_extend(self.volume, self.attachment)

    def assist(self, to_bytes: int, expires_in_s: float = 60) -> None:
        self.host.assist_extend(self.volume, self.attachment, extend_to(to_bytes, expires_in_s))

    def row(self, expected_bytes: int = MiB) -> LedgerRow:
        return self.host.ledger_rows(self.volume, self.attachment, expected_bytes)[0]

    def shown_bytes(self) -> int | None:
        return self.row().observed_bytes

    @contextmanager
    def spoilt(self, faults: Mapping[str, str]) -> "Iterator[tuple[Plugged, FaultyMonitor]]":
        socket_path = self.at("faulty")
        with FaultyMonitor(socket_path, self.guest.qmp_socket, faults) as faulty:
            yield replace(self, attachment=replace(self.attachment, monitor=str(socket_path))), faulty


def extend_to(to_bytes: int, expires_in_s: float = 60) -> Extend:
    expires_at = utc_now() + timedelta(seconds=expires_in_s)
    return Extend(1, VOLUME_ID, MiB, to_bytes, to_bytes, Phase.RESIZING, expires_at)


def local(**options: object) -> LocalHost:
    limits: dict[str, object] = {"monitor_timeout_s": 1.0, "resize_timeout_s": 1.0, "unplug_timeout_s": 0.3}
    return LocalHost("here", read_options(LocalHost.options_type, limits | options, "host here"), process.run)


def make_image(path: Path, image_format: str, *options: str) -> Path:
    process.run(["qemu-img", "create", "-q", "-f", image_format, *options, str(path), str(MiB)], timeout_s=20)
    return path


def connected(
    host: LocalHost, monitor: Path | None, path: Path, image_format: str, **layers: str
) -> Attachment:
    info = ConnectionInfo("file", {"path": str(path), "format": image_format, **layers})
    wanted = Attachment("a1", VOLUME_ID, "here", monitor=str(monitor) if monitor else None)
    attachment = replace(host.find_instance(wanted), connection_info=info)
    volume = Volume(VOLUME_ID, "v", "b", MiB, attachments=(attachment,))
    return replace(attachment, device_path=host.connect(volume, attachment, info))


def plug(
    guest: Machine, path: Path, image_format: str = "raw", *, multi_attach: bool = False, **layers: str
) -> Plugged:
    host = local()
    attachment = connected(host, guest.qmp_socket, path, image_format, **layers)
    volume = Volume(VOLUME_ID, "v", "b", MiB, attachments=(attachment,), multi_attach=multi_attach)
    host.plug(volume, attachment)
    return Plugged(guest, host, volume, attachment)


@pytest.fixture
def guest(ram_path: Path) -> Iterator[DeviceGuest]:
    with DeviceGuest(ram_path) as running:
        yield running


@pytest.fixture
def raw(guest: DeviceGuest) -> Plugged:
    return plug(guest, make_image(guest.directory / "v.raw", "raw"))


@pytest.fixture
def qcow2(guest: DeviceGuest) -> Plugged:
    return plug(guest, make_image(guest.directory / "v.qcow2", "qcow2"), "qcow2")


@pytest.fixture(params=["raw", "qcow2"])
def plugged(request: pytest.FixtureRequest) -> Plugged:
    found: Plugged = request.getfixturevalue(request.param)
    return found


# finding and plugging


def test_an_instance_is_found_by_its_name_and_by_its_monitor(guest: DeviceGuest) -> None:
    host = local(qmp_dir=str(guest.directory))
    by_name = host.find_instance(Attachment("a", "v", "here", instance="guest"))
    by_monitor = host.find_instance(Attachment("a", "v", "here", monitor=str(guest.qmp_socket)))
    assert by_name == by_monitor
    assert by_name.instance_process == process.identity(guest.pid)
    assert host.find_instance(Attachment("a", "v", "here")) == Attachment("a", "v", "here")


@pytest.mark.parametrize("name", ["nobody", "../guest", "/etc/passwd", "", "x" * 300])
def test_an_instance_that_is_not_there_is_not_found(ram_path: Path, name: str) -> None:
    with pytest.raises(NotFound):
        local(qmp_dir=str(ram_path / "sub")).find_instance(Attachment("a", "v", "here", instance=name))


def test_without_a_directory_of_monitors_no_name_is_found() -> None:
    with pytest.raises(NotSupported, match="neither qmp_dir nor libvirt_uri"):
        local().find_instance(Attachment("a", "v", "here", instance="guest"))


def test_a_volume_that_is_not_there_cannot_be_connected(ram_path: Path) -> None:
    with pytest.raises(NotFound):
        connected(local(), None, ram_path / "none", "raw")


def test_a_volume_of_another_kind_cannot_be_connected(ram_path: Path) -> None:
    volume, attachment = Volume(VOLUME_ID, "v", "b", MiB), Attachment("a", VOLUME_ID, "here")
    with pytest.raises(NotSupported, match="rbd"):
        local().connect(volume, attachment, ConnectionInfo("rbd", {}))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", ""])
def test_a_file_name_cannot_lead_out_of_its_share(name: str) -> None:
    properties = {
        "export": "nowhere:/e",
        "name": name,
        "format": "raw",
        "options": "",
        "mount_point_base": "/x",
    }
    volume, attachment = Volume(VOLUME_ID, "v", "b", MiB), Attachment("a", VOLUME_ID, "here")
    with pytest.raises(InvalidInput, match="must name a file in its share"):
        local().connect(volume, attachment, ConnectionInfo("nfs", properties))


def test_plugging_twice_is_plugging_once(plugged: Plugged) -> None:
    plugged.host.plug(plugged.volume, plugged.attachment)
    assert isinstance(plugged.guest, DeviceGuest)
    assert [(disk.serial, disk.capacity_bytes()) for disk in plugged.guest.disks()] == [(VOLUME_ID[:20], MiB)]


def test_a_plug_that_was_killed_half_way_is_finished(guest: DeviceGuest) -> None:
    half = plug(guest, make_image(guest.directory / "v.raw", "raw"))
    unplug_with_guest(half)
    node = {
        "node-name": node_name(half),
        "driver": "raw",
        "file": {"driver": "file", "filename": str(half.path)},
    }
    guest.execute("blockdev-add", node)
    half.host.plug(half.volume, half.attachment)
    assert half.shown_bytes() == MiB


def test_layers_are_those_that_are_given_and_no_header_is_followed(guest: DeviceGuest) -> None:
    base, secret = guest.directory / "base", guest.directory / "secret"
    base.write_bytes(b"B" * MiB)
    secret.write_bytes(b"S" * MiB)
    over = make_image(guest.directory / "over", "qcow2", "-u", "-b", str(secret), "-F", "raw")
    layers = json.dumps([["base", "raw"]])
    info = ConnectionInfo("file", {"path": str(over), "format": "qcow2", "layers": layers})
    host = local()
    attachment = replace(connected(host, guest.qmp_socket, over, "qcow2"), connection_info=info)
    volume = Volume(VOLUME_ID, "v", "b", MiB, attachments=(attachment,))
    host.plug(volume, attachment)
    assert guest.disk(VOLUME_ID).read(0) == b"B" * 512
    host.check_extend(volume, attachment)
    host.assist_extend(volume, attachment, extend_to(2 * MiB))
    assert guest.disk(VOLUME_ID).read(2 * MiB // 512 - 1) == bytes(512)
    unplug_with_guest(Plugged(guest, host, volume, attachment))
    process.run(["qemu-img", "resize", "-q", "-f", "raw", str(base), str(2 * MiB)], timeout_s=20)


@pytest.mark.parametrize("layers", ["", "{", '["a"]', '[["../a", "raw"]]', '[["a/b", "raw"]]', "[[1]]"])
def test_layers_lead_nowhere_else(guest: DeviceGuest, layers: str) -> None:
    path = make_image(guest.directory / "v.qcow2", "qcow2")
    info = ConnectionInfo("file", {"path": str(path), "format": "qcow2", "layers": layers})
    attachment = replace(connected(local(), guest.qmp_socket, path, "qcow2"), connection_info=info)
    with pytest.raises(InvalidInput):
        local().plug(Volume(VOLUME_ID, "v", "b", MiB, attachments=(attachment,)), attachment)


def node_name(plugged: Plugged) -> str:
    from voldrivers.host import blocknode

    return blocknode.node_name(plugged.volume.id, plugged.path)


def unplug_with_guest(plugged: Plugged) -> None:
    assert isinstance(plugged.guest, DeviceGuest)
    with ThreadPoolExecutor() as threads:
        released = threads.submit(plugged.guest.eject)
        local(unplug_timeout_s=5.0).unplug(plugged.volume, plugged.attachment)
        released.result()


def test_a_guest_that_lets_go_loses_disk_and_file(plugged: Plugged) -> None:
    assert isinstance(plugged.guest, DeviceGuest)
    unplug_with_guest(plugged)
    assert plugged.guest.disks() == []
    process.run(["qemu-img", "resize", "-f", "raw", str(plugged.path), str(4 * MiB)], timeout_s=20)
    plugged.host.unplug(plugged.volume, plugged.attachment)


def test_a_guest_that_keeps_the_disk_is_named(raw: Plugged) -> None:
    for _ in range(2):
        with pytest.raises(InvalidState, match="kept by the guest"):
            raw.host.unplug(raw.volume, raw.attachment)
    assert raw.shown_bytes() == MiB


def test_nothing_is_left_to_unplug_from_a_dead_instance(raw: Plugged) -> None:
    raw.guest.kill()
    raw.host.unplug(raw.volume, raw.attachment)


def test_a_disk_that_somebody_else_plugged_is_used_and_not_unplugged(ram_path: Path) -> None:
    path = make_image(ram_path / "v.raw", "raw")
    drive = f"driver=raw,node-name=cold,file.driver=file,file.filename={path}"
    with DeviceGuest(
        ram_path, arguments=["-blockdev", drive, "-device", "virtio-blk-pci,drive=cold,id=d"]
    ) as guest:
        cold = plug(guest, path)
        cold.assist(2 * MiB)
        assert (cold.shown_bytes(), len(guest.disks())) == (2 * MiB, 1)
        with pytest.raises(InvalidState, match="unplugged by who plugged it"):
            cold.host.unplug(cold.volume, cold.attachment)


def q35(directory: Path, ports: int) -> Machine:
    write_rom(directory / "q35.rom")
    slots = [("-device", f"pcie-root-port,id=rp{n},chassis={n}") for n in range(ports)]
    arguments = ["-bios", str(directory / "q35.rom"), "-m", "16", "-machine", "q35"]
    return Machine(directory, "q35", [*arguments, *(word for slot in slots for word in slot)])


def test_on_q35_every_volume_gets_a_root_port_of_its_own(ram_path: Path) -> None:
    with q35(ram_path, ports=2) as guest:
        for n in range(2):
            path, host = make_image(ram_path / f"{n}.raw", "raw"), local()
            attachment = connected(host, guest.qmp_socket, path, "raw")
            host.plug(Volume(f"volume-{n}", "v", "b", MiB), attachment)
        third = connected(host, guest.qmp_socket, make_image(ram_path / "3.raw", "raw"), "raw")
        with pytest.raises(InvalidState, match="without a free port"):
            host.plug(Volume("volume-3", "v", "b", MiB), third)
        files = [node["file"] for node in guest.execute("query-named-block-nodes", {"flat": True})]
        assert str(ram_path / "0.raw") in files
        assert str(ram_path / "3.raw") not in files


def test_a_second_qemu_gets_the_file_only_when_it_is_shared(ram_path: Path) -> None:
    path = make_image(ram_path / "v.raw", "raw")
    with DeviceGuest(ram_path, "one") as one, DeviceGuest(ram_path, "two") as two:
        first = plug(one, path)
        with pytest.raises(InvalidState, match="lock"):
            plug(two, path)
        unplug_with_guest(first)
        shared = [plug(guest, path, multi_attach=True) for guest in (one, two)]
        shared[0].assist(2 * MiB)
        assert [each.shown_bytes() for each in shared] == [2 * MiB, MiB]
        shared[1].assist(2 * MiB)
        assert [each.shown_bytes() for each in shared] == [2 * MiB, 2 * MiB]


# the extend


def test_the_guest_sees_the_new_size_and_can_use_all_of_it(plugged: Plugged) -> None:
    assert isinstance(plugged.guest, DeviceGuest)
    disk = plugged.guest.disk(VOLUME_ID)
    disk.write(0, b"old!" * 128)
    plugged.check()
    plugged.assist(3 * MiB)
    assert (disk.config_changed(), disk.capacity_bytes()) == (True, 3 * MiB)
    assert (disk.read(0), disk.read(3 * MiB // 512 - 1)) == (b"old!" * 128, bytes(512))
    disk.write(3 * MiB // 512 - 1, b"new!" * 128)
    assert disk.read(3 * MiB // 512 - 1) == b"new!" * 128
    assert (plugged.shown_bytes(), plugged.file_bytes) == (3 * MiB, 3 * MiB)
    assert plugged.host.get_blockdev(plugged.volume, plugged.attachment) == 3 * MiB


def test_a_file_in_use_is_kept_from_qemu_img_by_its_lock(plugged: Plugged) -> None:
    kind = plugged.path.suffix.removeprefix(".")
    with pytest.raises(CommandFailed, match=r'Failed to get (shared )?"\w+" lock'):
        process.run(["qemu-img", "resize", "-f", kind, str(plugged.path), "2M"], timeout_s=20)


@pytest.mark.parametrize("to_bytes", [MiB, 512, 1])
def test_nothing_is_ever_cut(plugged: Plugged, to_bytes: int) -> None:
    plugged.assist(2 * MiB)
    plugged.assist(to_bytes)
    assert (plugged.shown_bytes(), plugged.file_bytes) == (2 * MiB, 2 * MiB)


@pytest.mark.parametrize(("grown_bytes", "then_bytes"), [(4 * MiB, 4 * MiB), (4 * MiB + 1, 4 * MiB + 512)])
def test_a_file_grown_behind_the_back_of_qemu_is_never_cut(
    raw: Plugged, grown_bytes: int, then_bytes: int
) -> None:
    os.truncate(raw.path, grown_bytes)
    raw.assist(2 * MiB)
    assert (raw.shown_bytes(), raw.file_bytes) == (then_bytes, then_bytes)


def test_a_disk_is_not_cut_to_a_file_that_somebody_cut(raw: Plugged) -> None:
    raw.assist(4 * MiB)
    os.truncate(raw.path, MiB)
    raw.assist(2 * MiB)
    assert raw.shown_bytes() == 4 * MiB


def test_a_qcow2_grown_behind_the_back_of_qemu_is_never_cut(qcow2: Plugged) -> None:
    with qcow2.path.open("r+b") as image:
        image.seek(24)
        image.write((4 * MiB).to_bytes(8, "big"))
    qcow2.assist(2 * MiB)
    assert (qcow2.shown_bytes(), qcow2.file_bytes) == (4 * MiB, 4 * MiB)


def test_an_expired_extend_is_refused_with_nothing_done(plugged: Plugged) -> None:
    with pytest.raises(InvalidState, match="expired"):
        plugged.assist(2 * MiB, expires_in_s=-1)
    assert (plugged.shown_bytes(), plugged.file_bytes) == (MiB, MiB)


@pytest.mark.parametrize("arguments", [["-S"], []])
def test_a_guest_that_is_stopped_can_be_extended(ram_path: Path, arguments: Sequence[str]) -> None:
    with DeviceGuest(ram_path, arguments=arguments) as guest:
        if not arguments:
            guest.execute("stop")
        stopped = plug(guest, make_image(ram_path / "v.qcow2", "qcow2"), "qcow2")
        stopped.check()
        stopped.assist(2 * MiB)
        assert stopped.shown_bytes() == 2 * MiB


def test_a_guest_that_is_migrating_in_is_never_asked(ram_path: Path) -> None:
    with DeviceGuest(ram_path, arguments=["-incoming", "defer"]) as guest:
        incoming = plug(guest, make_image(ram_path / "v.raw", "raw"))
        for act in (incoming.check, lambda: incoming.assist(2 * MiB)):
            with pytest.raises(InvalidState, match="is inmigrate"):
                act()
        assert guest.is_running


def test_a_guest_that_is_migrating_out_is_never_asked(raw: Plugged) -> None:
    raw.guest.execute("migrate-set-parameters", {"max-bandwidth": 1000})
    with socket.socket(socket.AF_UNIX) as target:
        target.bind(str(raw.at("target")))
        target.listen()
        raw.guest.execute("migrate", {"uri": f"unix:{raw.at('target')}"})
        accepted, _ = target.accept()
        with accepted:
            for act in (raw.check, lambda: raw.assist(2 * MiB)):
                with pytest.raises(InvalidState, match=r"its migration (setup|active)"):
                    act()
    raw.guest.execute("migrate_cancel")
    process.wait_until(
        lambda: raw.guest.execute("query-migrate")["status"] in ("failed", "cancelled"), 5, "migration's end"
    )
    raw.assist(2 * MiB)


def start_copy(plugged: Plugged, command: str, job: str, source: str) -> None:
    """Start a job that copies node `source` and never gets far."""
    target = plugged.at(f"{job}.raw")
    target.touch()
    os.truncate(target, 8 * MiB)
    file = {"driver": "file", "filename": str(target)}
    plugged.guest.execute("blockdev-add", {"node-name": f"to-{job}", "driver": "raw", "file": file})
    copy = {"job-id": job, "device": source, "target": f"to-{job}", "sync": "full", "speed": 1}
    plugged.guest.execute(command, copy)


@pytest.mark.parametrize("kind", ["mirror", "backup"])
def test_a_block_job_in_the_way_is_named_and_no_other(guest: DeviceGuest, kind: str) -> None:
    for name in ("v", "far"):
        (guest.directory / f"{name}.raw").write_bytes(os.urandom(8 * MiB))
    raw = plug(guest, guest.directory / "v.raw")
    far = {"driver": "file", "filename": str(raw.at("far.raw"))}
    guest.execute("blockdev-add", {"node-name": "far", "driver": "raw", "file": far})
    start_copy(raw, "blockdev-mirror", "other-job", "far")
    raw.check()
    start_copy(raw, f"blockdev-{kind}", "our-job", node_name(raw))
    for act in (raw.check, lambda: raw.assist(9 * MiB)):
        with pytest.raises(InvalidState, match=f"in use by {kind} job our-job"):
            act()
    guest.execute("block-job-cancel", {"device": "our-job", "force": True})
    process.wait_until(lambda: len(guest.execute("query-block-jobs")) == 1, 5, "the job to end")
    raw.assist(9 * MiB)
    assert raw.shown_bytes() == 9 * MiB


def test_a_stream_job_in_the_way_is_named(ram_path: Path, guest: DeviceGuest) -> None:
    base = make_image(ram_path / "base.raw", "raw")
    base.write_bytes(os.urandom(MiB))
    over = make_image(ram_path / "v.qcow2", "qcow2", "-b", str(base), "-F", "raw")
    streaming = plug(guest, over, "qcow2", layers=json.dumps([[base.name, "raw"]]))
    guest.execute("block-stream", {"job-id": "job0", "device": node_name(streaming), "speed": 1})
    for act in (streaming.check, lambda: streaming.assist(2 * MiB)):
        with pytest.raises(InvalidState, match="in use by stream job job0"):
            act()


def test_an_export_in_the_way_is_named(plugged: Plugged) -> None:
    address = {"type": "unix", "data": {"path": str(plugged.at("nbd"))}}
    plugged.guest.execute("nbd-server-start", {"addr": address})
    export = {"type": "nbd", "id": "e0", "node-name": node_name(plugged)}
    plugged.guest.execute("block-export-add", export)
    for act in (plugged.check, lambda: plugged.assist(2 * MiB)):
        with pytest.raises(InvalidState, match="in use by nbd export e0"):
            act()


def test_a_read_only_node_is_refused(ram_path: Path) -> None:
    path = make_image(ram_path / "v.raw", "raw")
    drive = f"driver=raw,node-name=cold,read-only=on,file.driver=file,file.filename={path}"
    with DeviceGuest(
        ram_path, arguments=["-blockdev", drive, "-device", "virtio-blk-pci,drive=cold"]
    ) as guest:
        cold = plug(guest, path)
        for act in (cold.check, lambda: cold.assist(2 * MiB)):
            with pytest.raises(InvalidState, match="read-only"):
                act()


def test_an_old_qcow2_with_a_snapshot_is_refused(ram_path: Path, guest: DeviceGuest) -> None:
    path = make_image(ram_path / "v.qcow2", "qcow2", "-o", "compat=0.10")
    process.run(["qemu-img", "snapshot", "-c", "s", str(path)], timeout_s=20)
    old = plug(guest, path, "qcow2")
    with pytest.raises(InvalidState, match="without internal snapshots"):
        old.assist(2 * MiB)
    assert (old.shown_bytes(), old.file_bytes) == (MiB, MiB)


def test_a_size_that_the_file_system_cannot_hold_is_refused(raw: Plugged) -> None:
    resource.prlimit(raw.guest.pid, resource.RLIMIT_FSIZE, (2 * MiB, 2 * MiB))
    with pytest.raises(InvalidSize, match="File too large"):
        raw.assist(3 * MiB)
    assert (raw.shown_bytes(), raw.file_bytes) == (MiB, MiB)


def test_the_top_node_is_resized_under_filters(ram_path: Path) -> None:
    path = make_image(ram_path / "v.raw", "raw")
    drive = (
        f"driver=copy-on-read,node-name=top,file.driver=raw,file.file.driver=file,file.file.filename={path}"
    )
    with DeviceGuest(
        ram_path, arguments=["-blockdev", drive, "-device", "virtio-blk-pci,drive=top"]
    ) as guest:
        filtered = plug(guest, path)
        filtered.assist(2 * MiB)
        assert (filtered.shown_bytes(), guest.disks()[0].capacity_bytes()) == (2 * MiB, 2 * MiB)


def test_a_volume_whose_blocks_went_elsewhere_is_refused(raw: Plugged) -> None:
    over = {"node-name": node_name(raw), "snapshot-node-name": "over", "format": "qcow2"}
    over["snapshot-file"] = str(raw.at("over.qcow2"))
    raw.guest.execute("blockdev-snapshot-sync", over)
    for act in (raw.check, lambda: raw.assist(2 * MiB)):
        with pytest.raises(InvalidState, match=r"stored in .*over.qcow2, must be stored in"):
            act()
    assert raw.row().observed_bytes is None
    assert "stored in" in raw.row().note


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("Failed to grow the L1 table: No space left on device", NoSpace),
        ("Could not resize file: Read-only file system", InvalidState),
        ("Device '(null)' is in use", InvalidState),
        ("Cannot grow device files", InvalidState),
        ("offset(9223372036854774784) exceeds maximum(9223372036854709248)", InvalidSize),
        ("Could not stat file: Stale file handle", BackendError),
        ("Could not resize file: Bad file descriptor", BackendError),
        ("Failed to lock byte 103: Input/output error", BackendError),
    ],
)
def test_a_refusal_becomes_the_error_of_what_can_be_done(
    raw: Plugged, words: str, error: type[VolDriverError]
) -> None:
    """The words are those of QEMU 7.2 on full, read-only and lost shares."""
    with raw.spoilt({"block_resize": words}) as (spoilt, _), pytest.raises(error) as caught:
        spoilt.assist(2 * MiB)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("fault", "grown"),
    [
        (Fault.SWALLOWED, False),
        (Fault.HUNG_UP_BEFORE, False),
        (Fault.ANSWER_LOST, True),
        (Fault.HUNG_UP_AFTER, True),
        (Fault.GARBAGE, False),
    ],
)
def test_a_lost_answer_is_an_unknown_outcome_and_can_be_asked_again(
    raw: Plugged, fault: Fault, grown: bool
) -> None:
    with raw.spoilt({"block_resize": fault}) as (spoilt, faulty):
        with pytest.raises(OutcomeUnknown):
            spoilt.assist(2 * MiB)
        assert raw.file_bytes == (2 * MiB if grown else MiB)
        raw.host.cancel(extend_to(2 * MiB), spoilt.attachment)
        faulty.faults.clear()
        spoilt.assist(2 * MiB)
        assert faulty.passed.count("block_resize") == 1
    assert (raw.shown_bytes(), raw.file_bytes) == (2 * MiB, 2 * MiB)


def test_a_qemu_that_lies_is_found_out(plugged: Plugged) -> None:
    with (
        plugged.spoilt({"block_resize": Fault.LIED}) as (spoilt, _),
        pytest.raises(BackendError, match=r"said 2 MiB, but it is 1 MiB"),
    ):
        spoilt.assist(2 * MiB)


LOOKS = ("query-status", "query-migrate", "query-block", "query-block-jobs", "query-block-exports")


@pytest.mark.parametrize(
    ("command", "fault"),
    [("query-block", Fault.SWALLOWED)]
    + [
        (command, fault)
        for command in [
            "query-status",
            "query-migrate",
            "query-block",
            "query-block-jobs",
            "query-block-exports",
        ]
        for fault in (Fault.NONSENSE, Fault.HUNG_UP_BEFORE, "The command has not been found")
    ],
)
def test_nothing_is_sent_when_looking_fails(raw: Plugged, command: str, fault: str) -> None:
    with raw.spoilt({command: fault}) as (spoilt, faulty):
        with pytest.raises((BackendError, InvalidState)):
            spoilt.assist(2 * MiB)
        assert "block_resize" not in faulty.passed
    assert raw.file_bytes == MiB


def test_a_frozen_qemu_leaves_the_outcome_unknown_until_the_fence(raw: Plugged) -> None:
    frozen_by = FrozenAt("block_resize", raw.guest.pid)
    with raw.spoilt({}) as (spoilt, faulty):
        faulty.before = frozen_by
        with pytest.raises(OutcomeUnknown):
            spoilt.assist(2 * MiB)
    assert raw.host.instance_state(raw.attachment) is InstanceState.UNKNOWN
    with pytest.raises(OutcomeUnknown):
        raw.host.cancel(extend_to(2 * MiB), raw.attachment)
    os.kill(raw.guest.pid, signal.SIGCONT)
    raw.host.cancel(extend_to(2 * MiB), raw.attachment)
    after_fence = raw.file_bytes
    assert (raw.shown_bytes(), raw.file_bytes) == (after_fence, after_fence)
    raw.assist(2 * MiB)
    assert (raw.shown_bytes(), raw.file_bytes) == (2 * MiB, 2 * MiB)


class FrozenAt:
    """Stops a QEMU right before it is passed a command."""

    def __init__(self, command: str, pid: int) -> None:
        self.command, self.pid = command, pid

    def __call__(self, command: str) -> None:
        if command == self.command:
            os.kill(self.pid, signal.SIGSTOP)


def test_a_qemu_killed_in_the_act_leaves_the_outcome_unknown_and_is_then_stopped(plugged: Plugged) -> None:
    with plugged.spoilt({}) as (spoilt, faulty):
        faulty.before = lambda command: plugged.guest.kill() if command == "block_resize" else None
        with pytest.raises(OutcomeUnknown):
            spoilt.assist(2 * MiB)
    plugged.host.cancel(extend_to(2 * MiB), plugged.attachment)
    assert plugged.host.instance_state(plugged.attachment) is InstanceState.STOPPED
    assert plugged.host.ledger_rows(plugged.volume, plugged.attachment, MiB) == ()
    plugged.check()
    assert plugged.file_bytes in (MiB, 2 * MiB)


def test_a_monitor_held_by_somebody_else_is_an_error_in_time(raw: Plugged) -> None:
    with socket.socket(socket.AF_UNIX) as somebody:
        somebody.connect(str(raw.guest.qmp_socket))
        for act in (raw.check, lambda: raw.assist(2 * MiB)):
            with pytest.raises(InvalidState, match="held by another client"):
                act()
        assert raw.host.instance_state(raw.attachment) is InstanceState.UNKNOWN
    raw.assist(2 * MiB)


def test_a_share_that_is_gone_is_never_asked_about(raw: Plugged) -> None:
    lost = replace(raw, attachment=replace(raw.attachment, device_path="/no/such/share/v.raw"))
    for act in (lost.check, lambda: lost.assist(2 * MiB)):
        with pytest.raises(NotFound):
            act()
    with pytest.raises(NotFound):
        lost.host.rescan(lost.volume, lost.attachment)


def test_a_share_that_does_not_answer_is_an_error_with_nothing_sent(
    raw: Plugged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voldrivers.mounts._LOCAL", frozenset())  # so this one needs a server

    def silent(argv: Sequence[str], *, timeout_s: float) -> Completed:
        raise OutcomeUnknown(argv[0], "it did not end")

    dead = replace(raw, host=LocalHost("here", raw.host.options, silent))
    with raw.spoilt({}) as (spoilt, faulty):
        dead = replace(dead, attachment=spoilt.attachment)
        for act in (dead.check, lambda: dead.assist(2 * MiB)):
            with pytest.raises(InvalidState, match="not answering"):
                act()
        assert dead.row().note
        assert faulty.passed == []


# what is known of instances


def test_a_vanished_monitor_proves_nothing(raw: Plugged) -> None:
    raw.guest.qmp_socket.unlink()
    assert raw.host.instance_state(raw.attachment) is InstanceState.UNKNOWN
    with pytest.raises(OutcomeUnknown):
        raw.host.cancel(extend_to(2 * MiB), raw.attachment)
    with pytest.raises(InvalidState):
        raw.check()
    assert (raw.row().observed_bytes, raw.row().required) == (None, True)


def test_an_answer_means_running_and_a_dead_process_stopped(raw: Plugged) -> None:
    assert raw.host.instance_state(raw.attachment) is InstanceState.RUNNING
    raw.guest.kill()
    assert raw.host.instance_state(raw.attachment) is InstanceState.STOPPED


def test_a_qemu_started_anew_at_the_same_socket_is_running(raw: Plugged) -> None:
    raw.guest.kill()
    with DeviceGuest(raw.guest.directory):
        assert raw.host.instance_state(raw.attachment) is InstanceState.RUNNING
        with pytest.raises(InvalidState, match="not in the instance"):
            raw.check()


def test_somebody_silent_in_the_place_of_a_dead_qemu_proves_nothing(raw: Plugged) -> None:
    raw.guest.kill()
    raw.guest.qmp_socket.unlink()
    with socket.socket(socket.AF_UNIX) as starting:
        starting.bind(str(raw.guest.qmp_socket))
        starting.listen()
        assert raw.host.instance_state(raw.attachment) is InstanceState.UNKNOWN


def test_one_who_is_no_qemu_is_never_taken_for_stopped(guest: DeviceGuest) -> None:
    """As with libvirt, which opens the socket and hands it to its QEMU."""
    faulty = guest.directory / "faulty"
    with FaultyMonitor(faulty, guest.qmp_socket, {}):
        found = local().find_instance(Attachment("a", VOLUME_ID, "here", monitor=str(faulty)))
    assert (found.instance, found.instance_process) == ("guest", None)
    assert local().instance_state(found) is InstanceState.UNKNOWN


def test_a_held_instance_is_not_plugged(guest: DeviceGuest) -> None:
    host = local()
    path = make_image(guest.directory / "v.raw", "raw")
    attachment = connected(host, guest.qmp_socket, path, "raw")
    volume = Volume(VOLUME_ID, "v", "b", MiB)
    with host.hold(attachment):
        with pytest.raises(InvalidState, match="held by another voldrivers process"):
            host.plug(volume, attachment)
        with pytest.raises(InvalidState), host.hold(attachment):
            pass
    host.plug(volume, attachment)


def test_an_attachment_without_an_instance_needs_only_its_file(ram_path: Path) -> None:
    host, volume = local(), Volume(VOLUME_ID, "v", "b", MiB)
    attachment = connected(host, None, make_image(ram_path / "v.raw", "raw"), "raw")
    host.plug(volume, attachment)
    host.check_extend(volume, attachment)
    host.assist_extend(volume, attachment, extend_to(2 * MiB))
    host.cancel(extend_to(2 * MiB), attachment)
    host.unplug(volume, attachment)
    assert host.ledger_rows(volume, attachment, MiB) == ()
    assert host.get_blockdev(volume, attachment) == MiB
    (ram_path / "v.raw").unlink()
    with pytest.raises(NotFound):
        host.check_extend(volume, attachment)


# the ledger


def test_the_ledger_names_the_node_and_its_repair(raw: Plugged) -> None:
    row = raw.row(expected_bytes=2 * MiB)
    assert (row.layer, row.place, row.observed_bytes, row.stale) == ("QEMU node", "here/guest", MiB, True)
    assert (row.note, row.repair) == (node_name(raw), "voldrivers doctor v --repair")


@contextmanager
def agent(plugged: Plugged, answers: Mapping[str, object]) -> Iterator[None]:
    """Play the agent of a guest: `answers` are the files it has, and its replies by command.

    Its protocol is that of qemu-ga 7.2, against which the product was tried by hand.
    """
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor() as threads:
        listener.bind(str(plugged.guest.qmp_socket.with_suffix(".qga")))
        listener.listen()
        served = threads.submit(serve_agent, listener, answers)
        yield
        listener.shutdown(socket.SHUT_RDWR)
        served.result()


def serve_agent(listener: socket.socket, answers: Mapping[str, object]) -> None:
    client, _ = listener.accept()
    with client:
        while asked := client.recv(65536):
            request = json.loads(asked)
            arguments = request.get("arguments", {})
            answer = answers.get(arguments.get("path", arguments.get("handle", request["execute"])), {})
            if answer == "echo":
                answer = arguments["id"]
            elif request["execute"] == "guest-file-open":
                answer = arguments["path"] if arguments["path"] in answers else None
            elif request["execute"] == "guest-file-read":
                answer = {"buf-b64": base64.b64encode(str(answer).encode()).decode()}
            refused = {"error": {"class": "GenericError", "desc": "No such file or directory"}}
            reply = refused if answer is None else {"return": answer}
            client.sendall(json.dumps(reply | {"id": request["id"]}).encode() + b"\n")


GUEST = {
    "guest-sync": "echo",
    "guest-get-disks": [
        {"name": "/dev/vda1", "partition": True},
        {"name": "/dev/sr0", "partition": False},
        {"name": "/dev/vdb", "partition": False},
        {"name": "/dev/vda", "partition": False},
    ],
    "/sys/class/block/vdb/serial": "another volume",
    "/sys/class/block/vdb/size": "4096\n",
    "/sys/class/block/vda/serial": VOLUME_ID[:20],
    "/sys/class/block/vda/size": "2048\n",
}


def test_the_guest_shows_its_own_view_and_is_not_required(raw: Plugged) -> None:
    with agent(raw, GUEST):
        _, row = raw.host.ledger_rows(raw.volume, raw.attachment, MiB)
    assert (row.layer, row.observed_bytes, row.required, row.note) == ("guest", MiB, False, "")


@pytest.mark.parametrize(
    ("spoilt", "note"),
    [
        ({"guest-sync": 7}, "answering somebody else"),
        ({"guest-get-disks": []}, "does not exist in the guest"),
        ({"guest-get-disks": [{}]}, "makes no sense"),
        ({"guest-get-disks": 5}, "makes no sense"),
        ({"/sys/class/block/vda/size": "a lie"}, "makes no sense"),
    ],
)
def test_a_guest_that_lies_is_only_noted(raw: Plugged, spoilt: Mapping[str, object], note: str) -> None:
    with agent(raw, {**GUEST, **spoilt}):
        node, row = raw.host.ledger_rows(raw.volume, raw.attachment, MiB)
    assert (node.observed_bytes, row.observed_bytes, row.required) == (MiB, None, False)
    assert note in row.note


def test_a_silent_guest_is_only_noted(raw: Plugged) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(raw.guest.qmp_socket.with_suffix(".qga")))
        listener.listen()
        _, row = raw.host.ledger_rows(raw.volume, raw.attachment, MiB)
    assert (row.observed_bytes, "no answer" in row.note) == (None, True)


def test_options_are_explained_and_checked() -> None:
    with pytest.raises(InvalidInput, match="there is no such option"):
        local(qmp="x")
