"""Both drivers as an operator would prove them: the command, in the lab, on one host and on two.

On one host the storage machine is its own initiator. On two, one of them is behind its agent, and every
volume has two paths.
"""

import json
from dataclasses import dataclass

import pytest
from labs import CHECKOUT, shell

from voldrivers.lab import prepared, project
from voldrivers.lab.lab import Lab

_HERE = '[[host]]\nname = "storage"\n'
_THERE = """
[[host]]
name = "compute"
address = "https://compute:9871"
token_file = "/etc/voldrivers/token"
ca_file = "/etc/voldrivers/identity.pem"
"""
#: How long every check takes together.
_LIMIT_S = 6000.0


@dataclass(frozen=True)
class Backend:
    """A driver in the lab: its options, its pool, and what makes that empty."""

    driver: str
    pool: str
    options: str
    clear: str

    def __str__(self) -> str:
        return self.driver


LVM = Backend(
    "lvm", "vg0", 'volume_group = "vg0"\ntarget_ip_addresses = "10.77.1.1,10.77.2.1"', "lvremove --yes vg0"
)
NFS = Backend("nfs", "storage:/", 'share = "storage:/"\nmount_options = "vers=4.2"', "rm -rf /srv/nfs/*")
BACKENDS = pytest.mark.parametrize("backend", [LVM, NFS], ids=str)
PROFILES = pytest.mark.parametrize("profile", ["smoke", pytest.param("all", marks=pytest.mark.full)])


@BACKENDS
@PROFILES
@pytest.mark.timeout(_LIMIT_S)
def test_on_one_host(lab: Lab, backend: Backend, profile: str) -> None:
    check_conformant(lab, backend, _HERE, profile)


@BACKENDS
@pytest.mark.full
@pytest.mark.timeout(_LIMIT_S)
def test_on_two_hosts(two_hosts: Lab, backend: Backend) -> None:
    prepared.start_agent(two_hosts.machine("compute"))
    prepared.configure(two_hosts.machine("storage"), ["compute"])
    check_conformant(two_hosts, backend, _THERE + _HERE, "all")


def check_conformant(lab: Lab, backend: Backend, hosts: str, profile: str) -> None:
    """Run the checks of a profile; none fails. What the lab lacks for some is printed."""
    lab.bring_project("storage", CHECKOUT)
    config = f'[driver]\n{backend.options}\n[scratch]\npool = "{backend.pool}"\nmax_bytes = "2GiB"\n{hosts}'
    shell(
        lab,
        "storage",
        f"{backend.clear} || true; mkdir -p /root/run; cat >/root/run/conform.toml <<'END'\n{config}\nEND",
    )
    words = [backend.driver, "--config", "/root/run/conform.toml"]
    channel = lab.machine("storage").channel
    channel.run(
        ["voldrivers", "scratch", "init", *words, "--pool", backend.pool],
        timeout_s=60,
        env=project.ENVIRONMENT,
    )
    chosen = ["--destroy", backend.pool, "--profile", profile, "--json", "--out", "/root/run/results"]
    done = channel.run(
        ["bash", "-c", 'voldrivers conform "$@" || test $? = 4', "conform", *words, *chosen],
        timeout_s=_LIMIT_S,
        env=project.ENVIRONMENT,
    )
    report = json.loads(done.stdout)
    for each in report["results"]:
        if each["verdict"] not in ("PASS", "N/A") and each["text"] != "it was not selected":
            print(each["id"], each["verdict"], each["text"])
    print(report["totals"], f"{report['seconds']} s")
    assert not {"FAIL", "ERROR"} & set(report["totals"]), report["totals"]
