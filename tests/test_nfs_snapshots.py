"""Snapshots, clones and files taken over by the NFS driver, on real directories with the real qemu-img."""

import json
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from test_nfs_driver import Share, check, running_guest, write

from voldrivers import process
from voldrivers.abilities import Merge
from voldrivers.base import Completed
from voldrivers.errors import (
    BackendError,
    InvalidInput,
    InvalidSize,
    InvalidState,
    NoSpace,
    NotFound,
    NotSupported,
    VolDriverError,
)
from voldrivers.model import Attachment, Connector, InstanceState, Snapshot, SnapshotStatus, Volume
from voldrivers.nfs.options import NFSVolumeOptions
from voldrivers.sizes import MiB

pytestmark = pytest.mark.needs("qemu-img", "qemu-io", "fallocate", "prlimit")

FORMATS = pytest.mark.parametrize("image_format", ["raw", "qcow2"])
PLAIN = NFSVolumeOptions()


@pytest.fixture
def share(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Share:
    """Give a share; its volumes have the same id in all tests, so each has temporary files of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    return Share(tmp_path)


def take(share: Share, volume: Volume, snapshot_id: str) -> Volume:
    """Take a snapshot as the engine does; give the volume as it is recorded then."""
    snapshot = Snapshot(snapshot_id, snapshot_id, volume.id, volume.size_bytes)
    asked = replace(volume, snapshots=(*volume.snapshots, snapshot))
    taken = share.driver.create_snapshot(asked, snapshot)
    assert share.driver.create_snapshot(asked, snapshot) == taken
    kept = replace(snapshot, provider_data=taken.of_snapshot, status=SnapshotStatus.AVAILABLE)
    return replace(volume, provider_data=taken.of_volume, snapshots=(*volume.snapshots, kept))


def drop(share: Share, volume: Volume, snapshot_id: str) -> Volume:
    snapshot = next(each for each in volume.snapshots if each.id == snapshot_id)
    for _ in range(2):
        assert share.driver.delete_snapshot(volume, snapshot) is None
    return replace(volume, snapshots=tuple(each for each in volume.snapshots if each != snapshot))


def attached(volume: Volume, state: InstanceState) -> Volume:
    attachment = Attachment("a", volume.id, "here", "vm", instance_state=state)
    return replace(volume, attachments=(attachment,))


def backing(path: Path) -> object:
    argv = ["qemu-img", "info", "--output=json", "-f", "qcow2", str(path)]
    return json.loads(process.run(argv, timeout_s=10).stdout).get("backing-filename")


# layers


@FORMATS
def test_each_snapshot_freezes_a_file_and_its_deletion_leaves_all_others(
    share: Share, image_format: str
) -> None:
    volume = share.create(format=image_format)
    base = share.path(volume)
    write(base, image_format, 0, 65536, 1)
    volume = take(share, volume, "a")
    write(share.path(volume), "qcow2", 65536, 65536, 2)
    volume = take(share, volume, "b")
    write(share.path(volume), "qcow2", 0, 512, 3)
    volume = take(share, volume, "c")
    assert (share.driver.list_volumes(), share.driver.list_snapshots()) == (["1"], ["a", "b", "c"])
    assert [backing(share.directory / f"volume-1.{name}.qcow2") for name in "abc"] == [
        base.name,
        "volume-1.a.qcow2",
        "volume-1.b.qcow2",
    ]
    frozen = {path: path.read_bytes() for path in share.directory.iterdir() if ".b." not in path.name}
    volume = drop(share, volume, "b")
    frozen = {path: content for path, content in frozen.items() if path.name != "volume-1.a.qcow2"}
    assert {path: path.read_bytes() for path in frozen} == frozen
    assert share.driver.list_snapshots() == ["a", "c"]
    assert backing(share.directory / "volume-1.b.qcow2") == base.name
    volume = drop(share, volume, "a")
    assert not base.exists()
    check(share.path(volume), "qcow2", 512, 65024, 1)
    check(share.path(volume), "qcow2", 0, 512, 3)
    check(share.path(volume), "qcow2", 65536, 65536, 2)
    volume = drop(share, volume, "c")
    assert share.names == ["volume-1.c.qcow2"]
    share.driver.delete_volume(volume)
    assert share.names == []


def test_zeros_that_were_written_over_content_stay_zeros(share: Share) -> None:
    """The layer below holds something there."""
    volume = share.create()
    write(share.path(volume), "raw", 0, MiB, 7)
    volume = take(share, volume, "a")
    write(share.path(volume), "qcow2", 0, 131072, 0)
    volume = take(share, volume, "b")
    volume = drop(share, volume, "b")
    check(share.path(volume), "qcow2", 0, 131072, 0)
    check(share.path(volume), "qcow2", 131072, MiB - 131072, 7)
    volume = drop(share, volume, "a")
    check(share.path(volume), "qcow2", 0, 131072, 0)
    check(share.path(volume), "qcow2", 131072, MiB - 131072, 7)


def test_the_limits_of_a_merge_and_of_a_copy_leave_room_for_all_threads_of_qemu(share: Share) -> None:
    """A request that finds no thread free gets one more, up to 64; how many there will be, nobody knows."""
    busy: list[str] = []

    def many_at_once(argv: Sequence[str], *, timeout_s: float) -> Completed:
        if "rebase" in argv or "convert" in argv:
            limited = argv[: argv.index("qemu-img") + 1]
            requests = ["bench", "-q", "-f", "raw", "-d", "64", "-c", "500", str(image)]
            for _ in range(5):
                process.run([*limited, *requests], timeout_s=20)
            busy.append(argv[len(limited)])
        return process.run(argv, timeout_s=timeout_s)

    image = share.directory / "image"
    image.touch()
    os.truncate(image, 100 * MiB)
    watched = Share(share.directory, many_at_once)
    source = watched.create()
    watched.driver.clone_volume(Volume("2", "vol-2", "files", MiB), PLAIN, source)
    drop(watched, take(watched, source, "a"), "a")
    assert busy == ["convert", "rebase"]


@pytest.mark.parametrize("merged", [False, True])
def test_what_a_killed_merge_left_among_temporary_files_goes(share: Share, merged: bool) -> None:
    """Its qemu-img may have outlived it, and ended well."""
    temporary = Path(tempfile.gettempdir())
    volume = take(share, share.create(), "a")
    left = temporary / f"voldrivers-{os.geteuid()}-1"
    left.mkdir()
    (left / "volume-1").symlink_to("/proc/1/fd/1")
    if merged:
        argv = ["qemu-img", "rebase", "-f", "qcow2", "-b", "", str(share.path(volume))]
        process.run(argv, timeout_s=10)
    drop(share, volume, "a")
    assert list(temporary.iterdir()) == []


def test_a_volume_is_deleted_with_all_its_files_and_no_other(share: Share) -> None:
    others = [share.create("10"), share.create("1a", format="qcow2")]
    volume = take(share, take(share, share.create(format="qcow2"), "s"), "t")
    (share.directory / ".volume-1.u.qcow2.new").touch()
    share.driver.delete_volume(volume)
    assert share.names == sorted(share.path(other).name for other in others)


def test_in_use_the_hypervisor_is_asked_to_merge_and_nothing_is_done(share: Share) -> None:
    volume = take(share, take(share, share.create(), "a"), "b")
    before = share.names
    running = attached(volume, InstanceState.RUNNING)
    oldest = Merge("volume-1.a.qcow2", "volume-1", None, None)
    newest = Merge("volume-1.b.qcow2", "volume-1.a.qcow2", "volume-1", "raw")
    asked = [share.driver.delete_snapshot(running, snapshot) for snapshot in volume.snapshots]
    assert asked == [oldest, newest]
    assert share.names == before


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        (InstanceState.UNKNOWN, InvalidState, "nobody knows whether it runs"),
        (None, NotSupported, "without an instance"),
    ],
)
def test_whoever_may_write_unseen_keeps_it_from_being_frozen_or_merged(
    share: Share, state: InstanceState | None, error: type[VolDriverError], words: str
) -> None:
    volume = take(share, share.create(), "a")
    held = attached(volume, state or InstanceState.UNKNOWN)
    if state is None:
        held = replace(held, attachments=(replace(held.attachments[0], instance=None),))
    before = share.names
    with pytest.raises(error, match=words):
        take(share, held, "b")
    with pytest.raises(error, match=words):
        share.driver.delete_snapshot(held, volume.snapshots[0])
    assert share.names == before


@pytest.mark.needs("qemu-system-x86_64", "setpriv")
def test_what_a_qemu_holds_is_neither_frozen_nor_merged_nor_copied_nor_reverted(
    share: Share, ram_path: Path
) -> None:
    volume = take(share, share.create(), "a")
    acts: list[Callable[[], object]] = [
        lambda: take(share, volume, "b"),
        lambda: share.driver.delete_snapshot(volume, volume.snapshots[0]),
        lambda: share.driver.revert_to_snapshot(volume, volume.snapshots[0]),
        lambda: share.driver.clone_volume(replace(volume, id="2"), PLAIN, volume),
        lambda: share.driver.delete_volume(volume),
    ]
    with running_guest(ram_path, share.path(volume), "qcow2"):
        before = share.names
        for act in acts:
            with pytest.raises(InvalidState, match="held by a QEMU"):
                act()
        assert share.names == before


# headers and records


@pytest.mark.parametrize("planted", ["/etc/passwd", "volume-2", "volume-1.b.qcow2", ""])
def test_a_header_that_leads_elsewhere_is_never_followed(share: Share, planted: str) -> None:
    volume = take(share, take(share, share.create(), "a"), "b")
    share.create("2")
    argv = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", planted, "-F", "raw", str(share.path(volume))]
    process.run(argv if planted else [*argv[:5], "-b", "", argv[-1]], timeout_s=10)
    check_every_act_refuses(share, volume, "its backing file is")


def check_every_act_refuses(share: Share, volume: Volume, words: str) -> None:
    newest = volume.snapshots[-1]
    acts: list[Callable[[], object]] = [
        lambda: share.driver.initialize_connection(volume, Connector("here")),
        lambda: share.driver.check_extend(volume, 2 * MiB),
        lambda: share.driver.ledger_rows(volume, MiB),
        lambda: share.driver.extend_volume(volume, 2 * MiB),
        lambda: share.driver.clone_volume(Volume("9", "9", "files", MiB), PLAIN, volume),
        lambda: take(share, volume, "z"),
        lambda: share.driver.revert_to_snapshot(volume, newest),
        lambda: share.driver.delete_snapshot(volume, newest),
    ]
    before = {path.name: path.read_bytes() for path in share.directory.iterdir()}
    for act in acts:
        with pytest.raises((BackendError, InvalidState), match=words):
            act()
    assert {path.name: path.read_bytes() for path in share.directory.iterdir()} == before


def test_a_raw_base_with_a_guests_header_is_raw(share: Share, tmp_path: Path) -> None:
    """A guest wrote a qcow2 header with a backing file into its disk."""
    volume = share.create()
    secret = tmp_path / "secret"
    secret.write_bytes(b"S" * MiB)
    crafted = tmp_path / "crafted"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(crafted), str(MiB)]
    process.run(argv, timeout_s=10)
    with share.path(volume).open("r+b") as disk:
        disk.write(crafted.read_bytes())
    header = share.path(volume).read_bytes()
    volume = take(share, volume, "a")
    clone = Volume("2", "2", "files", MiB)
    clone = replace(clone, provider_data=share.driver.clone_volume(clone, PLAIN, volume, volume.snapshots[0]))
    assert share.path(clone).read_bytes() == header
    volume = drop(share, volume, "a")
    argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(share.path(volume)), str(tmp_path / "out")]
    process.run(argv, timeout_s=10)
    assert (tmp_path / "out").read_bytes() == header


@pytest.mark.parametrize(
    "spoilt",
    [
        {"file": "volume-2"},
        {"file": "volume-1.a.qcow2", "format": "raw"},
        {"file": "../volume-1"},
        {"format": "vmdk"},
        {"over": "../secret"},
        {"over": "volume-2"},
    ],
)
def test_a_record_leads_to_no_file_of_others(share: Share, spoilt: dict[str, str]) -> None:
    volume = share.create()
    asked = Snapshot("a", "a", "1", MiB)
    taken = share.driver.create_snapshot(replace(volume, snapshots=(asked,)), asked)
    record = json.dumps({**json.loads(taken.of_volume), **spoilt})
    with pytest.raises(BackendError, match="not its own"):
        share.driver.initialize_connection(
            replace(volume, provider_data=record, snapshots=(asked,)), Connector("here")
        )


def test_a_link_planted_in_a_layers_place_is_not_followed(share: Share) -> None:
    volume = take(share, share.create(), "a")
    base = share.directory / "volume-1"
    base.rename(share.directory / "elsewhere")
    base.symlink_to(share.directory / "elsewhere")
    with pytest.raises(BackendError, match="symbolic link"):
        share.driver.delete_snapshot(volume, volume.snapshots[0])
    with pytest.raises(BackendError, match="symbolic link"):
        share.driver.clone_volume(Volume("9", "9", "files", MiB), PLAIN, volume, volume.snapshots[0])


def test_it_says_what_the_file_lies_on(share: Share) -> None:
    volume = take(share, take(share, share.create(), "a"), "b")
    info = share.driver.initialize_connection(volume, Connector("here"))
    assert dict(info.properties) == {
        "path": str(share.directory / "volume-1.b.qcow2"),
        "format": "qcow2",
        "layers": json.dumps([["volume-1.a.qcow2", "qcow2"], ["volume-1", "raw"]]),
    }


# room


def test_a_snapshot_promises_what_it_holds_and_the_volume_its_size(share: Share) -> None:
    volume = share.create(size_bytes=8 * MiB)
    write(share.path(volume), "raw", 0, 2 * MiB, 1)
    assert share.driver.pool().allocated_bytes == 8 * MiB
    volume = take(share, volume, "a")
    assert share.driver.pool().allocated_bytes == 8 * MiB + 2 * MiB
    drop(share, volume, "a")
    assert share.driver.pool().allocated_bytes == 8 * MiB


def test_what_may_not_be_promised_is_neither_frozen_nor_copied(ram_path: Path) -> None:
    share = Share(ram_path, max_over_subscription_ratio=1.0)
    volume = share.create()
    write(share.path(volume), "raw", 0, MiB, 1)
    free_bytes = share.driver.pool().free_bytes
    volume = take(share, volume, "a")
    share.create("2", (free_bytes - MiB - 64 * MiB) // 512 * 512)
    share.create("3", share.driver.pool().free_bytes // MiB * MiB)
    for act in (
        lambda: share.driver.clone_volume(Volume("9", "9", "files", MiB), PLAIN, volume, volume.snapshots[0]),
        lambda: take(share, take(share, write_all(share, volume), "b"), "c"),
    ):
        with pytest.raises(NoSpace):
            act()


def write_all(share: Share, volume: Volume) -> Volume:
    write(share.path(volume), "qcow2", 0, MiB, 2)
    return volume


# reverting and copying


def test_reverted_it_has_size_and_content_of_the_snapshot(share: Share) -> None:
    volume = share.create()
    write(share.path(volume), "raw", 0, 4096, 1)
    volume = take(share, volume, "a")
    write(share.path(volume), "qcow2", 0, 4096, 2)
    share.driver.extend_volume(volume, 2 * MiB)
    for _ in range(2):
        assert share.driver.revert_to_snapshot(volume, volume.snapshots[0]) == volume.provider_data
        assert share.driver.volume_size(volume) == MiB
        check(share.path(volume), "qcow2", 0, 4096, 1)
    assert len(share.names) == 3


@pytest.mark.parametrize("preallocated", [False, True])
@FORMATS
def test_a_copy_stands_alone_sparse_or_allocated_as_asked(
    share: Share, image_format: str, preallocated: bool
) -> None:
    source = share.create(size_bytes=8 * MiB)
    write(share.path(source), "raw", MiB, 65536, 5)
    source = take(share, source, "a")
    write(share.path(source), "qcow2", 2 * MiB, 65536, 6)
    options = NFSVolumeOptions(image_format, preallocated)
    made = []
    for clone_id, snapshot in (("2", source.snapshots[0]), ("3", None)):
        clone = Volume(clone_id, clone_id, "files", 12 * MiB)
        for _ in range(2):
            record = share.driver.clone_volume(clone, options, source, snapshot)
        made.append(share.path(replace(clone, provider_data=record)))
    share.driver.delete_volume(source)
    for path, later in zip(made, (0, 6), strict=True):
        check(path, image_format, MiB, 65536, 5)
        check(path, image_format, 2 * MiB, 65536, later)
        check(path, image_format, 8 * MiB, 4 * MiB, 0)
        assert (path.stat().st_blocks * 512 >= 12 * MiB) is preallocated
        assert path.stat().st_mode & 0o777 == 0o600


def test_an_attached_volume_is_not_copied(share: Share) -> None:
    source = attached(share.create(), InstanceState.STOPPED)
    with pytest.raises(InvalidState, match="take a snapshot and copy that"):
        share.driver.clone_volume(Volume("2", "2", "files", MiB), PLAIN, source)
    assert share.names == ["volume-1"]


# taking over and giving up


def existing(share: Share, image_format: str = "raw", name: str = "disk.img") -> Path:
    path = share.directory / name
    process.run(["qemu-img", "create", "-q", "-f", image_format, str(path), str(MiB)], timeout_s=10)
    write(path, image_format, 4096, 4096, 9)
    path.chmod(0o644)
    return path


@FORMATS
def test_a_file_becomes_a_volume_and_is_given_up_byte_for_byte(share: Share, image_format: str) -> None:
    path = existing(share, image_format)
    content, inode = path.read_bytes(), path.stat().st_ino
    options = NFSVolumeOptions(None if image_format == "raw" else image_format)
    assert share.driver.existing_size("disk.img", options) == MiB
    volume = Volume("1", "v", "files", MiB)
    for _ in range(2):
        record = share.driver.manage_existing(volume, "disk.img", options)
    volume = replace(volume, provider_data=record)
    managed = share.path(volume)
    assert (managed.read_bytes(), managed.stat().st_ino) == (content, inode)
    assert managed.stat().st_mode & 0o777 == 0o600
    assert (share.names, share.driver.list_volumes()) == ([managed.name], ["1"])
    for _ in range(2):
        reference = share.driver.unmanage(volume)
    assert (share.names, share.driver.list_volumes()) == ([reference], [])
    assert (share.directory / reference).read_bytes() == content
    assert share.driver.existing_size(reference, options) == MiB


def test_a_sparse_file_stays_so_where_new_volumes_are_allocated(tmp_path: Path) -> None:
    share = Share(tmp_path, preallocate=True)
    existing(share)
    for number, preallocate in enumerate((None, True)):
        volume, options = Volume("1", "v", "files", MiB), NFSVolumeOptions(None, preallocate)
        name = "disk.img" if number == 0 else "unmanaged-1"
        record = share.driver.manage_existing(volume, name, options)
        assert json.loads(record)["preallocated"] is bool(preallocate)
        share.driver.unmanage(replace(volume, provider_data=record))


@pytest.mark.parametrize("killed_after", ["link", "unlink"])
def test_killed_between_its_two_names_it_is_taken_over(share: Share, killed_after: str) -> None:
    path = existing(share)
    os.link(path, share.directory / "volume-1")
    if killed_after == "unlink":
        path.unlink()
    volume = Volume("1", "v", "files", MiB)
    volume = replace(volume, provider_data=share.driver.manage_existing(volume, "disk.img", PLAIN))
    assert share.names == ["volume-1"]
    assert share.path(volume).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b"])
def test_a_reference_names_a_file_in_the_share(share: Share, name: str) -> None:
    with pytest.raises(InvalidInput, match="must name a file in the share itself"):
        share.driver.existing_size(name, PLAIN)


@pytest.mark.parametrize(
    "name", ["volume-7", "volume-7.qcow2", "volume-7.s.qcow2", ".volume-7.new", "volume-7.s.snapshot"]
)
def test_a_name_of_ours_is_not_taken_over(share: Share, name: str) -> None:
    existing(share, name=name)
    with pytest.raises(InvalidInput, match="a name of a volume"):
        share.driver.existing_size(name, PLAIN)


def test_what_is_no_file_of_its_own_is_not_taken_over(share: Share) -> None:
    path = existing(share)
    (share.directory / "link").symlink_to(path)
    (share.directory / "directory").mkdir()
    os.mkfifo(share.directory / "fifo")
    with pytest.raises(NotFound):
        share.driver.existing_size("none", PLAIN)
    for name in ("link", "directory", "fifo"):
        with pytest.raises(InvalidState, match="no regular file"):
            share.driver.existing_size(name, PLAIN)
    os.link(path, share.directory / "second")
    with pytest.raises(InvalidState, match="known by 2 names"):
        share.driver.existing_size("second", PLAIN)


@pytest.mark.parametrize("found", ["qcow2", "vmdk", "vdi", "vhdx", "qed", "vpc"])
def test_what_begins_like_another_format_is_not_raw(share: Share, found: str) -> None:
    process.run(["qemu-img", "create", "-q", "-f", found, str(share.directory / "f"), "8M"], timeout_s=30)
    with pytest.raises(InvalidState, match="beginning like"):
        share.driver.existing_size("f", PLAIN)
    os.truncate(share.directory / "f", 8 * MiB)
    assert share.driver.existing_size("f", NFSVolumeOptions(format="raw")) == 8 * MiB  # by who knows


def test_a_partitioned_disk_is_raw(share: Share) -> None:
    path = existing(share)
    with path.open("r+b") as disk:
        disk.seek(446)
        disk.write(
            struct.pack("<B3sB3sII", 0, b"\0\2\0", 0x83, b"\xff" * 3, 2048, 4096) + bytes(48) + b"\x55\xaa"
        )
    assert share.driver.existing_size("disk.img", PLAIN) == MiB


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (["-b", "/etc/passwd", "-F", "raw"], "its backing file is /etc/passwd"),
        (["-o", "data_file=DIRECTORY/data"], "data_file"),
        (["-o", "extended_l2=on"], "[Uu]nknown"),
    ],
)
def test_a_qcow2_that_does_not_stand_alone_is_not_taken_over(
    share: Share, make: list[str], words: str
) -> None:
    make = [word.replace("DIRECTORY", str(share.directory)) for word in make]
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *make]
    process.run([*argv, str(share.directory / "f"), str(MiB)], timeout_s=30)
    with pytest.raises(InvalidState, match=words):
        share.driver.existing_size("f", NFSVolumeOptions("qcow2"))
    before = share.names
    with pytest.raises(InvalidState, match=words):
        share.driver.manage_existing(Volume("1", "v", "files", MiB), "f", NFSVolumeOptions("qcow2"))
    assert share.names == before


@pytest.mark.parametrize(
    "content", [b"", b"no qcow2 at all" * 100, b"QFI\xfb" + bytes(100), b"QFI\xfb" + b"\xff" * 1020]
)
def test_what_is_no_qcow2_is_not_taken_over_as_one(share: Share, content: bytes) -> None:
    (share.directory / "f").write_bytes(content)
    with pytest.raises(InvalidState, match="no qcow2 to take over"):
        share.driver.existing_size("f", NFSVolumeOptions("qcow2"))


def test_an_encrypted_qcow2_is_not_taken_over(share: Share) -> None:
    path = existing(share, "qcow2")
    with path.open("r+b") as image:
        image.seek(32)  # crypt_method (QEMU docs/interop/qcow2.txt)
        image.write(struct.pack(">I", 2))
    with pytest.raises(InvalidState, match="encrypted"):
        share.driver.existing_size("disk.img", NFSVolumeOptions("qcow2"))


def test_a_qcow2_with_snapshots_of_its_own_is_not_taken_over(share: Share) -> None:
    path = existing(share, "qcow2")
    process.run(["qemu-img", "snapshot", "-c", "inner", str(path)], timeout_s=10)
    with pytest.raises(InvalidState, match="holding internal snapshots"):
        share.driver.existing_size("disk.img", NFSVolumeOptions("qcow2"))


@pytest.mark.parametrize("size_bytes", [0, 1, 511, MiB + 1])
def test_a_size_that_no_volume_has_is_refused(share: Share, size_bytes: int) -> None:
    (share.directory / "f").write_bytes(b"x" * size_bytes)
    with pytest.raises(InvalidSize):
        share.driver.existing_size("f", PLAIN)


@pytest.mark.needs("qemu-system-x86_64", "setpriv")
def test_a_file_that_a_qemu_holds_is_neither_taken_over_nor_given_up(share: Share, ram_path: Path) -> None:
    path = existing(share)
    volume = share.create("2")
    with running_guest(ram_path, path, "raw") as guest:
        with pytest.raises(InvalidState, match="held by a QEMU"):
            share.driver.manage_existing(Volume("1", "v", "files", MiB), "disk.img", PLAIN)
        file = {"driver": "file", "filename": str(share.path(volume))}
        guest.execute("blockdev-add", {"node-name": "two", "driver": "raw", "file": file})
        guest.execute("device_add", {"driver": "virtio-blk-pci", "id": "two", "drive": "two"})
        with pytest.raises(InvalidState, match="held by a QEMU"):
            share.driver.unmanage(volume)
        assert share.names == ["disk.img", "volume-2"]


def test_an_attached_or_layered_volume_is_not_given_up(share: Share) -> None:
    volume = share.create()
    with pytest.raises(InvalidState, match="must be detached and without snapshots"):
        share.driver.unmanage(attached(volume, InstanceState.STOPPED))
    layered = take(share, volume, "a")
    with pytest.raises(InvalidState, match="must be detached and without snapshots"):
        share.driver.unmanage(layered)
    with pytest.raises(BackendError, match="its backing file is volume-1"):
        share.driver.unmanage(replace(layered, snapshots=()))
    assert share.driver.unmanage(drop(share, layered, "a")) == "unmanaged-1.qcow2"
    assert share.names == ["unmanaged-1.qcow2"]
