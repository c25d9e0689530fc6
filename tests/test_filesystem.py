"""Sizes of real files, room of real directories, shares that do not answer."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voldrivers.base import Completed
from voldrivers.errors import BackendError, InvalidState, NotFound
from voldrivers.filesystem import image_bytes, room
from voldrivers.process import run
from voldrivers.sizes import GiB, KiB, MiB, TiB


@pytest.fixture(params=["local", "remote"])
def share(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on a local file system, and one that is asked as if it needed a server."""
    if request.param == "remote":
        monkeypatch.setattr("voldrivers.mounts._LOCAL", frozenset())
    return tmp_path


def test_room_is_what_the_kernel_says(share: Path) -> None:
    seen, said = room(run, share), os.statvfs(share)
    assert seen.total_bytes == said.f_frsize * said.f_blocks
    assert 0 <= seen.free_bytes <= seen.total_bytes
    assert seen.free_bytes == pytest.approx(said.f_frsize * said.f_bavail, abs=GiB)  # others write too


def test_room_of_a_directory_with_a_hostile_name(share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(share)
    for name in ("--help", "a b", "$HOME", "größe", "a\nb"):
        (share / name).mkdir()
        assert room(run, Path(name)).total_bytes == room(run, share / name).total_bytes


def test_a_directory_that_is_gone_is_named(share: Path) -> None:
    with pytest.raises(NotFound, match=f"directory {share}/gone does not exist"):
        room(run, share / "gone")


def test_a_path_through_a_file_is_no_readable_share(share: Path) -> None:
    (share / "file").touch()
    with pytest.raises(InvalidState, match="Not a directory"):
        room(run, share / "file" / "share")


def test_a_share_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real child hangs in stat's place, as on a hard mount whose server is away."""
    monkeypatch.setattr("voldrivers.mounts._LOCAL", frozenset())  # so this one needs a server
    limits: list[float] = []

    def hanging(argv: Sequence[str], *, timeout_s: float) -> Completed:
        limits.append(timeout_s)
        return run(["sleep", "60"], timeout_s=timeout_s)

    with pytest.raises(InvalidState, match="is not answering, must be mounted, its server reachable"):
        room(hanging, tmp_path)
    assert limits == [2.0]


@given(size_bytes=st.integers(0, 8 * TiB))
def test_a_raw_file_is_as_large_as_it_is_long(
    size_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "raw"
    with file.open("wb") as image:
        image.truncate(size_bytes)
    assert image_bytes(file, "raw") == size_bytes


@pytest.mark.needs("qemu-img")
@pytest.mark.parametrize("size_bytes", [512, MiB + 512, 20 * GiB, 64 * TiB])
@pytest.mark.parametrize("options", ["compat=0.10", "compat=1.1", "extended_l2=on,cluster_size=2M"])
def test_a_qcow2_is_as_large_as_its_guest_sees_it(size_bytes: int, options: str, tmp_path: Path) -> None:
    file = tmp_path / "image"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(file), str(size_bytes)], timeout_s=60)
    assert image_bytes(file, "qcow2") == size_bytes
    run(["qemu-img", "resize", "-q", "-f", "qcow2", str(file), str(size_bytes + MiB)], timeout_s=60)
    assert image_bytes(file, "qcow2") == size_bytes + MiB
    assert image_bytes(file, "raw") == file.stat().st_size, "a raw volume's content is never probed"


@pytest.mark.parametrize(
    "content", [b"", b"QFI\xfb", b"\0" * 4096, b"QFI\xfb" + b"\0" * 27, b"\x7fELF" * 100]
)
def test_what_is_no_qcow2_is_not_believed(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(content)
    with pytest.raises(BackendError, match="was recorded as qcow2 but has no qcow2 header"):
        image_bytes(file, "qcow2")


def test_a_file_that_is_gone_or_unreadable_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"file {tmp_path}/gone does not exist"):
        image_bytes(tmp_path / "gone", "raw")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BackendError, match="loop: cannot be read: Too many levels"):
        image_bytes(tmp_path / "loop", "raw")


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        for image_format in ("raw", "qcow2"):
            with pytest.raises(BackendError, match=r"is not a regular file|Is a directory"):
                image_bytes(path, image_format)


def test_a_file_that_grows_is_seen_at_once(tmp_path: Path) -> None:
    with (tmp_path / "raw").open("wb") as image:
        for size_bytes in (0, KiB, MiB, GiB):
            image.truncate(size_bytes)
            assert image_bytes(tmp_path / "raw", "raw") == size_bytes
