"""Taking turns: one process of ours at a time changes what this machine exports, by LIO or by nvmet."""

from contextlib import AbstractContextManager
from pathlib import Path

from voldrivers.locks import in_turn

#: Root's own directory: in /run/lock everybody could hold the lock.
_LOCKS, _LOCK, _LOCK_S = Path("/run/voldrivers"), "lio", 120.0


def alone(subject: str) -> AbstractContextManager[None]:
    """Hold the lock of all that we export; wait for it, changes are short. Raises InvalidState."""
    return in_turn(_LOCKS, _LOCK, subject, _LOCK_S)
