"""The stateful machine: long walks of operations in any order, each step compared with a model.

Hypothesis makes the walks after the first, of what is declared and of the model alone; a walk is plain data
and is walked without it. One that fails is cut down to the steps that it takes, kept as a trace, and can be
replayed.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Protocol

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Check, Level
from voldrivers.conformance.runner import Kept
from voldrivers.conformance.subject import Subject
from voldrivers.conformance.verdicts import INVARIANTS, NotRun, Result, Verdict
from voldrivers.conformance.walks.ground import Ground
from voldrivers.conformance.walks.rules import RULES
from voldrivers.conformance.walks.shrinking import Walk
from voldrivers.conformance.walks.tour import tour
from voldrivers.conformance.walks.traces import Step, Trace
from voldrivers.conformance.walks.walking import Exploration, Failure, Walker, check_id
from voldrivers.errors import InvalidInput, NotSupported

_BATCH = 20
#: The rules without which a run says nothing, and the capability that each needs.
_WANTED = {
    **dict.fromkeys(("create", "attach", "write", "detach", "extend", "delete"), ""),
    **dict.fromkeys(("snapshot", "delete_snapshot"), "snapshots"),
    "revert": "revert",
    "clone": "clones",
}
#: Far enough apart that the batches of two runs are never the same.
_SEEDS_APART = 1_000_003


@dataclass(frozen=True)
class MachineOutcome:
    """What became of a run: how much was walked, and what broke.

    `walked` says how often which rule was taken in which state of its volume; `missed` are those that every
    driver of these capabilities is to be walked with, and was not. `trouble` is what kept the machine from
    walking: a place that lacks something, or a mistake of the suite.
    """

    seed: int
    examples: int
    steps: int
    seconds: float
    walked: Mapping[tuple[str, str], int]
    failures: tuple[Failure, ...] = ()
    trouble: tuple[Result, ...] = ()
    missed: tuple[str, ...] = ()

    def results(self) -> tuple[Result, ...]:
        """Give one result for each of `machine_checks`."""
        failed = {failure.result.id: failure.result for failure in self.failures}
        rest = Result("", Verdict.NOT_RUN, 0.0, "there was no time for a walk")
        if self.examples:
            text = f"{self.examples} walks, {self.steps} steps, seed {self.seed}"
            rest = Result("", Verdict.PASSED, self.seconds, text)
            if self.missed:
                text = f"too little was walked ({text}), and never: {', '.join(self.missed)}"
                rest = Result("", Verdict.NOT_RUN, self.seconds, text)
        rest = self.trouble[0] if self.trouble else rest
        return tuple(failed.get(each.id, replace(rest, id=each.id)) for each in machine_checks())

    def write(self, directory: Path, subject: str = "") -> tuple[Path, ...]:
        """Write each failure as a trace and as a plain test: see `Trace.test` for `subject`."""
        return tuple(path for failure in self.failures for path in failure.trace.write(directory, subject))


def machine_checks() -> tuple[Check, ...]:
    """Give what the machine checks as checks: one for each invariant, whatever walk it is that breaks it."""
    return tuple(
        Check(check_id(name), f"in any order of operations: {text}", _not_alone, Level.SOAK)
        for name, text in INVARIANTS.items()
    )


def run_machine(
    subject: Subject,
    *,
    seed: int = 0,
    examples: int | None = None,
    budget_s: float | None = None,
    steps: int = 30,
    enough: int = 4,
    run_id: str | None = None,
    kept: Kept | None = None,
) -> MachineOutcome:
    """Walk until so many walks are walked, or the time is over, shrinking included. Needs hypothesis.

    It stops where `enough` invariants are broken. A step that was begun is ended, and everything taken away.
    Raises NotSupported where hypothesis is missing, ValueError where no end is given.
    """
    if examples is None and budget_s is None:
        raise ValueError("a number of examples or a budget is needed")
    run = Exploration(Walker(subject, run_id, kept), seed, budget_s, enough)
    sample = _sampler()
    ground, looked = run.walker.look()
    if ground is None:
        return _outcome(run, looked)
    for number, made in enumerate(_walks(sample, ground, seed, steps)):
        if number == 0:  # what a slow machine needs to make walks is no part of their time
            run.began = time.monotonic()
        if number == examples or run.is_over():
            break
        run.take(ground, number, made)
    return _outcome(run)


def replay(steps: Sequence[Step] | Trace, subject: Subject, run_id: str | None = None) -> Result:
    """Walk one walk; PASS where nothing breaks, FAIL with the invariant where something does.

    Raises InvalidInput for a step of no rule.
    """
    given = steps.steps if isinstance(steps, Trace) else steps
    for step in given:
        if step.name not in RULES:
            raise InvalidInput(f"step {step}", "there is no such rule")
    return Walker(subject, run_id, None).walk(given)[0]


class _Sample(Protocol):
    """Makes walks: see `voldrivers.conformance.walks.moves.sample`."""

    def __call__(self, ground: Ground, *, number: int, steps: int, count: int) -> Sequence[Walk]:
        """Make them."""


def _sampler() -> _Sample:
    try:
        from voldrivers.conformance.walks.moves import sample
    except ImportError as error:
        reason = "it needs hypothesis: pip install 'voldrivers[conformance]'"
        raise NotSupported("the stateful machine", reason) from error
    return sample


def _walks(sample: _Sample, ground: Ground, seed: int, steps: int) -> Iterator[Walk]:
    """Give the tour, and then walks without end, in batches; each batch has a seed of its own."""
    numbers = count(seed * _SEEDS_APART)
    batches = (sample(ground, number=number, steps=steps, count=_BATCH) for number in numbers)
    drawn = next(batches)  # before the first walk begins, which is when the time does
    yield tour(ground)
    yield from chain(drawn, chain.from_iterable(batches))


def _outcome(run: Exploration, *trouble: Result) -> MachineOutcome:
    failures, kept_from = tuple(run.failures.values()), (*run.trouble, *trouble)
    declared, taken = run.walker.subject.driver_class.capabilities, {name for name, _ in run.walked}
    wanted = [name for name, needs in _WANTED.items() if not needs or declared.declares(needs)]
    missed = tuple(name for name in wanted if name not in taken)
    return MachineOutcome(
        run.seed, run.examples, run.steps, run.seconds, dict(run.walked), failures, kept_from, missed
    )


def _not_alone(_bench: Bench) -> None:
    """Walk from operation to operation in any order, and compare with a model after each."""
    raise NotRun("the stateful machine is run as a whole: voldrivers.conformance.walks.machine.run_machine")
