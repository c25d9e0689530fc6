"""Programs: the only file that starts one.

Every run has a time limit, no shell and a fixed locale. A child carries a mark in its environment
by which a later process finds it when it outlived its parent.
"""

import logging
import math
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from voldrivers.base import Completed
from voldrivers.errors import BackendError, CommandFailed, NotFound, OutcomeUnknown

MARK = "VOLDRIVERS_VOLUME"
_LONGEST_LINE = 2**16
_log = logging.getLogger(__name__)
_marked_for: ContextVar[str] = ContextVar("marked_for", default="")


def run(argv: Sequence[str], *, timeout_s: float) -> Completed:
    """Run a program to its end and give what it printed.

    Raises CommandFailed with arguments, exit code and stderr; BackendError when it cannot be
    started; OutcomeUnknown when it did not end in time: it is killed then, with its children.
    """
    _log.debug("run %s", shlex.join(argv))
    child = _begin(argv)
    try:
        # In less than a second not even a healthy program ends on a busy machine.
        stdout, stderr = map(os.fsdecode, child.communicate(timeout=math.ceil(timeout_s)))
    except subprocess.TimeoutExpired as error:
        raise OutcomeUnknown(" ".join(argv), f"it did not end within {timeout_s:g} seconds") from error
    finally:
        _end(child)
    if child.returncode:
        reason = _printable(stderr or stdout) or "it did not say why"
        raise CommandFailed(argv[0], reason, argv=tuple(argv), exit_code=child.returncode)
    return Completed(stdout, stderr)


def start(argv: Sequence[str], *, output: Path) -> subprocess.Popen[bytes]:
    """Start a program that goes on, in a session of its own; what it prints goes to `output`.

    Raises BackendError when it cannot be started.
    """
    try:
        with output.open("ab") as log:
            return subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise BackendError(argv[0], f"cannot be started: {error.strerror}") from error


class Talk:
    """A program that goes on while it is talked to."""

    def __init__(self, argv: Sequence[str], child: "subprocess.Popen[bytes]", log: Path) -> None:
        """Talk to `child`, whose stderr goes to `log`."""
        self._argv, self._child, self._log, self._heard = tuple(argv), child, log, bytearray()

    def say(self, text: str) -> None:
        """Write to its input, less than a pipe holds (64 KiB); one that has ended does not hear it."""
        assert self._child.stdin
        with suppress(BrokenPipeError):
            self._child.stdin.write(text.encode())
            self._child.stdin.flush()

    def hear(self, timeout_s: float) -> str:
        """Give the next line of its output. Raises CommandFailed when it ends first, OutcomeUnknown."""
        assert self._child.stdout
        until = time.monotonic() + timeout_s
        while b"\n" not in self._heard:
            left_s = until - time.monotonic()
            if left_s <= 0 or not select.select([self._child.stdout], [], [], left_s)[0]:
                raise OutcomeUnknown(" ".join(self._argv), f"it said nothing within {timeout_s:.3g} seconds")
            part = os.read(self._child.stdout.fileno(), 4096)
            if not part or len(self._heard) > _LONGEST_LINE:
                raise self._ended()
            self._heard += part
        line, _, rest = bytes(self._heard).partition(b"\n")
        self._heard = bytearray(rest)
        return os.fsdecode(line)

    def check_goes_on(self) -> None:
        """Raise CommandFailed when it has ended."""
        if self._child.poll() is not None:
            raise self._ended()

    def _ended(self) -> CommandFailed:
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=2.0)
        said = _printable(os.fsdecode(self._log.read_bytes()[-_LONGEST_LINE:]))
        code = self._child.returncode
        return CommandFailed(
            self._argv[0],
            said or "it did not say why",
            argv=self._argv,
            exit_code=-1 if code is None else code,
        )


@contextmanager
def talk(argv: Sequence[str], *, log: Path, end_s: float) -> Iterator[Talk]:
    """Start a program, talk to it, and end it: by the end of its input, after `end_s` by signals.

    What it prints as errors goes to `log`. Raises BackendError when it cannot be started.
    """
    _log.debug("talk to %s", shlex.join(argv))
    with log.open("wb") as errors:
        child = _begin(argv, stdin=subprocess.PIPE, stderr=errors.fileno())
    try:
        yield Talk(argv, child, log)
    finally:
        assert child.stdin
        with suppress(BrokenPipeError):
            child.stdin.close()
        for wait_s, number in ((end_s, signal.SIGTERM), (2.0, signal.SIGKILL)):
            if not holds_within(lambda: _has_ended(child), wait_s):
                with suppress(
                    ProcessLookupError, PermissionError
                ):  # sudo's is root's, and ends with its input
                    os.killpg(child.pid, number)
        _end(child)
        assert child.stdout
        child.stdout.close()


@contextmanager
def marked(volume_id: str) -> Iterator[None]:
    """Mark every program that `run` starts in this context as working on one volume."""
    token = _marked_for.set(volume_id)
    try:
        yield
    finally:
        _marked_for.reset(token)


