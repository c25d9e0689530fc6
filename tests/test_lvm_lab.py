"""The LVM driver in the lab: its own tests run on the machine that has the volume group."""

import pytest
from labs import run_tests

from voldrivers.lab.lab import Lab


@pytest.mark.timeout(600)  # a hundred lvm programs: a busy machine takes five times as long as an idle one
def test_the_driver_on_a_real_volume_group(lab: Lab) -> None:
    run_tests(lab, "storage", "lvm_driver.py", timeout_s=560)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_an_lvextend_killed_many_times(lab: Lab) -> None:
    limit_s, kills = 1700.0, "100"
    run_tests(
        lab, "storage", "lvm_driver.py", "-k", "any_moment", timeout_s=limit_s, VOLDRIVERS_TEST_KILLS=kills
    )
