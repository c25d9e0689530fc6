"""Lock files: one process at a time works on a volume."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from voldrivers.errors import BackendError, InvalidState


@contextmanager
def exclusive(directory: Path, name: str, subject: str) -> Iterator[None]:
    """Hold the lock file `name`, which the kernel releases when the holder dies, however it dies.

    Raises InvalidState at once when another process or thread holds it: a second controller is
    refused, not queued. Raises BackendError when the file cannot be opened.
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
            raise BackendError(f"lock directory {directory}", error.strerror or str(error)) from error
        if not acquired:
            # Closing any descriptor of the file drops the lock of the whole process (fcntl(2)). Left to
            # the collector, that would hit a lock that this process got later (fasteners 0.20).
            if lock.lockfile is not None:
                lock.lockfile.close()
            raise InvalidState(subject, "being worked on by another process", "left alone by others")
        held.callback(lock.release)
        yield
