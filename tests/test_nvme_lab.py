"""Volumes over NVMe/TCP in the lab: nvmet on the storage machine, the kernel's multipath on another one."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from labs import CHECKOUT, inside, shell
from lvmsite import NAME, SIZE, STEP, Controller

from voldrivers import process
from voldrivers.errors import CommandFailed
from voldrivers.guests.verified import DiskReport, read_report
from voldrivers.lab import levers, prepared, project
from voldrivers.lab.lab import Lab
from voldrivers.lvm.nvmeexport import NVMeExports
from voldrivers.model import Connector
from voldrivers.process import wait_until

_STATES = "cat /sys/class/nvme/*/state 2>/dev/null || true"
_LEFT = {
    "storage": "modprobe nvmet; find /sys/kernel/config/nvmet -mindepth 2; lvs --noheadings vg0",
    "compute": "ls /sys/class/nvme /sys/class/nvme-subsystem",
}
_CLEAR = """
cd /sys/kernel/config/nvmet
find ports/*/subsystems subsystems/*/allowed_hosts -type l -delete
rmdir subsystems/*/namespaces/* subsystems/* ports/* hosts/*
"""
_OTHER = "nqn.2014-08.org.example:other"


@dataclass(frozen=True)
class Options:
    target_prefix: str = "iqn.2010-10.org.openstack:"
    portals: tuple[str, ...] = ("10.77.1.1", "10.77.2.1")


def export(hosts: list[str]) -> str:
    """Export a new volume to hosts by their NQNs, and give its own."""
    name = ["--name", "volume-id-1", "vg0"]
    process.run(["lvcreate", "--quiet", "--yes", "--size", "64m", *name], timeout_s=60)
    exports = NVMeExports(Options(), process.run)
    for host in hosts:
        info = exports.open("id-1", Path("/dev/vg0/volume-id-1"), Connector(host, nqn=host), [])
    return info.properties["target_nqn"]


def close_to(host: str) -> None:
    NVMeExports(Options(), process.run).close_to("id-1", Connector(host, nqn=host))


def states(lab: Lab) -> list[str]:
    return shell(lab, "compute", _STATES).split()


def test_exports_on_a_real_nvmet(two_hosts: Lab) -> None:
    two_hosts.bring_project("storage", CHECKOUT)
    environment = {**project.ENVIRONMENT, "VOLDRIVERS_TEST_EACH": "3", "CI": "true"}
    more = ["-o", "timeout=280", "-o", "faulthandler_timeout=280", "--rootdir=/project"]
    argv = ["python3", "-m", "pytest", "-q", "-rP", "-p", "no:cacheprovider", *more]
    argv.append("/project/tests/inside/nvmet_target.py")
    try:
        print(two_hosts.machine("storage").channel.run(argv, timeout_s=280, env=environment).stdout)
    except CommandFailed as error:
        pytest.fail(error.reason)


def test_a_host_that_is_fenced_stays_out_and_the_others_come_back(two_hosts: Lab) -> None:
    name = shell(two_hosts, "compute", "cat /etc/nvme/hostnqn")
    nqn = inside(two_hosts, "storage", export, [name, _OTHER])
    connect = f"nvme connect --transport=tcp --trsvcid=4420 --nqn={nqn} --reconnect-delay=1"
    shell(two_hosts, "compute", f"{connect} --traddr=10.77.1.1")
    other = f"{connect} --traddr=10.77.2.1 --hostid=2cd2c43b-a90a-45c1-a8cd-86b33ab273b5"
    with pytest.raises(CommandFailed):
        shell(two_hosts, "compute", f"{other} --hostnqn=nqn.2014-08.org.example:nobody")
    shell(two_hosts, "compute", f"{other} --hostnqn={_OTHER}")
    assert states(two_hosts) == ["live", "live"]
    inside(two_hosts, "storage", close_to, name)
    wait_until(lambda: states(two_hosts) == ["connecting", "live"], 30, "the other one to come back")


def test_a_volume_in_use_grows_over_both_paths_or_says_why_not(two_hosts: Lab) -> None:
    before = {machine: shell(two_hosts, machine, command) for machine, command in _LEFT.items()}
    prepared.start_agent(two_hosts.machine("compute"))
    prepared.start_guest(two_hosts.machine("compute"))
    prepared.configure(two_hosts.machine("storage"), ["compute"])
    protocol = "sed -i '/^volume_group/a target_protocol = \"nvmet_tcp\"' /etc/voldrivers/voldrivers.toml"
    shell(two_hosts, "storage", protocol)
    controller = Controller(two_hosts)
    serial = controller.do("create", name=NAME, size_bytes=SIZE)[:20]
    assert controller.do("attach", host="compute", instance="guest") == "compute/guest"
    assert controller.do("extend", size_bytes=SIZE + STEP) == "completed"
    check_agreed(two_hosts, controller, serial, SIZE + STEP)

    levers.link_down(two_hosts, "compute", "b")
    wait_until(lambda: "connecting" in states(two_hosts), 60, "the path to be lost")
    answer = controller.do("extend", size_bytes=SIZE + 2 * STEP)
    assert answer.startswith("InvalidState"), answer
    assert "by portal 10.77.2.1:4420 is connecting, must be live" in answer
    levers.link_up(two_hosts, "compute", "b")
    wait_until(lambda: states(two_hosts) == ["live", "live"], 60, "both paths")
    check_agreed(two_hosts, controller, serial, SIZE + STEP)

    controller.start("extend", size_bytes=SIZE + 2 * STEP, pause_at="RemoteHost compute get_blockdev")
    shell(two_hosts, "storage", _CLEAR)
    wait_until(lambda: "live" not in states(two_hosts), 60, "all paths to be lost")
    assert "must be live" in controller.go_on()
    rows = {row["layer"]: row for row in controller.do("ledger")}
    assert (rows["LV"]["agrees"], rows["namespace"]["observed_bytes"]) == (True, None)
    controller.do("retry")  # the export is there again; the paths take some seconds
    wait_until(lambda: states(two_hosts) == ["live", "live"], 60, "both paths")
    if controller.do("volume")["status"] == "error_extending":
        assert controller.do("retry") == "completed"
    check_agreed(two_hosts, controller, serial, SIZE + 2 * STEP)

    assert controller.do("detach", name=NAME) is None
    assert controller.do("delete", name=NAME) is None
    for machine, command in _LEFT.items():
        assert shell(two_hosts, machine, command) == before[machine]


def check_agreed(lab: Lab, controller: Controller, serial: str, size_bytes: int) -> None:
    """Have records and every layer agree, the guest too, and the guest at work."""
    assert (found := controller.do("volume"))["status"] == "in-use", found
    assert found["size_bytes"] == size_bytes
    rows = controller.do("ledger")
    assert [row["layer"] for row in rows] == ["LV", "namespace", "path", "path", "multipath", "QEMU node"]
    assert {row["observed_bytes"] for row in rows} == {size_bytes}

    writes = disk(lab, serial).writes
    wait_until(lambda: disk(lab, serial).capacity_bytes == size_bytes, 20, "the guest to see it")
    wait_until(lambda: disk(lab, serial).writes > writes + 3, 60, "the guest to write")
    assert disk(lab, serial).problems == []


def disk(lab: Lab, serial: str) -> DiskReport:
    """What the guest saw of the volume."""
    report = read_report(shell(lab, "compute", "cat /run/lab/guest.report"))
    return next(disk for disk in report.disks if disk.serial == serial)
