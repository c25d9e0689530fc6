"""Levers: what goes wrong in a storage site, at will, and right again.

Each takes the lab, then strings and numbers, so that tests and the command line call the same functions
(`LEVERS`). All may be repeated. They raise NotFound for a machine that is not there, and what
`Channel.run` raises when a command there fails.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature

from voldrivers.base import Completed
from voldrivers.errors import CommandFailed, InvalidInput, InvalidState, NotFound, NotSupported
from voldrivers.lab.lab import Lab
from voldrivers.lab.machine import LabMachine
from voldrivers.process import wait_until
from voldrivers.sizes import parse_size

_COMMAND_S, _KILLED_S = 60.0, 10.0
#: What the kernel keeps of a process's name: 15 bytes (proc(5), comm).
_COMM_BYTES = 15
#: The first of a machine's two network cards for each portal; see `lab.PLACES`.
_PORTALS = {"a": 0, "b": 1}
#: The map under the volume group, and the disk under the map; see inside/init.
_PV, _DISK, _SECTOR_BYTES = "lab-pv", "/dev/vdc", 512
#: The export, to whom and how, and what fills it; see inside/init.
_EXPORT, _CLIENTS = "/srv/nfs", "10.77.0.0/16"
_READ_ONLY = "ro,no_root_squash,no_subtree_check,fsid=0,insecure"
_HELD_BACK = "/sys/fs/ext4/vdd/reserved_clusters"
_FILLING, _THREADS = f"{_EXPORT}/.filling", "4"
_SERVE_3 = """
grep -q +3 /proc/fs/nfsd/versions && exit
modprobe lockd
cd /proc/sys/fs/nfs
[ "$1" = 50 ] || { echo 3 >nlm_timeout; echo "$1" >nlm_grace_period; }
rpc.statd --no-notify
pkill --exact rpc.mountd
while pgrep --exact rpc.mountd; do sleep 0.01; done >/dev/null
rpc.mountd && rpc.nfsd 0 && rpc.nfsd --nfs-version 3 4
"""


def freeze(lab: Lab, machine: str) -> None:
    """Stop a machine's CPUs: it keeps all it has, and answers nothing."""
    _powered(lab, machine).execute("stop")


def thaw(lab: Lab, machine: str) -> None:
    """Let a frozen machine go on, as if no time had passed."""
    _powered(lab, machine).execute("cont")


def reset(lab: Lab, machine: str) -> None:
    """Press a machine's reset button, and wait until it is ready again.

    Volumes, exports, the LIO configuration that was saved and every other file survive as far as they were
    flushed (rtslib 2.1.74 does not); memory, mounts and sessions do not.
    """
    lab.reset(machine)


def power_off(lab: Lab, machine: str) -> None:
    """Take the power from a machine: what it has not flushed to its disks is lost."""
    lab.power_off(machine)


def power_on(lab: Lab, machine: str) -> None:
    """Give a machine its power back, and wait until it is ready; what was flushed has survived."""
    lab.power_on(machine)


def link_down(lab: Lab, machine: str, portal: str) -> None:
    """Pull a machine's cables to portal `a` or `b`; on the storage machine, those of all hosts.

    Raises NotSupported for a machine without cables: it reaches its own portals.
    """
    _set_links(lab, machine, portal, up=False)


def link_up(lab: Lab, machine: str, portal: str) -> None:
    """Put the cables back."""
    _set_links(lab, machine, portal, up=True)


def kill(lab: Lab, machine: str, process: str) -> None:
    """Kill a process by its number, or all of a name, and wait until they have ended.

    Raises NotFound when there is none, InvalidInput for init and for the kernel's own, OutcomeUnknown when
    one hangs in the kernel.
    """
    pids = [process] if process.isdigit() else _pids(lab, machine, process)
    if any(pid == "1" or _is_of_the_kernel(lab, machine, pid) for pid in pids):
        raise InvalidInput(f"process {process}", "neither init nor a process of the kernel can be killed")
    alive = [pid for pid in pids if _is_alive(lab, machine, pid)]
    if not alive:
        raise NotFound("process", process, f" on {machine}")
    _run(lab, machine, "kill", "-KILL", *alive)
    wait_until(lambda: not any(_is_alive(lab, machine, pid) for pid in alive), _KILLED_S, f"{process} to end")


