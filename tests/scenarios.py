"""What went wrong elsewhere with extends (scenarios.toml), what would find it here, and the page of it."""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
FILE = Path(__file__).with_suffix(".toml")
#: The numbers that everybody else knows them by end here.
LAST = 56

_HEAD = """# What went wrong elsewhere, and what would find it here

Made by `tools/scenarios` of `tests/scenarios.toml`.

Public trackers and measurements know of {count} ways in which an extend goes wrong. Of each: what would
fail if it happened here, and what that leaves open, or why there is nothing. {covered} are tried in full,
{partly} in part, {open} not at all.

`EXI-001` and the like are checks of the [conformance suite](conformance.md), for everybody's drivers; [this
table](kill-table.md) has what each of them says. `MAC-001` and the like are what its stateful machine looks
at after every step, in any order of operations. Tests whose file ends in `_lab.py` need the [lab](lab.md);
those in `tests/inside` are run in one of its machines. LP is a bug at Launchpad
(`https://bugs.launchpad.net/bugs/NUMBER`); a path without a project is one in cinder 29.0.0, nova 34.0.0 or
os-brick 7.1.1.

| | what happened | found here by | not here |
|---|---|---|---|"""


@dataclass(frozen=True)
class Scenario:
    """Something that went wrong; `gap` is what its cover leaves open, or why there is no cover."""

    number: str
    title: str
    happened: str
    source: str
    cover: tuple[str, ...]
    gap: str = ""

    @property
    def row(self) -> str:
        """What the page says of it."""
        found = "<br>".join(f"`{each}`" for each in self.cover)
        return f"| {self.number} | **{self.title}.** {self.happened} ({self.source}) | {found} | {self.gap} |"


def read(text: str) -> tuple[Scenario, ...]:
    """Read the file. Raises tomllib.TOMLDecodeError for a number that is there twice, TypeError for a key."""
    return tuple(
        Scenario(number=number, **{**fields, "cover": tuple(fields["cover"])})
        for number, fields in tomllib.loads(text).items()
    )


def page(scenarios: tuple[Scenario, ...]) -> str:
    """Give the page as Markdown."""
    partly = sum(bool(each.cover and each.gap) for each in scenarios)
    none = sum(not each.cover for each in scenarios)
    covered = len(scenarios) - partly - none
    head = _HEAD.format(count=len(scenarios), covered=covered, partly=partly, open=none)
    return "\n".join([head, *(each.row for each in scenarios)]) + "\n"


def troubles(scenarios: tuple[Scenario, ...], checks: frozenset[str]) -> Iterator[str]:
    """Say what is wrong with them, where the conformance suite has these checks."""
    numbers, wanted = [each.number for each in scenarios], [f"S{n}" for n in range(1, LAST + 1)]
    if numbers != wanted:
        yield f"not S1 to S{LAST} in order: {sorted(set(numbers) ^ set(wanted))}"
    for each in scenarios:
        texts = (each.title, each.happened, each.source, each.gap)
        if not all(texts[:3]) or any(mark in text for text in texts for mark in "|\n"):
            yield f"{each.number}: a text is empty, or would break the table"
        if not each.cover and not each.gap:
            yield f"{each.number}: neither what finds it nor why nothing does"
        if len(set(each.cover)) < len(each.cover):
            yield f"{each.number}: something is named twice"
        for named in each.cover:
            if named not in checks and not is_test(named):
                yield f"{each.number}: there is no {named}"


def is_test(named: str) -> bool:
    """Tell whether this is the id of a test, file and function both."""
    file, _, function = named.partition("::")
    return function in _tests(CHECKOUT / file)


@cache
def _tests(path: Path) -> frozenset[str]:
    """Give the tests of a file, read and not imported."""
    if path.suffix != ".py" or not path.is_file():
        return frozenset()
    body = ast.parse(path.read_text()).body
    return frozenset(
        each.name for each in body if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")
    )
