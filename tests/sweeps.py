"""What crash sweeps covered: points at which was killed, of points in all; printed, and kept in build/.

Each test writes its figures into its own report: so they get to the process that prints, from whichever
process (pytest-xdist) ran the test, and only of tests that passed.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

_PROPERTY = "crash sweep"


@dataclass(frozen=True)
class Figures:
    """What one test covered of one scenario, and what there is."""

    sweep: str
    scenario: str
    points: int
    all_points: int
    pairs: int = 0
    all_pairs: int = 0

    def __str__(self) -> str:
        points = f"{self.points} of {self.all_points} points"
        pairs = f"{self.pairs} of {self.all_pairs} pairs of points, the second while resuming"
        return f"{self.scenario}: {points}" + (f", {pairs}" if self.all_pairs else "")


def count(request: pytest.FixtureRequest, figures: Figures) -> None:
    """Count what the test of this request covered."""
    request.node.user_properties.append((_PROPERTY, json.dumps(asdict(figures))))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = list(_found(terminalreporter))
    for sweep in sorted({figures.sweep for figures in found}):
        lines = sorted(str(figures) for figures in found if figures.sweep == sweep)
        path = config.rootpath / "build" / f"crash-sweep-{sweep.lower().replace(' ', '-')}.txt"
        _write(path, [*lines, str(_sum(found, sweep))])
        terminalreporter.section(f"crash sweep {sweep}")
        terminalreporter.write_line(f"{_sum(found, sweep)}; by scenario: {path}")


def _found(terminalreporter: pytest.TerminalReporter) -> Iterator[Figures]:
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == _PROPERTY:
                yield Figures(**json.loads(str(value)))


def _sum(found: list[Figures], sweep: str) -> Figures:
    chosen = [figures for figures in found if figures.sweep == sweep]
    total = Counter[str]()
    for figures in chosen:
        total.update({name: value for name, value in asdict(figures).items() if isinstance(value, int)})
    return Figures(sweep, f"{len(chosen)} scenarios", **total)


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
