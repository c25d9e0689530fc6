"""Commands in a lab machine: the host's end of the agent's port (see inside/agent.py for the frames).

Any number of commands may run at once; one thread reads what comes back and hands it to whoever waits.
"""

import base64
import itertools
import json
import queue
import secrets
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from voldrivers.base import Completed
from voldrivers.errors import BackendError, CommandFailed, OutcomeUnknown

Frame = Mapping[str, object]
#: Takes what a command printed: to which stream (1 or 2), and what.
Printed = Callable[[int, bytes], None]
#: Takes how many bytes of its input have reached a command.
Taken = Callable[[int], None]
#: So much input may be on its way to a command; the agent keeps the same limit for what a command prints.
WINDOW_BYTES = 1 << 20

_STALLED_S = 10
_LOST = "the machine was reset, or its QEMU ended"


@dataclass(frozen=True)
class Start:
    """A command: its arguments, where it runs, what is added to its environment; its terminal or none."""

    argv: Sequence[str]
    cwd: str = "/"
    env: Mapping[str, str] = field(default_factory=dict)
    terminal: tuple[int, int] | None = None
    has_input: bool = False

    def frame(self) -> Frame:
        """Give it as the agent reads it."""
        more = {"terminal": self.terminal, "input": self.has_input}
        return {"argv": list(self.argv), "cwd": self.cwd, "env": dict(self.env), **more}


