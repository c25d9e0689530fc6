"""The catalogue: every check by its id, which never changes and is never used again."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from voldrivers.capabilities import Capabilities
from voldrivers.conformance.verdicts import Verdict

if TYPE_CHECKING:
    from voldrivers.conformance.bench import Bench

#: The groups in the order in which they run: what needs the least comes first.
GROUPS = {
    "DEC": "declaration",
    "LIF": "lifecycle",
    "SIZ": "sizes",
    "EXO": "extending a detached volume",
    "EXI": "extending a volume in use",
    "DEF": "deferred completion",
    "ROL": "failures and rolling back",
    "CRA": "crashes",
    "CON": "concurrency",
    "DAT": "data",
    "SNP": "snapshots",
    "CLN": "clones",
    "ATT": "attaching",
    "STA": "stats",
    "BAD": "bad input",
    "IDM": "doing it again",
    "LEK": "leaks",
    "MAC": "any order of operations",
}

_NO_ADAPTER = (
    "adapters are not the driver's: Cinder's is tried inside a real Cinder by voldrivers' own tests,"
    " CSI's is not there yet"
)
_NO_ENCRYPTION = "voldrivers does not decrypt: an attachment that is encrypted is refused at admission"
_NO_READ_ONLY = "a driver is not told that an attachment is for reading only: whoever connects sees to that"

#: Ids of the published catalogue under which there is no check, and why.
RESERVED: Mapping[str, str] = {
    "DEC-006": "no declaration depends on a version: a capability is there or not, with its conditions",
    "EXO-010": _NO_ENCRYPTION,
    "EXI-012": _NO_READ_ONLY,
    "EXI-014": _NO_ENCRYPTION,
    "CRA-008": "a power cut needs a block device below the backend that can lose what was not flushed",
    "ATT-006": _NO_READ_ONLY,
    "ATT-008": "neither driver nor host declares how many volumes it can have, so there is no limit to hold",
    **{f"ADP-00{number}": _NO_ADAPTER for number in range(1, 9)},
}


class Level(StrEnum):
    """How a check counts: CORE always, EXTENDED where its capability is declared."""

    CORE = "core"
    EXTENDED = "extended"
    FAULT = "fault"
    SOAK = "soak"


@dataclass(frozen=True)
class Check:
    """One check.

    It runs where `capability` is declared (`in_use_extend=by-hypervisor` asks for that value, `clones
    snapshots` for both), or where `absent` is not: then it proves that the driver refuses. `act` raises
    Broken, NotRun or Finding. A provisional one runs and is reported, and no verdict rests on it: so a check
    begins, until the next level of the catalogue, or as long as it has found no liar.
    """

    id: str
    invariant: str
    act: "Callable[[Bench], None]"
    level: Level = Level.CORE
    capability: str = ""
    absent: str = ""
    smoke: bool = False
    hint: str = ""
    provisional: bool = False

    def __post_init__(self) -> None:
        """Refuse a check that always counts, and does not (ValueError)."""
        if self.provisional and self.level is Level.CORE:
            raise ValueError(f"{self.id} is core, and a core check is never provisional")

    @property
    def group(self) -> str:
        """The first part of its id."""
        return self.id[:3]

    @property
    def steps(self) -> str:
        """What it does, for people."""
        return inspect.getdoc(self.act) or ""

    @property
    def needs(self) -> frozenset[str]:
        """The names of the capabilities that it needs."""
        return frozenset(each.partition("=")[0] for each in self.capability.split())

    def shown(self, verdict: Verdict) -> str:
        """Give a verdict of it as people and programs get to see it: PROVISIONAL-FAIL, say."""
        return f"PROVISIONAL-{verdict}" if self.provisional else str(verdict)

    def not_for(self, declared: Capabilities) -> str:
        """Say why it is not for a driver that declares this; nothing if it is."""
        for wanted in self.capability.split():
            name, _, value = wanted.partition("=")
            if not declared.declares(name):
                return f"{name} is not declared"
            if value and getattr(declared, name) != value:
                return f"{name} is {getattr(declared, name)}"
        if self.absent and declared.declares(self.absent):
            return f"{self.absent} is declared"
        return ""


_CHECKS: dict[str, Check] = {}


def check(
    check_id: str,
    invariant: str,
    *,
    level: Level = Level.CORE,
    capability: str = "",
    absent: str = "",
    smoke: bool = False,
    hint: str = "",
    provisional: bool = False,
) -> "Callable[[Callable[[Bench], None]], Callable[[Bench], None]]":
    """Enter a function into the catalogue; its docstring says what it does."""

    def enter(act: "Callable[[Bench], None]") -> "Callable[[Bench], None]":
        if check_id in {*_CHECKS, *RESERVED} or check_id[:3] not in GROUPS:
            raise ValueError(f"{check_id} is taken, or of no group")
        entry = Check(check_id, invariant, act, level, capability, absent, smoke, hint, provisional)
        _CHECKS[check_id] = entry
        return act

    return enter


def catalogue() -> tuple[Check, ...]:
    """Give all checks, in the order in which they run."""
    checks = importlib.import_module("voldrivers.conformance.checks")
    for module in pkgutil.iter_modules(checks.__path__):
        importlib.import_module(f"{checks.__name__}.{module.name}")
    order = list(GROUPS)
    return tuple(sorted(_CHECKS.values(), key=lambda each: (order.index(each.group), each.id)))
