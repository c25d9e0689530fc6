"""The LVM driver in the lab: its own tests run on the machine that has the volume group."""

import pytest
from labs import run_tests

from voldrivers.lab.lab import Lab

#: What takes longest in there: lvextend killed at random moments, half of its steps, most of the clearing.
_LONG = (
    "any_moment or at_delete or interrupted_is_done_again or waits or (known_step and thick and suspended)"
)


@pytest.mark.full
def test_the_driver_on_a_real_volume_group(lab: Lab) -> None:
    run_tests(lab, "storage", "lvm_driver.py", "-k", f"not ({_LONG})", timeout_s=500)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_an_lvextend_killed_many_times_and_clearing(lab: Lab) -> None:
    limit_s, kills = 1700.0, "100"
    run_tests(lab, "storage", "lvm_driver.py", "-k", _LONG, timeout_s=limit_s, VOLDRIVERS_TEST_KILLS=kills)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_snapshots_clones_and_what_is_taken_over_in_every_order(lab: Lab) -> None:
    run_tests(lab, "storage", "lvm_snapshots.py", "-k", "not killed", timeout_s=3500.0)


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("how", ["again_and_again", "at_one_point", "at_any_moment"])
def test_operations_on_snapshots_killed_everywhere(lab: Lab, how: str) -> None:
    run_tests(lab, "storage", "lvm_snapshots.py", "-k", how, timeout_s=7100.0, VOLDRIVERS_TEST_KILLS="6")
