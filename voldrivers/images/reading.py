"""Streaming the image in a volume back, compared on the way with what was recorded when it was written."""

import hashlib
import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from voldrivers.errors import BackendError, InvalidSize, InvalidState
from voldrivers.extend.engine import Engine
from voldrivers.images.flow import PIECE_BYTES, Limits
from voldrivers.images.place import Place
from voldrivers.images.progress import ImageProgress, no_progress
from voldrivers.images.records import ImageRecord, ImageRecords, ImageState
from voldrivers.images.target import Target
from voldrivers.images.workers import Worker, answer
from voldrivers.model import Volume
from voldrivers.sizes import format_size


class Writable(Protocol):
    """Where an image goes: `write` takes bytes and may take fewer of them, as a raw file does."""

    def write(self, content: memoryview, /) -> int | None:
        """Take the next bytes."""


@dataclass(frozen=True)
class ReadImage:
    """What was read. `is_verified`: it is the image that was written, by its recorded checksum."""

    volume: Volume
    size_bytes: int
    sha256: str
    is_verified: bool


def read_image(
    engine: Engine,
    name: str,
    sink: Writable,
    size_bytes: int | None = None,
    *,
    progress: Callable[[ImageProgress], None] = no_progress,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> ReadImage:
    """Stream a volume's image into `sink`: as much as was written, else as asked, else the whole volume.

    Raises InvalidState, nothing read, for an image that is not whole, unless a size is asked for;
    BackendError after the last byte when it is not what was written. NotSupported, NotFound as `write_image`.
    """
    with engine.site.reserved(name) as volume:
        record = ImageRecords(engine.store).get(volume)
        wanted_bytes = _wanted(volume, record, size_bytes)
        place = Place(engine, volume, writable=False)
        reading = _Reading(place.target, sink, wanted_bytes, limits)
        try:
            for done_bytes in reading.steps():
                progress(ImageProgress(done_bytes, wanted_bytes, volume.size_bytes))
        finally:
            reading.close()
    return _verified(volume, record, wanted_bytes, reading.sha256.hexdigest())


class _Reading:
    """One image on its way out of one volume; while a piece is passed on the next one is read."""

    def __init__(self, target: Target, sink: Writable, size_bytes: int, limits: Limits) -> None:
        self._target, self._sink, self._size_bytes, self._limits = target, sink, size_bytes, limits
        self._reader, self._hasher = Worker("image reader"), Worker("image hash")
        self.sha256 = hashlib.sha256()

    def steps(self) -> Iterator[int]:
        """Pass it on, and give how far it is after each piece."""
        buffers = [mmap.mmap(-1, PIECE_BYTES) for _ in range(2)]
        read = self._begin(0, buffers[0])
        for number, offset_bytes in enumerate(range(0, self._size_bytes, PIECE_BYTES)):
            where = f"reading at {format_size(offset_bytes)}"
            count = min(answer(read, self._limits.device_s, where), self._size_bytes - offset_bytes)
            if count < min(PIECE_BYTES, self._size_bytes - offset_bytes):
                end = f"{self._target.path} ends at {format_size(offset_bytes + count)}"
                raise BackendError("the image", f"{end}, {format_size(self._size_bytes)} were wanted")
            content = memoryview(buffers[number % 2])[:count]
            read = self._begin(offset_bytes + PIECE_BYTES, buffers[(number + 1) % 2])
            hashed = self._hasher.submit(partial(self.sha256.update, content))
            self._pass_on(content)
            answer(hashed, self._limits.device_s, "hashing")
            yield offset_bytes + count

    def close(self) -> None:
        """End the threads, and let go of the device unless one still works on it."""
        self._hasher.close(0.0)
        if self._reader.close(self._limits.end_s):
            self._target.close()

    def _begin(self, offset_bytes: int, buffer: mmap.mmap) -> "Future[int]":
        """Have a piece read, if there is more."""
        view = memoryview(buffer) if offset_bytes < self._size_bytes else memoryview(b"")
        return self._reader.submit(partial(self._target.read, offset_bytes, view))

    def _pass_on(self, content: memoryview) -> None:
        while content:
            try:
                count = self._sink.write(content)
            except OSError as error:
                reason = f"cannot be written: {error.strerror or error}"
                raise BackendError("where the image goes", reason) from error
            content = content[len(content) if count is None else count :]


def _wanted(volume: Volume, record: ImageRecord | None, size_bytes: int | None) -> int:
    if size_bytes is not None:
        if not 0 < size_bytes <= volume.size_bytes:
            reason = "there is no more in it than its size" if size_bytes > 0 else "ask for at least one byte"
            raise InvalidSize(volume.title, reason, format_size(size_bytes), volume.size_bytes)
        return size_bytes
    if record is None:
        return volume.size_bytes
    if record.state is not ImageState.WHOLE:
        error = InvalidState(volume.title, "holding an image that is not whole", "written to its end")
        error.add_note("write the image again, or ask for what is there with --size")
        raise error
    return record.size_bytes


def _verified(volume: Volume, record: ImageRecord | None, size_bytes: int, sha256: str) -> ReadImage:
    comparable = record is not None and record.state is ImageState.WHOLE and record.size_bytes == size_bytes
    if comparable and record is not None and record.sha256 != sha256:
        reason = f"what was read is not the image that was written: sha256 {sha256}, not {record.sha256}"
        error = BackendError(volume.title, reason)
        error.add_note("somebody wrote to the volume since, or it is damaged")
        raise error
    return ReadImage(volume, size_bytes, sha256, comparable)
