"""Calls into a library that may hang: each in a thread of its own, given up when its time is over."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")

#: So many calls may hang (a frozen daemon, say) before new ones are refused at once.
_HANGING_AT_MOST = 32
_hanging: list[threading.Thread] = []


def within(call: Callable[[], Result], limit_s: float, error: type[Exception]) -> Result:
    """Give the result of a call that may hang. Raises TimeoutError, and `error` as the call does.

    A call whose time is over is left to its thread, which ends when who is asked answers or is gone; it is a
    daemon thread, so it keeps no process from ending. Such calls hold a connection each, so there is a limit.
    """
    _hanging[:] = [thread for thread in _hanging if thread.is_alive()]
    if len(_hanging) >= _HANGING_AT_MOST:
        raise TimeoutError
    answer: Future[Result] = Future()
    thread = threading.Thread(target=_answer, args=(call, answer, error), daemon=True, name="limited")
    thread.start()
    try:
        return answer.result(limit_s)
    except TimeoutError:
        _hanging.append(thread)
        raise


def _answer(call: Callable[[], Result], answer: "Future[Result]", error: type[Exception]) -> None:
    try:
        answer.set_result(call())
    except error as raised:
        answer.set_exception(raised)
