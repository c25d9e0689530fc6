"""Taking turns: one process of ours at a time changes what this machine exports, by LIO or by nvmet."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from voldrivers.errors import InvalidState
from voldrivers.locks import exclusive
from voldrivers.process import holds_within

#: Root's own directory: in /run/lock everybody could hold the lock.
_LOCKS, _LOCK, _LOCK_S = Path("/run/voldrivers"), "lio", 120.0


@contextmanager
def alone(subject: str) -> Iterator[None]:
    """Hold the lock of all that we export; wait for it, changes are short. Raises InvalidState."""
    with ExitStack() as held:

        def taken() -> bool:
            try:
                held.enter_context(exclusive(_LOCKS, _LOCK, "LIO"))
            except InvalidState:
                return False
            return True

        if not holds_within(taken, _LOCK_S):
            state = f"being changed by another process for {_LOCK_S:g} s"
            raise InvalidState(subject, state, "left alone for a moment")
        yield
