"""The conformance suite: what every driver must do, and proof that a driver that does not is found out.

Declared means that it must work; not declared means that it must be refused, cleanly, with nothing changed.
"""

from voldrivers.conformance.catalogue import Check, Level, catalogue
from voldrivers.conformance.runner import run_checks
from voldrivers.conformance.subject import Oracle, Place, Subject
from voldrivers.conformance.verdicts import INVARIANTS, Result, Verdict

__all__ = [
    "INVARIANTS",
    "Check",
    "Level",
    "Oracle",
    "Place",
    "Result",
    "Subject",
    "Verdict",
    "catalogue",
    "run_checks",
]
