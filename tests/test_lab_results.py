"""Results of a lab's command: whatever archive comes, only files and directories below one directory."""

import random
import re
import resource
import tarfile
from pathlib import Path
from tarfile import BLKTYPE, CHRTYPE, DIRTYPE, FIFOTYPE, GNUTYPE_SPARSE, LNKTYPE, SYMTYPE, XHDTYPE

import pytest

from voldrivers.errors import BackendError, InvalidInput
from voldrivers.lab.keeper import results
from voldrivers.lab.keeper.results import Results

END = bytes(2 * tarfile.BLOCKSIZE)
FORMAT = {"format": tarfile.GNU_FORMAT, "encoding": "utf-8", "errors": "surrogateescape"}


def member(
    name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", size: int | None = None
) -> bytes:
    """Give one member as a machine could send it; `size` is what it claims."""
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.mode = kind, link, 0o6777
    header.size = len(content) if size is None else size
    return header.tobuf(**FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)  # type: ignore[arg-type] # by name


def unpacked(directory: Path, archive: bytes) -> list[str]:
    """Unpack an archive that comes in pieces; give what was said."""
    with Results(directory) as taken:
        for start in range(0, len(archive), 1000):
            taken.add(archive[start : start + 1000])
        return taken.unpack()


def everything_in(directory: Path) -> dict[str, bytes | None]:
    """Give all names below a directory, with the content of files."""
    paths = [path for path in directory.rglob("*") if not path.is_symlink()]
    return {str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in paths}


def test_files_and_directories_come_as_they_were(tmp_path: Path) -> None:
    large = random.randbytes(3_000_000)
    archive = member("./", kind=DIRTYPE) + member("./deep/er/large", large) + member("./empty", kind=DIRTYPE)
    assert unpacked(tmp_path / "made" / "here", archive + member("./junit.xml", b"<a/>") + END) == []
    found = everything_in(tmp_path / "made" / "here")
    assert found == {
        "deep": None,
        "deep/er": None,
        "deep/er/large": large,
        "empty": None,
        "junit.xml": b"<a/>",
    }
    assert (tmp_path / "made/here/junit.xml").stat().st_mode & 0o7111 == 0


def test_nothing_came_and_nothing_is_made(tmp_path: Path) -> None:
    assert unpacked(tmp_path / "made" / "here", b"") == []
    assert everything_in(tmp_path) == {}


def test_the_directory_is_there_from_the_first_part_on_an_empty_one_too(tmp_path: Path) -> None:
    with Results(tmp_path / "made" / "here") as taken:
        taken.add(b"")
        assert everything_in(tmp_path) == {"made": None, "made/here": None}
        assert taken.unpack() == []


def test_files_of_the_same_names_are_replaced_and_others_stay(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    directory = tmp_path / "directory"
    directory.mkdir()
    (directory / "other").write_text("stays")
    (directory / "link").symlink_to(outside)
    unpacked(directory, member("link", b"new") + END)
    assert everything_in(tmp_path) == {
        "outside": b"kept",
        "directory": None,
        "directory/other": b"stays",
        "directory/link": b"new",
    }


@pytest.mark.parametrize(
    ("hostile", "said"),
    [
        (member("link", kind=SYMTYPE, link="/etc"), "neither a file"),
        (member("hard", kind=LNKTYPE, link="../outside"), "neither a file"),
        (member("null", kind=CHRTYPE), "neither a file"),
        (member("disk", kind=BLKTYPE), "neither a file"),
        (member("pipe", kind=FIFOTYPE), "neither a file"),
        (member("sparse", kind=GNUTYPE_SPARSE), "neither a file"),
        (member("pax", b"20 path=../outside\n", kind=XHDTYPE), "neither a file"),
        (member("/outside", b"x"), "leads out"),
        (member("../outside", b"x"), "leads out"),
        (member("a/../../outside", b"x"), "leads out"),
        (member("../made", kind=DIRTYPE), "leads out"),
        (member("new\nvoldrivers: line", b"x"), "cannot be printed"),
        (member("\x1b[2J", b"x"), "cannot be printed"),
        (member("\udcff", b"x"), "cannot be printed"),
    ],
)
def test_what_is_no_plain_file_is_left_out_and_said(tmp_path: Path, hostile: bytes, said: str) -> None:
    (tmp_path / "outside").write_text("kept")
    (sentence,) = unpacked(tmp_path / "directory", hostile + member("good", b"good") + END)
    assert said in sentence
    assert sentence.isprintable()
    assert everything_in(tmp_path) == {"outside": b"kept", "directory": None, "directory/good": b"good"}


@pytest.mark.parametrize(
    ("archive", "said"),
    [
        (random.Random(7).randbytes(4096), "no whole archive came: "),
        (b"short", "no whole archive came: "),
        (member("cut", bytes(600))[:-512], "a size is wrong"),
        (member("endless", bytes(512)), "no whole archive came: "),
        (member("back", size=-512) + END, "a size is wrong"),
        (member("huge", size=1 << 60) + END, "a size is wrong"),
        (member("a") * 30 + END, "more than 20 names"),
    ],
)
def test_what_is_no_archive_is_refused_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: bytes, said: str
) -> None:
    monkeypatch.setattr(results, "MOST_NAMES", 20)
    with pytest.raises(BackendError, match=re.escape(said)):
        unpacked(tmp_path, member("good", b"good") + archive)
    assert everything_in(tmp_path) == {}


def test_too_much_is_refused_before_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "MOST_BYTES", 4096)
    with pytest.raises(BackendError, match="more than 4 KiB"):
        unpacked(tmp_path, member("large", bytes(8192)) + END)
    assert everything_in(tmp_path) == {}


def test_what_cannot_be_stored_is_not_unpacked(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Results(tmp_path) as taken:
        taken.add(member("good", b"good"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(BackendError, match="it cannot be written: File too large"):
                taken.add(member("large", bytes(8192)) + END)
            assert taken.unpack() == []
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert everything_in(tmp_path) == {}


def test_a_way_through_something_else_is_refused(tmp_path: Path) -> None:
    outside, directory = tmp_path / "outside", tmp_path / "directory"
    for made in (outside, directory, directory / "taken"):
        made.mkdir()
    (directory / "link").symlink_to(outside)
    for name in ("link/x", "taken"):
        with pytest.raises(BackendError, match=f"'{name}' cannot be written"):
            unpacked(directory, member(name, b"x") + END)
    assert everything_in(outside) == {}


def test_a_directory_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidInput, match=r"nothing can be written to it: .*file is no directory"):
            Results(wrong)


def test_a_directory_that_cannot_be_made_is_a_failure_before_anything_else_comes(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with Results(tmp_path / "link") as taken, pytest.raises(BackendError, match="it cannot be written"):
        taken.add(b"")
