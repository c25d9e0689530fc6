"""Images on real media: loop devices, NFS driver's files with direct I/O, full file systems, real kills."""

import fcntl
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from imagesite import NAME, SMALL, ImageSite, detached_afterwards
from realsite import Child, Kind, RealSite, mounted

from voldrivers import process
from voldrivers.cli.imagefiles import sink_to
from voldrivers.errors import BackendError, InvalidInput, InvalidState, NoSpace, NotSupported, VolDriverError
from voldrivers.images import Growth, WriteOptions, WrittenImage, read_image, write_image
from voldrivers.images.records import ImageRecords, ImageState
from voldrivers.model import VolumeStatus
from voldrivers.process import wait_until
from voldrivers.sizes import GiB, KiB, MiB, SizeRule

pytestmark = pytest.mark.needs("qemu-img", "fallocate", "prlimit", "losetup", "mkfs.ext4", "truncate")

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices and mounting need root")
IN_PLACE = pytest.mark.parametrize("in_place", [True, False], ids=["in place", "detached each time"])
GROWTH = Growth(2.0, MiB, GiB)
COMMAND = str(Path(sys.executable).with_name("voldrivers"))


def noise(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


def write(site: ImageSite | RealSite, content: bytes, *, in_place: bool = True) -> WrittenImage:
    with site.engine() as engine:
        options = WriteOptions(extend_attached=in_place, growth=GROWTH)
        return write_image(engine, NAME, io.BytesIO(content), options)


def read(site: ImageSite | RealSite) -> bytes:
    sink = io.BytesIO()
    with site.engine() as engine:
        assert read_image(engine, NAME, sink).is_verified
    return sink.getvalue()


# block devices


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[ImageSite]:
    """Give a volume that this machine has as a loop device."""
    with detached_afterwards(ImageSite(tmp_path, SizeRule(64 * KiB), loops=True)) as site:
        site.make()
        yield site


@AS_ROOT
@IN_PLACE
@pytest.mark.parametrize("size", [1, SMALL, SMALL + 1, 40 * MiB + 513, 40 * MiB + 64 * KiB])
def test_a_block_device_gets_any_image(loop: ImageSite, size: int, in_place: bool) -> None:
    content = noise(size)
    written = write(loop, content, in_place=in_place)
    assert written.why_not_direct == ""
    assert (written.attaches > 0) is (written.extends > 0 and not in_place)
    assert read(loop) == content
    assert loop.path.read_bytes()[:size] == content
    loop.remove()
    assert not list((loop.directory / "share").iterdir())


@AS_ROOT
def test_a_device_of_blocks_with_4096_bytes(loop: ImageSite) -> None:
    (attachment,) = loop.volume.attachments
    process.run(["losetup", "--sector-size", "4096", str(attachment.device_path)], timeout_s=10)
    content = noise(3 * MiB + 700)
    assert write(loop, content).why_not_direct == ""
    assert read(loop) == content


@AS_ROOT
def test_holes_of_a_block_device_stay(loop: ImageSite) -> None:
    content = noise(64 * KiB) + bytes(30 * MiB) + noise(64 * KiB)
    written = write(loop, content)
    assert written.left_out_bytes > 29 * MiB
    assert loop.path.stat().st_blocks * 512 < MiB
    assert read(loop) == content


@AS_ROOT
def test_a_device_that_is_mounted_is_refused(loop: ImageSite, tmp_path: Path) -> None:
    (attachment,) = loop.volume.attachments
    process.run(["mkfs.ext4", "-q", str(attachment.device_path)], timeout_s=20)
    before = loop.path.read_bytes()
    (tmp_path / "point").mkdir()
    with (
        mounted("ext4", str(attachment.device_path), point=tmp_path / "point"),
        pytest.raises(InvalidState, match="in use"),
    ):
        write(loop, noise(MiB))
    assert loop.record is None
    assert loop.path.read_bytes()[:KiB] == before[:KiB]  # what lies before the superblock


@AS_ROOT
@IN_PLACE
def test_a_device_that_fails_in_the_middle(tmp_path: Path, in_place: bool) -> None:
    """A loop device answers with an I/O error where its file system has no room."""
    disk, point = tmp_path / "disk", tmp_path / "point"
    process.run(["truncate", "--size", "16M", str(disk)], timeout_s=10)
    process.run(["mkfs.ext4", "-q", str(disk)], timeout_s=20)
    point.mkdir()
    with (
        mounted("ext4", "-o", "loop", str(disk), point=point),
        detached_afterwards(ImageSite(tmp_path, SizeRule(64 * KiB), True, point)) as site,
    ):
        site.make()
        with pytest.raises(VolDriverError) as caught:
            write(site, noise(64 * MiB), in_place=in_place)
        assert isinstance(caught.value, BackendError | NoSpace)
        assert "the image in it is not whole" in " ".join(caught.value.__notes__)
        assert site.record is not None
        assert site.record.state is ImageState.BROKEN
        content = noise(2 * MiB)
        write(site, content)
        assert read(site) == content


# files of the NFS driver

RAW = Kind("raw", "raw")
QCOW2 = Kind("qcow2", "qcow2")
FULL = Kind("preallocated raw", "raw", True)


@pytest.fixture
def files(tmp_path: Path) -> RealSite:
    """Give a site on a disk, whose file system has direct I/O."""
    (tmp_path / "share").mkdir()
    return RealSite(tmp_path, tmp_path / "share")


@IN_PLACE
@pytest.mark.parametrize("kind", [RAW, FULL], ids=lambda kind: kind.name)
def test_a_file_gets_any_image_and_stays_what_it_is(files: RealSite, kind: Kind, in_place: bool) -> None:
    files.create(kind)
    files.attach(None)
    content = noise(20 * MiB) + bytes(80 * MiB) + noise(777)  # more than is read ahead
    written = write(files, content, in_place=in_place)
    assert (written.extends > 0, written.attaches > 0) == (True, not in_place)
    assert read(files) == content
    files.check_steady(VolumeStatus.IN_USE, written.volume.size_bytes)
    allocated = files.path.stat().st_blocks * 512
    if kind is FULL:
        assert allocated >= written.volume.size_bytes
    else:
        assert allocated < 24 * MiB


def test_qcow2_is_refused(files: RealSite) -> None:
    files.create(QCOW2)
    files.attach(None)
    before = files.path.read_bytes()
    with pytest.raises(NotSupported, match="qcow2 file here, whose blocks only QEMU knows"):
        write(files, noise(MiB))
    assert files.path.read_bytes() == before


def test_a_file_that_a_qemu_holds_is_refused(files: RealSite) -> None:
    """QEMU's locks are on bytes 100 and 200 and those that follow."""
    files.create(RAW)
    files.attach(None)
    with files.path.open("rb") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _shared_lock(101))
        with pytest.raises(InvalidState, match="held by a QEMU"):
            write(files, noise(MiB))
    content = noise(MiB)
    write(files, content)
    assert read(files) == content


