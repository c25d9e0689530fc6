"""How far a lab is: what its clients wait for, and whether it still has any."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from voldrivers import process
from voldrivers.errors import VolDriverError
from voldrivers.lab.keeper.protocol import Connection
from voldrivers.lab.lab import Lab

#: How often it is looked whether a client that waits is still there.
_LOOK_S = 0.1


class Progress:
    """From the first word to ready or failed; threads report it, and wait for it."""

    def __init__(self) -> None:
        """Nothing has happened, nobody waits."""
        self._changed = threading.Condition()
        self._said: list[str] = []
        self._lab: Lab | None = None
        self._failure: VolDriverError | None = None
        self._clients, self._waiting, self._left_at = 0, 0, time.monotonic()

    @property
    def lab(self) -> Lab | None:
        """The lab, once it is ready."""
        with self._changed:
            return self._lab

    @property
    def idle_s(self) -> float:
        """For how long there has been no client; 0 while there is one."""
        with self._changed:
            return 0.0 if self._clients else time.monotonic() - self._left_at

    @property
    def is_in_vain(self) -> bool:
        """Tell that nobody waits for a lab that is neither ready nor has failed."""
        with self._changed:
            return not (self._waiting or self._lab or self._failure)

    def say(self, text: str) -> None:
        """Tell the clients that wait what takes long."""
        with self._changed:
            self._said.append(text)
            self._changed.notify_all()

    def be_ready(self, lab: Lab) -> None:
        """Give the lab to all who wait."""
        with self._changed:
            self._lab = lab
            self._changed.notify_all()

    def fail(self, error: VolDriverError, timeout_s: float) -> None:
        """Raise an error in all who wait, and leave them time to tell it."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()
        process.holds_within(lambda: not self._clients, timeout_s)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a client for as long as it is served."""
        with self._changed:
            self._clients += 1
        try:
            yield
        finally:
            with self._changed:
                self._clients -= 1
                self._left_at = time.monotonic()

    def wait(self, client: Connection) -> Lab:
        """Tell a client what takes long until the lab is ready; give the lab.

        Raises what kept it from that; ConnectionAbortedError when the client is gone.
        """
        with self._changed:
            self._waiting += 1
            told = len(self._said) if self._lab else 0
        try:
            while not client.is_closed:
                with self._changed:
                    if told == len(self._said) and not self._lab and not self._failure:
                        self._changed.wait(_LOOK_S)
                    news, told = self._said[told:], len(self._said)
                    lab, failure = self._lab, self._failure
                for text in news:
                    client.send({"say": text})
                if failure is not None:
                    raise failure
                if lab is not None:
                    return lab
            raise ConnectionAbortedError
        finally:
            with self._changed:
                self._waiting -= 1
