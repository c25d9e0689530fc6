"""A trial: a driver is tried on a pool that may be destroyed, and the report says what came of it."""

import faulthandler
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from voldrivers.conformance.catalogue import Check, catalogue
from voldrivers.conformance.known import Known, judge
from voldrivers.conformance.report import Report
from voldrivers.conformance.runner import Kept, run_check
from voldrivers.conformance.runs import Run, begun, default_runs
from voldrivers.conformance.scratch import missing_key
from voldrivers.conformance.subject import Subject
from voldrivers.conformance.verdicts import Overdue, Result
from voldrivers.model import utc_now

Tell = Callable[[Check, Result], None]


def _quietly(_check: Check, _result: Result) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Trial:
    """What is asked of a run, beside its subject."""

    #: The pool once more, as whoever starts the run calls it: the third key.
    destroy: str | None
    checks: Sequence[Check] = field(default_factory=catalogue)
    known: Mapping[str, Known] = field(default_factory=dict)
    #: Told of each result as it comes.
    tell: Tell = _quietly
    #: Leave everything as it is where a check failed.
    keep: bool = False
    check_s: float = 600.0
    #: How the run is started again.
    reproduce: str = ""
    #: Where runs are written down, for `voldrivers sweep`, and what of this one.
    runs: Path = field(default_factory=default_runs)
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Running:
    """A run that goes on, check after check."""

    subject: Subject
    trial: Trial
    run: Run
    began_at: datetime = field(default_factory=utc_now)
    began: float = field(default_factory=time.monotonic)
    ended: list[tuple[Check, Result]] = field(default_factory=list)

    def try_out(self, check: Check) -> Result:
        """Run one check; what the driver raises is its result."""
        noted, kept = replace(self.subject, intend=self.run.intend), Kept(self.run.directory, self.trial.keep)
        with _within(self.trial.check_s):
            result = run_check(check, noted, self.run.id, kept)
        result = judge(result, self.trial.known, self.began_at.date())
        self.ended.append((check, result))
        self.trial.tell(check, result)
        return result

    def report(self) -> Report:
        """Give the report of the checks that have come to their end."""
        return Report(
            self.subject.driver_class,
            [check for check, _ in self.ended],
            [result for _, result in self.ended],
            self.began_at,
            time.monotonic() - self.began,
            self.trial.reproduce,
            has_oracle=self.subject.oracle is not None,
            mode=self.subject.mode,
        )


@contextmanager
def running(subject: Subject, trial: Trial) -> Iterator[Running]:
    """Begin a run. Raises InvalidState before anything is touched where a key is missing.

    What the backend raises then is raised as well. Ctrl-C takes away what a check has made; after SIGKILL
    `sweep` does.
    """
    driver = subject.make(subject.driver_class, subject.run)
    if missing := missing_key(driver, subject.oracle, subject.pool, trial.destroy):
        raise missing
    with begun(trial.runs, secrets.token_hex(4), trial.facts) as run:
        yield Running(subject, trial, run)


def check_driver(subject: Subject, trial: Trial) -> Report:
    """Run checks on a driver, from the first to the last. Raises as `running`."""
    with running(subject, trial) as going:
        for check in trial.checks:
            going.try_out(check)
        return going.report()


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise Overdue in what takes longer; where even that does not help, print every stack."""

    def is_over(_number: int, _frame: object) -> None:
        raise Overdue(seconds)

    try:
        before = signal.signal(signal.SIGALRM, is_over)
    except ValueError:  # only the main thread takes signals
        yield
        return
    faulthandler.dump_traceback_later(2 * seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
