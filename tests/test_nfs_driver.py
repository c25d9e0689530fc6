"""The NFS driver on real directories, with the real qemu-img and a real QEMU that holds a file."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from voldrivers import mounts, process
from voldrivers.base import Completed, Run
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
)
from voldrivers.guests.device import SECTOR_BYTES, DeviceGuest
from voldrivers.model import Attachment, Connector, ExtendReply, InstanceState, Volume
from voldrivers.mounts import Mount, Place, place_of
from voldrivers.nfs import share as shares
from voldrivers.nfs.driver import NFSDriver
from voldrivers.nfs.options import NFSOptions, NFSVolumeOptions
from voldrivers.options import read_options
from voldrivers.sizes import GiB, MiB

pytestmark = pytest.mark.needs("qemu-img", "fallocate", "prlimit")

FORMATS = ("raw", "qcow2")
ALL = [(image_format, preallocated) for image_format in FORMATS for preallocated in (False, True)]


class Share:
    """A driver on a directory, and the side doors to look at what it did."""

    def __init__(self, directory: Path, run: Run = process.run, **options: Any) -> None:  # Any: option values
        self.directory = directory
        self.driver = NFSDriver("files", NFSOptions(str(directory), **options), run)

    def create(self, volume_id: str = "1", size_bytes: int = MiB, **options: Any) -> Volume:  # Any: as above
        volume = Volume(volume_id, f"vol-{volume_id}", "files", size_bytes)
        return replace(volume, provider_data=self.driver.create_volume(volume, NFSVolumeOptions(**options)))

    def path(self, volume: Volume) -> Path:
        return self.directory / str(json.loads(volume.provider_data)["file"])

    @property
    def names(self) -> list[str]:
        return sorted(os.listdir(self.directory))


@pytest.fixture
def share(tmp_path: Path) -> Share:
    return Share(tmp_path)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small file system of one's own: `mounted("tmpfs", "-o", "size=4m", "none")`."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    points: list[Path] = []

    def mount(kind: str, *arguments: str) -> Path:
        point = tmp_path / f"mount-{len(points)}"
        point.mkdir()
        subprocess.run(["mount", "-t", kind, *arguments, str(point)], check=True)
        points.append(point)
        return point

    yield mount
    for point in points:
        subprocess.run(["umount", str(point)], check=True)


def attached(volume: Volume, state: InstanceState = InstanceState.RUNNING, host: str = "host-1") -> Volume:
    attachment = Attachment("a-1", volume.id, host, instance="guest", instance_state=state)
    return replace(volume, attachments=(attachment,))


def image_size(path: Path, image_format: str) -> int:
    """Ask qemu-img, not the driver."""
    argv = ["qemu-img", "info", "--force-share", "--output=json", "-f", image_format, str(path)]
    return int(json.loads(process.run(argv, timeout_s=10).stdout)["virtual-size"])


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def write(path: Path, image_format: str, offset: int, length: int, pattern: int) -> None:
    qemu_io(path, image_format, f"write -P {pattern} {offset} {length}")


def check(path: Path, image_format: str, offset: int, length: int, pattern: int) -> None:
    assert "verification failed" not in qemu_io(path, image_format, f"read -P {pattern} {offset} {length}")


def qemu_io(path: Path, image_format: str, command: str) -> str:
    return process.run(["qemu-io", "-f", image_format, "-c", command, str(path)], timeout_s=10).stdout


@contextmanager
def running_guest(ram_path: Path, path: Path, image_format: str) -> Iterator[DeviceGuest]:
    """Run a guest whose only disk is the file; its QEMU holds the file's lock."""
    node = {"node-name": "disk", "driver": image_format, "file": {"driver": "file", "filename": str(path)}}
    with DeviceGuest(ram_path) as guest:
        guest.execute("blockdev-add", node)
        guest.execute(
            "device_add", {"driver": "virtio-blk-pci", "id": "disk", "drive": "disk", "serial": "disk"}
        )
        yield guest


# Creating


