"""Asking a worker, from the platform's process: starts it when there is none."""

import json
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from voldrivers.errors import BackendError, CommandFailed, from_document
from voldrivers.integrations.dialog import READY, SILENCE_S, Dialog, log_of, lost, read_answer, read_extend
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

        Raises what the duty raises, OutcomeUnknown when the worker ends or falls silent first; when it cannot
        be started what is wrong with its configuration, CommandFailed or BackendError.
        """
        connection, running = self._connected()
        with connection, closing(Dialog(connection)) as dialog:
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
                if isinstance(error, TimeoutError):  # it hangs: what it does not end it shall not go on with
                    self._give_up(running)
                raise lost(duty, error) from error

    def close(self) -> None:
        """End the worker."""
        with self._starting:
            self._stop()

    def _connected(self) -> tuple[socket.socket, Talk]:
        """Connect, to a new worker where there is none that answers; nothing was asked until then."""
        reason = ""
        for _ in range(2):
            with self._starting:
                if not self._is_running():
                    self._start()
                assert self._talk
                running = self._talk
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(SILENCE_S)
            try:
                connection.connect(str(self._socket))
            except OSError as error:
                connection.close()
                self._give_up(running)
                reason = str(error)
                continue
            return connection, running
        raise BackendError("the worker", f"nobody answers at {self._socket}: {reason}")

    def _give_up(self, running: Talk) -> None:
        """End a worker that does not answer, unless another one has taken its place."""
        with self._starting:
            if self._talk is running:
                self._stop()

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
        try:
            started = self._running.enter_context(talk(words, log=log_of(self._socket), end_s=_END_S))
            if (said := started.hear(_START_S)) != READY:
                raise from_document(json.loads(said)["error"])
        except BaseException:
            self._stop()
            raise
        self._talk = started

    def _stop(self) -> None:
        self._talk = None
        self._running.close()
