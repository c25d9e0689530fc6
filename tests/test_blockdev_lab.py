"""iSCSI disks on real hosts: connected, looked at, read anew and let go of, with LIO behind two portals."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from inside import block_device
from labs import inside, shell

from voldrivers.lab import levers
from voldrivers.lab.lab import Lab
from voldrivers.process import wait_until
from voldrivers.sizes import MiB

SMALL, LARGE = 64 * MiB, 96 * MiB
IQN = "iqn.2024-01.org.voldrivers:test"
USER, SECRET = "volume-user", "a-secret-of-16ch"
PORTALS = ("10.77.1.1:3260", "10.77.2.1:3260")

# What LIO keeps in configfs (drivers/target/target_core_configfs.c): two LUNs and CHAP.
_TARGET = """
cd /sys/kernel/config/target
group=iscsi/IQN/tpgt_1
mkdir -p $group/np/10.77.{1,2}.1:3260
echo 1 >$group/attrib/generate_node_acls
echo CHAP >$group/attrib/authentication
echo 0 >$group/attrib/demo_mode_write_protect
printf USER >$group/auth/userid
printf SECRET >$group/auth/password
for number in 0 1; do
    lvcreate --quiet --yes --size 64m --name disk$number vg0
    store=core/iblock_$number/disk$number
    mkdir -p $store $group/lun/lun_$number
    echo udev_path=/dev/vg0/disk$number >$store/control
    echo 1 >$store/enable
    cat /proc/sys/kernel/random/uuid >$store/wwn/vpd_unit_serial
    ln -s $PWD/$store $group/lun/lun_$number/port
done
echo 1 >$group/enable
"""


@dataclass(frozen=True)
class Did:
    """What a call on compute gave: its answer, or the class and text of its error."""

    answer: Any
    error: str
    text: str
    argvs: Sequence[Sequence[str]]
    seconds: float


class Host:
    """The compute machine, and the target `IQN` with two LUNs on storage."""

    def __init__(self, lab: Lab, secret: str = SECRET) -> None:
        self.lab = lab
        script = _TARGET.replace("IQN", IQN).replace("USER", USER).replace("SECRET", secret)
        shell(lab, "storage", script.replace("CHAP", "1" if secret else "0"))

    def properties(self, *portals: str, lun: int = 0, secret: str = SECRET) -> dict[str, Any]:
        used = portals or PORTALS
        return {
            "target_portals": list(used),
            "target_iqns": [IQN] * len(used),
            "target_luns": [lun] * len(used),
            "auth_method": "CHAP",
            "auth_username": USER,
            "auth_password": secret,
        }

    def call(self, name: str, properties: dict[str, Any], path: str = "", *more: Any) -> Did:
        given = inside(self.lab, "compute", block_device.call, name, properties, path, *more)
        secret = properties["auth_password"]
        assert secret not in json.dumps(given), "a secret was shown"
        print(
            f"{name} took {given['seconds']:.1f} s, {len(given['argvs'])} programs, {given.get('text', '')}"
        )
        return Did(
            given.get("answer"),
            given.get("error", ""),
            given.get("text", ""),
            given["argvs"],
            given["seconds"],
        )

    def do(self, name: str, properties: dict[str, Any], path: str = "", *more: Any) -> Any:
        did = self.call(name, properties, path, *more)
        assert not did.error, f"{did.error}: {did.text}"
        return did.answer

    def run(self, command: str) -> str:
        return shell(self.lab, "compute", command)

    def extend(self, lun: int = 0, size_bytes: int = LARGE) -> None:
        shell(self.lab, "storage", f"lvextend --quiet --size {size_bytes}b vg0/disk{lun}")

    def check_nothing_is_left(self) -> None:
        left = self.run(
            "ls -A /dev/mapper | grep -v control || true; ls -d /sys/block/sd* 2>/dev/null || true; "
            "ls /sys/class/iscsi_session; find /etc/iscsi -path '*nodes/*' -o -name '.voldrivers*'; "
            "iscsiadm --mode session 2>&1 | grep -v 'No active sessions' || true"
        )
        assert left == "", left


@pytest.fixture
def host(two_hosts: Lab) -> Host:
    return Host(two_hosts)


def test_a_map_from_connecting_to_letting_go(host: Host) -> None:
    one, two = host.properties(), host.properties(lun=1)
    path = host.do("connect", one)
    assert path.startswith("/dev/disk/by-id/dm-uuid-mpath-36001405")
    neighbour = host.do("connect", two)
    assert host.do("connect", one) == path
    assert [each["size_bytes"] for each in host.do("look", one, path)["paths"]] == [SMALL] * 2
    # The secret is where open-iscsi reads it, and nobody else.
    modes = host.run(f"find /etc/iscsi/nodes -type f -exec grep -q {SECRET} {{}} + -printf '%m '")
    assert set(modes.split()) == {"600"}
    for number in (0, 1):
        host.extend(number)
    host.do("check", one, path)
    host.do("rescan", one, path)
    seen = host.do("look", one, path)
    assert {seen["size_bytes"], *(each["size_bytes"] for each in seen["paths"])} == {LARGE}
    other = host.do("look", two, neighbour)
    assert {other["size_bytes"], *(each["size_bytes"] for each in other["paths"])} == {SMALL}, "touched"
    host.do("disconnect", one, path)
    host.do("disconnect", one, path)
    host.do("check", two, neighbour)
    host.run(f"dd if={neighbour} of=/dev/null bs=1M count=1 iflag=direct status=none")
    host.do("disconnect", two, neighbour)
    host.check_nothing_is_left()


@pytest.mark.full
def test_a_multipathd_that_makes_no_map_by_itself_is_told(host: Host) -> None:
    """Debian's own setting makes one only of what is known to have several paths."""
    host.run(
        "sed -i 's/find_multipaths .*/find_multipaths strict/' /etc/multipath.conf; multipathd reconfigure"
    )
    one = host.properties()
    did = host.call("connect", one)
    assert did.answer.startswith("/dev/disk/by-id/dm-uuid-mpath-36001405"), did.text
    assert ["multipath", "-a"] in [each[:2] for each in did.argvs]
    host.do("check", one, did.answer)
    host.do("disconnect", one, did.answer)
    host.check_nothing_is_left()


