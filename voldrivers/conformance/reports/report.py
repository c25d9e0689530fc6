"""The report: everything that a run found, as one document, and the files that are made of it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from html import escape
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile

from voldrivers.base import Driver
from voldrivers.capabilities import Capabilities
from voldrivers.conformance.catalogue import Check, catalogue
from voldrivers.conformance.reports import matrix
from voldrivers.conformance.reports import page as pages
from voldrivers.conformance.reports.environment import environment
from voldrivers.conformance.reports.evidence import Conformance, Evidence, conformance, evidence
from voldrivers.conformance.reports.junit import junit
from voldrivers.conformance.reports.packages import class_name, package
from voldrivers.conformance.reports.recorded import SCHEMA, recorded
from voldrivers.conformance.verdicts import INVARIANTS, Result, Verdict
from voldrivers.conformance.walks.machine import machine_checks
from voldrivers.errors import InvalidInput

#: The level of the catalogue.
LEVEL = "2026.1"
#: What is said of a check that nobody wanted.
UNSELECTED = "it was not selected"

Document = Mapping[str, object]


@dataclass(frozen=True)
class Report:
    """A run that has ended: the checks that were selected for it, and what came of them.

    It is of the whole catalogue all the same: what was not selected is NOT-RUN, and a selected check without
    a result is an ERROR, so that totals always add up to the checks that there are.
    """

    driver_class: type[Driver]
    checks: Sequence[Check]
    results: Sequence[Result]
    began: datetime
    seconds: float
    reproduce: str
    has_oracle: bool
    #: How the driver was set up, as far as what is proved depends on it: "thin, over iSCSI".
    mode: str = ""
    #: What random choices were drawn from, if there were any.
    seed: int | None = None
    #: Where it took place: kernel, Python and programs with their versions.
    environment: Mapping[str, str] = field(default_factory=environment)

    @cached_property
    def rows(self) -> Sequence[tuple[Check, Result]]:
        """Every check of the catalogue and of the stateful machine, once, with what came of it.

        Raises ValueError for a result of no check.
        """
        selected = {check.id: check for check in self.checks}
        came = {result.id: result for result in self.results}
        twice = [check_id for check_id, times in Counter(r.id for r in self.results).items() if times > 1]
        for check_id in twice:
            came[check_id] = Result(check_id, Verdict.ERROR, 0.0, "the run has several results of it")
        declared = self.driver_class.capabilities
        manifest = {check.id: check for check in (*catalogue(), *machine_checks())} | selected
        if foreign := came.keys() - manifest.keys():
            raise ValueError(f"there are results of no check: {', '.join(sorted(foreign))}")
        return tuple(
            (check, came.get(check.id) or _lacking(check, declared, selected=check.id in selected))
            for check in manifest.values()
        )

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """What is known of each capability."""
        checks, results = zip(*self.rows, strict=True)
        return evidence(self.driver_class.capabilities, checks, results)

    @property
    def verdict(self) -> Conformance:
        """The verdict on the driver."""
        counted = [result for check, result in self.rows if not check.provisional]
        return conformance(counted, self.evidence)

    @property
    def totals(self) -> Mapping[str, int]:
        """How many ended how; they add up to the checks that there are."""
        counted = Counter(check.shown(result.verdict) for check, result in self.rows)
        return dict(sorted(counted.items()))

    def document(self) -> Document:
        """Give report.json."""
        return {
            "schema": SCHEMA,
            "driver": {
                "class": class_name(self.driver_class),
                "from": package(self.driver_class),
                "mode": self.mode,
            },
            "suite": {
                "level": LEVEL,
                "voldrivers": metadata.version("voldrivers"),
                "checks": len(self.rows),
                "seed": self.seed,
            },
            "environment": dict(self.environment),
            "began": self.began.isoformat(),
            "seconds": round(self.seconds, 3),
            "reproduce": self.reproduce,
            "oracle": "used" if self.has_oracle else "none: verified through the driver only",
            "verdict": str(self.verdict),
            "totals": dict(self.totals),
            "capabilities": [_capability(each) for each in self.evidence],
            "results": [_result(check, result) for check, result in self.rows],
        }

    def write(self, directory: Path) -> None:
        """Write report.json, report.html, junit.xml, and capabilities as .json, .md and .html."""
        directory.mkdir(parents=True, exist_ok=True)
        document = self.document()
        column = matrix.reported(recorded(document, str(directory)))
        _write_json(directory / "report.json", document)
        _write_json(directory / "capabilities.json", document["capabilities"])
        _write(directory / "capabilities.md", matrix.markdown([column]))
        _write(directory / "capabilities.html", matrix.html([column]))
        _write(directory / "report.html", page(self))
        cases = junit(f"voldrivers conformance {LEVEL}", self.rows, self.seconds)
        cases.write(directory / "junit.xml", encoding="utf-8", xml_declaration=True)


def prepare(directory: Path) -> None:
    """Make the directory of the results, before hours of work are for nothing. Raises InvalidInput."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=directory).close()
    except OSError as error:
        raise InvalidInput(f"results {directory}", f"cannot be written: {error.strerror}") from error


