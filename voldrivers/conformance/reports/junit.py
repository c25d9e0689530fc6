"""Results as JUnit has them, for whatever shows the tests of a build."""

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from voldrivers.conformance.catalogue import GROUPS, Check
from voldrivers.conformance.verdicts import Result, Verdict

#: What stands in a case that did not pass; a provisional one is skipped, whatever came out of it.
_ELEMENTS = {
    Verdict.FAILED: "failure",
    Verdict.FIXED: "failure",
    Verdict.ERROR: "error",
    Verdict.KNOWN: "skipped",
    Verdict.NOT_APPLICABLE: "skipped",
    Verdict.NOT_RUN: "skipped",
    Verdict.FINDING: "system-out",
}


def junit(
    name: str, rows: Sequence[tuple[Check, Result]], seconds: float
) -> "ElementTree.ElementTree[ElementTree.Element]":
    """Write checks with their results; each case holds verdict, capability and invariant as properties."""
    totals = Counter(_element(check, result) for check, result in rows)
    suite = ElementTree.Element(
        "testsuite",
        name=name,
        tests=str(len(rows)),
        failures=str(totals["failure"]),
        errors=str(totals["error"]),
        skipped=str(totals["skipped"]),
        time=f"{seconds:.3f}",
    )
    for check, result in rows:
        case = ElementTree.SubElement(
            suite, "testcase", classname=GROUPS[check.group], name=check.id, time=f"{result.seconds:.3f}"
        )
        properties = ElementTree.SubElement(case, "properties")
        said = {"verdict": check.shown(result.verdict), "capability": check.capability or check.absent}
        for key, value in (said | {"invariant": check.invariant}).items():
            ElementTree.SubElement(properties, "property", name=key, value=value)
        if kind := _element(check, result):
            ElementTree.SubElement(case, kind, message=_text(result.text)).text = _text(
                "\n".join(result.calls)
            )
    return ElementTree.ElementTree(suite)


def _element(check: Check, result: Result) -> str:
    kind = _ELEMENTS.get(result.verdict, "")
    return "skipped" if check.provisional else kind


def _text(text: str) -> str:
    """Escape what XML has no way to hold: most control characters, and halves of characters."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
