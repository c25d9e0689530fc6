"""The LVM driver in the lab: its own tests run on the machine that has the volume group."""

import pytest
from labs import run_tests

from voldrivers.lab.lab import Lab

#: What takes longest in there: lvextend killed at random moments, and most of the clearing.
_LONG = "any_moment or at_delete or interrupted_is_done_again"


def test_the_driver_on_a_real_volume_group(lab: Lab) -> None:
    run_tests(lab, "storage", "lvm_driver.py", "-k", f"not ({_LONG})", timeout_s=500)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_an_lvextend_killed_many_times_and_clearing(lab: Lab) -> None:
    limit_s, kills = 1700.0, "100"
    run_tests(lab, "storage", "lvm_driver.py", "-k", _LONG, timeout_s=limit_s, VOLDRIVERS_TEST_KILLS=kills)
