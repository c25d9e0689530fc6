"""Where an image comes from: any stream that can be read, cut in whatever pieces it gives."""

import time
from typing import Protocol, runtime_checkable

from voldrivers.errors import BackendError, VolDriverError
from voldrivers.sizes import format_size


class Readable(Protocol):
    """A stream: `read` gives some bytes, and b"" at its end. One that has `readinto` is read by that."""

    def read(self, size: int, /) -> bytes | None:
        """Give the next bytes."""


@runtime_checkable
class _ReadsInto(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...


class Source:
    """A stream that is read to its end, once."""

    title = "the image's source"

    def __init__(self, stream: Readable) -> None:
        """Take a stream; nothing is read yet."""
        self._stream = stream
        self._rest = b""
        self._has_ended = False
        self.given_bytes = 0
        #: When it gave something last (time.monotonic).
        self.given_at = time.monotonic()

    def fill(self, buffer: memoryview) -> int:
        """Fill a buffer and tell how far: only at the end it is not full. Raises what the stream raises."""
        filled = 0
        self.given_at = time.monotonic()
        while filled < len(buffer) and not self._has_ended:
            count = self._some(buffer[filled:])
            self._has_ended = count == 0
            filled += count
            self.given_bytes += count
            self.given_at = time.monotonic()
        return filled

    def broken_off(self, error: Exception) -> VolDriverError:
        """Say that the stream failed, whatever it raised."""
        where = f"broke off after {format_size(self.given_bytes)}"
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return BackendError(self.title, f"{where}: {reason}")

    def _some(self, buffer: memoryview) -> int:
        if not self._rest and isinstance(self._stream, _ReadsInto):
            return self._counted(self._stream.readinto(buffer))
        content = self._rest or self._stream.read(len(buffer))
        self._counted(None if content is None else len(content))
        given = memoryview(content or b"").cast("B")
        count = min(len(given), len(buffer))
        buffer[:count] = given[:count]
        self._rest = bytes(given[count:])
        return count

    def _counted(self, count: int | None) -> int:
        if count is None:
            raise BackendError(self.title, "has nothing to give now: it must be a stream that waits")
        return count
