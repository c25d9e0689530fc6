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
from voldrivers.conformance.reports.report import Report, prepare
from voldrivers.conformance.runner import Kept, run_check
from voldrivers.conformance.subject import Subject
from voldrivers.conformance.trials.runs import Run, begun, default_runs
from voldrivers.conformance.trials.scratch import missing_key
from voldrivers.conformance.verdicts import Overdue, Result
from voldrivers.conformance.walks.machine import MachineOutcome, machine_checks, replay, run_machine
from voldrivers.conformance.walks.traces import Trace
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
    #: How long the stateful machine walks after them, and what its walks are drawn from.
    walks_s: float = 0.0
    seed: int = 0
    #: What is to walk instead of new walks.
    trace: Trace | None = None
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
    outcome: MachineOutcome | None = None

    def try_out(self, check: Check) -> Result:
        """Run one check; what the driver raises is its result."""
        with _within(self.trial.check_s):
            result = run_check(check, self._noted, self.run.id, self._kept)
        return self._end(check, result)

    def walk(self) -> None:
        """Have the stateful machine walk; what it finds are results of checks of their own."""
        budget_s = self.trial.walks_s
        with _within(budget_s + self.trial.check_s):
            self.outcome = run_machine(
                self._noted, seed=self.trial.seed, budget_s=budget_s, run_id=self.run.id, kept=self._kept
            )
        for check, result in zip(machine_checks(), self.outcome.results(), strict=True):
            self._end(check, result)

    def walk_again(self, trace: Trace) -> None:
        """Walk as a trace has it."""
        check = next(each for each in machine_checks() if trace.id.startswith(each.id))
        self._end(check, replace(replay(trace, self._noted, self.run.id), id=check.id))

    @property
    def _noted(self) -> Subject:
        return replace(self.subject, intend=self.run.intend)

    @property
    def _kept(self) -> Kept:
        return Kept(self.run.directory, self.trial.keep)

    def _end(self, check: Check, result: Result) -> Result:
        result = judge(result, self.trial.known, self.began_at.date())
        self.ended.append((check, result))
        self.trial.tell(check, result)
        return result

    def report(self, selected: Sequence[Check] = ()) -> Report:
        """Give the report of the checks that have come to their end, and of those that should have."""
        ids = {check.id for check in selected}
        return Report(
            self.subject.driver_class,
            [*selected, *(check for check, _ in self.ended if check.id not in ids)],
            [result for _, result in self.ended],
            self.began_at,
            time.monotonic() - self.began,
            self.trial.reproduce,
            has_oracle=self.subject.oracle is not None,
            mode=self.subject.mode,
            seed=self.trial.seed if self.outcome else None,
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
    with begun(trial.runs, secrets.token_hex(4), {**trial.facts, "pool": subject.pool}) as run:
        yield Running(subject, trial, run)


def check_driver(subject: Subject, trial: Trial, results: Path | None = None) -> Report:
    """Run checks on a driver, from the first to the last; write what came of it. Raises as `running`."""
    with running(subject, trial) as going:
        if results is not None:
            prepare(results)
        try:
            for check in trial.checks:
                going.try_out(check)
            if trial.trace is not None:
                going.walk_again(trial.trace)
            elif trial.walks_s:
                going.walk()
        finally:  # whoever interrupts it keeps what has come until then
            report = going.report(trial.checks)
            if results is not None:
                report.write(results)
                if going.outcome is not None:
                    going.outcome.write(results)
    return report


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
