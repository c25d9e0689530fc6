"""A QMP server that spoils chosen commands on the way to a real QEMU, as a bug or a crash would."""

import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self


class Fault(StrEnum):
    """What happens to a command. A text that is none of these is sent back as QEMU's refusal."""

    SWALLOWED = "swallowed"
    ANSWER_LOST = "answer-lost"
    HUNG_UP_BEFORE = "hung-up-before"
    HUNG_UP_AFTER = "hung-up-after"
    LIED = "lied"
    NONSENSE = "nonsense"
    GARBAGE = "garbage"
    #: Done when the client has given up, as by a QEMU that was frozen.
    PASSED_LATE = "passed-late"
    ANSWERED_TWICE = "answered-twice"
    ANSWERED_LAST = "answered-last"
    #: Done, but the answer says that it was refused.
    DENIED = "denied"


_PASSED = (
    "",
    Fault.ANSWER_LOST,
    Fault.HUNG_UP_AFTER,
    Fault.PASSED_LATE,
    Fault.ANSWERED_TWICE,
    Fault.ANSWERED_LAST,
    Fault.DENIED,
)


class FaultyMonitor:
    """Listens on `path`, passes to the QEMU at `real` what has no fault, and counts what it passed.

    `before` is called with each command right before that is passed.
    """

    def __init__(self, path: Path, real: Path, faults: Mapping[str, str]) -> None:
        self.faults, self.passed = dict(faults), list[str]()
        self.before: Callable[[str], None] = lambda command: None
        self._real = real
        self._qemu: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with suppress(OSError):
            if self._qemu:  # it may be frozen, and the thread wait for it
                self._qemu.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, suppress(ConnectionError, ValueError), socket.socket(socket.AF_UNIX) as qemu:
                self._qemu = qemu
                qemu.connect(str(self._real))
                with qemu.makefile("rb") as answers:
                    client.sendall(answers.readline())
                    self._relay(client, qemu, answers)

    def _relay(self, client: socket.socket, qemu: socket.socket, answers: BinaryIO) -> None:
        while request := _request(client):
            fault = self.faults.get(request["execute"], "")
            if fault == Fault.HUNG_UP_BEFORE:
                return
            if fault == Fault.PASSED_LATE:
                while client.recv(65536):
                    pass
            if fault in _PASSED:
                self.before(request["execute"])
                self.passed.append(request["execute"])
                qemu.sendall(json.dumps(request).encode())
                answer = _answer(answers)
                if fault in (Fault.HUNG_UP_AFTER, Fault.PASSED_LATE):
                    return
                if fault == Fault.DENIED:
                    answer = _made_up_answer(request, "Operation not permitted")
                if fault != Fault.ANSWER_LOST:
                    client.sendall(answer * (2 if fault == Fault.ANSWERED_TWICE else 1))
                if fault == Fault.ANSWERED_LAST:
                    return
            elif fault == Fault.GARBAGE:
                client.sendall(b"}{\n")
            elif fault != Fault.SWALLOWED:
                client.sendall(_made_up_answer(request, fault))


def _request(client: socket.socket) -> dict[str, str]:
    """Read one command, after which the client waits; QMP needs no end of line."""
    received = b""
    while part := client.recv(65536):
        received += part
        with suppress(ValueError):
            request: dict[str, str] = json.loads(received)
            return request
    return {}


def _answer(answers: BinaryIO) -> bytes:
    while "event" in json.loads(line := answers.readline()):
        pass
    return line


def _made_up_answer(request: Mapping[str, str], fault: str) -> bytes:
    return json.dumps({"id": request["id"], **_made_up(fault)}).encode() + b"\n"


def _made_up(fault: str) -> dict[str, object]:
    if fault == Fault.LIED:
        return {"return": {}}
    if fault == Fault.NONSENSE:
        return {"return": ["nonsense"]}
    return {"error": {"class": "GenericError", "desc": fault}}
