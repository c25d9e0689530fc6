"""Both drivers as an operator would prove them: the command, in the lab, on one host and on two.

On one host the storage machine is its own initiator. On two, each is behind its agent. Every volume of LVM's
has two paths.
"""

import json
from dataclasses import dataclass

import pytest
from labs import CHECKOUT, shell

from voldrivers.lab import prepared, project
from voldrivers.lab.channel import Start
from voldrivers.lab.lab import Lab

_HERE = '[[host]]\nname = "storage"\n'
_THERE = """
[[host]]
name = "{name}"
address = "https://{name}:9871"
token_file = "/etc/voldrivers/token"
ca_file = "/etc/voldrivers/identity.pem"
"""
_CONFIG = """
[driver]
{options}
[scratch]
pool = "{pool}"
max_bytes = "16GiB"
[limits]
sweep_s = 30
[outage]
begin = '''{begin}'''
end = '''{end}'''
{hosts}
"""
#: How long all checks may take together.
_LIMIT_S = 9000.0


@dataclass(frozen=True)
class Backend:
    """A driver in the lab: its options, its pool, what makes that empty, takes it away and brings it back."""

    driver: str
    pool: str
    options: str
    clear: str
    begin: str
    end: str

    def __str__(self) -> str:
        return self.driver


#: Another disk under the physical volume, with volumes in use; see `voldrivers.lab.levers`.
_UNDER = (
    'bash -euc \'dmsetup load lab-pv --table "0 $(blockdev --getsz /dev/vdc) {target}"; '
    "dmsetup suspend --noflush --nolockfs lab-pv; dmsetup resume lab-pv'"
)
LVM = Backend(
    "lvm",
    "vg0",
    'volume_group = "vg0"\ntarget_ip_addresses = "10.77.1.1,10.77.2.1"',
    "lvremove --yes vg0",
    _UNDER.format(target="error"),
    _UNDER.format(target="linear /dev/vdc 0"),
)
NFS = Backend(
    "nfs",
    "storage:/",
    'share = "storage:/"\nmount_options = "vers=4.2"',
    "rm -rf /srv/nfs/*",
    "rpc.nfsd 0",
    "rpc.nfsd --no-nfs-version 3 --no-udp 4",
)
BACKENDS = pytest.mark.parametrize("backend", [LVM, NFS], ids=str)
#: What fits into the time of the tests, the quick checks, and all.
FEW = "--only LIF-001 --only EXI-001 --only EXI-003 --only EXI-005 --only SNP-007"
ALL = "--profile all --budget 600"
IN_FULL = [
    pytest.param("--profile smoke", marks=pytest.mark.full, id="smoke"),
    pytest.param(ALL, marks=pytest.mark.full, id="all"),
]
PROFILES = pytest.mark.parametrize("profile", [pytest.param(FEW, id="few"), *IN_FULL])


@BACKENDS
@PROFILES
@pytest.mark.timeout(_LIMIT_S)
def test_on_one_host(lab: Lab, backend: Backend, profile: str) -> None:
    check_conformant(lab, backend, _HERE, profile)


@BACKENDS
@pytest.mark.full
@pytest.mark.timeout(_LIMIT_S)
def test_on_two_hosts(three_hosts: Lab, backend: Backend) -> None:
    names = ["compute", "compute2"]
    for name in names:
        prepared.start_agent(three_hosts.machine(name))
    prepared.configure(three_hosts.machine("storage"), names)
    check_conformant(three_hosts, backend, "".join(_THERE.format(name=name) for name in names), ALL)


def check_conformant(lab: Lab, backend: Backend, hosts: str, profile: str) -> None:
    """Run the checks of a profile; none fails. What the lab lacks for some is printed."""
    lab.bring_project("storage", CHECKOUT)
    config = _CONFIG.format(
        options=backend.options, pool=backend.pool, hosts=hosts, begin=backend.begin, end=backend.end
    )
    written = f"mkdir -p /root/run; cat >/root/run/conform.toml <<'END'\n{config}\nEND"
    shell(lab, "storage", f"{backend.clear} || true; {written}")
    words = [backend.driver, "--config", "/root/run/conform.toml"]
    channel = lab.machine("storage").channel
    channel.run(
        ["voldrivers", "scratch", "init", *words, "--pool", backend.pool],
        timeout_s=60,
        env=project.ENVIRONMENT,
    )
    chosen = ["--destroy", backend.pool, *profile.split(), "--out", "/root/run/results"]
    start = Start(["voldrivers", "conform", *words, *chosen], env=project.ENVIRONMENT)
    code = channel.start(start, _print).wait(_LIMIT_S)
    assert code in (0, 4), code  # 4: there is no room for a volume of 16 TiB, say
    report = json.loads(shell(lab, "storage", "cat /root/run/results/report.json"))
    assert not {"FAIL", "ERROR"} & set(report["totals"]), report["totals"]


def _print(_stream: int, content: bytes) -> None:
    print(content.decode(errors="backslashreplace"), end="", flush=True)
