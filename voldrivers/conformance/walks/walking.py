"""One walk of the stateful machine after the other, on one subject, until enough is walked or found."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Check, Level
from voldrivers.conformance.reports.packages import class_name
from voldrivers.conformance.runner import Kept, run_check
from voldrivers.conformance.subject import Subject
from voldrivers.conformance.verdicts import Result, Verdict
from voldrivers.conformance.walks.double import double
from voldrivers.conformance.walks.fused import walk
from voldrivers.conformance.walks.ground import Ground, ground_of
from voldrivers.conformance.walks.player import Player
from voldrivers.conformance.walks.shrinking import Walk, shrunk
from voldrivers.conformance.walks.traces import Step, Trace

_BLAME = "a driver in RAM that declares the same fails on it too: look at what is declared, and at voldrivers"


@dataclass(frozen=True)
class Failure:
    """An invariant that was broken: what was found, and the shortest walk that was found to break it."""

    result: Result
    trace: Trace


def check_id(invariant: str) -> str:
    """Give the id under which the machine reports an invariant: MAC-004 is I4."""
    return f"MAC-{int(invariant[1:]):03}"


def never() -> bool:
    """Have all the time there is."""
    return False


@dataclass
class Walker:
    """Walks on a subject. What it makes begins with the run's id; `kept` as in `run_check`."""

    subject: Subject
    run_id: str | None
    kept: Kept | None
    number: int = 0

    def walk(
        self, steps: Sequence[Step], is_late: Callable[[], bool] = never
    ) -> tuple[Result, Player | None]:
        """Walk once."""
        players: list[Player] = []

        def act(bench: Bench) -> None:
            players.append(Player(bench))
            walk(players[0], steps, is_late)

        return self._run(act), players[0] if players else None

    def look(self) -> tuple[Ground | None, Result]:
        """Look at what there is to walk on."""
        grounds: list[Ground] = []
        result = self._run(lambda bench: grounds.append(ground_of(bench)))
        return (grounds[0] if result.verdict is Verdict.PASSED else None), result

    def _run(self, act: Callable[[Bench], None]) -> Result:
        self.number += 1
        check = Check(f"MAC-walk-{self.number}", "a walk holds all invariants", act, Level.SOAK)
        return run_check(check, self.subject, self.run_id, self.kept)


@dataclass
class Exploration:
    """A run of the machine that is going on."""

    walker: Walker
    seed: int
    budget_s: float | None
    enough: int
    began: float = field(default_factory=time.monotonic)
    examples: int = 0
    steps: int = 0
    walked: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: dict[str, Failure] = field(default_factory=dict)
    trouble: list[Result] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it takes until now."""
        return time.monotonic() - self.began

    def is_late(self) -> bool:
        """Tell whether the time is over."""
        return self.budget_s is not None and self.seconds >= self.budget_s

    def is_over(self) -> bool:
        """Tell whether the time is over, or enough was found."""
        kept = self._keeps and bool(self.failures)
        return self.is_late() or kept or len(self.failures) >= self.enough or bool(self.trouble)

    def take(self, ground: Ground, number: int, made: Walk) -> None:
        """Walk a walk, and cut it down if it breaks an invariant that no other one has."""
        result, player = self.walker.walk(made, self.is_late)
        self.examples += 1
        if player is not None:
            self.steps += player.begun
            self.walked.update(player.walked)
        if result.verdict is Verdict.FAILED and result.invariant not in self.failures:
            begun = made[: player.begun] if player else ()
            self.failures[result.invariant] = self._failure(ground, number, begun, result)
        elif result.verdict in (Verdict.ERROR, Verdict.NOT_RUN):
            self.trouble.append(result)

    @property
    def _keeps(self) -> bool:
        return self.walker.kept is not None and self.walker.kept.failures

    def _failure(self, ground: Ground, number: int, made: Walk, result: Result) -> Failure:
        """Cut a walk down: in RAM where it fails there too, else on the backend, as long as there is time."""
        invariant, in_ram = result.invariant, Walker(double(ground), self.walker.run_id, None)
        fails_in_ram = _breaks(in_ram, invariant, made) is not None
        where = in_ram if fails_in_ram else self.walker
        short = None
        if fails_in_ram or not self._keeps:
            short = shrunk(made, lambda part: _breaks(where, invariant, part), self.is_late)
        steps, found = short or (made, result)
        trace = Trace(
            f"{check_id(invariant)}-{self.seed}-{number}",
            class_name(self.walker.subject.driver_class),
            self.seed,
            steps,
            invariant,
            found.text,
            fails_in_ram,
            ground.document(),
        )
        return Failure(_told(found, trace), trace)


def _told(found: Result, trace: Trace) -> Result:
    """Give what is reported of a failure; one that is not the driver's is an ERROR."""
    text = f"{found.text}; trace {trace.id}, {len(trace.steps)} steps"
    verdict = Verdict.ERROR if trace.fails_in_ram else Verdict.FAILED
    text += f"; {_BLAME}" if trace.fails_in_ram else ""
    return replace(found, id=check_id(trace.invariant), verdict=verdict, text=text)


def _breaks(walker: Walker, invariant: str, steps: Walk) -> tuple[Walk, Result] | None:
    """Walk, and give the steps that were begun with what was found, if the same invariant breaks."""
    result, player = walker.walk(steps)
    if player is None or result.verdict is not Verdict.FAILED or result.invariant != invariant:
        return None
    return steps[: player.begun], result