def _shared_lock(at: int) -> bytes:
    import struct

    return struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, at, 1, 0)


@AS_ROOT
@IN_PLACE
def test_a_share_that_becomes_full(tmp_path: Path, in_place: bool) -> None:
    disk, share = tmp_path / "disk", tmp_path / "share"
    process.run(["truncate", "--size", "32M", str(disk)], timeout_s=10)
    process.run(["mkfs.ext4", "-q", str(disk)], timeout_s=20)
    share.mkdir()
    with mounted("ext4", "-o", "loop", str(disk), point=share):
        site = RealSite(tmp_path, share)
        site.create(RAW)
        site.attach(None)
        with pytest.raises(NoSpace) as caught:
            write(site, noise(64 * MiB), in_place=in_place)
        assert "the image in it is not whole" in " ".join(caught.value.__notes__)
        assert site.volume.status is VolumeStatus.IN_USE
        content = noise(8 * MiB)
        write(site, content)
        assert read(site) == content


@AS_ROOT
def test_a_file_system_without_direct_io_is_told(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    with mounted("ramfs", "none", point=share):
        site = ImageSite(tmp_path, share=share)
        site.make()
        content = noise(70 * MiB)
        assert write(site, content).why_not_direct == f"{share} has no direct I/O"
        assert read(site) == content


# the command, as a process that is stopped or killed


@pytest.fixture
def command(files: RealSite, monkeypatch: pytest.MonkeyPatch) -> RealSite:
    """Give a site that the command finds, with a volume."""
    config = files.directory / "voldrivers.toml"
    config.write_text(
        'state_dir = "state"\n[backend.files]\ndriver = "nfs"\nshare = "share"\n[host.here]\nkind = "local"\n'
    )
    monkeypatch.setenv("VOLDRIVERS_CONFIG", str(config))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    files.create(RAW)
    files.attach(None)
    return files


def started(*argv: str) -> "subprocess.Popen[bytes]":
    pipe = subprocess.PIPE
    return subprocess.Popen([COMMAND, "image", *argv], stdin=pipe, stdout=pipe, stderr=pipe)


def state_of(site: RealSite) -> ImageState | None:
    with site.engine() as engine:
        record = ImageRecords(engine.store).get(engine.volume(NAME))
    return None if record is None else record.state


def ran(*argv: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [COMMAND, "image", *argv], input=stdin, capture_output=True, timeout=60, check=False
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_stopped_says_what_remains_and_the_next_is_whole(
    command: RealSite, number: signal.Signals
) -> None:
    content = noise(24 * MiB)
    with started("write", NAME, "--extend-attached") as running:
        assert running.stdin
        running.stdin.write(content)
        wait_until(lambda: state_of(command) is not None, 20, "it to begin")
        time.sleep(0.3)
        running.send_signal(number)
        assert running.stderr
        told = running.stderr.read().decode()
    state = ImageState.WRITING if number == signal.SIGKILL else ImageState.BROKEN
    assert state_of(command) is state
    code = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert running.returncode == code, told
    if number != signal.SIGKILL:
        assert "not whole" in told
        assert "nothing to carry on" not in told
        assert told.count("\n") == 1
    refused = ran("read", NAME)
    assert (refused.returncode, refused.stdout) == (5, b"")
    assert b"not whole" in refused.stderr
    assert ran("write", NAME, stdin=content).returncode == 0
    again = ran("read", NAME)
    assert (again.returncode, again.stdout) == (0, content)
    assert b"the image that was written, sha256 " in again.stderr


def test_files_and_pipes_and_documents(command: RealSite) -> None:
    directory, content = command.directory, noise(9 * MiB + 3)
    image, back = directory / "image", directory / "back"
    image.write_bytes(content)
    done = json.loads(ran("write", NAME, "--from", str(image), "--md5", "--json").stdout)
    assert set(done) == {
        "volume",
        "size_bytes",
        "sha256",
        "md5",
        "volume_bytes",
        "left_over_bytes",
        "left_out_bytes",
        "extends",
        "attaches",
        "direct",
        "seconds",
    }
    assert (done["size_bytes"], done["extends"], done["left_over_bytes"]) == (len(content), 1, 0)
    assert json.loads(ran("read", NAME, "--to", str(back), "--json").stdout)["verified"] is True
    assert back.read_bytes() == content
    assert sorted(path.name for path in directory.iterdir() if "back" in path.name) == ["back"]
    refused = ran("read", NAME, "--to", str(back))
    assert (refused.returncode, b"is there already" in refused.stderr) == (3, True)
    assert ran("read", NAME, "--size", "1K").stdout == content[:1024]


def test_two_commands_do_not_write_one_file(command: RealSite) -> None:
    assert ran("write", NAME, stdin=b"image").returncode == 0
    back, part = command.directory / "back", command.directory / ".back.part"
    with part.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"another image, half of it")
        other.flush()
        refused = ran("read", NAME, "--to", str(back))
        assert (refused.returncode, b"being written by another process" in refused.stderr) == (5, True)
        assert part.read_bytes() == b"another image, half of it"
    assert ran("read", NAME, "--to", str(back)).returncode == 0  # what a killed one has left is taken over
    assert back.read_bytes() == b"image"
    assert not part.exists()


def test_a_link_in_the_place_of_the_unfinished_file_is_not_followed(command: RealSite) -> None:
    other = command.directory / "other"
    other.write_bytes(b"kept")
    (command.directory / ".back.part").symlink_to(other)
    refused = ran("read", NAME, "--to", str(command.directory / "back"))
    assert (refused.returncode, b".back.part: cannot be written" in refused.stderr) == (8, True)
    assert other.read_bytes() == b"kept"


def test_a_file_that_appears_meanwhile_is_kept(command: RealSite) -> None:
    back = command.directory / "back"

    def write_both() -> None:
        with sink_to(str(back)) as sink:
            sink.write(b"image")
            back.write_bytes(b"kept")

    with pytest.raises(InvalidInput, match="is there already"):
        write_both()
    assert back.read_bytes() == b"kept"
    assert not (command.directory / ".back.part").exists()


def test_a_file_without_a_size_is_read_to_its_end(command: RealSite) -> None:
    done = json.loads(ran("write", NAME, "--from", "/proc/version", "--json").stdout)
    assert done["size_bytes"] == len(Path("/proc/version").read_bytes())


def test_a_checksum_of_the_command_line(command: RealSite) -> None:
    whole = hashlib.sha256(b"image").hexdigest()
    for option in (["--sha256", whole], ["--size", "5"]):
        assert b"note:" not in ran("write", NAME, *option, stdin=b"image").stdout
    refused = ran("write", NAME, "--sha256", whole, stdin=b"imag")
    assert (refused.returncode, b"not whole" in refused.stderr) == (8, True)
    unknown = ran("write", NAME, stdin=b"imag")
    assert (unknown.returncode, b"note: that is all the pipe gave" in unknown.stdout) == (0, True)


@pytest.mark.parametrize(("verb", "close"), [("write", "<&-"), ("read", ">&-")])
def test_standard_input_or_output_that_is_closed_is_refused(command: RealSite, verb: str, close: str) -> None:
    argv = ["bash", "-c", f'exec "$@" {close}', "bash", COMMAND, "image", verb, NAME]
    refused = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert (refused.returncode, b"is closed: give" in refused.stderr) == (3, True), refused.stderr
    assert state_of(command) is None


def test_a_named_pipe_without_a_writer_can_be_stopped(command: RealSite) -> None:
    pipe = command.directory / "pipe"
    os.mkfifo(pipe)
    with started("write", NAME, "--from", str(pipe)) as running:
        assert running.stderr
        channel = f"/proc/{running.pid}/wchan"
        wait_until(lambda: Path(channel).read_text() == "wait_for_partner", 20, "it to open the pipe")
        running.send_signal(signal.SIGINT)
        assert b"interrupted; nothing was changed" in running.stderr.read()
    assert running.returncode == 130


def test_a_wrong_size_of_a_file_is_refused_and_of_a_pipe_found_out(command: RealSite) -> None:
    image, content = command.directory / "image", noise(MiB)
    image.write_bytes(content)
    for wrong in ("1023K", "2M"):
        refused = ran("write", NAME, "--from", str(image), "--size", wrong)
        assert (refused.returncode, b"has 1 MiB" in refused.stderr) == (3, True), refused.stderr
    assert state_of(command) is None
    for wrong, says in (("1023K", b"goes on beyond"), ("2M", b"ended after 1 MiB of the 2 MiB announced")):
        refused = ran("write", NAME, "--size", wrong, stdin=content)
        assert (refused.returncode, says in refused.stderr) == (8, True), refused.stderr


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["write", "w"], 4, b"volume w does not exist"),
        (["write", NAME, "--from", "nowhere"], 4, b"file nowhere does not exist"),
        (["write", NAME, "--from", "/"], 3, b"Is a directory"),
        (["write", NAME, "--from", "/dev/null"], 3, b"is empty"),
        (["write", NAME, "--size", "much"], 3, b"--size much"),
        (["write", NAME, "--overshoot", "0"], 3, b"--overshoot 0: must be a size"),
        (["write", NAME, "--sha256", ""], 3, b"must be 64 hexadecimal digits"),
        (["read", NAME, "--json"], 3, b"standard output gets the image"),
        (["read", NAME, "--to", ""], 3, b"is not the name of a file"),
        (["read", NAME, "--to", "."], 3, b"is not the name of a file"),
        (["read", NAME, "--to", "nowhere/"], 3, b"is not the name of a file"),
        (["write", NAME, "--stall", "never"], 2, b"must be a number of seconds"),
        (["read", NAME, "--to", "/nowhere/file"], 8, b"cannot be written"),
        (["read", NAME, "--size", "1T"], 3, b"no more in it than its size"),
        (["write", NAME, "--url", "http://127.0.0.1:1"], 6, b"without --url"),
    ],
)
def test_what_is_refused(command: RealSite, argv: list[str], code: int, says: bytes) -> None:
    refused = ran(*argv)
    assert (refused.returncode, says in refused.stderr) == (code, True), refused.stderr
    assert refused.stdout == b""
    assert state_of(command) is None


