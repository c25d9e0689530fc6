"""The NFS driver on real NFS: an export of the storage machine, extended in use from the compute machine."""

import json
import re
from dataclasses import dataclass

import pytest
from labs import CHECKOUT, LOGS, shell

from voldrivers.errors import CommandFailed
from voldrivers.lab import levers, project
from voldrivers.lab.lab import Lab
from voldrivers.sizes import MiB

SMALL, LARGE = 64 * MiB, 96 * MiB
#: QEMU needs no guest for this: it holds the file, and shows what a guest would see.
_QEMU = (
    "qemu-system-x86_64 -name vm -M pc -m 64 -nodefaults -display none -S -daemonize"
    " -pidfile /run/vm.pid -qmp unix:/run/vm.qmp,server=on,wait=off"
)
_CONFIG = """
state_dir = "/var/lib/voldrivers"
[policy]
deadline_s = 30.0
[backend.files]
driver = "nfs"
share = "{share}"
mount_options = "{options}"
"""
_FAILED = re.compile(r"voldrivers: (.*)")


@dataclass(frozen=True)
class Ran:
    """What a command ended with: its exit code, and what it printed to whom."""

    code: int
    text: str


class Operator:
    """Somebody at the compute machine, with a volume `v` that a QEMU has."""

    def __init__(self, lab: Lab, options: str, share: str = "storage:/") -> None:
        self.lab = lab
        lab.bring_project("compute", CHECKOUT)
        config = _CONFIG.format(options=options, share=share)
        there = "/etc/voldrivers/voldrivers.toml"
        shell(lab, "compute", f"mkdir -p /etc/voldrivers; cat >{there} <<'END'\n{config}\nEND")

    def run(self, command: str, timeout_s: float = 120.0) -> Ran:
        argv = ["voldrivers", *command.split()]
        try:
            done = self.lab.machine("compute").channel.run(argv, timeout_s=timeout_s, env=project.ENVIRONMENT)
        except CommandFailed as error:
            ran = Ran(error.exit_code or 0, error.reason)
            assert "Traceback" not in ran.text
            return ran
        return Ran(0, done.stdout)

    def do(self, command: str) -> str:
        ran = self.run(command)
        assert ran.code == 0, ran.text
        return ran.text

    def attach(self, more: str = "") -> None:
        """Make a volume and give it to a QEMU."""
        shell(self.lab, "compute", _QEMU)
        self.do(f"volume create v {SMALL} {more}")
        self.do("attach v --qmp /run/vm.qmp")

    def check(self, size_bytes: int, status: str = "in-use") -> None:
        """Have the records, every layer and the server's own file agree."""
        doctor = json.loads(self.do("doctor v --json"))
        assert {row["observed_bytes"] for row in doctor["rows"]} == {size_bytes}, doctor
        shown = json.loads(self.do("volume show v --json"))
        assert (shown["size_bytes"], shown["status"]) == (size_bytes, status)
        # What the server has, asked there: not what a client's cache says.
        assert shell(self.lab, "storage", "stat --format=%s /srv/nfs/volume-*") == str(size_bytes)


@pytest.fixture
def operator(two_hosts: Lab) -> Operator:
    return Operator(two_hosts, "vers=4.2")


def test_extends_in_use_over_a_share_that_it_mounts_itself(operator: Operator) -> None:
    operator.attach("--preallocate")
    path = shell(operator.lab, "compute", "findmnt --noheadings --output TARGET --types nfs4")
    file = shell(operator.lab, "compute", f"ls {path}/volume-*")
    with pytest.raises(CommandFailed, match=r'Failed to get "(write|resize|consistent read)" lock'):
        shell(operator.lab, "compute", f"qemu-img resize -f raw {file} {LARGE}")
    operator.do(f"extend v {LARGE}")
    operator.check(LARGE)
    blocks = shell(operator.lab, "storage", "stat --format=%b /srv/nfs/volume-*")
    assert int(blocks) * 512 >= LARGE, "the new range has no blocks"


def test_a_server_that_is_away_is_refused_in_time_and_works_again(operator: Operator) -> None:
    operator.attach()
    levers.nfs_stop(operator.lab)
    ran = operator.run(f"extend v {LARGE}", timeout_s=60)
    assert (ran.code, "is not answering" in ran.text) == (5, True), ran.text
    levers.nfs_start(operator.lab)
    operator.check(SMALL)
    operator.do(f"extend v {LARGE}")
    operator.check(LARGE)


