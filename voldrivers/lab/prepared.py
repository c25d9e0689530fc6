"""States that a lab can be started from by name, made when they are first wanted.

Each is a function that changes a lab of a fresh boot; what it leaves is saved under its name. The programs
that it leaves running are those of this version of voldrivers, beside the project that is brought.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voldrivers.guests import linux
from voldrivers.guests.image import prepare
from voldrivers.guests.machine import Accelerator
from voldrivers.lab import project
from voldrivers.lab.cache import Cache
from voldrivers.lab.machine import LabMachine

#: Gives a machine by its name or role.
Find = Callable[[str], LabMachine]

_PACKAGE = Path(__file__).parents[1]
_PYTHON, _GUESTS = "/var/lib/lab/python", "/var/lib/lab/guests"
_ENVIRONMENT = {**project.ENVIRONMENT, "PYTHONPATH": f"{_PYTHON}:/deps"}
_COMMAND_S = 120.0

# A daemon of its own, so that it does not end with the command that starts it.
_START = """
mkdir -p /run/lab
printed=$(mktemp /run/lab/printed.XXXXXX)
setsid "$@" >$printed 2>&1 </dev/null &
while kill -0 $!; do
    ! grep --quiet --extended-regexp '^ready|answers at' $printed || exit 0
    sleep 0.1
done
cat $printed >&2
exit 1
"""
# What the guest's kernel does for the first time takes 20 s: TCG under TCG translates it, and keeps that.
_WARM_UP = """
import os
from pathlib import Path
from voldrivers.errors import BackendError
from voldrivers.guests.linux import Shell
from voldrivers.host.qmp import Monitor
from voldrivers.process import wait_until
def in_use():
    try:
        guest.execute("blockdev-del", {"node-name": "warm-up"})
    except BackendError:
        return True
console, disk = Path("/run/lab/guest.console"), Path("/run/lab/warm-up")
disk.touch()
with Monitor(Path("/run/lab/guest.qmp")) as guest:
    os.truncate(disk, 2**26)
    guest.execute("blockdev-add", {"node-name": "warm-up", "driver": "file", "filename": str(disk)})
    guest.execute("device_add", {"id": "warm-up", "driver": "virtio-blk-pci", "drive": "warm-up"})
    wait_until(lambda: "[vda]" in console.read_text(), 100, "the kernel to find its disk")
    # Only a driver that is done with its disk hears of another size.
    Shell(Path("/run/lab/guest.shell"), "guest").run("head -c 512 /dev/vda >/dev/null", 100)
    guest.execute("block_resize", {"node-name": "warm-up", "size": 2**27})
    wait_until(lambda: "new size" in console.read_text(), 100, "the new size")
    guest.execute("device_del", {"id": "warm-up"})
    wait_until(lambda: not in_use(), 100, "the kernel to let go of its disk")
console.write_text("")
disk.unlink()
"""
_AGENT = """
umask 077
mkdir -p /etc/voldrivers
echo the-token-of-this-lab >/etc/voldrivers/token
echo "$1" >/etc/voldrivers/identity.pem
cat >/etc/voldrivers/agent.toml <<END
[agent]
listen = "0.0.0.0:9871"
token_file = "token"
certificate = "identity.pem"
conformance = "guest"
[host.$HOSTNAME]
kind = "local"
qmp_dir = "/run/lab"
END
"""
_CONTROLLER = """
umask 077
mkdir -p /etc/voldrivers
echo the-token-of-this-lab >/etc/voldrivers/token
echo "$1" >/etc/voldrivers/identity.pem
shift
cat >/etc/voldrivers/voldrivers.toml <<END
state_dir = "/var/lib/voldrivers"
[backend.lvm]
driver = "lvm"
volume_group = "vg0"
target_ip_addresses = "10.77.1.1,10.77.2.1"
END
for host; do cat >>/etc/voldrivers/voldrivers.toml <<END; done
[host.$host]
kind = "agent"
url = "https://$host:9871"
token_file = "token"
ca_file = "identity.pem"
look_timeout_s = 15
act_timeout_s = 60
END
"""
_ATTACH_LVM = """
voldrivers volume create attached 64M
voldrivers attach attached --host compute --instance guest
"""
_ATTACH_NFS = """
cat >/etc/voldrivers/voldrivers.toml <<END
state_dir = "/var/lib/voldrivers"
[backend.nfs]
driver = "nfs"
share = "storage:/"
mount_options = "vers=4.2"
END
voldrivers volume create data 64M
voldrivers attach data --qmp /run/lab/guest.qmp
"""
_WORKING = """
from pathlib import Path
from voldrivers.guests.verified import read_report
from voldrivers.process import wait_until
report = Path("/run/lab/guest.report")
def works():
    return len([disk for disk in read_report(report.read_text()).disks if disk.writes > 5]) == 2