@pytest.mark.parametrize(("image_format", "preallocated"), ALL)
def test_creates_a_file_of_exactly_the_size_that_reads_as_zeros(
    share: Share, image_format: str, preallocated: bool
) -> None:
    volume = share.create("1", 3 * MiB + 512, format=image_format, preallocate=preallocated)
    path = share.path(volume)
    assert image_size(path, image_format) == share.driver.volume_size(volume) == 3 * MiB + 512
    check(path, image_format, 0, 3 * MiB, 0)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (allocated(path) >= 3 * MiB) is preallocated
    assert share.names == [path.name]
    assert share.driver.list_volumes() == ["1"]


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_second_create_leaves_the_file_alone(share: Share, image_format: str) -> None:
    volume = share.create(format=image_format)
    write(share.path(volume), image_format, 0, 512, 7)
    assert share.create(format=image_format) == volume
    check(share.path(volume), image_format, 0, 512, 7)
    assert share.path(volume).stat().st_nlink == 1


def test_refuses_to_take_another_file_for_its_own(share: Share) -> None:
    share.create("1", MiB)
    with pytest.raises(InvalidState, match="is 1 MiB large, must be 2 MiB to be volume vol-1"):
        share.create("1", 2 * MiB)
    with pytest.raises(InvalidState, match="there already"):
        share.create("1", MiB, format="qcow2")
    assert share.names == ["volume-1"]


def test_never_hands_out_a_planted_qcow2(share: Share) -> None:
    """Its backing file would show the guest any file of the host."""
    secret, planted = share.directory / "secret", share.directory / "volume-1.qcow2"
    secret.write_bytes(b"secret" * 512)
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(planted), str(MiB)]
    process.run(argv, timeout_s=10)
    with pytest.raises(BackendError, match="backing file"):
        share.create(format="qcow2")
    planted.write_bytes(bytes(MiB))
    with pytest.raises(BackendError, match="no qcow2 header"):
        share.create(format="qcow2")
    assert planted.stat().st_size == MiB


@pytest.mark.parametrize("size_bytes", [0, -512, 1, 513, 2**60 + 512, 2**63, 2**64])
def test_refuses_a_size_that_its_rule_does_not_give(share: Share, size_bytes: int) -> None:
    with pytest.raises(InvalidSize, match="volume vol-1"):
        share.create("1", size_bytes)
    volume = share.create("2")
    with pytest.raises(InvalidSize):
        share.driver.check_extend(volume, size_bytes)
    assert share.names == ["volume-2"]


@pytest.mark.parametrize(
    "volume_id",
    ["../1", "a/b", "..", "", "-x", ".x", "x" * 65, "a\nb", "a\0b", "a.qcow2", "a b", "é", "a'\""],
)
def test_no_id_leaves_the_share(share: Share, volume_id: str) -> None:
    with pytest.raises(InvalidInput):
        share.create(volume_id)
    with pytest.raises(InvalidInput):
        share.driver.delete_volume(Volume(volume_id, "v", "files", MiB))
    assert share.names == []


def test_provider_data_cannot_lead_to_another_file(share: Share) -> None:
    volume = share.create()
    outside = share.directory.parent / "outside"
    for record in (
        '{"format": "raw", "preallocated": false, "file": "../outside"}',
        '{"format": "vmdk", "preallocated": false, "file": "volume-1"}',
        '{"format": "qcow2", "preallocated": false, "file": "volume-1"}',
        '{"format": "raw"}',
        "[]",
        "nonsense",
    ):
        with pytest.raises(BackendError, match="provider_data"):
            share.driver.volume_size(replace(volume, provider_data=record))
    with pytest.raises(InvalidState, match="must be created"):
        share.driver.volume_size(replace(volume, provider_data=""))
    assert not outside.exists()


@pytest.mark.parametrize("image_format", FORMATS)
def test_never_follows_a_link_planted_in_the_share(share: Share, image_format: str) -> None:
    volume = share.create(format=image_format)
    path, outside = share.path(volume), share.directory / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    before = outside.read_bytes()
    for act in every_act(share, volume, 2 * MiB):
        with pytest.raises(BackendError, match="symbolic link"):
            act()
    assert path.is_symlink()
    assert outside.read_bytes() == before
    assert share.driver.list_volumes() == []


def test_a_link_under_the_temporary_name_is_not_followed(share: Share) -> None:
    outside = share.directory / "outside"
    outside.write_bytes(b"precious")
    (share.directory / ".volume-1.new").symlink_to(outside)
    share.create()
    assert outside.read_bytes() == b"precious"
    assert share.names == ["outside", "volume-1"]