@pytest.mark.full
def test_a_single_path_is_the_plain_device(host: Host) -> None:
    one = host.properties(PORTALS[0])
    path = host.do("connect", one)
    assert path == f"/dev/disk/by-path/ip-{PORTALS[0]}-iscsi-{IQN}-lun-0"
    host.extend()
    host.do("rescan", one, path)
    assert host.do("wait_for", one, path, LARGE, 5.0) == LARGE
    never = host.call("wait_for", one, path, 2 * LARGE, 1.0)
    assert (never.error, "to be 192 MiB" in never.text) == ("OutcomeUnknown", True)
    # iscsid is away, and back: its sessions are the kernel's.
    levers.kill(host.lab, "compute", "iscsid")
    host.extend(size_bytes=2 * LARGE)
    host.do("rescan", one, path)
    host.run("iscsid")  # which logs in to them anew
    wait_until(lambda: not host.call("check", one, path).error, 40, "the session to be logged in again")
    assert host.do("look", one, path)["size_bytes"] == 2 * LARGE
    # Logged out by somebody else.
    host.run("iscsiadm --mode session --sid 1 --logout")
    assert host.call("check", one, path).error == "NotFound"
    assert host.call("rescan", one, path).error == "NotFound"
    host.do("disconnect", one, path)
    host.check_nothing_is_left()


@pytest.mark.parametrize(
    "portals",
    [
        pytest.param(PORTALS, id="multipath", marks=pytest.mark.full),
        pytest.param(PORTALS[:1], id="single"),
    ],
)
def test_a_wrong_secret_is_told_in_time_and_leaves_nothing(host: Host, portals: Sequence[str]) -> None:
    did = host.call("connect", host.properties(*portals, secret="another-secret-16"))
    assert (did.error, "refusing CHAP user volume-user" in did.text) == ("InvalidState", True), did.text
    assert did.seconds < 30
    logins = [argv for argv in did.argvs if "--login" in argv]
    assert len(logins) <= len(portals), "a refusal is not tried again"
    host.check_nothing_is_left()


@pytest.mark.full
def test_a_path_that_is_down_is_refused_by_name(host: Host) -> None:
    one = host.properties()
    path = host.do("connect", one)
    host.extend()
    levers.link_down(host.lab, "compute", "b")
    # The kernel does not know yet: the path that does not answer is named all the same.
    did = host.call("rescan", one, path)
    assert did.error in ("InvalidState", "OutcomeUnknown", "BackendError")
    assert "10.77.2.1:3260" in did.text
    assert did.seconds < 20
    for name in ("check", "rescan"):
        did = host.call(name, one, path)
        assert did.error == "InvalidState"
        assert re.search(r"10.77.2.1:3260 is (FAILED|FREE), must be LOGGED_IN", did.text)
        assert not did.argvs
        assert did.seconds < 3
    levers.link_up(host.lab, "compute", "b")
    wait_until(lambda: not host.call("check", one, path).error, 40, "the path to come back")
    host.do("rescan", one, path)
    assert host.do("look", one, path)["size_bytes"] == LARGE
    # One path's session is gone altogether.
    host.run(f"iscsiadm --mode node --targetname {IQN} --portal {PORTALS[1]} --logout")
    did = host.call("check", one, path)
    assert (did.error, f"without a path by portal {PORTALS[1]}" in did.text) == ("InvalidState", True)
    host.do("disconnect", one, path)
    host.check_nothing_is_left()


@pytest.mark.full
@pytest.mark.parametrize("portals", [PORTALS, PORTALS[:1]], ids=["multipath", "single"])
@pytest.mark.parametrize("waits", [True, False], ids=["known", "just-now"])
def test_a_target_that_is_gone_is_let_go_of_in_time(host: Host, portals: Sequence[str], waits: bool) -> None:
    one = host.properties(*portals)
    path = host.do("connect", one)
    levers.power_off(host.lab, "storage")
    if waits:
        wait_until(lambda: host.call("check", one, path).error == "InvalidState", 30, "the loss to be seen")
        assert "must be LOGGED_IN" in host.call("rescan", one, path).text
    did = host.call("disconnect", one, path)
    assert not did.error, did.text
    assert did.seconds < 40
    host.check_nothing_is_left()
    did = host.call("connect", one)
    assert (did.error, "portal 10.77.1.1:3260 is not answering" in did.text) == ("InvalidState", True)
    host.check_nothing_is_left()


@pytest.mark.full
def test_what_is_in_use_stays(host: Host) -> None:
    one = host.properties()
    path = host.do("connect", one)
    host.run(f"(exec 3<{path}; setsid sleep 100) >/dev/null 2>&1 </dev/null & sleep 1")
    did = host.call("disconnect", one, path)
    assert (did.error, "in use" in did.text) == ("InvalidState", True), did.text
    host.do("check", one, path)
    levers.kill(host.lab, "compute", "sleep")
    host.do("disconnect", one, path)
    host.check_nothing_is_left()
