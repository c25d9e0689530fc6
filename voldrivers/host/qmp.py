"""QMP: talk to one QEMU, or to the agent in its guest, within time limits.

The only home of qemu.qmp and asyncio. The rest of voldrivers is synchronous: a `Monitor` runs its
own event loop for the length of one call, so it works from any thread and beside a running loop.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakValueDictionary

from voldrivers import process
from voldrivers.errors import BackendError, InvalidState, OutcomeUnknown

_CLOSE_S = 1.0
#: Commands that change nothing, so that a lost answer leaves no doubt.
_LOOKS = ("query-", "qom-list", "x-debug-query-", "guest-get-", "guest-sync")
#: Threads of this process wait for each other so many limits long: a busy monitor is no silent one.
_LIMITS = 4.0
_turns: WeakValueDictionary[Path, threading.Lock] = WeakValueDictionary()
_books = threading.Lock()  # of the turns
Result = TypeVar("Result")


class Monitor:
    """One connection to a QMP socket, open inside a `with` block.

    QEMU serves one client of a socket at a time: to a second one it sends no greeting until the
    first is gone. Threads of one process take turns, and none waits longer than four times `timeout_s`.
    Entering raises InvalidState when the socket is missing, refuses, is held by somebody else or does not
    greet within `timeout_s`; nothing has happened then.
    `greeting=False` is for the guest agent, which speaks only when asked.
    """

    def __init__(self, path: Path, timeout_s: float = 5.0, *, greeting: bool = True) -> None:
        """Take the socket's path and the limit for the connection and for each command."""
        from qemu.qmp import QMPClient  # 30 ms: only who talks to a QEMU pays

        self.path, self.timeout_s = path, timeout_s
        self._client = QMPClient("voldrivers")
        self._client.await_greeting = self._client.negotiate = greeting
        # The library logs as an error what it raises as well; we raise, so we do not log.
        self._client.logger.disabled = True

    def __enter__(self) -> Self:
        """Connect and negotiate."""
        with ExitStack() as undo:
            undo.enter_context(_turn(self.path, _LIMITS * self.timeout_s))
            self._open()
            self._turn = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect, whatever happened."""
        with self._turn:
            self._close()

    @property
    def peer_pid(self) -> int | None:
        """The process that listens on the socket (SO_PEERCRED, unix(7)); None in another pid namespace."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        return pid or None

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, timeout_s: float | None = None
    ) -> Any:  # Any: each command has its own reply
        """Run a command and give its reply.

        Raises BackendError with QEMU's own words as `reason` when it refuses. No answer in time, or
        a connection that breaks, is OutcomeUnknown; for a command that only looks (`query-block`, say)
        it is InvalidState.
        """
        from qemu.qmp import ExecuteError, QMPError, StateError

        limit_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            return self._wait(self._client.execute(command, arguments), limit_s)
        except ExecuteError as error:
            raise BackendError(f"{command} at {self.path}", str(error)) from error
        except TimeoutError as error:
            raise self._unanswered(command, f"no answer within {limit_s:g} seconds") from error
        except StateError as error:  # its words are for who writes a client
            raise self._unanswered(command, "the connection broke: QEMU closed it") from error
        except (QMPError, EOFError, OSError) as error:
            raise self._unanswered(command, f"the connection broke: {error}") from error

    def _open(self) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect()
        except BaseException:
            self._close()
            raise

    def _connect(self) -> None:
        from qemu.qmp import ConnectError

        subject = f"monitor {self.path}"
        try:
            self._socket.setblocking(False)
            process.wait_until(self._reach, self.timeout_s, f"{subject} to have room")
            self._wait(self._client.connect(self._socket), self.timeout_s)
        except (TimeoutError, OutcomeUnknown) as error:
            silent = f"silent for {self.timeout_s:g} seconds: frozen, or held by another client"
            raise InvalidState(subject, silent, "free and answering") from error
        except ConnectError as error:
            raise InvalidState(subject, f"not answering ({error.exc!r})", "a QMP socket") from error
        except AssertionError as error:  # of qemu.qmp 0.0.6: the peer ended right after negotiating
            raise InvalidState(subject, "gone while connecting", "answering") from error
        except OSError as error:
            raise InvalidState(subject, f"unreachable ({error.strerror or error})", "reachable") from error

    def _reach(self) -> bool:
        """Connect, unless the queue is full: QEMU lets one client wait, which may have gone already."""
        try:
            self._socket.connect(str(self.path))
        except BlockingIOError:
            return False
        return True

    def _unanswered(self, command: str, reason: str) -> InvalidState | OutcomeUnknown:
        if command.startswith(_LOOKS):
            return InvalidState(f"monitor {self.path}", f"not answering {command}: {reason}", "answering")
        return OutcomeUnknown(f"{command} at {self.path}", reason)

    def _close(self) -> None:
        """Disconnect, within a second also when QEMU is frozen."""
        from qemu.qmp import QMPError

        # Ends a reader or writer that waits for a frozen QEMU, so that disconnect() cannot wait.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        # disconnect() raises again whatever ended the reader: the peer's EOF, a reset, bad JSON.
        with suppress(QMPError, EOFError, OSError):
            self._wait(self._client.disconnect(), _CLOSE_S)
        self._beside_any_loop(self._runner.close)
        self._socket.close()

    def _wait(self, work: Awaitable[Result], limit_s: float) -> Result:
        async def limited() -> Result:
            return await asyncio.wait_for(work, limit_s)

        return self._beside_any_loop(lambda: self._runner.run(limited()))

    def _beside_any_loop(self, call: Callable[[], Result]) -> Result:
        """Call where no event loop runs: here, or in a thread when this one has a loop of its caller's."""
        if not _loop_is_running():
            return call()
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(call).result()


@contextmanager
def _turn(path: Path, timeout_s: float) -> Iterator[None]:
    """Be the only thread of this process that is at a monitor. Raises InvalidState when it cannot be."""
    with _books:
        turn = _turns.setdefault(path, threading.Lock())
    if not turn.acquire(timeout=timeout_s):
        held = f"held by another client of this process for {timeout_s:g} seconds"
        raise InvalidState(f"monitor {path}", held, "free and answering")
    try:
        yield
    finally:
        turn.release()


def is_listening(path: Path) -> bool:
    """Tell whether any process listens on a unix socket, whether it answers or not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return False
        except OSError:  # nobody can tell: no permission, a loop of links, a full queue (EAGAIN)
            return True
    return True


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
