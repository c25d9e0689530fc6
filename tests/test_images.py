"""Images: any stream arrives as it is, sizes obey the rule, and nothing that is not whole is called whole."""

import hashlib
import io
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagesite import NAME, SMALL, ImageSite, PlainDriver
from realsite import Child

from voldrivers.capabilities import Capabilities
from voldrivers.config import Policy
from voldrivers.errors import (
    BackendError,
    InvalidInput,
    InvalidSize,
    InvalidState,
    NoSpace,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.extend.catalog import Catalog, Description
from voldrivers.images import Growth, ImageProgress, WriteOptions, WrittenImage, flow, read_image, target
from voldrivers.images.flow import Limits
from voldrivers.images.records import ImageRecord, ImageRecords, ImageState
from voldrivers.images.source import Source
from voldrivers.images.writing import write_image
from voldrivers.model import AttachmentState, VolumeStatus
from voldrivers.process import wait_until
from voldrivers.sizes import GiB, KiB, MiB, SizeRule

IN_PLACE = pytest.mark.parametrize("in_place", [True, False], ids=["in place", "detached each time"])
#: A piece of the tests, and of the zeros that are looked for in it; the product's are larger.
PIECE, ZEROS = 32 * KiB, 4 * KiB


class Cut:
    """A stream that gives its bytes in pieces of its own choice, and then does what it was told."""

    def __init__(self, content: bytes, sizes: list[int], end: Callable[[], bytes] = bytes) -> None:
        self._rest, self._sizes, self._end = memoryview(content), sizes or [len(content) or 1], end
        self._number = 0

    def read(self, size: int, /) -> bytes:
        wanted = self._sizes[self._number % len(self._sizes)]
        self._number += 1
        given, self._rest = self._rest[: min(wanted, size)], self._rest[min(wanted, size) :]
        return bytes(given) or self._end()


class CutInto(Cut):
    """The same, read into a buffer."""

    def readinto(self, buffer: memoryview, /) -> int:
        given = self.read(len(buffer))
        buffer[: len(given)] = given
        return len(given)


class Generous(Cut):
    """Gives all that it has at once, however little was asked for."""

    def read(self, size: int, /) -> bytes:
        return super().read(1 << 30)


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(flow, "PIECE_BYTES", PIECE)
        patched.setattr(flow, "BUFFERS", 3)
        patched.setattr("voldrivers.images.reading.PIECE_BYTES", PIECE)
        patched.setattr(target, "PIECE_BYTES", ZEROS)
        yield


@pytest.fixture
def images(ram_path: Path) -> ImageSite:
    site = ImageSite(ram_path)
    site.make()
    return site


@contextmanager
def new_site(rule: SizeRule, size_bytes: int, fill: int) -> Iterator[ImageSite]:
    with tempfile.TemporaryDirectory(prefix="vold-", dir="/dev/shm") as directory:
        site = ImageSite(Path(directory), rule)
        site.make(size_bytes, fill)
        yield site


def write(site: ImageSite, stream: object, **options: object) -> WrittenImage:
    with site.engine() as engine:
        return write_image(engine, NAME, stream, WriteOptions(**options))  # type: ignore[arg-type]  # any stream


def read(site: ImageSite, size_bytes: int | None = None) -> bytes:
    sink = io.BytesIO()
    with site.engine() as engine:
        done = read_image(engine, NAME, sink, size_bytes)
    assert done.sha256 == hashlib.sha256(sink.getvalue()).hexdigest()
    return sink.getvalue()


def noise(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


def small_growth(most_bytes: int = GiB, limit_bytes: int | None = None) -> Growth:
    return Growth(2.0, 64 * KiB, most_bytes, limit_bytes)


def check_not_whole(
    site: ImageSite, error: BaseException, status: VolumeStatus = VolumeStatus.IN_USE
) -> None:
    """Have records, messages and the error say what remains, and nobody read it for an image."""
    assert site.record is not None
    assert site.record.state is ImageState.BROKEN
    assert "not whole" in site.messages[-1]
    assert "the image in it is not whole" in " ".join(error.__notes__)
    assert site.volume.status is status
    with pytest.raises(InvalidState, match="holding an image that is not whole"):
        read(site)


def check_again(site: ImageSite) -> None:
    """Have the next one be whole."""
    content = noise(SMALL // 2 + 77)
    write(site, io.BytesIO(content))
    assert read(site) == content


contents = st.lists(
    st.tuples(st.sampled_from([b"\0", b"x", b"noise"]), st.integers(1, 3 * PIECE)), min_size=1, max_size=6
).map(lambda runs: b"".join(noise(n) if kind == b"noise" else kind * n for kind, n in runs))
growths = st.builds(
    Growth,
    factor=st.floats(1.01, 8),
    least_bytes=st.integers(1, 4 * PIECE),
    most_bytes=st.integers(1, 8 * PIECE),
)


@given(
    content=contents,
    cuts=st.lists(st.integers(1, 2 * PIECE), max_size=4),
    stream=st.sampled_from([Cut, CutInto, Generous]),
    growth=growths,
    granularity=st.sampled_from([1, 512, 1000, 4096, 3 * PIECE]),
    first=st.integers(1, 6 * PIECE),
    fill=st.sampled_from([0, 0x55]),
    known=st.booleans(),
    in_place=st.booleans(),
)
def test_any_stream_arrives_and_the_sizes_obey_the_rule(
    content: bytes,
    cuts: list[int],
    stream: type[Cut],
    growth: Growth,
    granularity: int,
    first: int,
    fill: int,
    known: bool,
    in_place: bool,
) -> None:
    rule, size = SizeRule(granularity, granularity), len(content)
    with new_site(rule, first, fill) as site:
        before = site.volume.size_bytes
        written = write(
            site,
            stream(content, cuts),
            size_bytes=size if known else None,
            extend_attached=in_place,
            growth=growth,
            md5=True,
        )
        held = site.path.read_bytes()
        assert held[:size] == content
        assert held[size:before] == bytes([fill]) * len(held[size:before])
        assert not any(held[max(size, before) :])
        assert written.sha256 == hashlib.sha256(content).hexdigest()
        assert written.md5 == hashlib.md5(content, usedforsecurity=False).hexdigest()
        assert site.volume == written.volume
        assert (site.volume.size_bytes, site.volume.status) == (len(held), VolumeStatus.IN_USE)
        assert written.left_over_bytes == len(held) - rule.round_up(size) >= 0
        assert written.attaches == (0 if in_place else written.extends)
        if known:
            assert len(held) == max(before, rule.round_up(size))
            assert written.extends == (before < size)
        elif written.extends:
            assert written.left_over_bytes <= growth.most_bytes
        assert read(site) == content


@given(growths, st.integers(1, 64 * GiB), st.integers(1, 64 * MiB))
def test_every_size_that_is_tried_is_enough_and_not_too_much(growth: Growth, current: int, more: int) -> None:
    needed = current + more
    sizes = list(growth.sizes(current, needed))
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[-1] == needed
    assert sizes[0] <= max(needed, current + growth.most_bytes)


def test_a_volume_of_one_gib_takes_ten_gib_in_four_extends() -> None:
    size, extends = GiB, 0
    while size < 10 * GiB:
        size, extends = next(Growth().sizes(size, size + 20 * MiB)), extends + 1
    assert (size, extends) == (16 * GiB, 4)


@pytest.mark.parametrize(
    "wrong",
    [{"factor": 1.0}, {"factor": float("nan")}, {"least_bytes": 0}, {"most_bytes": 0}, {"limit_bytes": 0}],
)
def test_a_policy_that_grows_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        Growth(**wrong)  # type: ignore[arg-type]  # what is wrong


def test_the_end_in_sight_makes_the_size_exact(images: ImageSite) -> None:
    """Of the read-ahead the volume needs no more than there is."""
    content = noise(SMALL + 2 * PIECE + 5)
    written = write(images, Cut(content, [1000]))
    assert (written.extends, written.left_over_bytes) == (1, 0)
    assert images.volume.size_bytes == SMALL + 2 * PIECE + 4 * KiB


def test_the_policy_decides_unless_the_call_does(ram_path: Path) -> None:
    site = ImageSite(ram_path, policy=Policy(image_extend_attached=True))
    site.make()
    growth = small_growth()
    assert write(site, io.BytesIO(noise(3 * SMALL)), growth=growth).attaches == 0
    assert write(site, io.BytesIO(noise(9 * SMALL)), growth=growth, extend_attached=False).attaches == 2
    assert not Policy().image_extend_attached  # as in the specification


def test_a_volume_that_is_sparse_stays_so(images: ImageSite) -> None:
    hole = 64 * ZEROS
    content = noise(ZEROS) + bytes(hole) + noise(ZEROS) + bytes(hole)
    written = write(images, io.BytesIO(content), size_bytes=len(content))
    assert written.left_out_bytes == 2 * hole
    assert images.path.stat().st_blocks * 512 == 2 * ZEROS
    assert read(images) == content


def test_zeros_over_old_content_are_written(images: ImageSite) -> None:
    write(images, io.BytesIO(noise(SMALL)))
    written = write(images, io.BytesIO(bytes(SMALL)))
    assert written.left_out_bytes == 0
    assert images.path.read_bytes() == bytes(SMALL)


def test_progress_is_told(images: ImageSite) -> None:
    told: list[ImageProgress] = []
    with images.engine() as engine:
        options = WriteOptions(size_bytes=2 * SMALL, extend_attached=True)
        write_image(engine, NAME, io.BytesIO(noise(2 * SMALL)), options, told.append)
    done = [each.done_bytes for each in told]
    assert done == sorted(done)
    assert {(each.image_bytes, each.volume_bytes, each.extends) for each in told} == {
        (2 * SMALL, 2 * SMALL, 1)
    }


# what is refused before anything happens


def test_a_volume_that_is_not_attached_here_is_refused(images: ImageSite) -> None:
    with images.engine() as engine:
        engine.detach(NAME)
        with pytest.raises(InvalidState, match="not attached") as caught:
            write_image(engine, NAME, io.BytesIO(b"x"))
        assert "voldrivers attach v" in caught.value.__notes__[0]
        with pytest.raises(NotFound):
            write_image(engine, "w", io.BytesIO(b"x"))
    assert (images.record, images.messages) == (None, [])


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("instance", "vm", "attached to here/vm"),
        ("by_client", 1, "connected by a client of the API"),
        ("state", AttachmentState.DETACHING, "is detaching, must be"),
    ],
)
def test_an_attachment_of_another_kind_is_refused(
    images: ImageSite, column: str, value: object, says: str
) -> None:
    with images.engine() as engine:
        with engine.store.database.transaction():
            engine.store.database.change(f"UPDATE attachments SET {column} = ?", (value,))
        with pytest.raises(InvalidState, match=says):
            write_image(engine, NAME, io.BytesIO(b"x"))
    assert images.record is None


def test_a_volume_that_a_client_keeps_for_reading_is_refused(images: ImageSite) -> None:
    with images.engine() as engine:
        said = Description(engine.volume(NAME).id, "project", "user", SMALL, read_only=True)
        Catalog(engine.store.database).put(said)
        with pytest.raises(InvalidState, match="for reading only"):
            write_image(engine, NAME, io.BytesIO(b"x"))
    assert images.record is None
    assert len(read(images)) == SMALL


def test_an_empty_stream_is_refused_and_what_was_whole_stays_so(images: ImageSite) -> None:
    write(images, io.BytesIO(b"image"))
    with pytest.raises(InvalidInput, match="is empty"):
        write(images, io.BytesIO())
    assert read(images) == b"image"


def test_a_size_that_no_volume_has_or_over_the_limit_is_refused(images: ImageSite) -> None:
    for options in ({"size_bytes": 2**63}, {"size_bytes": 2 * KiB, "growth": small_growth(GiB, KiB)}):
        with pytest.raises(InvalidSize):
            write(images, io.BytesIO(b"x"), **options)
    assert images.record is None


@pytest.mark.parametrize("wrong", ["", "abc", "g" * 64, "0" * 65])
def test_a_checksum_that_is_none_is_refused(images: ImageSite, wrong: str) -> None:
    with pytest.raises(InvalidInput, match="must be 64 hexadecimal digits"):
        write(images, io.BytesIO(b"x"), sha256=wrong)
    assert images.record is None


def test_a_device_that_is_smaller_than_its_volume_is_refused(images: ImageSite) -> None:
    os.truncate(images.path, SMALL // 2)
    with pytest.raises(BackendError, match="shows 512 KiB of 1 MiB"):
        write(images, io.BytesIO(b"x"))
    assert (images.record, images.path.stat().st_size) == (None, SMALL // 2)


def test_a_volume_that_is_being_extended_is_refused(images: ImageSite) -> None:
    with images.engine() as engine:
        engine.extend(NAME, 2 * SMALL, wait=False)
    with pytest.raises(InvalidState, match=r"is extending, must be in-use$"):
        write(images, io.BytesIO(b"x"))


def test_a_backend_that_cannot_extend_in_use_takes_what_fits(
    images: ImageSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainDriver, "capabilities", Capabilities())
    content = noise(SMALL)
    written = write(images, io.BytesIO(content), extend_attached=True, size_bytes=SMALL)
    assert written.extends == 0
    assert read(images) == content


def test_a_backend_that_cannot_extend_in_use_is_refused_at_once(
    images: ImageSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainDriver, "capabilities", Capabilities())
    with pytest.raises(NotSupported, match="in-use") as caught:
        write(images, io.BytesIO(noise(4 * SMALL)), extend_attached=True)
    assert "with --no-extend-attached" in " ".join(caught.value.__notes__)
    assert images.record is None
    assert write(images, io.BytesIO(noise(4 * SMALL))).attaches == 1


# what goes wrong meanwhile


@IN_PLACE
@pytest.mark.parametrize("announced", [3 * SMALL - 1, 3 * SMALL + 1, PIECE, 6 * SMALL])
def test_an_announced_size_that_is_wrong_is_an_error(
    images: ImageSite, announced: int, in_place: bool
) -> None:
    with pytest.raises(BackendError, match=r"announced") as caught:
        write(images, Cut(noise(3 * SMALL), []), size_bytes=announced, extend_attached=in_place)
    check_not_whole(images, caught.value)
    assert images.volume.size_bytes == max(SMALL, images.rule.round_up(announced))
    check_again(images)


@IN_PLACE
def test_an_announced_checksum_tells_a_pipe_whose_writer_died(images: ImageSite, in_place: bool) -> None:
    """Its end looks as any other end does."""
    content = noise(3 * SMALL)
    announced = hashlib.sha256(content).hexdigest().upper()
    with pytest.raises(BackendError, match=f"not {announced} as announced") as caught:
        write(images, io.BytesIO(content[: 2 * SMALL]), sha256=announced, extend_attached=in_place)
    check_not_whole(images, caught.value)
    assert write(images, io.BytesIO(content), sha256=announced, extend_attached=in_place).sha256
    assert read(images) == content


def broken(content: bytes, error: Exception) -> Cut:
    def end() -> bytes:
        raise error

    return Cut(content, [777], end)


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), ValueError("bad chunk"), RuntimeError()]
)
@pytest.mark.parametrize("size", [5, 3 * SMALL])
def test_a_source_that_breaks_off(images: ImageSite, error: Exception, size: int) -> None:
    with pytest.raises(BackendError, match="broke off after") as caught:
        write(images, broken(noise(size), error), extend_attached=True)
    assert caught.value.__cause__ is error
    if size > PIECE:
        check_not_whole(images, caught.value)
    else:
        assert images.record is None
    check_again(images)