def pv_error(lab: Lab) -> None:
    """Let every read and write of the physical volume fail, as of a disk that was pulled (dm-error)."""
    _load(lab, "error")


def pv_delay(lab: Lab, delay_ms: int) -> None:
    """Let every read and write of the physical volume take longer (dm-delay)."""
    _load(lab, f"delay {_DISK} 0 {delay_ms}")


def pv_flaky(lab: Lab, good_s: int, bad_s: int) -> None:
    """Let the physical volume work and fail by turns (dm-flakey)."""
    _load(lab, f"flakey {_DISK} 0 {good_s} {bad_s}")


def pv_refuse_writes(lab: Lab) -> None:
    """Let every write of the physical volume fail; it can be read (dm-flakey, error_writes)."""
    _load(lab, f"flakey {_DISK} 0 0 1 1 error_writes")


def pv_mend(lab: Lab) -> None:
    """Put the disk back under the physical volume."""
    _load(lab, f"linear {_DISK} 0")


def nfs_stop(lab: Lab) -> None:
    """Stop the NFS server; clients hang, or fail when they were mounted soft."""
    _run(lab, "storage", "rpc.nfsd", "0")


def nfs_start(lab: Lab) -> None:
    """Start the NFS server, of version 4 only; clients that were there have 10 s to reclaim their locks."""
    _run(lab, "storage", "rpc.nfsd", "--no-nfs-version", "3", "--no-udp", _THREADS)


def nfs_3(lab: Lab, grace_s: int = 50) -> None:
    """Serve NFS version 3 as well, until the storage machine is reset.

    With it comes lockd, and its grace period, in which nobody gets a new lock, over version 4 neither.
    It lasts 50 s on every machine where nobody has changed it; here it can be a multiple of 3 s (Linux
    6.1, fs/lockd/svc.c).
    """
    for machine in lab.machines:
        _run(lab, machine, "bash", "-c", "pgrep --exact rpcbind >/dev/null || rpcbind")
    _run(lab, "storage", "bash", "-c", _SERVE_3, "bash", str(grace_s))


def nfs_fill(lab: Lab, left_bytes: int = 0) -> None:
    """Fill the export until LEFT_BYTES are left, for root too; nothing is written (fallocate(1))."""
    nfs_free(lab)
    to_take = _free_bytes(lab) - left_bytes
    if to_take <= 0:
        return
    try:
        _run(lab, "storage", "fallocate", "--length", str(to_take), _FILLING)
    except CommandFailed:
        # The file system takes blocks for itself on the way, so the last ones of the file are missing.
        if _free_bytes(lab) > left_bytes:
            raise


def nfs_free(lab: Lab) -> None:
    """Give back what `nfs-fill` took."""
    _run(lab, "storage", "rm", "--force", _FILLING)


def nfs_read_only(lab: Lab) -> None:
    """Export read-only from now on, for files that are open too, until `nfs-writable` or a reset."""
    _run(lab, "storage", "exportfs", "-o", _READ_ONLY, f"{_CLIENTS}:{_EXPORT}")


def nfs_writable(lab: Lab) -> None:
    """Export as /etc/exports says."""
    _run(lab, "storage", "exportfs", "-ra")


#: All levers by the names that a command line has for them.
LEVERS: Mapping[str, Callable[..., None]] = {
    lever.__name__.replace("_", "-"): lever
    for lever in (
        *(freeze, thaw, reset, power_off, power_on, link_down, link_up, kill),
        *(pv_error, pv_delay, pv_flaky, pv_refuse_writes, pv_mend),
        *(nfs_stop, nfs_start, nfs_3, nfs_fill, nfs_free, nfs_read_only, nfs_writable),
    )
}


