"""Known failures: a vendor's file of what does not work yet, by the ids of checks.

    [EXI-004]
    reason = "the array rounds once more"
    issue = "https://acme.example/1234"
    expires = 2027-01-01
    match = "not all sizes"

They run all the same. One that fails otherwise than `match` is a failure, one that passes is FIXED, which
fails the run until its entry is removed, and one whose time is over is a failure again.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from voldrivers.conformance.verdicts import Result, Verdict
from voldrivers.errors import InvalidInput
from voldrivers.options import option, read_options
from voldrivers.registry import read_document

_ID = re.compile(r"[A-Z]{3}-\d{3}")


@dataclass(frozen=True)
class Known:
    """Why a check may fail, where that is written down, and until when (YYYY-MM-DD)."""

    reason: str = option("why it fails")
    issue: str = option("where that is followed up")
    expires: str = option("the day from which it counts again, YYYY-MM-DD")
    match: str = option("a regular expression that is found in what the check says", "")

    def __post_init__(self) -> None:
        """Refuse what is no day or no expression (ValueError)."""
        date.fromisoformat(self.expires)
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"match {self.match!r} is no regular expression: {error}") from error


def read_known(path: Path, ids: Iterable[str]) -> Mapping[str, Known]:
    """Read the file. Raises InvalidInput for what no check is called, and for a wrong entry."""
    tables = read_document(path, "known failures")
    found: dict[str, Known] = {}
    for check_id, table in tables.items():
        if check_id not in set(ids) or not isinstance(table, dict):
            raise InvalidInput(f"{path}: [{check_id}]", "there is no check of this id")
        expires = table.get("expires")
        given = table | ({"expires": expires.isoformat()} if isinstance(expires, date) else {})
        found[check_id] = read_options(Known, given, f"{path}: [{check_id}]")
    return found


def judge(result: Result, known: Mapping[str, Known], today: date) -> Result:
    """Give a result as the known failures have it."""
    entry = known.get(result.id)
    if entry is None or result.verdict not in (Verdict.FAILED, Verdict.PASSED):
        return result
    if result.verdict is Verdict.PASSED:
        return replace(result, verdict=Verdict.FIXED, text="it passes: remove its entry of known failures")
    if today >= date.fromisoformat(entry.expires):
        return replace(result, text=f"{result.text}; known since before {entry.expires}, which is over")
    if not re.search(entry.match, result.text):
        return replace(result, text=f"{result.text}; known to fail otherwise: {entry.match}")
    return replace(result, verdict=Verdict.KNOWN, text=f"{entry.reason} ({entry.issue}): {result.text}")
