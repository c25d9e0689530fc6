"""Volumes over NVMe/TCP in the lab: nvmet on the storage machine, the kernel's multipath on another one."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from labs import inside, run_tests, shell
from lvmsite import NAME, SIZE, STEP, Controller

from voldrivers import process
from voldrivers.errors import CommandFailed
from voldrivers.guests.verified import DiskReport, read_report
from voldrivers.lab import levers, prepared
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
#: Before the volume grows, and after.
_RESET_AT = ("LVMDriver lvm extend_volume", "RemoteHost compute get_blockdev")
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


@pytest.mark.full
@pytest.mark.timeout(1000)
def test_exports_on_a_real_nvmet(two_hosts: Lab) -> None:
    run_tests(two_hosts, "storage", "nvmet_target.py", timeout_s=900)


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


@pytest.mark.full
def test_a_volume_in_use_grows_over_both_paths_or_says_why_not(two_hosts: Lab) -> None:
    before = left(two_hosts)
    controller, serial = attached_to_a_guest(two_hosts)
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
    end_extend(two_hosts, controller)
    check_agreed(two_hosts, controller, serial, SIZE + 2 * STEP)

    assert controller.do("detach", name=NAME) is None
    assert controller.do("delete", name=NAME) is None
    assert left(two_hosts) == before


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_storage_machine_that_is_reset_gives_its_export_back(two_hosts: Lab) -> None:
    """nvmet has forgotten all then; the guest waits meanwhile."""
    before = left(two_hosts)
    controller, serial = attached_to_a_guest(two_hosts)
    reset_storage(two_hosts, controller)
    answer = controller.do("extend", size_bytes=SIZE + STEP)
    assert "must be live" in answer, answer
    assert "namespace" in controller.layers(stale=True)
    controller.do("repair")  # the export is there again; the paths take some seconds
    wait_until(lambda: states(two_hosts) == ["live", "live"], 60, "both paths")
    assert controller.do("repair") == []
    check_agreed(two_hosts, controller, serial, SIZE)

    for step, point in enumerate(_RESET_AT, 1):
        controller.start("extend", size_bytes=SIZE + step * STEP, pause_at=point)
        reset_storage(two_hosts, controller)
        print(controller.do("resume"))  # as above
        end_extend(two_hosts, controller)
        check_agreed(two_hosts, controller, serial, SIZE + step * STEP)
    assert controller.do("detach", name=NAME) is None
    assert controller.do("delete", name=NAME) is None
    assert left(two_hosts) == before


def left(lab: Lab) -> list[str]:
    """What there is of volumes on both machines."""
    return [shell(lab, machine, command) for machine, command in _LEFT.items()]


def attached_to_a_guest(lab: Lab) -> tuple[Controller, str]:
    """Give a controller with a volume that a guest works on, and the serial that the guest knows it by."""
    prepared.start_agent(lab.machine("compute"))
    prepared.start_guest(lab.machine("compute"))
    prepared.configure(lab.machine("storage"), ["compute"])
    protocol = "sed -i '/^volume_group/a target_protocol = \"nvmet_tcp\"' /etc/voldrivers/voldrivers.toml"
    shell(lab, "storage", f"{protocol}; sync")  # a reset loses what is not on a disk
    controller = Controller(lab)
    serial = controller.do("create", name=NAME, size_bytes=SIZE)[:20]
    assert controller.do("attach", host="compute", instance="guest") == "compute/guest"
    return controller, serial


def reset_storage(lab: Lab, controller: Controller) -> None:
    """Press the button, and start a controller again once all paths are known to be lost."""
    levers.reset(lab, "storage")
    controller.restart()
    wait_until(lambda: states(lab) == ["connecting", "connecting"], 60, "all paths to be lost")


def end_extend(lab: Lab, controller: Controller) -> None:
    """Wait for both paths, and go on where the extend has failed before they were there."""
    wait_until(lambda: states(lab) == ["live", "live"], 60, "both paths")
    if controller.do("volume")["status"] == "error_extending":
        assert controller.do("retry") == "completed"


def check_agreed(lab: Lab, controller: Controller, serial: str, size_bytes: int) -> None:
    """Have records and every layer agree, the guest too, and the guest at work."""
    assert (found := controller.do("volume"))["status"] == "in-use", found
    assert found["size_bytes"] == size_bytes
    rows = controller.do("ledger")
    assert [row["layer"] for row in rows] == ["LV", "namespace", "path", "path", "multipath", "QEMU node"]
    assert {row["observed_bytes"] for row in rows} == {size_bytes}

    # A guest rests as long as its last request took: one that waited for its storage, a minute or more.
    wait_until(lambda: disk(lab, serial).capacity_bytes == size_bytes, 150, "the guest to see it")
    writes = disk(lab, serial).writes
    wait_until(lambda: disk(lab, serial).writes > writes + 3, 150, "the guest to write")
    assert disk(lab, serial).problems == []


def disk(lab: Lab, serial: str) -> DiskReport:
    """What the guest saw of the volume."""
    report = read_report(shell(lab, "compute", "cat /run/lab/guest.report"))
    return next(disk for disk in report.disks if disk.serial == serial)