def pull(lab: Lab, name: str, words: Sequence[str]) -> None:
    """Pull a lever by its name, with arguments as a person types them.

    Raises NotFound for a lever that is not there, InvalidInput for arguments that do not fit.
    """
    lever = LEVERS.get(name)
    if lever is None:
        raise NotFound("lever", name, f", there are {', '.join(LEVERS)}")
    parameters = list(signature(lever).parameters.values())[1:]
    required = [parameter for parameter in parameters if parameter.default is Parameter.empty]
    if not len(required) <= len(words) <= len(parameters):
        needed = " ".join(parameter.name.upper() for parameter in parameters) or "no arguments"
        raise InvalidInput(f"lever {name}", f"it takes {needed}")
    try:
        arguments = [_read(parameter, word) for parameter, word in zip(parameters, words, strict=False)]
    except ValueError as error:
        raise InvalidInput(f"lever {name}", str(error)) from error
    lever(lab, *arguments)


def _read(parameter: Parameter, word: str) -> object:
    if parameter.name.endswith("_bytes"):
        return parse_size(word)
    if parameter.annotation is int and not word.isdecimal():
        raise ValueError(f"{parameter.name.upper()} is a whole number, not {word!r}")
    return parameter.annotation(word)


def _powered(lab: Lab, machine: str) -> LabMachine:
    found = lab.machine(machine)
    if not found.is_running:
        raise InvalidState(f"machine {found.name}", "off", "on")
    return found


def _set_links(lab: Lab, machine: str, portal: str, *, up: bool) -> None:
    """Set the carrier of the network cards (QMP set_link)."""
    if portal not in _PORTALS:
        raise InvalidInput(f"portal {portal}", "there are a and b")
    found = lab.machine(machine)
    cards = range(_PORTALS[portal], len(found.place.links), len(_PORTALS))
    if not cards:
        raise NotSupported(f"lab machine {machine}", "it has no links")
    for card in cards:
        found.execute("set_link", {"name": f"nic{card}", "up": up})


def _pids(lab: Lab, machine: str, name: str) -> list[str]:
    try:
        return _run(lab, machine, "pgrep", "--exact", name[:_COMM_BYTES]).stdout.split()
    except CommandFailed:
        return []


def _is_alive(lab: Lab, machine: str, pid: str) -> bool:
    """Tell whether a process has not ended; a zombie has. Its state follows its name (proc(5), stat)."""
    try:
        stat = _run(lab, machine, "cat", f"/proc/{pid}/stat").stdout
    except CommandFailed:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _is_of_the_kernel(lab: Lab, machine: str, pid: str) -> bool:
    """Tell whether a process has no program (proc(5), exe)."""
    try:
        _run(lab, machine, "readlink", f"/proc/{pid}/exe")
    except CommandFailed:
        return _is_alive(lab, machine, pid)
    return False


def _load(lab: Lab, target: str) -> None:
    """Change what the map does, with volumes in use: what is under way is not waited for (dmsetup(8))."""
    disk_bytes = _run(lab, "storage", "blockdev", "--getsize64", _DISK).stdout
    table = f"0 {int(disk_bytes) // _SECTOR_BYTES} {target}"
    _run(lab, "storage", "dmsetup", "load", _PV, "--table", table)
    _run(lab, "storage", "dmsetup", "suspend", "--noflush", "--nolockfs", _PV)
    _run(lab, "storage", "dmsetup", "resume", _PV)


def _free_bytes(lab: Lab) -> int:
    """Give what root can still write: all that is free but what ext4 holds back from everybody (ext4(5))."""
    free = _run(lab, "storage", "stat", "--file-system", "--format=%f %S", _EXPORT).stdout
    blocks, block_bytes = map(int, free.split())
    held_back = int(_run(lab, "storage", "cat", _HELD_BACK).stdout)
    return (blocks - held_back) * block_bytes


def _run(lab: Lab, machine: str, *argv: str) -> Completed:
    return lab.machine(machine).channel.run(argv, timeout_s=_COMMAND_S)