def end_orphans(volume_id: str, *, timeout_s: float) -> None:
    """Wait for programs that a killed process left working on `volume_id`; end them when time is up.

    Call it before looking: an orphan may still change what is seen. Every program bears the mark from
    its first instruction; only between fork and exec, for microseconds, a child does not yet.
    Raises OutcomeUnknown when one cannot be ended (a dead hard mount).
    """
    found: dict[int, int] = {}

    def left() -> list[int]:
        found.update(_orphans(volume_id))
        # One that ends loses its environment first, and closes its files only then (do_exit, kernel/exit.c).
        return [pid for pid, started in found.items() if _start_time(pid) == started]

    try:
        wait_until(lambda: not left(), timeout_s, "an earlier program to end")
    except OutcomeUnknown:
        for pid in left():
            _kill(os.kill, pid)  # each by itself: the leader of their group may have ended
        wait_until(lambda: not left(), 2.0, "an earlier program to end after SIGKILL")


def identity(pid: int) -> str:
    """Name a running process so that a later one with the same number is not taken for it.

    Raises NotFound when it has ended.
    """
    started = _start_time(pid)
    if started is None:
        raise NotFound("process", str(pid))
    return f"{_boot_id()} {pid} {started}"


def is_gone(process_identity: str) -> bool:
    """Tell whether the process named by `identity` has provably ended; a zombie has.

    A text that `identity` did not give proves nothing.
    """
    match = re.fullmatch(r"(\S+) (\d+) (\d+)", process_identity)
    if match is None:
        return False
    boot_id, pid, started = match.groups()
    return boot_id != _boot_id() or _start_time(int(pid)) != int(started)


def wait_until(
    condition: Callable[[], bool], timeout_s: float, what: str, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Ask `condition` until it holds. Raises OutcomeUnknown, with `what`, when time is up."""
    if not holds_within(condition, timeout_s, sleep):
        raise OutcomeUnknown(f"waiting for {what}", f"not so after {timeout_s:g} seconds")


def holds_within(
    condition: Callable[[], bool], timeout_s: float, sleep: Callable[[float], None] = time.sleep
) -> bool:
    """Ask `condition` until it holds; tell whether it did before time was up.

    The pause grows from a millisecond to a tenth of a second.
    """
    pause_s, waited_s, began = 0.001, 0.0, time.monotonic()
    while not condition():
        if max(waited_s, time.monotonic() - began) >= timeout_s:
            return False
        sleep(pause_s)
        waited_s += pause_s
        pause_s = min(pause_s * 2, 0.1)
    return True


def _begin(
    argv: Sequence[str], stdin: int = subprocess.DEVNULL, stderr: int = subprocess.PIPE
) -> "subprocess.Popen[bytes]":
    """Start a program that leads a session of its own, and with it a group that can be killed.

    Without a `preexec_fn`, which oslo's `processutils.execute` always has: an agent has threads, and a child
    that runs Python after the fork may wait for ever for a lock that one of them held (Python's docs, Popen).
    `start_new_session` is done in C, without locks (CPython 3.11, child_exec in _posixsubprocess.c).
    """
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "LC_ALL": "C", MARK: _marked_for.get()},
            start_new_session=True,
        )
    except OSError as error:
        raise BackendError(argv[0], f"cannot be started: {error.strerror}") from error


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Kill a child with its group unless it was waited for; one stuck in the kernel stays, marked.

    `poll` would reap a child that ended and left grandchildren, and with it the group's number.
    """
    if child.returncode is not None:
        return
    _kill(os.killpg, child.pid)
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    try:
        child.wait(timeout=2.0)
    except subprocess.TimeoutExpired:
        return


def _has_ended(child: "subprocess.Popen[bytes]") -> bool:
    """Tell whether a child has ended, and leave it to be waited for: so its group's number stays its own."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return child.returncode is not None or os.waitid(os.P_PID, child.pid, flags) is not None


def _kill(kill: Callable[[int, int], None], pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        kill(pid, signal.SIGKILL)


def _printable(output: str) -> str:
    """What a program printed, without the lone surrogates that stand for bytes that are not UTF-8."""
    return output.encode(errors="surrogateescape").decode(errors="backslashreplace").strip()


def _orphans(volume_id: str) -> dict[int, int]:
    """Give number and start time of every process that bears the mark."""
    wanted = f"{MARK}={volume_id}".encode()
    started = {pid: _start_time(pid) for pid in _processes() if wanted in _environment(pid)}
    return {pid: ticks for pid, ticks in started.items() if ticks is not None}


def _processes() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid())


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or of another user, who cannot be our orphan
        return []


def _start_time(pid: int) -> int | None:
    """Field 22 of proc(5) stat, in clock ticks since boot; None for one that is gone or a zombie."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in b"ZX" else int(after_name[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
