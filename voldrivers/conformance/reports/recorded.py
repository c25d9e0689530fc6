"""A report as its file has it, read back; what is no report, or one that does not add up, is refused."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from voldrivers.conformance.reports.evidence import Conformance, Evidence, Proof
from voldrivers.errors import InvalidInput

#: The form of report.json; a reader refuses another one.
SCHEMA = 1

Word = TypeVar("Word", bound=StrEnum)


@dataclass(frozen=True)
class Recorded:
    """What a report says, and where it was found."""

    source: str
    #: The driver's class as MODULE:NAME, the package it came from with its version, and how it was set up.
    driver: str
    package: str
    mode: str
    #: The level of the catalogue.
    level: str
    began: str
    verdict: Conformance
    capabilities: Mapping[str, Evidence]
    #: How each check ended, by its id.
    results: Mapping[str, str]

    def open(self, found: Evidence) -> tuple[str, ...]:
        """Name the checks of a capability that did not pass, and how they ended."""
        ended = [(each, self.results.get(each, "not there")) for each in found.checks]
        return tuple(f"{check_id} {verdict}" for check_id, verdict in ended if verdict != "PASS")


def read(path: Path) -> Recorded:
    """Read a report.json. Raises InvalidInput, which says what is wrong with it."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"report {path}", f"cannot be read: {error}") from error
    return recorded(document, str(path))


def recorded(document: object, source: str) -> Recorded:
    """Take what a document says. Raises InvalidInput."""
    try:
        return _recorded(_Table(document, "it"), source)
    except ValueError as error:
        raise InvalidInput(f"report {source}", str(error)) from error


@dataclass(frozen=True)
class _Table:
    """One object of the document; whatever is not as it must be is a ValueError that says where."""

    value: object
    where: str

    def get(self, key: str, kind: type) -> object:
        if not isinstance(self.value, dict) or key not in self.value:
            raise ValueError(f"{self.where} has no {key!r}")
        found: object = self.value[key]
        if not isinstance(found, kind) or isinstance(found, bool):
            raise ValueError(f"{key} of {self.where} is no {kind.__name__}: {str(found)[:40]!r}")
        return found

    def text(self, key: str) -> str:
        return str(self.get(key, str))

    def word(self, key: str, kind: type[Word]) -> Word:
        text = self.text(key)
        if text not in set(kind):
            raise ValueError(f"{key} of {self.where} is {text[:40]!r}, not one of {', '.join(kind)}")
        return kind(text)

    def texts(self, key: str) -> tuple[str, ...]:
        found = self.get(key, list)
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise ValueError(f"{key} of {self.where} is no list of texts")
        return tuple(found)

    def table(self, key: str) -> "_Table":
        return _Table(self.get(key, dict), key)

    def tables(self, key: str) -> "Iterator[_Table]":
        found = self.get(key, list)
        assert isinstance(found, list)
        return (_Table(each, f"{key}[{number}]") for number, each in enumerate(found))


def _recorded(table: _Table, source: str) -> Recorded:
    schema = table.get("schema", int)
    if schema != SCHEMA:
        raise ValueError(f"it is of form {schema}, only {SCHEMA} is known here")
    driver, suite = table.table("driver"), table.table("suite")
    found = {each.capability: each for each in map(_evidence, table.tables("capabilities"))}
    return Recorded(
        source,
        driver.text("class"),
        driver.text("from"),
        driver.text("mode"),
        suite.text("level"),
        table.text("began"),
        table.word("verdict", Conformance),
        found,
        _results(table, suite),
    )


def _evidence(row: _Table) -> Evidence:
    name, declared, proof = row.text("name"), row.text("declared"), row.word("proof", Proof)
    return Evidence(name, declared, proof, row.texts("checks"), row.text("unless"))


def _results(table: _Table, suite: _Table) -> Mapping[str, str]:
    """Give what came out of each check, where that and the totals are all of the catalogue, each once."""
    rows = [(row.text("id"), row.text("verdict")) for row in table.tables("results")]
    totals, counted = table.table("totals").value, Counter(verdict for _, verdict in rows)
    whole = suite.get("checks", int)
    if totals != counted or not len(rows) == len(dict(rows)) == whole:
        raise ValueError(f"it does not add up: {len(rows)} results of {whole} checks, in total {totals}")
    return dict(rows)
