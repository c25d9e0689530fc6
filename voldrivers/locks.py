"""Lock files: one process at a time works on a volume."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voldrivers.errors import InvalidState


@contextmanager
def exclusive(directory: Path, name: str, subject: str) -> Iterator[None]:
    """Hold the lock file `name`, which the kernel releases when the holder dies, however it dies.

    Raises InvalidState at once when another process or thread holds it: a second controller is
    refused, not queued.
    """
    from oslo_concurrency import lockutils  # 60 ms: only who changes something pays

    lock = lockutils.lock(name, external=True, lock_path=str(directory), blocking=False)
    try:
        lock.__enter__()
    except lockutils.AcquireLockFailedException as error:
        raise InvalidState(subject, "being worked on by another process", "left alone by others") from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
