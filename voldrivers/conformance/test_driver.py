"""The catalogue as tests: see `voldrivers.cli.pytestplugin`."""

import pytest

from voldrivers.conformance.catalogue import catalogue
from voldrivers.conformance.reports.report import card
from voldrivers.conformance.trials.trial import Running
from voldrivers.conformance.verdicts import Verdict

_BAD = (Verdict.FAILED, Verdict.FIXED, Verdict.ERROR)


def test_check(voldrivers_run: Running, voldrivers_check: str) -> None:
    """Have one check of the catalogue hold."""
    (check,) = (each for each in catalogue() if each.id == voldrivers_check)
    result = voldrivers_run.try_out(check)
    if result.verdict in _BAD:
        pytest.fail(card(check, result), pytrace=False)
    if result.verdict is not Verdict.PASSED:
        pytest.skip(f"{result.verdict}: {result.text}")
