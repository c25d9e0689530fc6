"""Asking a worker, from the platform's process: starts it when there is none."""

import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from voldrivers.errors import CommandFailed, OutcomeUnknown, from_document
from voldrivers.integrations.dialog import SILENCE_S, Dialog, log_of, lost, read_answer, read_extend
from voldrivers.model import Extend
from voldrivers.process import Talk, talk

_START_S, _END_S = 60.0, 2.0
_HERE = (sys.executable, "-m", "voldrivers.integrations.worker")


class Worker:
    """A worker for one backend. Any number of threads, green ones too, may ask it at once."""

    def __init__(self, config: Path, backend: str, command: Sequence[str] = _HERE) -> None:
        """Have `command` started, with configuration, backend and socket, when something is asked."""
        self._words = (*command, str(config), backend)
        self._starting, self._running = threading.Lock(), ExitStack()
        self._talk: Talk | None = None
        self._socket = Path()

    def ask(
        self, duty: str, record: Callable[[Extend], None] | None = None, **arguments: object
    ) -> Any:  # Any: as the duty says
        """Have a duty done; `record` is called before each act of an extend. Gives what the duty gives.

        Raises what the duty raises, OutcomeUnknown when the worker ends first, and CommandFailed when it
        cannot be started.
        """
        with self._connected() as connection:
            dialog = Dialog(connection)
            try:
                dialog.say(**{"do": duty, "with": arguments})
                while True:
                    line = dialog.hear()
                    if "record" in line and record is not None:
                        record(read_extend(line["record"]))
                        dialog.say(recorded=True)
                    elif "answer" in line:
                        return read_answer(duty, line["answer"])
                    elif "error" in line:
                        raise from_document(line["error"])
            except (EOFError, OSError, ValueError, KeyError, TypeError) as error:
                raise lost(duty, error) from error

    def close(self) -> None:
        """End the worker."""
        with self._starting:
            self._stop()

    def _connected(self) -> socket.socket:
        """Connect, to a new worker if there is none; nothing was asked until then."""
        for _ in range(2):
            with self._starting:
                if not self._is_running():
                    self._start()
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(SILENCE_S)
            try:
                connection.connect(str(self._socket))
            except OSError:
                connection.close()
                continue
            return connection
        raise OutcomeUnknown("starting the worker", f"nobody answers at {self._socket}")

    def _is_running(self) -> bool:
        if self._talk is not None:
            with suppress(CommandFailed):
                self._talk.check_goes_on()
                return True
        return False

    def _start(self) -> None:
        self._stop()
        directory = Path(tempfile.mkdtemp(prefix="voldrivers-worker-"))
        self._running.callback(shutil.rmtree, directory, ignore_errors=True)
        self._socket = directory / "worker"
        words = (*self._words, str(self._socket))
        started = self._running.enter_context(talk(words, log=log_of(self._socket), end_s=_END_S))
        started.hear(_START_S)
        self._talk = started

    def _stop(self) -> None:
        self._talk = None
        self._running.close()
