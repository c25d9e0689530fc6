"""Images in the lab: into logical volumes over iSCSI and multipath, and into files over real NFS."""

import json
from dataclasses import dataclass

import pytest
from labs import CHECKOUT, shell

from voldrivers.lab import levers
from voldrivers.lab.lab import Lab
from voldrivers.sizes import MiB

_LVM = """
[backend.b]
driver = "lvm"
volume_group = "vg0"
target_ip_addresses = "10.77.1.1,10.77.2.1"
"""
_NFS = """
[backend.b]
driver = "nfs"
share = "storage:/"
mount_options = "vers=4.2"
"""
_COMMAND = "PYTHONPATH=/project:/deps VOLDRIVERS_CONFIG=/etc/voldrivers/voldrivers.toml voldrivers"
#: A random head, a hole, and an end that fills no block.
_IMAGE = "{ head -c 70000000 /dev/urandom; head -c 30000000 /dev/zero; echo end; } >/run/image"
_IMAGE_BYTES = 100_000_004
IN_PLACE = pytest.mark.parametrize(
    "how",
    ["--extend-attached", pytest.param("--no-extend-attached", marks=pytest.mark.full)],
    ids=["in place", "detached each time"],
)


@dataclass(frozen=True)
class Machine:
    """The machine that has the records and the volume `v`."""

    lab: Lab
    name: str

    def do(self, command: str, before: str = "") -> str:
        """Run a command of ours, which must end well."""
        return shell(self.lab, self.name, f"{before}{_COMMAND} {command}", timeout_s=300)

    def refused(self, command: str, before: str = "") -> str:
        """Run one that must not; give its exit code and what it said."""
        line = f"{before}{_COMMAND} {command} 2>&1 && echo well || echo exit code $?"
        return shell(self.lab, self.name, line, timeout_s=300)

    def make(self, config: str, more: str = "") -> None:
        """Configure it, and attach a small volume."""
        self.lab.bring_project(self.name, CHECKOUT)
        text = f'state_dir = "/var/lib/voldrivers"\n[host.here]\nkind = "local"\n{config}'
        there = "/etc/voldrivers/voldrivers.toml"
        shell(self.lab, self.name, f"mkdir -p /etc/voldrivers; cat >{there} <<'END'\n{text}\nEND\n{_IMAGE}")
        self.do(f"volume create v 16M {more}")
        self.do("attach v")

    def check_written(self, how: str, before: str = "cat /run/image | ") -> dict[str, object]:
        """Write the image as one of unknown size, and read it back."""
        done: dict[str, object] = json.loads(self.do(f"image write v {how} --md5 --json", before))
        expected = shell(self.lab, self.name, "sha256sum </run/image").split()[0]
        assert (done["sha256"], done["size_bytes"]) == (expected, _IMAGE_BYTES)
        assert int(str(done["extends"])) >= 1
        assert (int(str(done["attaches"])) > 0) is (how == "--no-extend-attached")
        assert shell(self.lab, self.name, f"{_COMMAND} image read v | sha256sum").split()[0] == expected
        rows = json.loads(self.do("doctor v --json"))["rows"]
        assert {row["observed_bytes"] for row in rows} == {done["volume_bytes"]}
        return done

    def check_removed(self) -> None:
        """Take the volume away, which nothing holds any more."""
        self.do("detach v")
        self.do("volume delete v")


@IN_PLACE
@pytest.mark.parametrize("kind", ["thick", pytest.param("thin", marks=pytest.mark.full)])
def test_a_logical_volume_over_iscsi_gets_an_image(lab: Lab, how: str, kind: str) -> None:
    machine = Machine(lab, "storage")
    if kind == "thin":
        shell(lab, "storage", "lvcreate --quiet --yes --type thin-pool --size 1g --name vg0-pool vg0")
    option = "thin" if kind == "thin" else "default"
    machine.make(_LVM, f"--option lvm_type={option}")
    done = machine.check_written(how)
    assert done["direct"] is True
    if kind == "thin":
        used = "lvs --noheadings --options data_percent --select 'lv_name=~^volume-' vg0 | tr -d ' '"
        percent = float(shell(lab, "storage", used))
        assert percent * int(str(done["volume_bytes"])) / 100 < 80 * MiB, "zeros took room"
    machine.check_removed()


@pytest.mark.full
def test_a_group_that_is_full_leaves_an_image_that_is_not_whole(lab: Lab) -> None:
    machine = Machine(lab, "storage")
    machine.make(_LVM, "--option lvm_type=default")
    shell(lab, "storage", "lvcreate --quiet --yes --size 32m --name kept vg0")
    shell(lab, "storage", "lvcreate --quiet --yes --extents 100%FREE --name filler vg0")
    shell(lab, "storage", "lvremove --quiet --yes vg0/kept")
    said = machine.refused("image write v --extend-attached", "cat /run/image | ")
    assert "exit code 7" in said, said
    assert "not whole" in said
    assert "exit code 5" in machine.refused("image read v")
    shell(lab, "storage", "lvremove --quiet --yes vg0/filler")
    machine.check_written("--extend-attached")
    machine.check_removed()


@IN_PLACE
def test_a_file_over_nfs_gets_an_image(two_hosts: Lab, how: str) -> None:
    machine = Machine(two_hosts, "compute")
    machine.make(_NFS)
    done = machine.check_written(how)
    assert done["direct"] is True
    blocks = int(shell(two_hosts, "storage", "stat --format=%b /srv/nfs/volume-*"))
    assert blocks * 512 < 80 * MiB, "zeros took room"
    machine.check_removed()


@pytest.mark.full
def test_an_export_that_becomes_full_leaves_an_image_that_is_not_whole(two_hosts: Lab) -> None:
    machine = Machine(two_hosts, "compute")
    machine.make(_NFS)
    levers.pull(two_hosts, "nfs-fill", [])
    said = machine.refused("image write v --extend-attached", "cat /run/image | ")
    assert "exit code 7" in said, said
    levers.pull(two_hosts, "nfs-free", [])
    machine.check_written("--extend-attached")
    machine.check_removed()