def test_something_that_is_no_file_is_refused_without_waiting(share: Share) -> None:
    volume = share.create()
    share.path(volume).unlink()
    os.mkfifo(share.path(volume))
    with pytest.raises(BackendError, match="not a regular file"):
        share.driver.volume_size(volume)
    with pytest.raises(BackendError, match="not a regular file"):
        share.create()


def every_act(share: Share, volume: Volume, new_size_bytes: int) -> list[Callable[[], object]]:
    driver = share.driver
    return [
        lambda: driver.create_volume(replace(volume, provider_data=""), options_of(volume)),
        lambda: driver.volume_size(volume),
        lambda: driver.check_extend(volume, new_size_bytes),
        lambda: driver.extend_volume(volume, new_size_bytes),
        lambda: driver.probe_locks(volume),
        lambda: driver.initialize_connection(volume, Connector("host-1")),
        lambda: driver.ledger_rows(volume, new_size_bytes),
        lambda: driver.delete_volume(volume),
    ]


def options_of(volume: Volume) -> NFSVolumeOptions:
    record = json.loads(volume.provider_data)
    return NFSVolumeOptions(record["format"], record["preallocated"])


# Killed, failed and repeated creates

_KILLED = """
import os, signal, sys
from pathlib import Path
from voldrivers import process
from voldrivers.guests.device import SECTOR_BYTES, DeviceGuest
from voldrivers.model import Volume
from voldrivers.nfs.driver import NFSDriver
from voldrivers.nfs.options import NFSOptions, NFSVolumeOptions

def run(argv, *, timeout_s):
    if sys.argv[3] == "before" and "create" in argv:
        os.kill(os.getpid(), signal.SIGKILL)
    answer = process.run(argv, timeout_s=timeout_s)
    if sys.argv[3] == "after" and "create" in argv:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer

real_link = os.link
def link(*arguments, **options):
    real_link(*arguments, **options)
    if sys.argv[3] == "linked":
        os.kill(os.getpid(), signal.SIGKILL)
os.link = link
driver = NFSDriver("files", NFSOptions(sys.argv[1]), run)
driver.create_volume(Volume("1", "vol-1", "files", 1 << 20), NFSVolumeOptions(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", ["before", "after", "linked"])
@pytest.mark.parametrize("image_format", FORMATS)
def test_a_create_killed_at_any_moment_is_repeated_or_deleted(
    share: Share, image_format: str, moment: str
) -> None:
    def kill() -> None:
        argv = [sys.executable, "-c", _KILLED, str(share.directory), image_format, moment]
        assert subprocess.run(argv, timeout=60, check=False).returncode == -signal.SIGKILL

    kill()
    assert any(name.endswith(".new") for name in share.names)
    assert share.driver.list_volumes() == (["1"] if moment == "linked" else [])
    volume = share.create(format=image_format)
    assert share.names == [share.path(volume).name]
    assert image_size(share.path(volume), image_format) == MiB
    share.driver.delete_volume(volume)
    kill()
    share.driver.delete_volume(replace(volume, provider_data=""))
    assert share.names == []


def test_a_create_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(argv: Sequence[str], *, timeout_s: float) -> Completed:
        answer = process.run(argv, timeout_s=timeout_s)
        if "create" in argv:
            raise OutcomeUnknown("qemu-img", "it did not end")
        return answer

    share = Share(tmp_path, fail)
    with pytest.raises(OutcomeUnknown):
        share.create()
    assert share.names == []


def test_a_program_that_lies_is_found_out(tmp_path: Path) -> None:
    def lie(argv: Sequence[str], *, timeout_s: float) -> Completed:
        lies = "qemu-img" in argv
        return Completed("", "") if lies else process.run(argv, timeout_s=timeout_s)

    honest, lying = Share(tmp_path), Share(tmp_path, lie)
    with pytest.raises(BackendError, match="came out 0 B large instead of 1 MiB"):
        lying.create()
    assert lying.names == []
    volume = honest.create()
    with pytest.raises(BackendError, match="came out 1 MiB large instead of 2 MiB"):
        lying.driver.extend_volume(volume, 2 * MiB)


# Extending


@pytest.mark.parametrize(("image_format", "preallocated"), ALL)
def test_extends_an_available_volume(share: Share, image_format: str, preallocated: bool) -> None:
    volume = share.create(format=image_format, preallocate=preallocated)
    path = share.path(volume)
    write(path, image_format, 0, MiB, 0xA5)
    for _ in range(2):
        share.driver.check_extend(volume, 4 * MiB)
        assert share.driver.extend_volume(volume, 4 * MiB) is ExtendReply.EXTENDED
        assert image_size(path, image_format) == share.driver.volume_size(volume) == 4 * MiB
    check(path, image_format, 0, MiB, 0xA5)
    check(path, image_format, MiB, 3 * MiB, 0)
    assert (allocated(path) >= 4 * MiB) is preallocated
    assert path.stat().st_mode & 0o777 == 0o600
    assert share.names == [path.name]


@pytest.mark.parametrize("image_format", FORMATS)
def test_never_makes_a_volume_smaller(share: Share, image_format: str) -> None:
    volume = share.create("1", 4 * MiB, format=image_format)
    share.driver.check_extend(volume, 2 * MiB)
    assert share.driver.extend_volume(volume, 2 * MiB) is ExtendReply.EXTENDED
    assert image_size(share.path(volume), image_format) == 4 * MiB


def test_takes_a_size_that_somebody_else_made(share: Share) -> None:
    volume = share.create()
    os.truncate(share.path(volume), MiB + 100)
    assert share.driver.extend_volume(volume, MiB + 100) is ExtendReply.EXTENDED
    assert share.driver.volume_size(volume) == MiB + 100


def test_a_header_written_by_a_guest_changes_nothing(share: Share) -> None:
    volume = share.create()
    path = share.path(volume)
    other = share.create("2", 64 * MiB, format="qcow2")
    header = share.path(other).read_bytes()[:4096]
    with path.open("r+b") as disk:
        disk.write(header)
    assert share.create() == volume
    assert share.driver.volume_size(volume) == MiB
    share.driver.check_extend(volume, 2 * MiB)
    assert share.driver.extend_volume(volume, 2 * MiB) is ExtendReply.EXTENDED
    assert path.stat().st_size == 2 * MiB
    assert path.read_bytes()[:4096] == header
    info = share.driver.initialize_connection(volume, Connector("host-1"))
    assert dict(info.properties) == {"path": str(path), "format": "raw"}
    assert share.driver.pool().allocated_bytes == 2 * MiB + 64 * MiB


@pytest.mark.parametrize("state", [InstanceState.RUNNING, InstanceState.UNKNOWN])
@pytest.mark.parametrize("image_format", FORMATS)
def test_leaves_an_attached_volume_to_its_hypervisor(
    share: Share, image_format: str, state: InstanceState
) -> None:
    volume = attached(share.create(format=image_format), state)
    share.driver.check_extend(volume, 2 * MiB)
    assert share.driver.extend_volume(volume, 2 * MiB) is ExtendReply.DEFERRED
    assert image_size(share.path(volume), image_format) == MiB


@pytest.mark.parametrize("image_format", FORMATS)
def test_grows_a_volume_whose_instance_has_stopped(share: Share, image_format: str) -> None:
    volume = attached(share.create(format=image_format), InstanceState.STOPPED)
    share.driver.probe_locks(volume)
    assert share.driver.extend_volume(volume, 2 * MiB) is ExtendReply.EXTENDED
    assert image_size(share.path(volume), image_format) == 2 * MiB
    assert share.names == [share.path(volume).name]


def test_refuses_in_use_what_qemu_cannot_keep_preallocated(share: Share) -> None:
    volume = share.create(format="qcow2", preallocate=True)
    with pytest.raises(NotSupported, match="volume vol-1: QEMU cannot keep"):
        share.driver.check_extend(attached(volume), 2 * MiB)
    share.driver.check_extend(attached(volume, InstanceState.STOPPED), 2 * MiB)


# With a QEMU that holds the file


@pytest.mark.needs("qemu-system-x86_64")
@pytest.mark.parametrize("image_format", FORMATS)
def test_a_file_that_qemu_holds_is_neither_grown_nor_deleted(
    share: Share, ram_path: Path, image_format: str
) -> None:
    volume = share.create(format=image_format)
    with running_guest(ram_path, share.path(volume), image_format):
        for act in (
            lambda: share.driver.probe_locks(volume),
            lambda: share.driver.extend_volume(volume, 2 * MiB),
            lambda: share.driver.delete_volume(volume),
        ):
            with pytest.raises(
                InvalidState, match=r"file .* is held by a QEMU, must be closed by every QEMU"
            ):
                act()
        assert share.driver.volume_size(volume) == MiB
        assert share.names == [share.path(volume).name]
    share.driver.probe_locks(volume)
    share.driver.delete_volume(volume)
    assert share.names == []


@pytest.mark.needs("qemu-system-x86_64")
@pytest.mark.parametrize(("image_format", "preallocated"), [("raw", False), ("raw", True), ("qcow2", False)])
def test_finishes_what_the_hypervisor_grew(
    share: Share, ram_path: Path, image_format: str, preallocated: bool
) -> None:
    volume = attached(share.create(format=image_format, preallocate=preallocated))
    path = share.path(volume)
    with running_guest(ram_path, path, image_format) as guest:
        disk = guest.disk("disk")
        disk.write(0, b"\xa5" * MiB)
        assert share.driver.extend_volume(volume, 4 * MiB) is ExtendReply.DEFERRED
        guest.execute("block_resize", {"node-name": "disk", "size": 4 * MiB})
        disk.write(2 * MiB // SECTOR_BYTES, b"\x5a" * MiB)  # the guest is there before the allocation
        for _ in range(2):
            assert share.driver.extend_volume(volume, 4 * MiB) is ExtendReply.EXTENDED
        assert share.driver.volume_size(volume) == 4 * MiB
        assert share.driver.ledger_rows(volume, 4 * MiB)[0].agrees
        assert (allocated(path) >= 4 * MiB) is preallocated
        assert disk.read(4 * MiB // SECTOR_BYTES - 1) == bytes(SECTOR_BYTES)
    for offset, pattern in ((0, 0xA5), (MiB, 0), (2 * MiB, 0x5A), (3 * MiB, 0)):
        check(path, image_format, offset, MiB, pattern)


# Room


def test_promises_no_more_than_the_ratio_allows(tmp_path: Path) -> None:
    share = Share(tmp_path, max_over_subscription_ratio=1.0)
    room = os.statvfs(tmp_path)
    whole = room.f_blocks * room.f_frsize // 512 * 512
    with pytest.raises(NoSpace, match="volume vol-1: no space"):
        share.create("1", whole)
    volume = share.create("2", MiB)
    with pytest.raises(NoSpace) as caught:
        share.driver.check_extend(volume, whole)
    assert caught.value.needed_bytes == whole - MiB
    assert 0 < (caught.value.free_bytes or 0) < whole
    generous = Share(tmp_path)
    generous.driver.check_extend(volume, whole)
    with pytest.raises(NoSpace) as caught:
        generous.create("3", whole, preallocate=True)
    assert caught.value.free_bytes is not None, "found out by trying"


def test_what_is_promised_is_not_promised_again(ram_path: Path) -> None:
    """A tmpfs is nearly empty, so that what is free does not decide."""
    share = Share(ram_path, max_over_subscription_ratio=1.0)
    most = share.driver.pool().free_bytes // 5 * 3 // 512 * 512
    volume = share.create("1", most, format="qcow2")
    with pytest.raises(NoSpace):
        share.create("2", most)
    share.driver.delete_volume(volume)
    share.create("2", most)


def test_the_pool_counts_what_is_promised_and_reserved(tmp_path: Path) -> None:
    share = Share(tmp_path, max_over_subscription_ratio=2.0, reserved_percentage=10)
    share.create("1", 3 * MiB)
    share.create("2", 5 * MiB, format="qcow2")
    (tmp_path / "foreign").write_bytes(bytes(MiB))
    (tmp_path / "volume-3.qcow2").write_bytes(b"not a header")
    room = os.statvfs(tmp_path)
    pool = share.driver.pool()
    assert pool.allocated_bytes == 8 * MiB
    assert pool.total_bytes == room.f_blocks * room.f_frsize
    assert pool.free_bytes == pytest.approx(
        2 * (room.f_bavail * room.f_frsize - pool.total_bytes // 10), rel=0.05
    )


def test_a_full_share_is_no_space_and_works_again(mounted: Callable[..., Path]) -> None:
    share = Share(mounted("tmpfs", "-o", "size=4m", "none"))
    volume, thick = share.create("1", MiB), share.create("2", MiB, preallocate=True)
    ballast = share.directory / "ballast"
    with pytest.raises(CommandFailed, match="No space left"):
        process.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=4096"], timeout_s=10)
    for act in (
        lambda: share.create("3", MiB),
        lambda: share.driver.check_extend(volume, 2 * MiB),
        lambda: share.driver.check_extend(thick, 2 * MiB),
        lambda: share.driver.extend_volume(thick, 2 * MiB),  # the share filled up after admission
    ):
        with pytest.raises(NoSpace):
            act()
    assert share.driver.volume_size(volume) == MiB
    assert share.names == ["ballast", "volume-1", "volume-2"]
    ballast.unlink()
    for each in (volume, thick):
        share.driver.check_extend(each, 2 * MiB)
        assert share.driver.extend_volume(each, 2 * MiB) is ExtendReply.EXTENDED
    assert allocated(share.path(thick)) >= 2 * MiB


# Faults of the share


def test_a_vanished_file_is_not_found_and_not_made_anew(share: Share) -> None:
    volume = share.create(preallocate=True)
    share.path(volume).unlink()
    for act in every_act(share, volume, 2 * MiB)[1:-1]:
        with pytest.raises(NotFound):
            act()
    share.driver.delete_volume(volume)
    assert share.names == []


def test_a_vanished_share_is_not_a_vanished_volume(tmp_path: Path) -> None:
    share = Share(tmp_path / "share")
    share.directory.mkdir()
    volume = share.create()
    share.directory.rename(tmp_path / "elsewhere")
    for act in [*every_act(share, volume, 2 * MiB), share.driver.pool, share.driver.list_volumes]:
        with pytest.raises(InvalidState, match="is not there, must be a directory"):
            act()


def test_a_share_that_must_be_mounted_is_missed(mounted: Callable[..., Path], tmp_path: Path) -> None:
    point = mounted("tmpfs", "-o", "size=4m", "none")
    link = tmp_path / "link"
    link.symlink_to(point)
    volume = Share(link, must_be_mounted=True).create()
    assert Share(point, must_be_mounted=True).driver.volume_size(volume) == MiB
    plain = Share(tmp_path, must_be_mounted=True)
    for act in every_act(plain, volume, 2 * MiB):
        with pytest.raises(InvalidState, match="is not mounted, must be mounted"):
            act()


def test_a_read_only_share_is_refused_until_it_is_writable(mounted: Callable[..., Path]) -> None:
    share = Share(mounted("tmpfs", "-o", "size=4m", "none"))
    volume = share.create()
    subprocess.run(["mount", "-o", "remount,ro", str(share.directory)], check=True)
    for act in (
        lambda: share.create("2"),
        lambda: share.driver.check_extend(volume, 2 * MiB),
        lambda: share.driver.extend_volume(volume, 2 * MiB),
        lambda: share.driver.delete_volume(volume),
    ):
        with pytest.raises(InvalidState, match="Read-only file system"):
            act()
    assert share.driver.volume_size(volume) == MiB
    subprocess.run(["mount", "-o", "remount,rw", str(share.directory)], check=True)
    assert share.driver.extend_volume(volume, 2 * MiB) is ExtendReply.EXTENDED


def test_permission_denied_is_refused_until_it_is_granted(ram_path: Path) -> None:
    """Root is denied nothing, so the driver runs as somebody else."""
    share = Share(ram_path / "share")
    share.directory.mkdir(mode=0o755)
    volume = share.create()
    os.chmod(share.path(volume), 0o400)
    os.chmod(share.directory, 0o555)
    ram_path.chmod(0o755)
    try:
        assert run_denied(share, volume, "extend_volume") == "InvalidState Permission denied"
        assert run_denied(share, volume, "check_extend") == "InvalidState Permission denied"
        assert run_denied(share, volume, "create") == "InvalidState Permission denied"
    finally:
        os.chmod(share.directory, 0o755)
    os.chmod(share.path(volume), 0o600)
    assert share.driver.extend_volume(volume, 2 * MiB) is ExtendReply.EXTENDED


_DENIED = """
import ctypes, os, sys
from voldrivers import process
from voldrivers.errors import VolDriverError
from voldrivers.guests.device import SECTOR_BYTES, DeviceGuest
from voldrivers.model import Volume
from voldrivers.nfs.driver import NFSDriver
from voldrivers.nfs.options import NFSOptions, NFSVolumeOptions