def test_a_reader_that_goes_away_is_an_error(command: RealSite) -> None:
    assert ran("write", NAME, stdin=noise(20 * MiB)).returncode == 0
    with started("read", NAME) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.read(10)
        running.stdout.close()
        assert b"Broken pipe" in running.stderr.read()
    assert running.returncode == 8


def test_two_writers_at_once(command: RealSite) -> None:
    with started("write", NAME) as running:
        assert running.stdin
        running.stdin.write(noise(20 * MiB))
        wait_until(lambda: state_of(command) is not None, 20, "it to begin")
        refused = ran("write", NAME, stdin=b"another")
        assert (refused.returncode, b"worked on by another process" in refused.stderr) == (5, True)
        running.stdin.close()
        running.stdin = None
    assert running.returncode == 0
    assert ran("read", NAME).stdout == noise(20 * MiB)


def test_a_child_killed_at_any_moment_leaves_nothing_that_is_called_whole(files: RealSite) -> None:
    """And the volume can be written again, after `resume` where an extend was under way."""
    files.create(RAW)
    files.attach(None)
    content = noise(30 * MiB)
    for number in range(6):
        child = Child(lambda: write(files, content, in_place=number % 2 == 0))  # noqa: B023 - it runs at once
        time.sleep(0.03 + 0.04 * number)
        child.kill()
        answer = child.answer()
        with files.engine() as engine:
            for resumed in engine.resume():
                assert resumed.error is None, resumed
            if not engine.volume(NAME).attachments:
                engine.attach(NAME)
        if answer == "killed":
            assert state_of(files) in (None, ImageState.WRITING, ImageState.WHOLE)
        if state_of(files) is ImageState.WHOLE:
            assert read(files) == content
    write(files, content)
    assert read(files) == content
