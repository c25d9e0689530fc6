"""Two reports compared: what is worse, what is better, and what is merely otherwise."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from voldrivers.conformance.reports.evidence import Conformance, Proof
from voldrivers.conformance.reports.recorded import Recorded
from voldrivers.conformance.verdicts import Verdict

_ABSENT = "not there"

#: How good it is. What is unknown is as good as bad news to come: worse than a proof, better than no failure.
_PROOFS: Mapping[str, int] = {
    Proof.OVERCLAIM: 0,
    Proof.UNSAFE_ABSENT: 0,
    Proof.UNVERIFIED: 1,
    _ABSENT: 1,
    Proof.CONFIRMED_ABSENT: 2,
    Proof.UNDERCLAIM: 2,
    Proof.PARTIAL: 3,
    Proof.CONFIRMED: 4,
}
_RESULTS: Mapping[str, int] = {
    Verdict.FAILED: 0,
    Verdict.ERROR: 1,
    Verdict.NOT_RUN: 1,
    _ABSENT: 1,
    Verdict.KNOWN: 2,
    Verdict.FINDING: 3,
    Verdict.PASSED: 3,
    Verdict.FIXED: 3,
}
_VERDICTS: Mapping[str, int] = {
    Conformance.NON_CONFORMANT: 0,
    Conformance.INCONCLUSIVE: 1,
    Conformance.PARTIAL: 2,
    Conformance.CONFORMANT: 3,
}
_UNKNOWN = 1


class Effect(StrEnum):
    """What a change means."""

    WORSE = "worse"
    BETTER = "better"
    OTHER = "otherwise"


@dataclass(frozen=True)
class Change:
    """One thing that two reports say differently."""

    what: str
    before: str
    after: str
    effect: Effect

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.effect}: {self.what}: {self.before} -> {self.after}"


def changes(old: Recorded, new: Recorded) -> tuple[Change, ...]:
    """Tell what a later report says differently: the verdict, capabilities, checks, and what it is of.

    Worse is what was proved and is not any more, and what fails that did not fail. What no proof rests on (a
    provisional check, or one whose capability is not declared) never makes anything worse.
    """
    found = [
        *_compared({"verdict": str(old.verdict)}, {"verdict": str(new.verdict)}, _VERDICTS),
        *_compared(_proofs(old), _proofs(new), _PROOFS),
        *_compared(old.results, new.results, _RESULTS),
        *_compared(_subject(old), _subject(new), {}),
    ]
    return tuple(found)


def _proofs(report: Recorded) -> Mapping[str, str]:
    return {name.replace("_", "-"): str(each.proof) for name, each in report.capabilities.items()}


def _subject(report: Recorded) -> Mapping[str, str]:
    said = {
        "driver": report.driver,
        "package": report.package,
        "mode": report.mode or "not given",
        "level": report.level,
    }
    declared = {
        f"{name.replace('_', '-')} declared": f"{each.declared}"
        + (f", not where {each.unless}" if each.unless else "")
        for name, each in report.capabilities.items()
    }
    return said | declared


def _compared(
    before: Mapping[str, str], after: Mapping[str, str], ranks: Mapping[str, int]
) -> Iterator[Change]:
    for what in dict.fromkeys([*before, *after]):
        was, now = before.get(what, _ABSENT), after.get(what, _ABSENT)
        if was != now:
            yield Change(what, was, now, _effect(ranks.get(was), ranks.get(now)))


def _effect(was: int | None, now: int | None) -> Effect:
    if was is None or now is None or was == now:
        return Effect.OTHER
    if now < was:
        return Effect.WORSE
    return Effect.OTHER if now == _UNKNOWN else Effect.BETTER