driver = NFSDriver("files", NFSOptions(sys.argv[1]), process.run)
volume = Volume("1", "vol-1", "files", 1 << 20, provider_data=sys.argv[2])
if os.geteuid() == 0:  # only now: what root may read is imported
    process.run(["true"], timeout_s=10)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, as after an exec: /proc/PID/fd is ours again
try:
    if sys.argv[3] == "create":
        driver.create_volume(Volume("2", "vol-2", "files", 1 << 20), NFSVolumeOptions())
    else:
        getattr(driver, sys.argv[3])(volume, 1 << 21)
except VolDriverError as error:
    print(type(error).__name__, "Permission denied" if "Permission denied" in str(error) else error)
"""


def run_denied(share: Share, volume: Volume, act: str) -> str:
    argv = [sys.executable, "-c", _DENIED, str(share.directory), volume.provider_data, act]
    return process.run(argv, timeout_s=60).stdout.strip()


def test_a_share_without_fallocate_has_no_preallocated_volumes(
    mounted: Callable[..., Path], tmp_path: Path
) -> None:
    if shutil.which("mkfs.ext3") is None or not Path("/dev/loop-control").exists():
        pytest.skip("needs mkfs.ext3 and loop devices")
    image = tmp_path / "ext3"
    image.touch()
    os.truncate(image, 32 * MiB)
    subprocess.run(["mkfs.ext3", "-q", str(image)], check=True)
    share = Share(mounted("ext3", "-o", "loop", str(image)))
    for image_format in FORMATS:
        with pytest.raises(NotSupported, match="cannot allocate without writing"):
            share.create("1", MiB, format=image_format, preallocate=True)
    volume = share.create("1", MiB)
    assert share.driver.extend_volume(volume, 2 * MiB) is ExtendReply.EXTENDED
    thick = replace(volume, provider_data=volume.provider_data.replace("false", "true"))
    with pytest.raises(NotSupported, match="cannot allocate without writing"):
        share.driver.check_extend(attached(thick), 3 * MiB)
    assert share.names == ["lost+found", "volume-1"]


def test_a_file_too_large_for_the_file_system_is_an_invalid_size(
    mounted: Callable[..., Path], tmp_path: Path
) -> None:
    image = tmp_path / "ext3"
    image.touch()
    os.truncate(image, 32 * MiB)
    subprocess.run(["mkfs.ext3", "-q", "-b", "1024", str(image)], check=True)
    share = Share(mounted("ext3", "-o", "loop", str(image)), max_over_subscription_ratio=1e6)
    volume = share.create()
    with pytest.raises(InvalidSize, match="cannot be 64 GiB"):  # 16 GiB is the limit with 1 KiB blocks
        share.driver.extend_volume(volume, 64 * GiB)
    assert share.driver.volume_size(volume) == MiB


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("prlimit", "env", "stat"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(CommandFailed, match="qemu-img"):
        Share(tmp_path).create()
    assert os.listdir(tmp_path) == ["bin"]


# Connections and deletion


@pytest.mark.parametrize("image_format", FORMATS)
def test_says_where_the_file_is(share: Share, image_format: str) -> None:
    volume = share.create(format=image_format)
    info = share.driver.initialize_connection(volume, Connector("host-1"))
    assert info.driver_volume_type == "file"
    assert dict(info.properties) == {"path": str(share.path(volume)), "format": image_format}
    (row,) = share.driver.ledger_rows(volume, 2 * MiB)
    assert (row.layer, row.place, row.observed_bytes) == ("file", str(share.path(volume)), MiB)
    assert row.stale
    share.driver.terminate_connection(volume, Connector("host-1"))


def test_a_qcow2_has_one_place(share: Share) -> None:
    with pytest.raises(NotSupported, match="one writer"):
        share.driver.create_volume(
            Volume("1", "vol-1", "files", MiB, multi_attach=True), NFSVolumeOptions("qcow2")
        )
    volume = attached(share.create(format="qcow2"))
    share.driver.initialize_connection(volume, Connector("host-1"))
    with pytest.raises(InvalidState, match="attached to host-1/guest"):
        share.driver.initialize_connection(volume, Connector("host-2"))
    raw = attached(share.create("2"))
    share.driver.initialize_connection(raw, Connector("host-2"))


def test_deletes_twice_and_only_its_own(share: Share) -> None:
    volumes = [share.create("1"), share.create("1-new", format="qcow2")]
    for name in ("foreign", "volume-", "volume-2.raw", "Volume-3", "volume-4.qcow2.bak"):
        (share.directory / name).touch()
    (share.directory / "volume-5").mkdir()
    assert share.driver.list_volumes() == ["1", "1-new"]
    foreign = len(share.names) - 2
    for volume in volumes * 2:
        share.driver.delete_volume(volume)
    assert share.driver.list_volumes() == []
    assert len(share.names) == foreign


# Options, mounts


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": "relative/path"},
        {"share": ""},
        {"share": "-o:/export"},
        {"share": "server:export"},
        {"share": "server:/a b"},
        {"share": "server:/a/../b"},
        {"share": "server:/a\n"},
        {"share": "/a\0b"},
    ],
)
def test_refuses_wrong_options(wrong: dict[str, Any]) -> None:  # Any: option values of any type
    with pytest.raises(InvalidInput):
        NFSDriver("files", NFSOptions(**wrong), process.run)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_over_subscription_ratio": 0.5},
        {"max_over_subscription_ratio": float("nan")},
        {"reserved_percentage": 100},
        {"reserved_percentage": -1},
    ],
)
def test_refuses_options_out_of_range(wrong: dict[str, Any]) -> None:  # Any: as above
    with pytest.raises(InvalidInput):
        read_options(NFSOptions, {"share": "/a", **wrong}, "[backend.files]")


@pytest.mark.parametrize("export", ["server:/export", "10.0.0.1:/", "[fe80::1%eth0]:/srv/x", "a.b-c:/x"])
def test_knows_an_export(export: str) -> None:
    assert shares.is_export(export)


def test_an_export_that_cannot_be_mounted_is_a_typed_error(tmp_path: Path) -> None:
    options = NFSOptions("127.0.0.1:/nowhere", mount_options="retry=0", mount_point_base=tmp_path)
    driver = NFSDriver("files", options, process.run)
    volume = Volume("1", "vol-1", "files", MiB)
    with pytest.raises(InvalidState, match=r"share 127.0.0.1:/nowhere is not mountable \(.*mount.*\)"):
        driver.create_volume(volume, NFSVolumeOptions())
    with pytest.raises(InvalidInput, match="mount options"):
        shares.mount(process.run, "127.0.0.1:/nowhere", "hard -o x", tmp_path)


def test_a_mount_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for mount(8), because the real one on a dead server needs NFS in the kernel."""
    hanging = tmp_path / "mount"
    hanging.write_text(f"#!/bin/sh\necho again >> {tmp_path}/tried\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(InvalidState, match="did not end within"):
        shares.mount(process.run, "server:/export", "", tmp_path / "base", timeout_s=1.0)
    assert (tmp_path / "tried").read_text() == "again\n", "the other versions had no time left"


def test_follows_links_of_local_file_systems_to_the_mount(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "up").symlink_to("../real/deep")
    (tmp_path / "absolute").symlink_to(tmp_path / "real" / "up")
    place = place_of(tmp_path / "absolute" / ".." / "deep")
    assert place.path == tmp_path.resolve() / "real" / "deep"
    assert place.mount.is_local
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BackendError, match="symbolic links"):
        place_of(tmp_path / "loop")


def test_locks_on_a_share_that_others_do_not_see_prove_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS 3 is recognised by what /proc/self/mountinfo says of it."""
    volume = Share(tmp_path).create()
    for version, trusted in (("nfs rw,vers=3,local_lock=none", False), ("nfs4 rw,vers=4.2", True)):
        kind, options = version.split(" ")
        mount = Mount(tmp_path, kind, "server:/export", frozenset(options.split(",")))
        monkeypatch.setattr(mounts, "place_of", lambda path, mount=mount: Place(path, mount))
        if trusted:
            Share(tmp_path).driver.probe_locks(volume)
        else:
            with pytest.raises(InvalidState, match=r"mounted as nfs vers=3, must be .* NFS 4"):
                Share(tmp_path).driver.probe_locks(volume)
