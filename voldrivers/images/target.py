"""The device or file of a volume on this machine, read and written past the page cache where that can be."""

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from voldrivers.errors import BackendError, InvalidState, NoSpace, NotFound, VolDriverError
from voldrivers.nfs import imagelocks
from voldrivers.sizes import KiB, MiB, format_size

#: Offsets, lengths and buffers of direct I/O are multiples of this; it fits devices of 512 and of 4096 bytes.
BLOCK_BYTES = 4 * KiB
#: Zeros are looked for in pieces of this, the smallest chunk of a thin pool.
PIECE_BYTES = 64 * KiB
_ZEROS = bytes(PIECE_BYTES)
#: Without direct I/O no more than this waits in the page cache, so that the last flush is short too.
_CACHED_BYTES = 64 * MiB
#: So much is read at once to see whether zeros are there.
_LOOK_BYTES = MiB

_FULL = (errno.ENOSPC, errno.EDQUOT)
_GONE = (errno.ENOENT, errno.ENXIO, errno.ENODEV)


class Target:
    """A device or file that is open.

    Writes end where the image ends: what lies beyond stays. Zeros are not written where zeros are already,
    which is read, never believed: so a thin or sparse volume stays so.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Open it. Raises NotFound, InvalidState (somebody else has it), BackendError."""
        self.path, self.why_not_direct = path, ""
        self.left_out_bytes = self._unflushed_bytes = 0
        mode = os.O_RDWR if writable else os.O_RDONLY
        self._fd = self._open(mode, exclusive=writable)
        self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        if writable and self._is_file:
            self._or_close(lambda: imagelocks.check_unheld(path, Path(f"/proc/{os.getpid()}/fd/{self._fd}")))
        self._or_close(self._try_direct)

    @property
    def size_bytes(self) -> int:
        """How large it is now."""
        try:
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise self._typed(error, "its size cannot be read") from error

    def write(self, offset_bytes: int, content: memoryview) -> None:
        """Write at a multiple of BLOCK_BYTES; only the last write may be of another length.

        Raises NoSpace, BackendError.
        """
        whole_bytes = len(content) // BLOCK_BYTES * BLOCK_BYTES
        try:
            for start, end, is_zero in _runs(content[:whole_bytes]):
                if is_zero and self._has_zeros(offset_bytes + start, end - start):
                    self.left_out_bytes += end - start
                else:
                    self._write(offset_bytes + start, content[start:end])
            if whole_bytes < len(content):
                self._go_through_cache()
                self._write(offset_bytes + whole_bytes, content[whole_bytes:])
        except OSError as error:
            where = f"cannot be written at {format_size(offset_bytes)}"
            raise self._typed(error, where, len(content)) from error

    def read(self, offset_bytes: int, buffer: memoryview) -> int:
        """Fill a buffer whose length is a multiple of BLOCK_BYTES; only at the end it is not full."""
        filled = 0
        try:
            while filled < len(buffer):
                count = os.preadv(self._fd, [buffer[filled:]], offset_bytes + filled)
                filled += count
                if count == 0 or count % BLOCK_BYTES:
                    break
        except OSError as error:
            raise self._typed(error, f"cannot be read at {format_size(offset_bytes + filled)}") from error
        return filled

    def flush(self) -> None:
        """Have all that was written be on the medium, which must be the one that the name leads to."""
        try:
            os.fsync(self._fd)
            same = os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except OSError as error:
            raise self._typed(error, "cannot be flushed") from error
        if not same:
            raise BackendError(self._subject, "is not there any more: another one has its name")

    def close(self) -> None:
        """Let go of it; may be repeated."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    @property
    def _subject(self) -> str:
        return f"{'file' if self._is_file else 'device'} {self.path}"

    def _open(self, mode: int, *, exclusive: bool) -> int:
        """Open a regular file or a block device; no link in a share is followed."""
        self._is_file = not str(self.path).startswith("/dev/")
        # O_EXCL: a device that is mounted, or part of another one, is refused (open(2)).
        kind = os.O_NOFOLLOW if self._is_file else os.O_EXCL if exclusive else 0
        try:
            fd = os.open(self.path, mode | kind | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise self._not_opened(error) from error
        if not (stat.S_ISREG(os.fstat(fd).st_mode) or stat.S_ISBLK(os.fstat(fd).st_mode)):
            os.close(fd)
            raise BackendError(self._subject, "is neither a file nor a block device")
        return fd

    def _not_opened(self, error: OSError) -> VolDriverError:
        if error.errno == errno.EBUSY:
            return InvalidState(self._subject, "in use (mounted, or part of another device)", "left to us")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return InvalidState(self._subject, f"closed to us ({error.strerror})", "open to us")
        if error.errno in _GONE:
            return NotFound(*self._subject.split(" ", 1))
        return BackendError(self._subject, f"cannot be opened: {error.strerror}")

    def _try_direct(self) -> None:
        """Leave the page cache out, if the file system lets us; some take the flag and refuse the reading."""
        try:
            self._set_flags(self._flags | os.O_DIRECT)
            with mmap.mmap(-1, BLOCK_BYTES) as block:
                os.preadv(self._fd, [block], 0)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise self._typed(error, "cannot be read") from error
            self.why_not_direct = f"{self.path.parent} has no direct I/O"
            self._go_through_cache()

    def _go_through_cache(self) -> None:
        self._set_flags(self._flags & ~os.O_DIRECT)

    @property
    def _flags(self) -> int:
        return fcntl.fcntl(self._fd, fcntl.F_GETFL)

    def _set_flags(self, flags: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags)

    def _or_close(self, check: Callable[[], None]) -> None:
        try:
            check()
        except VolDriverError:
            self.close()
            raise

    def _write(self, offset_bytes: int, content: memoryview) -> None:
        while content:
            count = os.pwritev(self._fd, [content], offset_bytes)
            if count % BLOCK_BYTES and count < len(content):  # it has become full in the middle of a block
                count -= count % BLOCK_BYTES
                if not count:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            offset_bytes, content = offset_bytes + count, content[count:]
            self._unflushed_bytes += count
        if self.why_not_direct and self._unflushed_bytes >= _CACHED_BYTES:
            os.fdatasync(self._fd)
            self._unflushed_bytes = 0

    def _has_zeros(self, offset_bytes: int, length: int) -> bool:
        """Tell whether a range reads as zeros: a hole does, all else is read."""
        if self._is_file and self._is_hole(offset_bytes, length):
            return True
        view = memoryview(mmap.mmap(-1, min(length, _LOOK_BYTES)))
        for start in range(0, length, _LOOK_BYTES):
            part = view[: min(_LOOK_BYTES, length - start)]
            if self.read(offset_bytes + start, part) < len(part) or not _has_only_zeros(part):
                return False
        return True

    def _is_hole(self, offset_bytes: int, length: int) -> bool:
        try:
            return os.lseek(self._fd, offset_bytes, os.SEEK_DATA) >= offset_bytes + length
        except OSError as error:
            # ENXIO: nothing but a hole up to the end of the file. Else: this file system cannot tell.
            return error.errno == errno.ENXIO and offset_bytes + length <= self.size_bytes

    def _typed(self, error: OSError, what: str, wanted_bytes: int = 0) -> VolDriverError:
        if error.errno in _FULL:
            return NoSpace(self._subject, wanted_bytes)
        return BackendError(self._subject, f"{what}: {error.strerror or error}")


def _runs(content: memoryview) -> Iterator[tuple[int, int, bool]]:
    """Give start, end and whether it is zero of each run of pieces that are alike."""
    start, last = 0, False
    for at in range(0, len(content), PIECE_BYTES):
        is_zero = _is_zero(content[at : at + PIECE_BYTES])
        if at > start and is_zero is not last:
            yield start, at, last
            start = at
        last = is_zero
    if content:
        yield start, len(content), last


def _has_only_zeros(content: memoryview) -> bool:
    return all(_is_zero(content[at : at + PIECE_BYTES]) for at in range(0, len(content), PIECE_BYTES))


def _is_zero(piece: memoryview) -> bool:
    # Most pieces show it in their first byte; comparing bytes is memcmp(3), of a memoryview it is not.
    return not piece[0] and bytes(piece) == _ZEROS[: len(piece)]