def page(report: Report) -> str:
    """Write the report as one HTML file that needs no network."""
    document = report.document()
    title = f"{class_name(report.driver_class)}: {report.verdict}"
    found = [(e.capability, e.declared, str(e.proof), " ".join(e.checks)) for e in report.evidence]
    results = [
        (check.id, check.shown(result.verdict), check.invariant, result.text, f"{result.seconds:.2f} s")
        for check, result in report.rows
    ]
    failed = "".join(f"<pre>{escape(card(c, r))}</pre>" for c, r in report.rows if r.calls)
    facts = [(name, json.dumps(document[name])) for name in _FACTS]
    return pages.page(
        title,
        f"{pages.table(('', ''), facts)}"
        f"<h2>Capabilities</h2>{pages.table(('capability', 'declared', 'proof', 'checks'), found)}"
        f"<h2>Checks</h2>{pages.table(('check', 'verdict', 'invariant', 'what was found', 'time'), results)}"
        f"{failed}",
    )


def card(check: Check, result: Result) -> str:
    """Tell of one check that did not pass: what must hold, what was found, and every call that led there."""
    lines = [f"{check.id} {check.shown(result.verdict)}: {check.invariant}"]
    if result.invariant:
        lines.append(f"  {result.invariant}: {INVARIANTS[result.invariant]}")
    lines.append(f"  {result.text}")
    lines += [f"  {name}: {value}" for name, value in result.readings.items()]
    lines += [f"  hint: {check.hint}"] if check.hint else []
    return "\n".join([*lines, *(f"    {call}" for call in result.calls)])


_FACTS = ("driver", "suite", "environment", "began", "seconds", "oracle", "totals", "reproduce")


def _lacking(check: Check, declared: Capabilities, *, selected: bool) -> Result:
    """Give what stands for a result that there is none of."""
    if selected:
        return Result(check.id, Verdict.ERROR, 0.0, "the run ended without a result of it")
    if reason := check.not_for(declared):
        return Result(check.id, Verdict.NOT_APPLICABLE, 0.0, reason)
    return Result(check.id, Verdict.NOT_RUN, 0.0, UNSELECTED)


def _result(check: Check, result: Result) -> Document:
    return {
        "id": result.id,
        "verdict": check.shown(result.verdict),
        "level": str(check.level),
        "capability": check.capability or check.absent,
        "checks": check.invariant,
        "seconds": round(result.seconds, 3),
        "text": result.text,
        "invariant": result.invariant,
        "readings": {name: str(value) for name, value in result.readings.items()},
        "calls": list(result.calls),
    }


def _capability(found: Evidence) -> Document:
    return {
        "name": found.capability,
        "declared": found.declared,
        "unless": found.unless,
        "proof": str(found.proof),
        "checks": list(found.checks),
    }


def _write_json(path: Path, document: object) -> None:
    _write(path, json.dumps(document, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, errors="backslashreplace")  # a program may have said half a character