class Channel:
    """The connection to one machine's agent, open until `close`."""

    def __init__(self, path: Path, subject: str) -> None:
        """Connect to a socket that is there; `subject` names the machine in errors."""
        self.subject = subject
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _STALLED_S, 0))
        self._sending = threading.Lock()
        self._begin = b"\n"  # ends half a line that was sent before, or by an earlier channel
        self._waiting: dict[int, queue.SimpleQueue[Frame]] = {}
        # A restored machine may still run, and speak of, the commands of an earlier channel.
        self._numbers = itertools.count(secrets.randbits(48))
        self._reader = threading.Thread(target=self._read, name=f"lab {subject}", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Close it; who waits for an answer learns that none will come. May be called again."""
        with suppress(OSError):  # it is closed already, or QEMU has ended
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._socket.close()

    def start(self, start: Start, printed: Printed, taken: Taken = lambda _: None) -> "RunningCommand":
        """Start a command; `wait` calls the others.

        Raises BackendError when the machine is gone, as all that is sent; OutcomeUnknown when it stands
        still and reads nothing more.
        """
        number, answers = self._expect()
        self._send({"id": number, "start": start.frame()})
        what = f"{' '.join(start.argv)} on {self.subject}"
        return RunningCommand(self, number, answers, printed=printed, taken=taken, what=what)

    def run(
        self, argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None
    ) -> Completed:
        """Run a command to its end and give what it printed: a `voldrivers.base.Run` of that machine.

        Raises CommandFailed with its exit code; OutcomeUnknown when it does not end in time (it is killed
        then) or when the machine is reset meanwhile; BackendError when it cannot be started.
        """
        outputs: dict[int, list[bytes]] = {1: [], 2: []}
        command = self.start(
            Start(argv, env=env or {}), lambda stream, content: outputs[stream].append(content)
        )
        code = command.wait(timeout_s)
        stdout, stderr = (b"".join(outputs[stream]).decode(errors="backslashreplace") for stream in (1, 2))
        if code:
            reason = stderr.strip() or stdout.strip() or "it did not say why"
            raise CommandFailed(f"{argv[0]} on {self.subject}", reason, argv=tuple(argv), exit_code=code)
        return Completed(stdout, stderr)

    def unpack(self, into: str, tar: bytes, remove: Sequence[str] = (), timeout_s: float = 60.0) -> None:
        """Unpack an archive there, and remove files."""
        content = base64.b64encode(tar).decode()
        self._ask({"unpack": {"into": into, "tar": content, "remove": list(remove)}}, timeout_s)

    def renew(self) -> None:
        """Give a restored machine the time of now and randomness of its own."""
        self._ask({"renew": {"time_s": time.time(), "entropy": secrets.token_hex(32)}}, 30.0)

    def answers(self) -> bool:
        """Tell whether the agent answers at once."""
        try:
            number, answers = self._expect()
            self._send({"ping": number})
        except (BackendError, OutcomeUnknown):  # it is gone, or stands still
            return False
        try:
            return "pong" in answers.get(timeout=1.0)
        except queue.Empty:
            return False
        finally:
            self.forget(number)

    def send(self, number: int, frame: Frame) -> None:
        """Send more about a command."""
        self._send({"id": number, **frame})

    def forget(self, number: int) -> None:
        """Drop whatever else comes from a command."""
        self._waiting.pop(number, None)

    def _ask(self, frame: Frame, timeout_s: float) -> None:
        number, answers = self._expect()
        self._send({"id": number, **frame})
        what = f"{next(iter(frame))} on {self.subject}"
        try:
            answer = answers.get(timeout=timeout_s)
        except queue.Empty as error:
            raise OutcomeUnknown(what, f"no answer within {timeout_s:g} seconds") from error
        finally:
            self.forget(number)
        if "error" in answer:
            raise BackendError(what, str(answer["error"]))

    def _expect(self) -> tuple[int, "queue.SimpleQueue[Frame]"]:
        with self._sending:
            number, answers = next(self._numbers), queue.SimpleQueue[Frame]()
            self._waiting[number] = answers
        if not self._reader.is_alive():
            raise BackendError(self.subject, _LOST)
        return number, answers

    def _send(self, frame: Frame) -> None:
        line = json.dumps(frame).encode() + b"\n"
        try:
            with self._sending:
                begin, self._begin = self._begin, b"\n"
                self._socket.sendall(begin + line)
                self._begin = b""
        except BlockingIOError as error:
            raise OutcomeUnknown(
                f"what was sent to {self.subject}", "it reads nothing, as if frozen"
            ) from error
        except OSError as error:
            raise BackendError(self.subject, _LOST) from error

    def _read(self) -> None:
        parts: list[bytes] = []
        while received := self._receive():
            *lines, rest = received.split(b"\n")
            for line in lines:
                whole, parts = b"".join(parts) + line, []
                self._handle(whole)
            if rest:
                parts.append(rest)
        self._all_are_lost()

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 16)
        except OSError:
            return b""

    def _handle(self, line: bytes) -> None:
        try:
            frame = json.loads(line)
        except ValueError:
            return  # the half of a line from before a reset
        if "hello" in frame:
            self._all_are_lost()
        elif answers := self._waiting.get(frame.get("pong", frame.get("id"))):
            answers.put(frame)

    def _all_are_lost(self) -> None:
        for answers in list(self._waiting.values()):
            answers.put({"lost": _LOST})


class RunningCommand:
    """A command in a machine, until it has ended or was killed."""

    def __init__(
        self,
        channel: Channel,
        number: int,
        answers: "queue.SimpleQueue[Frame]",
        *,
        printed: Printed,
        taken: Taken,
        what: str,
    ) -> None:
        """Take what `Channel.start` gives."""
        self._channel, self._number, self._answers = channel, number, answers
        self._printed, self._taken = printed, taken
        self._what, self._owed_bytes = what, 0

    def wait(self, timeout_s: float | None = None) -> int:
        """Pass on what it prints until it ends; give its exit code, negative for a signal.

        While what it printed is not passed on, it can print no more than WINDOW_BYTES. Raises
        OutcomeUnknown when it does not end in time (it is killed then) or the machine is reset;
        BackendError when it cannot be started. What `printed` raises ends the command too.
        """
        ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        frame: Frame = {}
        try:
            while not frame.keys() & {"exit", "error", "lost"}:
                left_s = None if ends_at is None else max(ends_at - time.monotonic(), 0)
                frame = self._answers.get(timeout=left_s)
                self._pass_on(frame)
        except queue.Empty as error:
            raise OutcomeUnknown(self._what, f"it did not end within {timeout_s:g} seconds") from error
        finally:
            self._let_go(ended=bool(frame.keys() & {"exit", "error", "lost"}))
        if "error" in frame:
            raise BackendError(self._what, f"cannot be started: {frame['error']}")
        if "lost" in frame:
            raise OutcomeUnknown(self._what, str(frame["lost"]))
        return int(str(frame["exit"]))

    def write(self, content: bytes | None) -> None:
        """Give it more input, or with None the end of it; at most WINDOW_BYTES ahead of `taken`."""
        encoded = None if content is None else base64.b64encode(content).decode()
        self._channel.send(self._number, {"input": encoded})

    def signal(self, number: int) -> None:
        """Send a signal to it and all its children."""
        self._channel.send(self._number, {"signal": number})

    def kill(self) -> None:
        """Kill it and wait no longer, on a frozen machine too: `wait` raises OutcomeUnknown."""
        with suppress(BackendError, OutcomeUnknown):  # the machine is gone, and the command with it
            self.signal(signal.SIGKILL)
        self._answers.put({"lost": "it was killed"})

    def resize(self, rows: int, columns: int) -> None:
        """Tell it the size of its terminal."""
        self._channel.send(self._number, {"terminal": [rows, columns]})

    def _pass_on(self, frame: Frame) -> None:
        if "output" in frame:
            content = base64.b64decode(str(frame["output"]))
            self._printed(2 if frame["stream"] == 2 else 1, content)
            self._owed_bytes += len(content)
            if self._owed_bytes >= WINDOW_BYTES // 4:
                self._channel.send(self._number, {"taken": self._owed_bytes})
                self._owed_bytes = 0
        elif "taken" in frame:
            self._taken(int(str(frame["taken"])))

    def _let_go(self, *, ended: bool) -> None:
        self._channel.forget(self._number)
        if not ended:
            with suppress(BackendError, OutcomeUnknown):  # the machine is gone, and the command with it
                self.signal(signal.SIGKILL)
                self._channel.send(self._number, {"forget": True})
