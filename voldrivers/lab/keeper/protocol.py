"""What a lab's keeper and its clients say to each other: one JSON object on each line of a unix socket.

A client asks one thing on a connection:
  {"request": "up", "wish": {...}, "stays": BOOL}   start the lab, or wait until it is ready
  {"request": "run", "command": {...}}              then {"input": BASE64 or null}, {"signal": N},
                                                    {"terminal": [rows, columns]}
  {"request": "save", "name": "..."}
  {"request": "lever", "name": "...", "words": [...]}    see `levers.pull`
  {"request": "status"}
  {"request": "down"}
and is answered by any number of
  {"say": "..."}                        what takes long
  {"output": BASE64, "stream": 1 or 2}  of its command
  {"taken": BYTES}                      so much of the input has reached the command; channel.WINDOW_BYTES
                                        may be on the way
  {"results": BASE64}                   more of a tar archive of /results, when its command has ended or
                                        was killed; if its `results` is true. The first one, right before
                                        the command starts, is empty
and in the end by one of
  {"status": {...}}                     of the lab: to up and status
  {"exit": CODE}                        of its command, negative for a signal
  {"done": null}                        to all others
  {"error": {"type": ..., "fields": {...}, "notes": [...]}}
A connection that closes takes with it what it asked for: the command of a `run`, a lab that is not ready
yet and for which nobody else waits, a lab that was asked for with `stays`. A keeper serves any number of
connections at once.
"""

import base64
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from voldrivers.errors import InvalidState, OutcomeUnknown

Frame = Mapping[str, Any]  # Any: what JSON holds; both ends are the same user's

IDLE_S = 2 * 3600.0


@dataclass(frozen=True)
class Wish:
    """What is asked of a lab; None and "" leave it to the keeper, or to the lab that runs."""

    topology: str | None = None
    vg_bytes: int | None = None
    nfs_bytes: int | None = None
    state: str = ""
    #: It ends when it had no client for so long.
    idle_s: float = IDLE_S


@dataclass(frozen=True)
class Libraries:
    """The packages of one Python: where they are, and a name that changes with them."""

    directory: str
    key: str


@dataclass(frozen=True)
class Command:
    """A command in a machine; `project` is the directory that is brought to it first."""

    machine: str
    argv: tuple[str, ...]
    project: str
    env: Mapping[str, str] = field(default_factory=dict)
    terminal: tuple[int, int] | None = None
    has_input: bool = False
    timeout_s: float | None = None
    #: Whether /results is emptied before it and sent after it.
    results: bool = False
    #: The libraries that it shall find: those of whoever asks.
    libraries: Libraries | None = None

    @classmethod
    def read(cls, frame: Frame) -> Self:
        """Read what `dataclasses.asdict` wrote."""
        libraries = Libraries(**frame["libraries"]) if frame["libraries"] else None
        return cls(**{**frame, "argv": tuple(frame["argv"]), "libraries": libraries})


@dataclass(frozen=True)
class MachineStatus:
    """One machine of a lab."""

    name: str
    roles: tuple[str, ...]
    addresses: tuple[str, ...]
    pid: int
    #: `running`, `frozen` or `off`.
    state: str


@dataclass(frozen=True)
class LabStatus:
    """A lab; `since` in ISO 8601, the sizes as they were asked for."""

    name: str
    ready: bool
    #: It was started for one command and ends with it.
    private: bool
    topology: str
    state: str
    vg_bytes: int
    nfs_bytes: int
    since: str
    pid: int
    log: str
    machines: tuple[MachineStatus, ...]

    @classmethod
    def read(cls, frame: Frame) -> Self:
        """Read what `dataclasses.asdict` wrote."""
        machines = tuple(MachineStatus(**machine) for machine in frame["machines"])
        return cls(**{**frame, "machines": machines})


class Connection:
    """One end of a connection; any thread may send, one may receive."""

    def __init__(self, connected: socket.socket) -> None:
        """Take a connected socket."""
        self._socket, self._sending = connected, threading.Lock()
        self._lines = connected.makefile("rb", buffering=1 << 17)

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """Connect; None when nobody listens.

        Raises InvalidState when a keeper takes no connection, or is somebody else's.
        """
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.settimeout(5.0)
        try:
            connected.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connected.close()
            return None
        except TimeoutError as error:
            connected.close()
            raise InvalidState(f"keeper {path}", "taking no connection", "running") from error
        connected.settimeout(None)
        if _peer(connected)[1] != os.getuid():
            connected.close()
            raise InvalidState(f"keeper {path}", "somebody else's", "of this user")
        return cls(connected)

    def send(self, frame: Frame) -> None:
        """Send one object. Raises OSError when the other end is gone."""
        line = json.dumps(frame).encode() + b"\n"
        with self._sending:
            self._socket.sendall(line)

    def send_output(self, stream: int, content: bytes) -> None:
        """Send what a command printed. Raises as `send`."""
        self.send({"output": base64.b64encode(content).decode(), "stream": stream})

    def send_results(self, content: bytes) -> None:
        """Send more of an archive of /results. Raises as `send`."""
        self.send({"results": base64.b64encode(content).decode()})

    def send_input(self, content: bytes | None) -> None:
        """Send input for a command, None for its end. Raises as `send`."""
        self.send({"input": None if content is None else base64.b64encode(content).decode()})

    def receive(self, timeout_s: float | None = None) -> Frame | None:
        """Give the next object; None at the end. Raises OutcomeUnknown when none comes in time."""
        self._socket.settimeout(timeout_s)
        try:
            line = self._lines.readline()
        except TimeoutError as error:
            raise OutcomeUnknown("a request to the keeper", f"no answer within {timeout_s:g} s") from error
        except ConnectionError:
            return None
        finally:
            self._socket.settimeout(None)
        frame: Frame | None = json.loads(line) if line.endswith(b"\n") else None
        return frame

    def frames(self) -> Iterator[Frame]:
        """Give all objects until the end."""
        while (frame := self.receive()) is not None:
            yield frame

    @property
    def is_closed(self) -> bool:
        """Tell whether the other end is gone; for one that has nothing to send."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    @property
    def peer_pid(self) -> int:
        """The process at the other end."""
        return _peer(self._socket)[0]

    def close(self) -> None:
        """Close it; the other end learns it at once. May be called again."""
        with suppress(OSError):  # it is gone
            self._socket.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._socket.close()


def _peer(connected: socket.socket) -> tuple[int, int]:
    """Give process and user of the other end (SO_PEERCRED, unix(7))."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid
