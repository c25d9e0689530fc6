"""The report: everything that a run found, as one document, and the files that are made of it."""

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from voldrivers.base import Driver
from voldrivers.capabilities import NAMES
from voldrivers.conformance.catalogue import GROUPS, Check
from voldrivers.conformance.evidence import Conformance, Evidence, conformance, evidence
from voldrivers.conformance.verdicts import INVARIANTS, Result, Verdict
from voldrivers.errors import InvalidInput

#: The form of report.json; a reader refuses a newer one.
SCHEMA = 1
#: The level of the catalogue.
LEVEL = "2026.1"

Document = Mapping[str, object]


@dataclass(frozen=True)
class Report:
    """A run that has ended."""

    driver_class: type[Driver]
    checks: Sequence[Check]
    results: Sequence[Result]
    began: datetime
    seconds: float
    reproduce: str
    has_oracle: bool

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """What is known of each capability."""
        return evidence(self.driver_class.capabilities, self.checks, self.results)

    @property
    def verdict(self) -> Conformance:
        """The verdict on the driver."""
        return conformance(self.results, self.evidence)

    @property
    def totals(self) -> Mapping[str, int]:
        """How many ended how; they add up to the checks that there are."""
        counted = Counter(str(result.verdict) for result in self.results)
        return {verdict: counted[verdict] for verdict in map(str, Verdict) if counted[verdict]}

    def document(self) -> Document:
        """Give report.json."""
        kind, by_id = self.driver_class, {check.id: check for check in self.checks}
        return {
            "schema": SCHEMA,
            "driver": {"class": f"{kind.__module__}:{kind.__qualname__}", "from": _distribution(kind)},
            "suite": {"level": LEVEL, "voldrivers": metadata.version("voldrivers"), "checks": len(by_id)},
            "environment": {"python": platform.python_version(), "kernel": platform.release()},
            "began": self.began.isoformat(),
            "seconds": round(self.seconds, 3),
            "reproduce": self.reproduce,
            "oracle": "used" if self.has_oracle else "none: verified through the driver only",
            "verdict": str(self.verdict),
            "totals": dict(self.totals),
            "capabilities": [
                {
                    "name": each.capability,
                    "declared": each.declared,
                    "proof": str(each.proof),
                    "checks": list(each.checks),
                }
                for each in self.evidence
            ],
            "results": [_result(by_id[result.id], result) for result in self.results],
        }

    def write(self, directory: Path) -> None:
        """Write report.json, report.html, junit.xml, capabilities.json and capabilities.md."""
        directory.mkdir(parents=True, exist_ok=True)
        document = self.document()
        _write_json(directory / "report.json", document)
        _write_json(directory / "capabilities.json", document["capabilities"])
        (directory / "capabilities.md").write_text(matrix([document]))
        (directory / "report.html").write_text(page(self))
        junit(self).write(directory / "junit.xml", encoding="utf-8", xml_declaration=True)


def read(path: Path) -> Document:
    """Read a report.json. Raises InvalidInput."""
    try:
        document = json.loads(path.read_text())
        schema = document["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"report {path}", f"cannot be read: {error!r}") from error
    if schema != SCHEMA:
        raise InvalidInput(f"report {path}", f"is of form {schema}, only {SCHEMA} is known here")
    found: Document = document
    return found


def differences(old: Document, new: Document) -> list[str]:
    """Tell what a later report says otherwise: lines for people, none where nothing has changed."""
    lines = []
    for table, name, value in (("capabilities", "name", "proof"), ("results", "id", "verdict")):
        before, after = (_column(document, table, name, value) for document in (old, new))
        lines += [
            f"{each}: {before.get(each, 'not there')} -> {after.get(each, 'not there')}"
            for each in dict.fromkeys([*before, *after])
            if before.get(each) != after.get(each)
        ]
    return lines


def matrix(documents: Sequence[Document]) -> str:
    """Write the support matrix of one driver, or of several side by side, as Markdown."""
    names = [str(_table(document, "driver")["class"]) for document in documents]
    proofs = [_column(document, "capabilities", "name", "proof") for document in documents]
    lines = [["capability", *names], ["---"] * (len(names) + 1)]
    lines += [[name, *(proof.get(name, "-") for proof in proofs)] for name in NAMES]
    lines += [["**verdict**", *(str(document["verdict"]) for document in documents)]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def junit(report: Report) -> "ElementTree.ElementTree[ElementTree.Element]":
    """Give the results as JUnit has them; each case holds id, capability and invariant as properties."""
    totals = Counter(result.verdict for result in report.results)
    suite = ElementTree.Element(
        "testsuite",
        name=f"voldrivers conformance {LEVEL}",
        tests=str(len(report.results)),
        failures=str(totals[Verdict.FAILED] + totals[Verdict.FIXED]),
        errors=str(totals[Verdict.ERROR]),
        skipped=str(totals[Verdict.NOT_APPLICABLE] + totals[Verdict.NOT_RUN] + totals[Verdict.KNOWN]),
        time=f"{report.seconds:.3f}",
    )
    for check, result in zip(report.checks, report.results, strict=True):
        case = ElementTree.SubElement(
            suite, "testcase", classname=GROUPS[check.group], name=check.id, time=f"{result.seconds:.3f}"
        )
        properties = ElementTree.SubElement(case, "properties")
        said = {"verdict": str(result.verdict), "capability": check.capability or check.absent}
        for name, value in (said | {"invariant": check.invariant}).items():
            ElementTree.SubElement(properties, "property", name=name, value=value)
        if kind := _JUNIT.get(result.verdict):
            ElementTree.SubElement(case, kind, message=result.text).text = "\n".join(result.calls)
    return ElementTree.ElementTree(suite)


def page(report: Report) -> str:
    """Write the report as one HTML file that needs no network."""
    document = report.document()
    head = f"{_table(document, 'driver')['class']}: {report.verdict}"
    rows = [(e.capability, e.declared, str(e.proof), " ".join(e.checks)) for e in report.evidence]
    results = [
        (check.id, str(result.verdict), check.invariant, result.text, f"{result.seconds:.2f} s")
        for check, result in zip(report.checks, report.results, strict=True)
    ]
    failed = [card(c, r) for c, r in zip(report.checks, report.results, strict=True) if r.calls]
    facts = [(name, json.dumps(document[name])) for name in _FACTS]
    return (
        f"<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>{escape(head)}</title>"
        f"<style>{_STYLE}</style><h1>{escape(head)}</h1>{_html(('', ''), facts)}"
        f"<h2>Capabilities</h2>{_html(('capability', 'declared', 'proof', 'checks'), rows)}"
        f"<h2>Checks</h2>{_html(('check', 'verdict', 'invariant', 'what was found', 'time'), results)}"
        f"{''.join(f'<pre>{escape(each)}</pre>' for each in failed)}</html>\n"
    )


def card(check: Check, result: Result) -> str:
    """Tell of one check that did not pass: what must hold, what was found, and every call that led there."""
    lines = [f"{check.id} {result.verdict}: {check.invariant}"]
    if result.invariant:
        lines.append(f"  {result.invariant}: {INVARIANTS[result.invariant]}")
    lines.append(f"  {result.text}")
    lines += [f"  {name}: {value}" for name, value in result.readings.items()]
    lines += [f"  hint: {check.hint}"] if check.hint else []
    return "\n".join([*lines, *(f"    {call}" for call in result.calls)])


_FACTS = ("suite", "environment", "began", "seconds", "oracle", "totals", "reproduce")
_STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{border:1px solid #bbb;padding:.2em .6em;text-align:left;vertical-align:top}"
    "pre{background:#eee;padding:1em}"
)
_JUNIT = {
    Verdict.FAILED: "failure",
    Verdict.FIXED: "failure",
    Verdict.ERROR: "error",
    Verdict.KNOWN: "skipped",
    Verdict.NOT_APPLICABLE: "skipped",
    Verdict.NOT_RUN: "skipped",
}


def _result(check: Check, result: Result) -> Document:
    return {
        "id": result.id,
        "verdict": str(result.verdict),
        "level": str(check.level),
        "capability": check.capability or check.absent,
        "checks": check.invariant,
        "seconds": round(result.seconds, 3),
        "text": result.text,
        "invariant": result.invariant,
        "readings": {name: str(value) for name, value in result.readings.items()},
        "calls": list(result.calls),
    }


def _distribution(kind: type[Driver]) -> str:
    """Name the package that a driver comes from, with its version."""
    package = kind.__module__.partition(".")[0]
    found = metadata.packages_distributions().get(package, ())
    return ", ".join(f"{name} {metadata.version(name)}" for name in dict.fromkeys(found)) or package


def _table(document: Document, name: str) -> Mapping[str, object]:
    value = document[name]
    assert isinstance(value, dict)
    return value


def _column(document: Document, table: str, name: str, value: str) -> dict[str, str]:
    rows = document[table]
    assert isinstance(rows, list)
    return {str(row[name]): str(row[value]) for row in rows}


def _html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_line("th", head), *(_line("td", row) for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def _line(kind: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")
