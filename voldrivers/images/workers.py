"""Work done beside who waits for it: calls one after the other in a thread, each waited for within a limit.

Reading, hashing and writing release the interpreter's lock, so they go on side by side. The threads are
daemons: one that hangs in a dead device or a silent pipe keeps no process from ending.
"""

import queue
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from typing import Any, TypeVar

from voldrivers.errors import OutcomeUnknown, VolDriverError

Result = TypeVar("Result")
_Call = tuple[Callable[[], Any], "Future[Any]"]  # Any: what each call gives


def as_it_is(error: Exception) -> Exception:
    """Give an error as it was raised."""
    return error


class Worker:
    """A thread that does what it is given, in that order."""

    def __init__(self, name: str, typed: Callable[[Exception], Exception] = as_it_is) -> None:
        """Start it; what a call raises that is none of our errors is made one by `typed`."""
        self._typed = typed
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._thread.start()

    def submit(self, call: Callable[[], Result]) -> "Future[Result]":
        """Have a call done after those before it."""
        future: Future[Result] = Future()
        self._calls.put((call, future))
        return future

    def close(self, timeout_s: float) -> bool:
        """Begin nothing more, and tell whether what was begun has ended within the time."""
        try:
            while True:
                waiting = self._calls.get_nowait()
                if waiting is not None:
                    waiting[1].cancel()
        except queue.Empty:
            self._calls.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (work := self._calls.get()) is not None:
            call, future = work
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except VolDriverError as error:
                future.set_exception(error)
            except Exception as error:  # noqa: BLE001 - a stream may fail in any way: it is given to who waits
                typed = self._typed(error)
                typed.__cause__ = None if typed is error else error
                future.set_exception(typed)


def is_done_within(future: "Future[Any]", timeout_s: float) -> bool:  # Any: whatever it gives
    """Wait for a result or an error, at most so long."""
    return bool(futures.wait([future], timeout_s).done)


def answer(future: "Future[Result]", timeout_s: float, what: str) -> Result:
    """Give the result of a call, or raise what it raised; OutcomeUnknown with `what` when time is up."""
    if not is_done_within(future, timeout_s):
        raise OutcomeUnknown(what, f"no answer within {timeout_s:g} seconds")
    return future.result()
