"""Files in a share: opened without following links, made whole or not at all, failing with typed errors.

An open file is passed on as `/proc/PID/fd/N`, a path that leads to this very file whatever happens to
its name meanwhile (proc(5)). So `fallocate`, which creates what it does not find, cannot bring a
vanished file back, and a link planted under the name leads nobody out of the share. The programs must
run as the same user; a process that changed its user after its start must start again first (proc(5)).
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from voldrivers.errors import (
    BackendError,
    CommandFailed,
    InvalidSize,
    InvalidState,
    NoSpace,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.sizes import format_size

#: O_NONBLOCK: a FIFO planted under the name must not stop us.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

#: What a QEMU tool prints when another QEMU holds the image (QEMU block/file-posix.c).
_HELD = re.compile(r'Failed to get (shared )?"[\w ]+" lock')

#: What `_leading_to` gives.
_OPEN_FILE = re.compile(r"/proc/\d+/fd/\d+")

#: What `_temporary` gives.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.new")


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Hold the regular file at `path` and give a path that leads to it and to nothing else.

    Raises NotFound, InvalidState (permission), BackendError (a link, a directory, a stale handle).
    """
    subject = f"file {path}"
    with typed_errors(subject):
        fd = os.open(path, _READ)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BackendError(subject, "is not a regular file")
        yield _leading_to(fd)
    finally:
        os.close(fd)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give an empty file to fill; it appears as `path`, durable, when the context ends well, else not.

    Only its owner may read and write it. Raises InvalidState when `path` appeared meanwhile: link(2)
    never replaces, and unlike renameat2(RENAME_NOREPLACE) it works over NFS.
    """
    with scratch_file(path) as file:
        yield file
        with typed_errors(f"file {path}"), _directory(path.parent) as share:
            sync(file)
            # A directory fd makes Python call linkat(AT_SYMLINK_FOLLOW), which links the file held open.
            os.link(file, path.name, src_dir_fd=share, dst_dir_fd=share, follow_symlinks=True)
            os.fsync(share)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give an empty file to fill; it takes the place of `path`, durable, if the context ends well.

    Raises BackendError when somebody put another file in its place meanwhile.
    """
    with scratch_file(path) as file:
        yield file
        with typed_errors(f"file {path}"), _directory(path.parent) as share:
            sync(file)
            os.rename(_temporary(path), path)
            os.fsync(share)
            if not os.path.samestat(os.stat(file), os.lstat(path)):
                raise BackendError(f"file {path}", "is not the one that was put there")


@contextmanager
def scratch_file(path: Path) -> Iterator[Path]:
    """Give an empty file beside `path`, gone afterwards; one that a killed process left gives way to it."""
    clean(path)
    with typed_errors(f"share {path.parent}"):
        fd = os.open(_temporary(path), _CREATE, 0o600)
    try:
        yield _leading_to(fd)
    finally:
        os.close(fd)
        clean(path)


def clean(path: Path) -> None:
    """Remove what a killed `scratch_file` left beside `path`."""
    with typed_errors(f"share {path.parent}"):
        _temporary(path).unlink(missing_ok=True)


def sync(file: Path) -> None:
    """Have a `file` (as `opened` gives it) be on disk."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Remove a file, durably; nothing there is no error."""
    with typed_errors(f"file {path}"), _directory(path.parent) as share:
        path.unlink(missing_ok=True)
        os.fsync(share)


def rename(path: Path, new_path: Path) -> None:
    """Give a file that is held by nobody another name, durably; never replaces another file. May be repeated.

    By link(2), as `new_file` does, so for a moment it has both names. Raises InvalidState for a taken name.
    """
    with typed_errors(f"file {new_path}"), _directory(path.parent) as share:
        if not is_same(path, new_path):
            os.link(path.name, new_path.name, src_dir_fd=share, dst_dir_fd=share, follow_symlinks=False)
        os.fsync(share)
        path.unlink(missing_ok=True)
        os.fsync(share)


def is_same(path: Path, other: Path) -> bool:
    """Tell whether both are names of one file."""
    try:
        return os.path.samestat(os.lstat(path), os.lstat(other))
    except FileNotFoundError:
        return False


def meant_by(name: str) -> str:
    """Give the name that a file has, or would have had if a killed `scratch_file` had ended."""
    match = _TEMPORARY.fullmatch(name)
    return match["name"] if match else name


def check_writable(path: Path, file: Path) -> None:
    """Refuse a `file` (as `opened` gives it) that cannot be written. Raises InvalidState."""
    with typed_errors(f"file {path}"):
        os.close(os.open(file, os.O_WRONLY | os.O_CLOEXEC))


@contextmanager
def typed_errors(subject: str, wanted_bytes: int = 0) -> Iterator[None]:
    """Turn what system calls and programs answer into errors that say what the caller can do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise _typed(error.errno, subject, reason, wanted_bytes) from error
    except CommandFailed as error:
        if _HELD.search(error.reason):
            raise InvalidState(subject, "held by a QEMU", "closed by every QEMU") from error
        number = next((n for n in _KINDS if os.strerror(n) in error.reason), None)
        if number is None or error.exit_code == 127:  # 127: prlimit(1) did not find the program
            reason = _named(error.reason, subject)
            raise replace(error, subject=f"{subject}: {error.subject}", reason=reason) from error
        raise _typed(number, subject, os.strerror(number), wanted_bytes) from error
    except OutcomeUnknown as error:
        raise replace(error, what=_named(error.what, subject)) from error


def _named(text: str, subject: str) -> str:
    """Put the name that people know where a program was given the open file."""
    return _OPEN_FILE.sub(subject.partition(" ")[2], text)


def _typed(number: int | None, subject: str, reason: str, wanted_bytes: int) -> VolDriverError:
    kind = _KINDS.get(number or 0)
    return kind(subject, reason, wanted_bytes) if kind else BackendError(subject, reason)


_Kind = Callable[[str, str, int], VolDriverError]


def _state(state: str, needed: str) -> _Kind:
    return lambda subject, reason, _wanted: InvalidState(subject, f"{state} ({reason})", needed)


#: What each cause means for the caller; every other one is a BackendError with the system's words.
_KINDS: dict[int, _Kind] = {
    errno.ENOENT: lambda subject, _reason, _wanted: NotFound(*subject.split(" ", 1)),
    errno.ENOSPC: lambda subject, _reason, wanted: NoSpace(subject, wanted),
    errno.EDQUOT: lambda subject, _reason, wanted: NoSpace(subject, wanted),
    errno.EFBIG: lambda subject, reason, wanted: InvalidSize(subject, reason, format_size(wanted)),
    errno.EOPNOTSUPP: lambda subject, reason, _wanted: NotSupported(subject, reason),
    errno.EROFS: _state("not writable", "writable"),
    errno.EACCES: _state("closed to us", "open to us"),
    errno.EPERM: _state("closed to us", "open to us"),
    errno.EEXIST: _state("there already", "absent"),
    errno.ENOLCK: _state("without locks", "one that keeps them"),
    errno.ELOOP: lambda subject, _reason, _wanted: BackendError(
        subject, "is a symbolic link, which is never followed"
    ),
}


def _leading_to(fd: int) -> Path:
    return Path(f"/proc/{os.getpid()}/fd/{fd}")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