def test_a_source_that_falls_silent(images: ImageSite) -> None:
    def end() -> bytes:
        time.sleep(2.5)
        return b""

    with pytest.raises(BackendError, match=r"gave nothing for 0\.2 seconds after 512 KiB") as caught:
        write(images, Cut(noise(SMALL // 2), [], end), limits=Limits(source_s=0.2))
    check_not_whole(images, caught.value)


def test_a_device_that_fails_is_told_while_the_source_is_silent(
    images: ImageSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()

    def fail(_self: target.Target, _offset: int, _content: memoryview) -> None:
        raise BackendError("the device", "is ill")

    def end() -> bytes:
        assert told.wait(20)
        return b""

    monkeypatch.setattr(target.Target, "write", fail)
    monkeypatch.setattr(flow, "_LOOK_S", 0.05)
    with pytest.raises(BackendError, match="is ill"):
        write(images, Cut(noise(PIECE), [], end), limits=Limits(source_s=10))
    told.set()


def test_it_is_told_how_much_is_there_and_how_much_may_be(
    images: ImageSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(_self: target.Target, _offset: int, _content: memoryview) -> None:
        time.sleep(0.5)

    monkeypatch.setattr(target.Target, "write", slow)
    with pytest.raises(BackendError) as caught:
        write(images, broken(noise(PIECE), OSError(5, "Input/output error")))
    assert "its first 0 B, at most 32 KiB, were written" in caught.value.__notes__[0]


def test_a_source_that_does_not_wait_or_gives_text(images: ImageSite) -> None:
    for stream, says in ((Cut(b"", [], lambda: None), "waits"), (io.StringIO("text"), "TypeError")):  # type: ignore[arg-type,return-value]  # what is wrong
        with pytest.raises(BackendError, match=says):
            write(images, stream)


@IN_PLACE
def test_no_space_in_the_middle(images: ImageSite, in_place: bool) -> None:
    images.driver.room_bytes = 3 * SMALL
    with pytest.raises(NoSpace) as caught:
        write(images, io.BytesIO(noise(8 * SMALL)), extend_attached=in_place, growth=small_growth())
    check_not_whole(images, caught.value)
    check_again(images)


@IN_PLACE
def test_where_there_is_no_room_to_double_it_grows_less(images: ImageSite, in_place: bool) -> None:
    images.driver.room_bytes, content = 3 * SMALL - 100 * KiB, noise(3 * SMALL - 100 * KiB)
    written = write(images, io.BytesIO(content), extend_attached=in_place, growth=small_growth())
    assert written.left_over_bytes == 0
    assert read(images) == content


@IN_PLACE
def test_no_space_for_the_announced_size_leaves_all_as_it_was(images: ImageSite, in_place: bool) -> None:
    write(images, io.BytesIO(b"before"))
    images.driver.room_bytes = SMALL
    with pytest.raises(NoSpace) as caught:
        write(images, io.BytesIO(noise(2 * SMALL)), size_bytes=2 * SMALL, extend_attached=in_place)
    assert "no image was written, the volume has 1 MiB and is in-use" in caught.value.__notes__[0]
    assert read(images) == b"before"


@IN_PLACE
@pytest.mark.parametrize("grown", [False, True], ids=["nothing grown", "grown"])
def test_an_extend_that_fails(images: ImageSite, in_place: bool, grown: bool) -> None:
    setattr(images.driver, "after" if grown else "before", BackendError("the array", "is ill"))
    with pytest.raises(BackendError, match="is ill") as caught:
        write(images, io.BytesIO(noise(2 * SMALL)), extend_attached=in_place, growth=small_growth())
    status = VolumeStatus.ERROR_EXTENDING if grown else VolumeStatus.IN_USE
    check_not_whole_anyhow(images, caught.value, status, in_place)
    images.driver.before = images.driver.after = None
    with images.engine() as engine:
        if grown:
            engine.retry(NAME)
        if not engine.volume(NAME).attachments:
            engine.attach(NAME)
    check_again(images)


@IN_PLACE
def test_an_extend_whose_outcome_is_unknown(images: ImageSite, in_place: bool) -> None:
    images.driver.before = OutcomeUnknown("extending it", "no answer came")
    with pytest.raises(OutcomeUnknown) as caught:
        write(images, io.BytesIO(noise(2 * SMALL)), extend_attached=in_place, growth=small_growth())
    check_not_whole_anyhow(images, caught.value, VolumeStatus.EXTENDING, in_place)
    images.driver.before = None
    with images.engine() as engine:
        assert engine.resume()[0].error is None
        if not engine.volume(NAME).attachments:
            engine.attach(NAME)
    check_again(images)


def check_not_whole_anyhow(
    site: ImageSite, error: BaseException, status: VolumeStatus, in_place: bool
) -> None:
    """As `check_not_whole`, also where a volume that has not settled could not be attached again."""
    if in_place or status is VolumeStatus.IN_USE:
        assert site.volume.attachments
    else:
        assert not site.volume.attachments
        assert "could not be attached again" in " ".join(error.__notes__)
    assert site.record is not None
    assert site.record.state is ImageState.BROKEN
    assert f"is {status}" in " ".join(error.__notes__)
    first = {VolumeStatus.EXTENDING: "resume", VolumeStatus.ERROR_EXTENDING: "retry"}.get(status)
    told = f"is {status}; " + (f"voldrivers {first} v, then " if first else "")
    told += "" if site.volume.attachments else "voldrivers attach v, then "
    assert told + "write the image again" in site.messages[-1]
    assert site.volume.status is status
    with pytest.raises(InvalidState):
        read(site)


def test_a_file_that_vanishes(images: ImageSite) -> None:
    def end() -> bytes:
        images.path.rename(images.directory / "gone")
        return b""

    with pytest.raises(VolDriverError) as caught:
        write(images, Cut(noise(SMALL // 2), [], end))
    check_not_whole(images, caught.value)


def test_a_file_that_another_one_took_the_place_of(images: ImageSite) -> None:
    def end() -> bytes:
        path = images.path
        path.rename(images.directory / "gone")
        path.touch()
        os.truncate(path, SMALL)
        return b""

    with pytest.raises(BackendError, match="another one has its name") as caught:
        write(images, Cut(noise(SMALL // 2), [], end))
    check_not_whole(images, caught.value)


def test_a_device_that_hangs_is_given_up(images: ImageSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(_self: target.Target, _offset: int, _content: memoryview) -> None:
        time.sleep(1.5)

    limits = Limits(device_s=0.2, end_s=0.1)
    with monkeypatch.context() as hanging:
        hanging.setattr(target.Target, "write", hang)
        with pytest.raises(OutcomeUnknown, match="writing at 0 B") as caught:
            write(images, io.BytesIO(noise(SMALL // 2)), limits=limits)
        check_not_whole(images, caught.value)
        wait_until(lambda: not any(t.name == "image writer" for t in threading.enumerate()), 5, "its end")
    check_again(images)


def test_an_image_over_its_limit(images: ImageSite) -> None:
    with pytest.raises(BackendError, match="larger than its limit, 2 MiB") as caught:
        write(images, io.BytesIO(noise(9 * SMALL)), growth=small_growth(GiB, 2 * SMALL))
    check_not_whole(images, caught.value)
    assert images.volume.size_bytes <= 2 * SMALL


def test_what_is_recorded_and_its_message_are_one(images: ImageSite) -> None:
    write(images, io.BytesIO(b"image"))
    with images.engine() as engine:
        records, volume = ImageRecords(engine.store), engine.volume(NAME)
        with pytest.raises(InvalidInput):
            records.put(volume, ImageRecord(ImageState.BROKEN), "no UTF-8: \udcff")
        assert records.get(volume) == ImageRecord(ImageState.WHOLE, 5, hashlib.sha256(b"image").hexdigest())


def test_an_interrupted_one(images: ImageSite) -> None:
    def stop(_progress: ImageProgress) -> None:
        raise KeyboardInterrupt

    with images.engine() as engine, pytest.raises(KeyboardInterrupt) as caught:
        write_image(engine, NAME, io.BytesIO(noise(SMALL)), progress=stop)
    check_not_whole(images, caught.value)
    assert "(interrupted)" in images.messages[-1]
    check_again(images)


def test_a_killed_one_leaves_a_trace_and_no_lock(images: ImageSite) -> None:
    given_bytes, given = os.pipe()
    child = Child(lambda: write(images, open(given_bytes, "rb", buffering=0)))  # noqa: SIM115 - it is killed
    os.write(given, noise(PIECE) + b"more")
    wait_until(lambda: images.record is not None, 10, "the image to begin")
    with images.engine() as engine, pytest.raises(InvalidState, match="worked on by another process"):
        engine.detach(NAME)
    child.kill()
    assert child.answer() == "killed"
    os.close(given)
    os.close(given_bytes)
    assert images.record is not None
    assert images.record.state is ImageState.WRITING
    assert images.messages == ["an image is being written; it is not whole before a later message says so"]
    with pytest.raises(InvalidState, match="holding an image that is not whole"):
        read(images)
    check_again(images)


def test_nobody_else_works_on_the_volume_meanwhile(images: ImageSite) -> None:
    refused: list[str] = []

    def end() -> bytes:
        with images.engine() as other:
            for act in (other.detach, other.delete_volume, lambda name: other.extend(name, GiB)):
                with pytest.raises(InvalidState, match="worked on by another process"):
                    act(NAME)
                refused.append("one")
        return b""

    write(images, Cut(noise(SMALL), [], end))
    assert len(refused) == 3
    with images.engine() as engine:
        engine.detach(NAME)


def test_nothing_is_left_open_or_running(images: ImageSite) -> None:
    write(images, io.BytesIO(noise(3 * SMALL)))  # what is imported then stays open
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        write(images, io.BytesIO(noise(3 * SMALL)))
        with pytest.raises(BackendError):
            write(images, broken(noise(SMALL), OSError(5, "Input/output error")))
    assert len(os.listdir("/proc/self/fd")) == before
    wait_until(lambda: not any(t.name.startswith("image") for t in threading.enumerate()), 5, "the threads")


# reading


def test_as_much_as_asked_for_is_read_and_not_taken_for_the_image(images: ImageSite) -> None:
    content = noise(SMALL - 5)
    write(images, io.BytesIO(content))
    assert read(images, 3 * PIECE + 1) == content[: 3 * PIECE + 1]
    with images.engine() as engine:
        assert not read_image(engine, NAME, io.BytesIO(), 100).is_verified
        assert read_image(engine, NAME, io.BytesIO()).is_verified
        for wrong in (0, SMALL + 1):
            with pytest.raises(InvalidSize):
                read_image(engine, NAME, io.BytesIO(), wrong)


def test_a_volume_without_an_image_is_read_to_its_end(images: ImageSite) -> None:
    images.path.write_bytes(noise(SMALL))
    assert read(images) == noise(SMALL)


def test_an_image_that_somebody_changed_is_found(images: ImageSite) -> None:
    write(images, io.BytesIO(noise(SMALL)))
    with images.path.open("r+b") as file:
        file.seek(1000)
        file.write(b"?")
    with pytest.raises(BackendError, match="is not the image that was written"):
        read(images)


def test_a_sink_that_takes_little_or_fails(images: ImageSite) -> None:
    class Slow(io.BytesIO):
        def write(self, content: object, /) -> int:
            return super().write(bytes(content)[:1000])  # type: ignore[call-overload]  # a memoryview

    class Full(io.BytesIO):
        def write(self, content: object, /) -> int:
            raise OSError(28, "No space left on device")

    content = noise(SMALL // 2)
    write(images, io.BytesIO(content))
    sink = Slow()
    with images.engine() as engine:
        read_image(engine, NAME, sink)
        with pytest.raises(BackendError, match="where the image goes: cannot be written: No space"):
            read_image(engine, NAME, Full())
    assert sink.getvalue() == content


def test_a_source_tells_how_much_it_gave() -> None:
    source, buffer = Source(Cut(b"abcdef", [1, 2])), memoryview(bytearray(4))
    assert [source.fill(buffer), source.fill(buffer), source.fill(buffer)] == [4, 2, 0]
    assert source.given_bytes == 6
