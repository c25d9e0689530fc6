"""The support matrix: what drivers declare beside what reports prove, for people and programs.

Evidence counts for what it was taken of: the same class, of the same version, with the same declaration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from voldrivers.base import Driver
from voldrivers.capabilities import NAMES
from voldrivers.conformance.reports.evidence import Evidence, Proof, declaration, exceptions
from voldrivers.conformance.reports.packages import package
from voldrivers.conformance.reports.page import page, table
from voldrivers.conformance.reports.recorded import Recorded

_NOTHING = "-"


@dataclass(frozen=True)
class Column:
    """One driver: what is declared, what is proved, and what must be said of it."""

    title: str
    capabilities: tuple[Evidence, ...]
    notes: tuple[str, ...] = ()
    #: What proves it; None where nothing does.
    report: Recorded | None = None
    #: Whether the evidence, or some of it, counts for the driver that is installed here.
    counts: bool = True

    @property
    def verdict(self) -> str:
        """The verdict on the driver, where one counts."""
        return str(self.report.verdict) if self.report and self.counts else str(Proof.UNVERIFIED)

    def of(self, name: str) -> Evidence | None:
        """Give what there is of one capability."""
        return next((each for each in self.capabilities if each.capability == name), None)


def claimed(name: str, kind: type[Driver]) -> Column:
    """Give what a driver declares, none of it proved."""
    return Column(name, _declared(kind), ("no report of it was given",), counts=False)


def reported(report: Recorded, *said: str) -> Column:
    """Give what a report says as it stands, and what is said of it besides."""
    found = tuple(report.capabilities.values())
    return Column(_title(report.driver, report), found, (*said, *_open(report, found)), report)


def merged(name: str, kind: type[Driver], report: Recorded) -> Column:
    """Give what a driver declares with what a report of it proves.

    UNVERIFIED is what the report was not taken of: another version, another declaration.
    """
    here = package(kind)
    title, declared = _title(name, report), _declared(kind)
    if report.package != here:
        other = f"the report is of {report.package}, installed is {here}: nothing is proved of that"
        return Column(title, declared, (other,), report, counts=False)
    found, notes = [], []
    for each in declared:
        then = report.capabilities.get(each.capability)
        if then is not None and (then.declared, then.unless) == (each.declared, each.unless):
            found.append(then)
            continue
        found.append(each)
        before = _said(then) if then else "nothing"
        notes.append(f"{_shown(each.capability)}: the report is of {before}, declared is {_said(each)} now")
    return Column(title, tuple(found), (*notes, *_open(report, found)), report, counts=not notes)


def rows(columns: Sequence[Column]) -> list[list[str]]:
    """Give the matrix side by side, its head first: a row for each capability, and one of verdicts."""
    names = [
        *NAMES,
        *(e.capability for column in columns for e in column.capabilities if e.capability not in NAMES),
    ]
    lines = [["capability", *(column.title for column in columns)]]
    lines += [
        [_shown(name), *(_cell(column.of(name)) for column in columns)] for name in dict.fromkeys(names)
    ]
    lines.append(["verdict", *(column.verdict for column in columns)])
    lines.append(["proved by", *(_source(column) for column in columns)])
    return lines


def notes(columns: Sequence[Column]) -> list[str]:
    """Give what must be said of the columns: what is excepted, not proved, or not of what is installed."""
    said = []
    for column in columns:
        told = [f"{_shown(e.capability)}: not where {e.unless}" for e in column.capabilities if e.unless]
        said += [f"{column.title}: {each}" for each in (*told, *column.notes)]
    return said


def markdown(columns: Sequence[Column]) -> str:
    """Write the matrix as Markdown."""
    head, *lines = [[_plain(cell) for cell in row] for row in rows(columns)]
    table = [f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *lines)]
    said = [f"- {_plain(note)}\n" for note in notes(columns)]
    return "".join([*table, *(["\n"] if said else []), *said])


def html(columns: Sequence[Column]) -> str:
    """Write the matrix as one HTML file that needs no network."""
    title = "Capabilities, declared and proved"
    head, *lines = rows(columns)
    said = "".join(f"<li>{escape(note)}</li>" for note in notes(columns))
    return page(title, f"{table(head, lines)}<ul>{said}</ul>")


def _declared(kind: type[Driver]) -> tuple[Evidence, ...]:
    said = kind.capabilities
    return tuple(
        Evidence(name, declaration(said, name), Proof.UNVERIFIED, (), exceptions(said, name))
        for name in NAMES
    )


def _open(report: Recorded, found: Sequence[Evidence]) -> tuple[str, ...]:
    """Say of each capability which checks did not pass."""
    told = [(each, report.open(each)) for each in found]
    return tuple(
        f"{_shown(each.capability)} {each.proof}: {', '.join(open_)}" for each, open_ in told if open_
    )


def _said(found: Evidence) -> str:
    return f"{found.declared!r}" + (f" (not where {found.unless})" if found.unless else "")


def _title(name: str, report: Recorded) -> str:
    return f"{name} ({report.mode})" if report.mode else name


def _source(column: Column) -> str:
    if column.report is None:
        return _NOTHING
    return f"{column.report.package}, {column.report.level}, {column.report.began[:10]}"


def _cell(found: Evidence | None) -> str:
    return f"{found.declared}, {found.proof}" if found else _NOTHING


def _shown(capability: str) -> str:
    return capability.replace("_", "-")


def _plain(text: str) -> str:
    """Keep a cell of Markdown on its line and in its column; what looks like HTML is text."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")
