"""What lvm2 printed, read; the driver itself is tried in the lab."""

from collections.abc import Sequence

import pytest

from voldrivers.base import Completed
from voldrivers.errors import BackendError, CommandFailed
from voldrivers.lvm.lvmtools import LVM

#: Of lvm2 2.03.16, the disk below the group answering every read with an error.
NO_GROUPS = (
    '  {\n      "report": [\n          {\n              "vg": [\n              ]\n          }\n      ]\n  }\n'
)
SAID = "  Cannot process volume group vg0"


def of_unreadable_disks(argv: Sequence[str], *, timeout_s: float) -> Completed:
    assert timeout_s > 0
    if argv[0] == "vgs":
        return Completed(NO_GROUPS, "")
    raise CommandFailed("lvm", SAID, tuple(argv), 5)


def test_a_group_that_lvm_does_not_find_is_no_proof_that_its_volumes_are_gone() -> None:
    """As a NotFound it would be: a volume that is to be deleted would be forgotten."""
    with pytest.raises(BackendError, match=r"volume group vg0: .*its disks cannot be read") as raised:
        LVM(of_unreadable_disks, "vg0").report()
    assert not isinstance(raised.value, CommandFailed)
