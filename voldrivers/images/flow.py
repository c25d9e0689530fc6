"""The way of an image: read ahead, hashed and written side by side, in buffers that go round."""

import mmap
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from voldrivers.errors import BackendError
from voldrivers.images.source import Source
from voldrivers.images.target import Target
from voldrivers.images.workers import Worker, answer, is_done_within
from voldrivers.sizes import MiB, format_size

#: 64 MiB in all: so much is read ahead, and so far is the end of an image in sight when a volume is full.
PIECE_BYTES, BUFFERS = 8 * MiB, 8
#: So often the time since the source gave something is looked at.
_LOOK_S = 1.0
#: So long the end of an image is looked for before a volume is extended for more than what is there.
_SIGHT_S = 2.0


@dataclass(frozen=True)
class Limits:
    """How long a source may give nothing, and how long the device may take for one piece or to flush."""

    source_s: float = 600.0
    device_s: float = 120.0
    #: What is under way when writing is given up may take so long to end.
    end_s: float = 5.0


@dataclass(frozen=True)
class Piece:
    """A piece of an image, at its place in it; the last one may be empty."""

    offset_bytes: int
    content: memoryview
    is_last: bool
    buffer: mmap.mmap

    @property
    def end_bytes(self) -> int:
        """Where it ends."""
        return self.offset_bytes + len(self.content)


@dataclass(frozen=True)
class _Busy:
    """A piece that is being hashed and written."""

    piece: Piece
    written: "Future[None]"
    hashed: Sequence["Future[None]"]


class Flow:
    """One image on its way from a source to a target. Whoever uses it may stop at any point and close it."""

    def __init__(
        self, source: Source, hashes: Sequence[Callable[[memoryview], None]], limits: Limits
    ) -> None:
        """Begin to read."""
        self._source, self._hashes, self._limits = source, hashes, limits
        self._reader = Worker("image reader", source.broken_off)
        self._writer = Worker("image writer")
        self._hashers = [Worker("image hash") for _ in hashes]
        self._free = [mmap.mmap(-1, PIECE_BYTES) for _ in range(BUFFERS)]
        self._reads: deque[Future[Piece]] = deque()
        self._busy: deque[_Busy] = deque()
        self.written_bytes = self.put_bytes = self.given_bytes = 0

    def pieces(self) -> Iterator[Piece]:
        """Give the image in order, the next reads in flight; each piece must be `put` before the next."""
        while True:
            self._read_ahead()
            piece = self._awaited(self._reads.popleft())
            self.given_bytes = piece.end_bytes
            if piece.content:
                yield piece
            if piece.is_last:
                return
            self._finish_over()
            while self._busy and not (self._free or self._reads):
                self._finish(self._busy.popleft())

    def ahead(self, piece: Piece) -> Piece:
        """Give the last piece that comes soon while there are buffers for it. Drain it first."""
        self._read_ahead()
        deadline = time.monotonic() + _SIGHT_S
        for read in self._reads:
            if piece.is_last or not is_done_within(read, max(deadline - time.monotonic(), 0.0)):
                break
            piece = read.result()
        return piece

    def put(self, piece: Piece, target: Target) -> None:
        """Have a piece hashed and written."""
        hashed = [
            worker.submit(partial(update, piece.content))
            for worker, update in zip(self._hashers, self._hashes, strict=True)
        ]
        write = partial(target.write, piece.offset_bytes, piece.content)
        self.put_bytes = piece.end_bytes
        self._busy.append(_Busy(piece, self._writer.submit(write), hashed))

    def drain(self) -> None:
        """Wait until all that was put is hashed and written. Raises what went wrong there."""
        while self._busy:
            self._finish(self._busy.popleft())

    def flush(self, target: Target) -> None:
        """Have the target flush. Raises as `Target.flush`, OutcomeUnknown."""
        answer(self._writer.submit(target.flush), self._limits.device_s, f"the flush of {target.path}")

    def close(self) -> bool:
        """End the threads; tell whether none works on the target any more."""
        for worker in (self._reader, *self._hashers):
            worker.close(0.0)
        return self._writer.close(self._limits.end_s)

    def _read_ahead(self) -> None:
        while self._free:
            self._reads.append(self._reader.submit(partial(self._read, self._free.pop())))

    def _read(self, buffer: mmap.mmap) -> Piece:
        """Fill a buffer; runs in the reader's thread alone."""
        offset_bytes = self._source.given_bytes
        count = self._source.fill(memoryview(buffer))
        return Piece(offset_bytes, memoryview(buffer)[:count], count < len(buffer), buffer)

    def _awaited(self, read: "Future[Piece]") -> Piece:
        while not is_done_within(read, _LOOK_S):
            self._finish_over()  # what failed there is told at once, however slow the source is
            silent_s = time.monotonic() - self._source.given_at
            if silent_s > self._limits.source_s:
                after = f"after {format_size(self._source.given_bytes)}"
                reason = f"gave nothing for {self._limits.source_s:g} seconds {after}"
                raise BackendError(Source.title, reason)
        return read.result()

    def _finish_over(self) -> None:
        while self._busy and self._is_over(self._busy[0]):
            self._finish(self._busy.popleft())

    def _is_over(self, busy: _Busy) -> bool:
        return busy.written.done() and all(each.done() for each in busy.hashed)

    def _finish(self, busy: _Busy) -> None:
        where = f"writing at {format_size(busy.piece.offset_bytes)}"
        answer(busy.written, self._limits.device_s, where)
        for hashed in busy.hashed:
            answer(hashed, self._limits.device_s, "hashing")
        self.written_bytes = busy.piece.end_bytes
        self._free.append(busy.piece.buffer)
