"""Where images come from and go to: files, devices and pipes, standard input and output."""

import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TextIO

from voldrivers.errors import BackendError, InvalidInput, InvalidState, NotFound


@contextmanager
def source_from(name: str) -> Iterator[FileIO]:
    """Open what is written; without a buffer of Python's, whose lock a reader that hangs would keep.

    Raises NotFound, InvalidInput.
    """
    if name == "-":
        with _pipe(sys.stdin, "standard input", "rb", "--from FILE") as pipe:
            yield pipe
        return
    try:
        file = FileIO(name, "rb")
    except KeyboardInterrupt as stopped:  # a named pipe is open once somebody writes to it
        stopped.add_note("nothing was changed")
        raise
    except FileNotFoundError as error:
        raise NotFound("file", name) from error
    except OSError as error:
        raise InvalidInput(f"file {name}", f"cannot be read: {error.strerror}") from error
    with file:
        yield file


def found_size(source: FileIO) -> int | None:
    """Give how much there is to read from here on; None where that cannot be looked up, as of a pipe."""
    mode = os.fstat(source.fileno()).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        return None
    here = source.tell()
    try:
        end = source.seek(0, os.SEEK_END)
    except OSError:  # a file in /proc is made as it is read
        return None
    source.seek(here)
    return max(end - here, 0)


@contextmanager
def sink_to(name: str) -> Iterator[FileIO]:
    """Open where it goes: a new file, which has its name only once it is whole, or standard output.

    Raises InvalidInput, InvalidState (another process writes that file), BackendError.
    """
    if name == "-":
        with _pipe(sys.stdout, "standard output", "wb", "--to FILE") as pipe:
            yield pipe
        return
    path = Path(name)
    if os.path.basename(name) in ("", ".", ".."):
        raise InvalidInput(f"file {name!r}", "is not the name of a file")
    _check_new(path)
    try:
        with _unfinished(path) as file:
            yield file
            os.fsync(file.fileno())
            _check_new(path)
            os.rename(_part(path), path)
    except OSError as error:
        where = os.fsdecode(error.filename or path)
        raise BackendError(f"file {where}", f"cannot be written: {error.strerror}") from error


@contextmanager
def _pipe(stream: TextIO | None, what: str, mode: str, instead: str) -> Iterator[FileIO]:
    if stream is None:
        raise InvalidInput(what, f"is closed: give {instead}, or a pipe")
    if stream.isatty():
        raise InvalidInput(what, f"is a terminal: give {instead}, or a pipe")
    with FileIO(stream.fileno(), mode, closefd=False) as pipe:
        yield pipe


@contextmanager
def _unfinished(path: Path) -> Iterator[FileIO]:
    """Give the file that becomes `path`, empty; it is gone afterwards unless it was renamed.

    One that a killed process has left is taken over. The lock keeps two processes out of one file.
    """
    part = _part(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with FileIO(os.open(part, flags, 0o666), "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _busy(path) from error
        if not _has_name(file, part):  # whoever had it has just renamed it
            raise _busy(path)
        try:
            file.truncate(0)
            yield file
        finally:
            if _has_name(file, part):
                part.unlink()


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _has_name(file: FileIO, path: Path) -> bool:
    return os.path.lexists(path) and os.path.samestat(os.fstat(file.fileno()), path.lstat())


def _check_new(path: Path) -> None:
    if os.path.lexists(path):
        raise InvalidInput(f"file {path}", "is there already: remove it or give another name")


def _busy(path: Path) -> InvalidState:
    error = InvalidState(f"file {path}", "being written by another process", "left alone by others")
    error.add_note("wait for its end or give another name")
    return error
