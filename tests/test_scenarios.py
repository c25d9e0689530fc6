"""What went wrong elsewhere is found by something here, or says why not; what is named is there."""

import sys
import tomllib

import pytest
from scenarios import CHECKOUT, FILE, read, troubles

from voldrivers import process
from voldrivers.conformance import catalogue
from voldrivers.conformance.walks.machine import machine_checks

CHECKS = frozenset(check.id for check in (*catalogue(), *machine_checks()))


def test_every_scenario_is_found_by_something_that_exists_or_says_why_not() -> None:
    assert list(troubles(read(FILE.read_text()), CHECKS)) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[S56]", "[S57]", "not S1 to S56 in order: ['S56', 'S57']"),
        ("EXI-090", "EXI-999", "S4: there is no EXI-999"),
        ("MAC-014", "MAC-015", "S14: there is no MAC-015"),
        ("test_engine_faults.py::test_a_bug", "test_engine_faults.py::test_no_bug", "S3: there is no tests/"),
        ("tests/test_clients.py::", "tests/test_customers.py::", "S16: there is no tests/test_customers.py"),
        ("tests/test_compute_face.py::test_a_late", "tests::test_a_late", "S44: there is no tests::test_a_"),
        ("It is told of a job, without a cause that could be tried.", "", "S56: neither what finds it nor"),
        ('"EXO-003", "CRA-001"]', '"EXO-001", "CRA-001"]', "S23: something is named twice"),
        ("An in-use extend that", "In-use | out", "S4: a text is empty, or would break the table"),
    ],
)
def test_a_gap_is_noticed(old: str, new: str, said: str) -> None:
    text = FILE.read_text()
    assert old in text
    assert said in "\n".join(troubles(read(text.replace(old, new)), CHECKS))


def test_no_number_is_given_twice() -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        read(FILE.read_text().replace("[S2]", "[S1]"))


def test_the_page_is_up_to_date() -> None:
    """Made by tools/scenarios."""
    printed = process.run([sys.executable, str(CHECKOUT / "tools" / "scenarios")], timeout_s=60).stdout
    assert (CHECKOUT / "docs" / "scenarios.md").read_text() == printed
