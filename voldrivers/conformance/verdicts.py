"""What comes out of a check: its verdict, what was expected, and what was read instead."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """How a check ended. There is no plain "skipped": what did not run says why."""

    PASSED = "PASS"
    #: The driver broke an invariant.
    FAILED = "FAIL"
    #: The suite or the place where it ran failed; the driver is not blamed.
    ERROR = "ERROR"
    #: It failed as the vendor's file of known failures says.
    KNOWN = "KNOWN"
    #: A known failure that passes: its entry must go.
    FIXED = "FIXED"
    #: Nothing is broken; there is something that should be declared.
    FINDING = "FINDING"
    #: The capability is not declared; another check proves that it is refused.
    NOT_APPLICABLE = "N/A"
    NOT_RUN = "NOT-RUN"


#: The invariants that hold for every operation of every driver.
INVARIANTS: Mapping[str, str] = {
    "I1": "what is published, the driver's reading, the oracle's, every device and every guest agree",
    "I2": "a size never falls",
    "I3": "the size is what the rule makes of what was asked for, never less",
    "I4": "no byte is lost, what is new reads as zeros, and the last block can be written",
    "I5": "nothing else has changed",
    "I6": "what is refused or fails leaves everything as it was, or whole",
    "I7": "doing it again changes nothing",
    "I8": "total, free and allocated bytes add up",
    "I9": "the driver does what it declares, and refuses what it does not",
    "I10": "nothing is left behind",
    "I11": "an error is one of voldrivers' own, with the facts and without a secret",
    "I12": "it ends within its time",
    "I13": "no byte of a deleted volume can be read",
    "I14": "a completion counts once, and only for its own extend",
}


class Broken(Exception):
    """The driver broke an invariant."""

    def __init__(self, invariant: str, text: str, /, **readings: object) -> None:
        """Name the invariant, say what happened, and give what was read where."""
        super().__init__(invariant, text)
        self.invariant, self.text, self.readings = invariant, text, readings

    def __str__(self) -> str:
        """Say all of it in one sentence."""
        read = ", ".join(f"{name} {value}" for name, value in self.readings.items())
        return f"{self.invariant}: {self.text}" + (f" ({read})" if read else "")


class Overdue(BaseException):
    """A check did not come to its end in time: no driver may catch it."""

    invariant = "I12"

    def __init__(self, seconds: float) -> None:
        """Say how long it had."""
        self.text = f"it did not come to its end within {seconds:g} s"
        self.readings: Mapping[str, object] = {"seconds": seconds}
        super().__init__(self.text)


class NotRun(Exception):
    """This place lacks something that the check needs."""


class NotApplicable(NotRun):
    """No driver of this kind has what the check looks at, wherever it is run."""


class Finding(Exception):
    """Nothing is broken, and the driver can do more than it declares."""

    invariant = ""

    def __init__(self, text: str, /, **readings: object) -> None:
        """Say what was found, and what was read where."""
        super().__init__(text)
        self.text, self.readings = text, readings


@dataclass(frozen=True)
class Result:
    """One check, ended."""

    id: str
    verdict: Verdict
    seconds: float
    text: str = ""
    invariant: str = ""
    readings: Mapping[str, object] = field(default_factory=dict)
    calls: tuple[str, ...] = ()


def expect(condition: object, invariant: str, text: str, /, **readings: object) -> None:
    """Have `condition` hold. Raises Broken."""
    if not condition:
        raise Broken(invariant, text, **readings)
