"""The standard streams and the signals of this process, while a command in a lab has them."""

import base64
import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from voldrivers.errors import BackendError, from_document
from voldrivers.lab.channel import WINDOW_BYTES
from voldrivers.lab.keeper.protocol import Command, Connection, Frame

Take = Callable[[bytes], None]

_CHUNK_BYTES = 1 << 16
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: The signal after so many ends us, if nothing else does.
_PATIENCE = 3


class Streams:
    """Our streams, tied to the command that was asked for on a connection."""

    def __init__(self, connection: Connection, command: Command, take_results: Take) -> None:
        """Take a connection on which a `run` was sent, and who is given the archive of its results."""
        self._connection, self._command, self._take_results = connection, command, take_results
        self._room = threading.Condition()
        self._ahead_bytes = 0

    def follow(self) -> int:
        """Pass on input, signals and output until the command ends; give its exit code, as a shell would.

        Raises the keeper's errors, and what the taker of results does; BackendError when the output cannot
        be written, or the keeper ends.
        """
        with self._signals(), self._raw_terminal():
            if self._command.has_input or self._command.terminal:
                threading.Thread(target=self._send_input, daemon=True).start()
            for frame in self._connection.frames():
                code = self._handle(frame)
                if code is not None:
                    return code if code >= 0 else 128 - code
        raise BackendError("the keeper of the lab", "it ended, and the command with it")

    def _handle(self, frame: Frame) -> int | None:
        if "error" in frame:
            raise from_document(frame["error"])
        if "output" in frame:
            return self._write(frame)
        if "results" in frame:
            self._take_results(base64.b64decode(frame["results"]))
        if "taken" in frame:
            with self._room:
                self._ahead_bytes -= frame["taken"]
                self._room.notify()
        return frame.get("exit")

    def _write(self, frame: Frame) -> int | None:
        """Write what the command printed; a reader that went away ends it as SIGPIPE would."""
        content = memoryview(base64.b64decode(frame["output"]))
        try:
            while content:
                content = content[os.write(frame["stream"], content) :]
        except BrokenPipeError:
            return -signal.SIGPIPE
        except OSError as error:
            raise BackendError("the output", f"cannot be written: {error.strerror}") from error
        return None

    def _send_input(self) -> None:
        with suppress(OSError):  # the command has ended, or there is no input
            while content := os.read(0, _CHUNK_BYTES):
                with self._room:
                    self._room.wait_for(lambda: self._ahead_bytes < WINDOW_BYTES)
                    self._ahead_bytes += len(content)
                self._connection.send_input(content)
        with suppress(OSError):
            self._connection.send_input(None)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let one thread take the signals; a handler could interrupt what holds the lock it needs."""
        wanted = {number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN}
        if self._command.terminal:
            wanted.add(signal.SIGWINCH)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
        threading.Thread(target=self._send_signals, args=(wanted,), daemon=True).start()
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _send_signals(self, wanted: set[signal.Signals]) -> None:
        received = 0
        with suppress(OSError):  # the command has ended
            while True:
                number = signal.sigwait(wanted)
                if number == signal.SIGWINCH:
                    self._connection.send({"terminal": terminal_size()})
                    continue
                received += 1
                if received > _PATIENCE:
                    self._connection.close()
                # A shell at a terminal ignores SIGTERM, and its Ctrl-C comes as input.
                ends_shell = self._command.terminal is not None
                self._connection.send({"signal": signal.SIGHUP if ends_shell else number})

    @contextmanager
    def _raw_terminal(self) -> Iterator[None]:
        if not self._command.terminal:
            yield
            return
        before = termios.tcgetattr(0)
        tty.setraw(0, termios.TCSADRAIN)  # what was typed already is kept
        try:
            yield
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def terminal_size() -> tuple[int, int]:
    """Give rows and columns of our terminal."""
    columns, rows = os.get_terminal_size(0)
    return rows, columns


def input_is_terminal() -> bool:
    """Tell whether somebody types our input."""
    return sys.stdin is not None and sys.stdin.isatty()
