"""The iSCSI target in the lab: its own tests on the storage machine, and what another machine sees of it."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from labs import inside, run_tests, shell

from voldrivers.errors import CommandFailed
from voldrivers.lab import levers
from voldrivers.lab.lab import Lab
from voldrivers.lvm.iscsiexport import new_chap
from voldrivers.lvm.target import Chap, Target
from voldrivers.sizes import MiB

ID, USER, SECRET = "id-1", "somebody", "very-secret-word"
IQN = f"iqn.2010-10.org.openstack:volume-{ID}"
COMPUTE = "iqn.1993-08.org.debian:01:compute"
SAVED = "/etc/rtslib-fb-target/saveconfig.json"
_LOG_IN = """
iqn=$1 portal=$2 user=$3 secret=$4
node="iscsiadm --mode node --target $iqn --portal $portal"
$node --op new >/dev/null
$node --op update --name node.session.scan --value manual
$node --op update --name node.session.initial_login_retry_max --value 1
if [ -n "$user" ]; then
    $node --op update --name node.session.auth.authmethod --value CHAP
    $node --op update --name node.session.auth.username --value "$user"
    $node --op update --name node.session.auth.password --value "$secret"
fi
$node --login >/dev/null
for host in /sys/class/scsi_host/*/scan; do echo "- - -" >$host; done
udevadm settle
ls /sys/class/iscsi_session/*/device/target*/*/block
"""


@dataclass(frozen=True)
class Options:
    target_prefix: str = "iqn.2010-10.org.openstack:"
    portals: tuple[str, ...] = ("10.77.1.1", "10.77.2.1")


def export(size_mib: int = 64) -> float:
    """Export a new volume to compute; give the seconds that it took."""
    from voldrivers import process

    name = f"volume-{ID}"
    process.run(["lvcreate", "--yes", "--size", f"{size_mib}m", "--name", name, "vg0"], timeout_s=60)
    # lvm2 2.03.16 flushes no disk: a power cut would take the volume itself away.
    process.run(["sync", "/dev/mapper/lab-pv"], timeout_s=60)
    target = Target(Options())
    target.exported()  # the import is not counted
    began = time.monotonic()
    target.ensure(ID, Path(f"/dev/vg0/{name}"), Chap(USER, SECRET))
    target.allow(ID, COMPUTE)
    return time.monotonic() - began


def lun_bytes() -> int:
    return Target(Options()).lun_bytes(ID)


def disallow() -> None:
    Target(Options()).disallow(ID, COMPUTE)


def remove() -> str:
    """Remove the export; give the error."""
    from voldrivers.errors import InvalidState

    try:
        Target(Options()).remove(ID)
    except InvalidState as error:
        return str(error)
    return ""


def log_in(lab: Lab, user: str, secret: str, portal: str = "10.77.1.1") -> str:
    argv = ["bash", "-euo", "pipefail", "-c", _LOG_IN, "bash", IQN, portal, user, secret]
    return lab.machine("compute").channel.run(argv, timeout_s=60).stdout.strip()


def test_the_target_on_a_real_lio(two_hosts: Lab) -> None:
    run_tests(two_hosts, "storage", "lio_target.py", "-k", "not killed_anywhere", timeout_s=280)


@pytest.mark.full
@pytest.mark.timeout(1300)
def test_the_target_killed_at_every_change(two_hosts: Lab) -> None:
    run_tests(two_hosts, "storage", "lio_target.py", "-k", "killed_anywhere", timeout_s=1200)


def test_an_initiator_with_the_secret_gets_in_and_no_other(two_hosts: Lab) -> None:
    print("ensure and allow, seconds:", inside(two_hosts, "storage", export))
    for user, secret in (("", ""), (USER, "wrong-secret"), ("nobody", SECRET)):
        with pytest.raises(CommandFailed, match="authorization failure"):
            log_in(two_hosts, user, secret)
    disk = log_in(two_hosts, USER, SECRET)
    device = f"/dev/{disk.split()[-1]}"
    shell(two_hosts, "compute", f"dd if=/dev/urandom of={device} bs=1M count=1 oflag=direct status=none")
    # What LIO itself answers, over the wire, with no rescan and no cache.
    capacity = f"sg_readcap --long {device} | grep -o 'Device size: [0-9]*' | tr -dc 0-9"
    assert int(shell(two_hosts, "compute", capacity)) == 64 * MiB == inside(two_hosts, "storage", lun_bytes)
    shell(two_hosts, "storage", f"lvextend --quiet --size 96m vg0/volume-{ID}")
    assert inside(two_hosts, "storage", lun_bytes) == 96 * MiB == int(shell(two_hosts, "compute", capacity))


def test_a_session_holds_the_target_until_it_is_fenced(two_hosts: Lab) -> None:
    inside(two_hosts, "storage", export)
    device = f"/dev/{log_in(two_hosts, USER, SECRET).split()[-1]}"
    assert f"in use by {COMPUTE}, must be logged out" in inside(two_hosts, "storage", remove)
    shell(
        two_hosts,
        "compute",
        f"dd if=/dev/zero of={device} bs=64k oflag=direct status=none >/dev/null 2>&1 & sleep 1",
    )
    inside(two_hosts, "storage", disallow)
    with pytest.raises(CommandFailed):  # no request of it comes through any more
        shell(two_hosts, "compute", f"timeout 5 dd if={device} of=/dev/null bs=4k count=1 iflag=direct")
    with pytest.raises(CommandFailed, match="authorization failure"):
        log_in(two_hosts, USER, SECRET, portal="10.77.2.1")
    assert inside(two_hosts, "storage", remove) == ""
    shell(two_hosts, "storage", f"lvremove --quiet --yes vg0/volume-{ID}")
    assert SECRET not in shell(two_hosts, "storage", "dmesg; cat /proc/*/cmdline | tr '\\0' ' '")


def power_cut(lab: Lab, machine: str) -> None:
    levers.power_off(lab, machine)
    levers.power_on(lab, machine)


@pytest.mark.full
@pytest.mark.parametrize("lever", [levers.reset, power_cut])
def test_an_export_is_there_after(two_hosts: Lab, lever: Callable[[Lab, str], None]) -> None:
    inside(two_hosts, "storage", export)
    lever(two_hosts, "storage")
    assert inside(two_hosts, "storage", lun_bytes) == 64 * MiB
    assert log_in(two_hosts, USER, SECRET)
    assert shell(two_hosts, "storage", f"stat --format=%a {SAVED}") == "600"


@pytest.mark.full
def test_a_removal_is_not_undone_by_a_power_cut(two_hosts: Lab) -> None:
    inside(two_hosts, "storage", export)
    assert inside(two_hosts, "storage", remove) == ""
    power_cut(two_hosts, "storage")
    assert json.loads(shell(two_hosts, "storage", f"cat {SAVED}"))["targets"] == []
    assert shell(two_hosts, "storage", "find /sys/kernel/config/target -name 'volume-*'") == ""


def test_no_name_is_taken_for_base64_by_the_kernel() -> None:
    """LIO reads what begins with 0b as base64, and no initiator of that name gets in."""
    drawn = [new_chap() for _ in range(5000)]
    assert {chap.user[0] for chap in drawn} == {"v"}
    assert len({chap.user for chap in drawn}) == len({chap.password for chap in drawn}) == 5000
    assert all(12 <= len(chap.password) <= 16 for chap in drawn)
