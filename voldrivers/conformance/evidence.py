"""What the results say of each capability: proven, or claimed only; and of the driver as a whole."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from voldrivers.capabilities import NAMES, Capabilities
from voldrivers.conformance.catalogue import Check
from voldrivers.conformance.verdicts import Result, Verdict

_BAD = (Verdict.FAILED, Verdict.FIXED)


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
    UNVERIFIED = "UNVERIFIED"


class Conformance(StrEnum):
    """The verdict on a driver."""

    CONFORMANT = "conformant"
    PARTIAL = "partial"
    NON_CONFORMANT = "non-conformant"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Evidence:
    """One capability: what is declared, what is known, and which checks say so."""

    capability: str
    declared: str
    proof: Proof
    checks: tuple[str, ...]


def evidence(
    declared: Capabilities, checks: Sequence[Check], results: Iterable[Result]
) -> tuple[Evidence, ...]:
    """Give what is known of every capability."""
    by_id = {result.id: result for result in results}
    return tuple(_of(name, declared, checks, by_id) for name in NAMES)


def conformance(results: Sequence[Result], found: Sequence[Evidence]) -> Conformance:
    """Judge a driver by all of its results."""
    verdicts = {result.verdict for result in results}
    if verdicts & set(_BAD):
        return Conformance.NON_CONFORMANT
    if Verdict.ERROR in verdicts or not results:
        return Conformance.INCONCLUSIVE
    unproven = {each.proof for each in found} & {Proof.PARTIAL, Proof.UNVERIFIED}
    if unproven or verdicts & {Verdict.KNOWN, Verdict.NOT_RUN}:
        return Conformance.PARTIAL
    return Conformance.CONFORMANT


def _of(name: str, declared: Capabilities, checks: Sequence[Check], by_id: dict[str, Result]) -> Evidence:
    is_declared = declared.declares(name)
    gated = [c.id for c in checks if (name in c.needs if is_declared else c.absent == name)]
    ran = {i: by_id[i].verdict for i in gated if i in by_id and by_id[i].verdict != Verdict.NOT_APPLICABLE}
    passed = [verdict is Verdict.PASSED for verdict in ran.values()]
    if set(ran.values()) & set(_BAD):
        proof = Proof.OVERCLAIM if is_declared else Proof.UNSAFE_ABSENT
    elif not any(passed):
        proof = Proof.UNVERIFIED
    elif not all(passed):
        proof = Proof.PARTIAL
    else:
        proof = Proof.CONFIRMED if is_declared else Proof.CONFIRMED_ABSENT
    value = getattr(declared, name)
    shown = {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    return Evidence(name, shown, proof, tuple(ran))
