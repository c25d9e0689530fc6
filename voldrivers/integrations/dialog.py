"""What a platform's process and its worker say to each other: lines of JSON over a UNIX socket.

    {"do": DUTY, "with": {ARGUMENTS}}     the platform, first; one connection for each
    {"alive": true}                       the worker, again and again while it works
    {"record": EXTEND}                    the worker, before an act; {"recorded": true} is the answer
    {"answer": ...} or {"error": ...}     the worker, last

The worker is a process of its own because a platform's may be one whose threads are not threads (Cinder with
eventlet, where asyncio and locks between threads break), may lack the rights that a backend needs, and may
be killed without taking a half-done act with it.
"""

import inspect
import json
import socket
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from voldrivers.errors import BackendError, InvalidInput, OutcomeUnknown
from voldrivers.integrations.duties import Duties
from voldrivers.model import Extend

#: A worker says that it is alive so often; one that is silent for so long is given up.
BEAT_S, SILENCE_S = 5.0, 60.0
#: What a worker says first, at its output; instead of it {"error": ...} where its configuration is wrong.
READY = "ready"
_LONGEST_LINE = 2**22
_EXTEND = TypeAdapter(Extend)
Line = Mapping[str, Any]  # Any: what JSON holds


class Dialog:
    """One connection, at either end."""

    def __init__(self, connection: socket.socket) -> None:
        """Talk over `connection`; reading waits for SILENCE_S at most."""
        connection.settimeout(SILENCE_S)
        self._connection, self._lock = connection, threading.Lock()
        self._reader = connection.makefile("rb")

    def close(self) -> None:
        """Read no more; the connection is its owner's."""
        self._reader.close()

    def say(self, **line: object) -> None:
        """Write a line."""
        text = json.dumps(to_jsonable_python(line, fallback=dict))
        with self._lock:
            self._connection.sendall(f"{text}\n".encode())

    def hear(self) -> Line:
        """Read a line. Raises EOFError when there is none, OSError."""
        text = self._reader.readline(_LONGEST_LINE)
        if not text.endswith(b"\n"):
            raise EOFError
        line = json.loads(text)
        return line if isinstance(line, Mapping) else {}


def read_arguments(duty: str, given: Line) -> Line:
    """Read the arguments of a duty by the annotations of its method. Raises InvalidInput."""
    try:
        kinds, _ = _types(duty)
        return {name: kind.validate_python(given[name]) for name, kind in kinds.items()}
    except (AttributeError, KeyError, ValueError):
        # Nothing of what was said is shown: secrets are among it.
        raise InvalidInput(f"request {duty}", "its arguments make no sense") from None


def read_answer(duty: str, given: object) -> Any:  # Any: as the method says
    """Read what a duty gave. Raises BackendError."""
    try:
        return _types(duty)[1].validate_python(given)
    except ValueError:
        raise BackendError(f"the worker, asked to {duty}", "gave an answer of another version") from None


def read_extend(given: object) -> Extend:
    """Read an extend that is to be recorded. Raises ValueError."""
    return _EXTEND.validate_python(given)


def log_of(socket_path: Path) -> Path:
    """Say where the worker at a socket has its log."""
    return socket_path.with_suffix(".log")


def lost(duty: str, error: Exception) -> OutcomeUnknown:
    """Say that no answer came."""
    reason = f"it said nothing for {SILENCE_S:g} seconds" if isinstance(error, TimeoutError) else "it ended"
    return OutcomeUnknown(f"{duty}, done by the worker", reason)


@cache
def _types(duty: str) -> tuple[Mapping[str, TypeAdapter[Any]], TypeAdapter[Any]]:  # Any: as annotated
    if duty.startswith("_"):
        raise AttributeError(duty)
    method = getattr(Duties, duty)
    hints = get_type_hints(method)
    names = [name for name in inspect.signature(method).parameters if name not in ("self", "record")]
    return {name: TypeAdapter(hints[name]) for name in names}, TypeAdapter(hints["return"])