def test_a_server_that_was_reset_keeps_what_was_extended(operator: Operator) -> None:
    operator.attach()
    operator.do(f"extend v {LARGE}")
    levers.reset(operator.lab, "storage")
    operator.check(LARGE)
    operator.do(f"extend v {2 * LARGE}")
    operator.check(2 * LARGE)


@pytest.mark.full
@pytest.mark.parametrize(
    ("cause", "cure", "code"),
    [
        pytest.param("nfs-fill", "nfs-free", 7, id="full"),
        pytest.param("nfs-read-only", "nfs-writable", 5, id="read-only"),
    ],
)
def test_a_share_that_takes_nothing_is_refused_and_works_again(
    operator: Operator, cause: str, cure: str, code: int
) -> None:
    operator.attach("--preallocate")
    levers.pull(operator.lab, cause, [])
    ran = operator.run(f"extend v {LARGE}")
    assert (ran.code, "volume v" in ran.text) == (code, True), ran.text
    operator.check(SMALL)
    levers.pull(operator.lab, cure, [])
    operator.do(f"extend v {LARGE}")
    operator.check(LARGE)


@pytest.mark.full
def test_a_volume_whose_qemu_has_ended_grows_where_the_lock_proves_it(operator: Operator) -> None:
    operator.attach()
    shell(operator.lab, "compute", "kill -9 $(cat /run/vm.pid)")
    operator.do(f"extend v {LARGE}")
    operator.check(LARGE)


@pytest.mark.full
def test_no_lock_proves_anything_over_nfs_3_without_locks(two_hosts: Lab) -> None:
    levers.nfs_3(two_hosts, grace_s=1)
    operator = Operator(two_hosts, "vers=3,nolock", "storage:/srv/nfs")
    operator.attach()
    operator.do(f"extend v {LARGE}")
    operator.check(LARGE)
    shell(two_hosts, "compute", "kill -9 $(cat /run/vm.pid)")
    ran = operator.run(f"extend v {2 * LARGE}")
    assert (ran.code, "mounted as nfs" in ran.text) == (5, True), ran.text
    assert json.loads(operator.do("volume show v --json"))["size_bytes"] == LARGE


@pytest.mark.full
def test_what_others_do_behind_the_records_back_over_nfs(two_hosts: Lab) -> None:
    run_over_nfs(two_hosts, "vers=4.2", "test_meddling_real.py", timeout_s=280)


#: Version 3 has no fallocate, and no lock that proves that nobody has a file: both are refused there.
REFUSED_OVER_3 = "not (preallocated or without_an_instance or provably_gone or in_another_qemus_hands)"


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("options", "chosen"), [("vers=4.2", ""), ("vers=3", REFUSED_OVER_3)], ids=["4.2", "3"]
)
def test_every_fault_of_an_extend_over_nfs(two_hosts: Lab, options: str, chosen: str) -> None:
    if options == "vers=3":
        levers.nfs_3(two_hosts, grace_s=3)
    run_over_nfs(two_hosts, options, "test_extend_real.py", "-k", chosen, timeout_s=3500)


def run_over_nfs(lab: Lab, options: str, tests: str, *chosen: str, timeout_s: float) -> None:
    """Run tests of local directories in the compute machine, with their share on NFS."""
    lab.bring_project("compute", CHECKOUT)
    export = "storage:/srv/nfs" if "vers=3" in options else "storage:/"
    shell(lab, "compute", f"mount -t nfs -o {options} {export} /mnt")
    environment = {**project.ENVIRONMENT, "VOLDRIVERS_TEST_SHARES": "/mnt", "CI": "true"}
    limits = ["--override-ini=timeout=900", "--override-ini=faulthandler_timeout=1000"]
    results = ["--rootdir=/project", "-p", "no:cacheprovider", "--junitxml=/results/nfs.xml"]
    argv = ["python3", "-m", "pytest", "-q", *limits, *results, f"/project/tests/{tests}", *chosen]
    channel = lab.machine("compute").channel
    try:
        print(channel.run(argv, timeout_s=timeout_s, env=environment).stdout)
    finally:
        LOGS.mkdir(parents=True, exist_ok=True)
        (LOGS / f"nfs-{options}-{tests}.xml").write_text(shell(lab, "compute", "cat /results/nfs.xml"))
