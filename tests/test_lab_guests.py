"""Guests in the lab, from the states that it prepares: they see the new size, and lose nothing on the way."""

import json

import pytest
from inside import functions
from labs import CHECKOUT, inside, shell

from voldrivers.errors import InvalidInput
from voldrivers.guests.verified import DiskReport, Report, read_report
from voldrivers.lab import levers, project
from voldrivers.lab.lab import Lab
from voldrivers.process import wait_until
from voldrivers.sizes import MiB

SMALL, LARGE = 64 * MiB, 96 * MiB


def voldrivers(lab: Lab, machine: str, command: str) -> str:
    lab.bring_project(machine, CHECKOUT)
    channel = lab.machine(machine).channel
    return channel.run(["voldrivers", *command.split()], timeout_s=120, env=project.ENVIRONMENT).stdout


def report(lab: Lab) -> Report:
    """What the guest saw until now."""
    return read_report(shell(lab, "compute", "cat /run/lab/guest.report"))


def over_iscsi(lab: Lab) -> DiskReport:
    logical_volume = shell(lab, "storage", "ls /dev/vg0")
    return next(disk for disk in report(lab).disks if disk.serial in logical_volume)


def wait_for_work(lab: Lab) -> None:
    """Wait until the guest has written to all its disks again."""
    before = {disk.serial: disk.writes for disk in report(lab).disks}
    wait_until(lambda: all(disk.writes > before[disk.serial] for disk in report(lab).disks), 60, "work")


def end(lab: Lab) -> Report:
    """Let the guest read everything once more, and end."""
    shell(lab, "compute", "pkill --full voldrivers.guests.verified")
    wait_until(lambda: report(lab).ended, 60, "the guest's last report")
    return report(lab)


@pytest.mark.full
def test_both_volumes_of_a_guest_at_work_are_extended(attached: Lab) -> None:
    assert [disk.capacity_bytes for disk in report(attached).disks] == [SMALL, SMALL]
    assert "extended from 64 MiB to 96 MiB" in voldrivers(attached, "compute", "extend data 96M")
    assert "extended from 64 MiB to 96 MiB" in voldrivers(attached, "storage", "extend attached 96M")
    wait_until(lambda: {d.capacity_bytes for d in report(attached).disks} == {LARGE}, 30, "the new sizes")
    wait_for_work(attached)
    ended = end(attached)
    assert ended.is_good, ended
    assert not any(disk.errors for disk in ended.disks)


def test_a_guest_at_work_goes_on_over_the_other_path(attached: Lab) -> None:
    wait_for_work(attached)
    levers.link_down(attached, "compute", "b")
    wait_for_work(attached)
    levers.link_up(attached, "compute", "b")
    ended = end(attached)
    assert ended.is_good, ended
    assert over_iscsi(attached).errors == 0


def test_what_a_broken_volume_loses_is_noticed(attached: Lab) -> None:
    wait_for_work(attached)
    shell(attached, "storage", "dd if=/dev/urandom of=$(ls /dev/vg0/volume-*) bs=1M count=64 oflag=direct")
    wait_until(lambda: bool(over_iscsi(attached).problems), 60, "the guest to notice")
    assert "not what" in over_iscsi(attached).problems[0]


@pytest.mark.full
def test_the_kernel_of_a_guest_in_the_lab_prints_the_new_size(linux_guest: Lab) -> None:
    config = '[backend.nfs]\ndriver = "nfs"\nshare = "storage:/"'
    text = f'state_dir = "/var/lib/voldrivers"\n{config}'
    shell(
        linux_guest,
        "compute",
        f"mkdir /etc/voldrivers; cat >/etc/voldrivers/voldrivers.toml <<'END'\n{text}\nEND",
    )
    voldrivers(linux_guest, "compute", "volume create data 64M")
    voldrivers(linux_guest, "compute", "attach data --qmp /run/lab/guest.qmp")
    console = "cat /run/lab/guest.console"
    wait_until(lambda: "[vda]" in shell(linux_guest, "compute", console), 60, "the kernel to find its disk")
    assert "new size" not in shell(linux_guest, "compute", console)
    voldrivers(linux_guest, "compute", "extend data 96M")
    assert "[vda] new size: 196608 512-byte logical blocks" in shell(linux_guest, "compute", console)
    assert inside(linux_guest, "compute", functions.guest_shell, "cat /sys/block/vda/size") == "196608\n"
    rows = json.loads(voldrivers(linux_guest, "compute", "doctor data --json"))["rows"]
    # Its agent may be slower than `doctor` waits: TCG under TCG.
    assert {row["observed_bytes"] for row in rows} - {None} == {LARGE}


def test_a_prepared_state_keeps_its_name(lab: Lab) -> None:
    with pytest.raises(InvalidInput, match="state 'attached'"):
        lab.save("attached")
