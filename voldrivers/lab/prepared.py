"""States that a lab can be started from by name, made when they are first wanted.

Each is a function that changes a lab of a fresh boot; what it leaves is saved under its name. The programs
that it leaves running are those of this version of voldrivers, beside the project that is brought.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
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
#: What a change of makes them anew: the programs that stay running, and the schema of the records.
_MADE_WITH = ("guests/**/*.py", "lab/prepared.py", "host/qmp.py", "extend/schema.py")
_PYTHON, _GUESTS = "/var/lib/lab/python", "/var/lib/lab/guests"
_ENVIRONMENT = {**project.ENVIRONMENT, "PYTHONPATH": f"{_PYTHON}:/deps"}
_COMMAND_S = 120.0

# A daemon of its own, so that it does not end with the command that starts it.
_START = """
mkdir -p /run/lab
printed=/run/lab/guest.printed
setsid "$@" >$printed 2>&1 </dev/null &
while kill -0 $!; do
    ! grep --quiet ^ready $printed || exit 0
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
# What LIO keeps in configfs (drivers/target/target_core_configfs.c), saved for the next boot by targetctl(8).
_EXPORT = """
lvcreate --quiet --yes --size 64m --name attached vg0
cd /sys/kernel/config/target
store=core/iblock_0/attached group=iscsi/iqn.2024-01.org.voldrivers:attached/tpgt_1
mkdir -p $store $group/np/10.77.{1,2}.1:3260 $group/lun/lun_0
echo udev_path=/dev/vg0/attached >$store/control
echo 1 >$store/enable
cat /proc/sys/kernel/random/uuid >$store/wwn/vpd_unit_serial
echo 1 >$group/attrib/generate_node_acls
echo 0 >$group/attrib/authentication
echo 0 >$group/attrib/demo_mode_write_protect
ln -s $PWD/$store $group/lun/lun_0/port
echo 1 >$group/enable
targetctl save
sync
"""
_LOG_IN = """
iscsiadm --mode discovery --type sendtargets --portal 10.77.1.1
iscsiadm --mode node --login
udevadm settle
for _ in {1..200}; do map=$(ls /dev/mapper/36001405* 2>/dev/null) && break; sleep 0.05; done
python3 - $map <<END
import sys
from pathlib import Path
from voldrivers.host.qmp import Monitor
with Monitor(Path("/run/lab/guest.qmp")) as guest:
    disk = {"driver": "host_device", "filename": sys.argv[1], "cache": {"direct": True}}
    guest.execute("blockdev-add", {"node-name": "attached", "driver": "raw", "file": disk})
    device = {"driver": "virtio-blk-pci", "id": "attached", "drive": "attached", "serial": "attached"}
    guest.execute("device_add", device)
END
"""
_ATTACH = """
mkdir -p /etc/voldrivers
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
    _start(compute, "voldrivers.guests.linux", _GUESTS, "/run/lab", "guest")
    _bash(compute, f"rm {_GUESTS}/*/{state.name}")  # 60 MB less to save
    _python(compute, _WARM_UP)


def attached(_cache: Cache, machine: Find) -> None:
    """On compute a guest writes to two disks, and checks them: /run/lab/guest.qmp, .report.

    `attached` is vg0/attached of storage, over iSCSI by both portals and multipath; `data` is a volume of
    backend `nfs` in /etc/voldrivers/voldrivers.toml. See `guests.verified`.
    """
    compute = machine("compute")
    _bring_voldrivers(compute)
    _start(compute, "voldrivers.guests.verified", "/run/lab", "guest")
    _bash(compute, _ATTACH)
    _bash(machine("storage"), _EXPORT)
    _bash(compute, _LOG_IN)
    _python(compute, _WORKING)


PREPARED: Mapping[str, Callable[[Cache, Find], None]] = {"linux-guest": linux_guest, "attached": attached}


def version() -> str:
    """Name what the states are made with, besides the lab itself."""
    digest = hashlib.sha256()
    for pattern in _MADE_WITH:
        for path in sorted(_PACKAGE.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _bring_voldrivers(machine: LabMachine) -> None:
    machine.channel.unpack(_PYTHON, project.archive(_PACKAGE.parent, _modules()))


def _modules() -> Iterator[str]:
    return (str(path.relative_to(_PACKAGE.parent)) for path in _PACKAGE.rglob("*.py"))


def _start(machine: LabMachine, module: str, *arguments: str) -> None:
    _bash(machine, _START, "python3", "-m", module, *arguments)


def _python(machine: LabMachine, script: str) -> None:
    machine.channel.run(["python3", "-c", script], timeout_s=4 * _COMMAND_S, env=_ENVIRONMENT)


def _bash(machine: LabMachine, script: str, *arguments: str) -> None:
    argv = ["bash", "-euo", "pipefail", "-c", script, "bash", *arguments]
    machine.channel.run(argv, timeout_s=_COMMAND_S, env=_ENVIRONMENT)
