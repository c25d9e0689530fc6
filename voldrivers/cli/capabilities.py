"""`capabilities`: what drivers declare, what reports of conformance prove of it, and what has changed."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from voldrivers import plugins
from voldrivers.base import Driver
from voldrivers.cli import documents, failures
from voldrivers.cli.output import table, write_document, write_lines
from voldrivers.conformance.reports import matrix
from voldrivers.conformance.reports.comparison import Effect, changes
from voldrivers.conformance.reports.matrix import Column
from voldrivers.conformance.reports.packages import class_name
from voldrivers.conformance.reports.recorded import Recorded, read
from voldrivers.errors import VolDriverError


def capabilities(args: Namespace) -> int:
    """`capabilities`: of every installed driver, with or without a configuration."""
    shape = "json" if args.json else args.format
    if not args.evidence and shape in ("table", "json"):
        return _say_declared(shape)
    columns = _proved([read(Path(each)) for each in args.evidence]) if args.evidence else _claimed()
    if shape == "json":
        write_document([_document(each) for each in columns])
    else:
        write_lines(_SHAPES[shape](columns))
    return failures.OK


def compare(args: Namespace) -> int:
    """`capabilities diff`."""
    found = changes(read(Path(args.old)), read(Path(args.new)))
    if args.json:
        write_document(
            [{"what": c.what, "before": c.before, "after": c.after, "effect": str(c.effect)} for c in found]
        )
    else:
        write_lines([str(each) for each in found] or ["nothing has changed"])
    return failures.STALE if any(each.effect is Effect.WORSE for each in found) else failures.OK


COMMANDS: Mapping[str, Callable[[Namespace], int]] = {
    "capabilities": capabilities,
    "compare_capabilities": compare,
}


def _say_declared(shape: str) -> int:
    listed = [documents.declared(name) for name in plugins.driver_names()]
    if shape == "json":
        write_document([each.document() for each in listed])
        return failures.OK
    rows = [(d.driver, c.name, c.value, c.unless) for d in listed for c in d.capabilities]
    lines = table(("DRIVER", "CAPABILITY", "DECLARED", "NOT FOR"), rows)
    write_lines(lines + [f"driver {d.driver} cannot be used: {d.problem}" for d in listed if d.problem])
    return failures.OK


def _claimed() -> list[Column]:
    """Give a column for each installed driver."""
    usable, problems = _installed()
    unusable = [
        Column(name, (), (f"it cannot be used: {why}",), counts=False) for name, why in problems.items()
    ]
    return [*(matrix.claimed(name, kind) for name, kind in usable.items()), *unusable]


def _proved(reports: Sequence[Recorded]) -> list[Column]:
    """Give a column for each report; what it proves counts for the driver as it is installed here."""
    usable, _problems = _installed()
    names = {class_name(kind): name for name, kind in usable.items()}
    return [
        matrix.merged(names[report.driver], usable[names[report.driver]], report)
        if report.driver in names
        else matrix.reported(
            report, "it is not installed here, or cannot be used: this is what the report has"
        )
        for report in reports
    ]


def _installed() -> tuple[Mapping[str, type[Driver]], Mapping[str, str]]:
    """Find the drivers that can be used, and why the others cannot."""
    usable: dict[str, type[Driver]] = {}
    problems: dict[str, str] = {}
    for name in plugins.driver_names():
        try:
            usable[name] = plugins.driver_class(name)
        except VolDriverError as error:
            problems[name] = str(error)
    return usable, problems


def _text(columns: Sequence[Column]) -> list[str]:
    head, *rows = matrix.rows(columns)
    return [
        *table([cell.upper() if cell == head[0] else cell for cell in head], rows),
        *matrix.notes(columns),
    ]


_SHAPES: Mapping[str, Callable[[Sequence[Column]], list[str]]] = {
    "table": _text,
    "markdown": lambda columns: matrix.markdown(columns).splitlines(),
    "html": lambda columns: matrix.html(columns).splitlines(),
}


def _document(column: Column) -> documents.Object:
    report = column.report
    return {
        "driver": column.title,
        "capabilities": [
            {
                "name": each.capability.replace("_", "-"),
                "declared": each.declared,
                "unless": each.unless,
                "proof": str(each.proof),
                "checks": list(each.checks),
            }
            for each in column.capabilities
        ],
        "verdict": column.verdict,
        "notes": list(column.notes),
        "evidence": None if report is None else _evidence(report),
    }


def _evidence(report: Recorded) -> documents.Object:
    return {
        "report": report.source,
        "class": report.driver,
        "from": report.package,
        "mode": report.mode,
        "level": report.level,
        "began": report.began,
        "verdict": str(report.verdict),
    }
