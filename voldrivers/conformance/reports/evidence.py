"""What the results say of each capability: proven, or claimed only; and of the driver as a whole."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from voldrivers.capabilities import NAMES, Capabilities
from voldrivers.conformance.catalogue import Check
from voldrivers.conformance.verdicts import Result, Verdict

_BAD = (Verdict.FAILED, Verdict.FIXED)
#: One that was known to fail and passes speaks against its entry, not against the driver.
_HELD = (Verdict.PASSED, Verdict.FIXED)


class Proof(StrEnum):
    """What is known of a capability."""

    CONFIRMED = "CONFIRMED"
    #: Declared; some of its checks are known to fail, or could not run.
    PARTIAL = "PARTIAL"
    #: Declared, and it does not do it.
    OVERCLAIM = "OVERCLAIM"
    #: Not declared, and refused with nothing changed.
    CONFIRMED_ABSENT = "CONFIRMED-ABSENT"
    #: Not declared, and not refused cleanly.
    UNSAFE_ABSENT = "UNSAFE-ABSENT"
    #: Not declared, and it works all the same.
    UNDERCLAIM = "UNDERCLAIM"
    #: Nothing could be checked.
    UNVERIFIED = "UNVERIFIED"


class Conformance(StrEnum):
    """The verdict on a driver."""

    CONFORMANT = "conformant"
    PARTIAL = "partial"
    NON_CONFORMANT = "non-conformant"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Evidence:
    """One capability: what is declared, for which cases not, what is known, and which checks say so."""

    capability: str
    declared: str
    proof: Proof
    checks: tuple[str, ...]
    unless: str = ""


def evidence(
    declared: Capabilities, checks: Sequence[Check], results: Iterable[Result]
) -> tuple[Evidence, ...]:
    """Give what is known of every capability; provisional checks prove nothing."""
    by_id = {result.id: result for result in results}
    return tuple(_of(name, declared, checks, by_id) for name in NAMES)


def conformance(results: Sequence[Result], found: Sequence[Evidence]) -> Conformance:
    """Judge a driver by all of its results, those of provisional checks left out."""
    verdicts = {result.verdict for result in results}
    if verdicts & set(_BAD):
        return Conformance.NON_CONFORMANT
    if Verdict.ERROR in verdicts or not results:
        return Conformance.INCONCLUSIVE
    unproven = {each.proof for each in found} & {Proof.PARTIAL, Proof.UNVERIFIED}
    if unproven or verdicts & {Verdict.KNOWN, Verdict.NOT_RUN}:
        return Conformance.PARTIAL
    return Conformance.CONFORMANT


def declaration(declared: Capabilities, name: str) -> str:
    """Give what is declared of a capability, for people."""
    value = getattr(declared, name)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def exceptions(declared: Capabilities, name: str) -> str:
    """Give the cases that are excepted from what is declared."""
    return "; ".join(each.unless for each in declared.conditions if each.capability == name)


def _of(name: str, declared: Capabilities, checks: Sequence[Check], by_id: dict[str, Result]) -> Evidence:
    is_declared = declared.declares(name)
    counted = [check for check in checks if not check.provisional]
    gated = [c.id for c in counted if (name in c.needs if is_declared else c.absent == name)]
    ran = {i: by_id[i].verdict for i in gated if i in by_id and by_id[i].verdict != Verdict.NOT_APPLICABLE}
    proof = _proof(set(ran.values()), is_declared=is_declared)
    return Evidence(name, declaration(declared, name), proof, tuple(ran), exceptions(declared, name))


def _proof(verdicts: set[Verdict], *, is_declared: bool) -> Proof:
    if Verdict.FAILED in verdicts:
        return Proof.OVERCLAIM if is_declared else Proof.UNSAFE_ABSENT
    if Verdict.FINDING in verdicts:
        return Proof.UNDERCLAIM
    if not verdicts & set(_HELD):
        return Proof.UNVERIFIED
    if verdicts - set(_HELD):
        return Proof.PARTIAL
    return Proof.CONFIRMED if is_declared else Proof.CONFIRMED_ABSENT
