"""os-brick, as both kinds of hosts use it: with our own way to run programs, and without eventlet."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from voldrivers import sysfs
from voldrivers.base import Run
from voldrivers.errors import CommandFailed, OutcomeUnknown, VolDriverError

#: Says of a command whether it was done in another way, and need not be run.
Instead = Callable[[tuple[str, ...]], bool]


@contextmanager
def without_eventlet() -> Iterator[None]:
    """Let oslo.privsep do without eventlet, which it imports if it can and we have no use for.

    Once imported it warns at every fork, that is at every program we start (eventlet 0.41).
    """
    if "eventlet" in sys.modules:
        yield
        return
    sys.modules["eventlet"] = None  # type: ignore[assignment]  # how import is told that there is none
    try:
        yield
    finally:
        del sys.modules["eventlet"]
        # Its warnings go where the application's go; without any, not to stderr: we raise what matters.
        logging.getLogger("os_brick").addHandler(logging.NullHandler())


def errors() -> tuple[type[Exception], ...]:
    """Give what os-brick lets out on purpose, when it is called with our commands."""
    from os_brick.exception import BrickException
    from oslo_concurrency.processutils import ProcessExecutionError

    return BrickException, ProcessExecutionError, VolDriverError


class Commands:
    """What os-brick calls to run a program: ours, so that every one ends in time and needs no sudo.

    os-brick keeps only a text of a failure, or nothing, so failures are kept here.
    """

    def __init__(self, run: Run, deadline: float, instead: Instead = lambda _argv: False) -> None:
        """Take the way to run programs, and until when (`time.monotonic`)."""
        self.failures = list[VolDriverError]()
        self._run, self._deadline, self._instead = run, deadline, instead

    def __call__(
        self,
        *argv: object,
        check_exit_code: object = 0,
        process_input: str | None = None,
        attempts: int = 1,
        interval: float = 1.0,
        **_others: object,
    ) -> tuple[str, str]:
        """Run it within what is left of the time.

        Raises what os-brick expects of a program that failed (ProcessExecutionError), else our own errors.
        """
        words = tuple(map(str, argv))
        try:
            if self._instead(words):
                return "", ""
            return self._ran(words, process_input)
        except CommandFailed as error:
            if _is_allowed(error.exit_code, check_exit_code):
                return "", error.reason
            if attempts > 1 and time.monotonic() + interval < self._deadline:
                time.sleep(interval)  # multipath does not know a map yet that multipathd is making
                return self(
                    *argv,
                    check_exit_code=check_exit_code,
                    process_input=process_input,
                    attempts=attempts - 1,
                    interval=interval,
                )
            self.failures.append(error)
            raise _as_os_brick_knows_it(error) from error
        except VolDriverError as error:
            self.failures.append(error)
            raise

    def _ran(self, argv: tuple[str, ...], process_input: str | None) -> tuple[str, str]:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise OutcomeUnknown(" ".join(argv), "no time was left to try it")
        if argv[:2] == ("tee", "-a") and process_input is not None:
            sysfs.write(self._run, Path(argv[2]), process_input, timeout_s=left_s)
            return "", ""
        done = self._run(argv, timeout_s=left_s)
        return done.stdout, done.stderr


def _is_allowed(exit_code: int | None, allowed: object) -> bool:
    """Tell whether os-brick takes an exit code for success (oslo_concurrency.processutils.execute)."""
    if isinstance(allowed, bool):
        return not allowed
    return exit_code in (allowed if isinstance(allowed, list | tuple) else [allowed])


def _as_os_brick_knows_it(error: CommandFailed) -> Exception:
    from oslo_concurrency import processutils

    failed: Exception = processutils.ProcessExecutionError(
        stdout="", stderr=error.reason, exit_code=error.exit_code, cmd=" ".join(error.argv)
    )
    return failed