wait_until(works, 60, "work")
"""


def linux_guest(cache: Cache, machine: Find) -> None:
    """On compute a real Linux guest runs, without disks: /run/lab/guest.qmp, .qga, .shell, .console."""
    chosen = Accelerator("tcg", "there is no KVM in a lab machine")
    state = linux.saved_state(cache.directory / "guests", chosen)
    cache.used(state.parent)
    compute = machine("compute")
    _bring_voldrivers(compute)
    image = prepare(cache.directory / "guests")
    for path in (image.kernel, image.initramfs, state):
        compute.channel.unpack(f"{_GUESTS}/{path.parent.name}", project.archive(path.parent, [path.name]))
    _start(compute, "python3", "-m", "voldrivers.guests.linux", _GUESTS, "/run/lab", "guest")
    _bash(compute, f"rm {_GUESTS}/*/{state.name}")  # 60 MB less to save
    _python(compute, _WARM_UP)


def attached(_cache: Cache, machine: Find) -> None:
    """On compute a guest writes to two disks, and checks them: /run/lab/guest.qmp, .report.

    `attached` is a volume of backend `lvm` in /etc/voldrivers/voldrivers.toml of storage, over iSCSI by both
    portals and multipath, attached through the agent of compute; `data` is one of backend `nfs` in that file
    on compute. See `guests.verified`.
    """
    storage, compute = machine("storage"), machine("compute")
    start_guest(compute)
    start_agent(compute)
    _bash(compute, _ATTACH_NFS)
    configure(storage, ["compute"])
    _bash(storage, _ATTACH_LVM)
    _python(compute, _WORKING)


def start_guest(machine: LabMachine) -> None:
    """Start a guest that writes to every disk it is given, and checks it; see `guests.verified`."""
    _bring_voldrivers(machine)
    _start(machine, "python3", "-m", "voldrivers.guests.verified", "/run/lab", "guest")


def start_agent(machine: LabMachine) -> None:
    """Start the agent of a machine, whose configuration is /etc/voldrivers/agent.toml then."""
    _bring_voldrivers(machine)
    _bash(machine, _AGENT, _identity())
    _start(machine, "voldrivers", "agent", "--config", "/etc/voldrivers/agent.toml")


def configure(machine: LabMachine, hosts: Sequence[str]) -> None:
    """Write a configuration with backend `lvm` and these hosts, by their agents."""
    _bring_voldrivers(machine)
    _bash(machine, _CONTROLLER, _identity(), *hosts)


@dataclass(frozen=True)
class Prepared:
    """A state, and the files of voldrivers that make it anew when they change."""

    prepare: Callable[[Cache, Find], None]
    made_with: tuple[str, ...]


_GUEST = ("guests/**/*.py", "lab/prepared.py", "host/qmp.py")
_ALL = ("*.py", "api/*.py", "extend/*.py", "guests/*.py", "host/*.py", "lvm/*.py", "nfs/*.py")
PREPARED: Mapping[str, Prepared] = {
    "linux-guest": Prepared(linux_guest, _GUEST),
    "attached": Prepared(attached, (*_ALL, "lab/prepared.py")),
}


def version(state: str) -> str:
    """Name what a state is made with, besides the lab itself."""
    digest = hashlib.sha256()
    for pattern in PREPARED[state].made_with:
        for path in sorted(_PACKAGE.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _identity() -> str:
    """Give certificate and key of every agent of a lab. Everybody knows them: they are for labs alone."""
    return (_PACKAGE / "lab/inside/identity.pem").read_text()


def _bring_voldrivers(machine: LabMachine) -> None:
    machine.channel.unpack(_PYTHON, project.archive(_PACKAGE.parent, _modules()))


def _modules() -> Iterator[str]:
    return (str(path.relative_to(_PACKAGE.parent)) for path in _PACKAGE.rglob("*.py"))


def _start(machine: LabMachine, *argv: str) -> None:
    _bash(machine, _START, *argv)


def _python(machine: LabMachine, script: str) -> None:
    machine.channel.run(["python3", "-c", script], timeout_s=4 * _COMMAND_S, env=_ENVIRONMENT)


def _bash(machine: LabMachine, script: str, *arguments: str) -> None:
    argv = ["bash", "-euo", "pipefail", "-c", script, "bash", *arguments]
    machine.channel.run(argv, timeout_s=_COMMAND_S, env=_ENVIRONMENT)
