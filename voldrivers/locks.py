"""Lock files: one process at a time works on a volume."""

import os
import pwd
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from voldrivers.errors import BackendError, InvalidState
from voldrivers.process import holds_within


@contextmanager
def exclusive(directory: Path, name: str, subject: str) -> Iterator[None]:
    """Hold the lock file `name`, which the kernel releases when the holder dies, however it dies.

    Raises InvalidState at once when another process or thread holds it: a second controller is
    refused, not queued. Raises BackendError, with its owner, when the file cannot be opened.
    """
    from oslo_concurrency import lockutils  # 60 ms: only who changes something pays

    lock = lockutils.external_lock(name, lock_path=str(directory))
    with ExitStack() as held:
        try:
            # A lock file is the process's, so threads need a lock of their own.
            held.enter_context(lockutils.internal_lock(name, blocking=False))
            acquired = lock.acquire(blocking=False)
        except lockutils.AcquireLockFailedException:
            acquired = False
        except OSError as error:
            raise _refusal(directory / name, error) from error
        if not acquired:
            # Closing any descriptor of the file drops the lock of the whole process (fcntl(2)). Left to
            # the collector, that would hit a lock that this process got later (fasteners 0.20).
            if lock.lockfile is not None:
                lock.lockfile.close()
            raise _held(subject)
        held.callback(lock.release)
        yield


@contextmanager
def in_turn(directory: Path, name: str, subject: str, timeout_s: float) -> Iterator[None]:
    """Hold the lock file `name` as soon as it is free, for work that is short. Raises as `exclusive`."""
    with ExitStack() as held:

        def taken() -> bool:
            try:
                held.enter_context(exclusive(directory, name, subject))
            except InvalidState:
                return False
            return True

        if not holds_within(taken, timeout_s):
            raise _held(subject)
        yield


def _held(subject: str) -> InvalidState:
    return InvalidState(subject, "being worked on by another process", "left alone by others")


def _refusal(file: Path, error: OSError) -> BackendError:
    """Name the file, whom it belongs to, and what to do: a run as root leaves files that are root's."""
    subject, reason = f"lock file {os.fsdecode(error.filename or file)}", error.strerror or str(error)
    if not isinstance(error, PermissionError):
        return BackendError(subject, reason)
    nearest = next(path for path in (file, *file.parents) if os.path.lexists(path))
    owner, us = _user(nearest.lstat().st_uid), _user(os.geteuid())
    mend = f"chmod u+rw {nearest}" if owner == us else f"run it as {owner}, or: chown {us} {nearest}"
    return BackendError(subject, f"{reason}: {nearest} belongs to {owner}, this runs as {us}; {mend}")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
