"""The suite itself: drivers that are right pass all of it."""

from pathlib import Path

import pytest
from liars import liars
from liars.liar import Liar

from voldrivers.capabilities import Capabilities
from voldrivers.conformance import Verdict, catalogue, memory, run_checks
from voldrivers.conformance.catalogue import Check
from voldrivers.conformance.runner import run_check
from voldrivers.memory import MemoryDriver, MemoryFileDriver


class OfflineDriver(MemoryDriver):
    """It can do what every driver must, and nothing more."""

    capabilities = Capabilities()


RIGHT = (MemoryDriver, MemoryFileDriver, OfflineDriver)


@pytest.mark.parametrize("check", catalogue(), ids=lambda check: check.id)
@pytest.mark.parametrize("driver", RIGHT, ids=lambda driver: driver.__name__)
def test_a_driver_that_is_right_passes(driver: type[MemoryDriver], check: Check) -> None:
    result = run_check(check, memory.subject(driver))
    assert result.verdict in (Verdict.PASSED, Verdict.NOT_APPLICABLE), result


def test_all_of_them_run_one_after_the_other() -> None:
    results = list(run_checks(memory.subject(MemoryDriver)))
    assert [result.id for result in results] == [check.id for check in catalogue()]


@pytest.mark.parametrize("liar", liars(), ids=lambda liar: liar.lie.__name__)
def test_a_liar_is_found_out(liar: Liar) -> None:
    check = next(each for each in catalogue() if each.id == liar.found_by)
    assert run_check(check, liar.subject()).verdict is Verdict.FAILED, liar.title


def test_every_check_is_the_one_that_finds_some_liar() -> None:
    found_by = {liar.found_by for liar in liars()}
    assert {check.id for check in catalogue()} == found_by


def test_the_kill_table_in_the_docs_has_every_lie() -> None:
    """Made by tools/kill-table."""
    table = (Path(__file__).parents[1] / "docs" / "kill-table.md").read_text()
    missing = [liar.title for liar in liars() if f"| {liar.title} | {liar.found_by} |" not in table]
    assert missing == []
