"""What tests of the lab run in its machines: functions of plain values (`labs.inside`)."""

import fcntl
import os
from pathlib import Path

from voldrivers.guests.device import SECTOR_BYTES, DeviceGuest
from voldrivers.guests.linux import Shell
from voldrivers.process import run, wait_until

#: A guest has its disk; it may be extended to so many bytes.
OPENED, EXTEND = Path("/run/lab/opened"), Path("/run/lab/extend")
SERIAL = "vol-1"
_WAIT_S = 60.0
_EXPORT = """
import sys
import rtslib_fb
from pathlib import Path
iqn, device, *portals = sys.argv[1:]
backstore = rtslib_fb.BlockStorageObject(Path(device).name, dev=device)
group = rtslib_fb.TPG(rtslib_fb.Target(rtslib_fb.FabricModule("iscsi"), iqn), 1)
for portal in portals:
    rtslib_fb.NetworkPortal(group, portal, 3260)
for name, value in (("generate_node_acls", 1), ("authentication", 0), ("demo_mode_write_protect", 0)):
    group.set_attribute(name, value)
rtslib_fb.LUN(group, 0, backstore)
group.enable = True
rtslib_fb.RTSRoot().save_to_file()
"""


def export_iscsi(iqn: str, device: str, portals: list[str]) -> None:
    """Export a device as LUN 0 to everybody, and save that for the next boot, with Debian's own rtslib."""
    argv = ["env", "-u", "PYTHONPATH", "python3", "-c", _EXPORT, iqn, device, *portals]
    run(argv, timeout_s=_WAIT_S)
    # rtslib 2.1.74 flushes a copy of the file and removes that: the file itself is empty after a power cut.
    os.sync()


def serve_guest(path: str) -> dict[str, int]:
    """Run a guest with a disk on a raw file or device; extend it when told; tell what the guest saw.

    `OPENED` is there once it has its disk; it waits for `EXTEND`, with the new size in it.
    """
    with DeviceGuest(Path("/run/lab")) as guest:
        node = {"driver": "raw", "node-name": "n", "file": {"driver": _driver(path), "filename": path}}
        guest.execute("blockdev-add", node)
        guest.execute("device_add", {"driver": "virtio-blk-pci", "id": "d", "drive": "n", "serial": SERIAL})
        disk = guest.disk(SERIAL)
        before_bytes = disk.capacity_bytes()
        disk.write(0, b"x" * SECTOR_BYTES)
        OPENED.touch()
        wait_until(EXTEND.exists, _WAIT_S, "the test to go on")
        guest.execute("block_resize", {"node-name": "n", "size": int(EXTEND.read_text())})
        announced = disk.config_changed()
        after_bytes = disk.capacity_bytes()
        disk.write(after_bytes // SECTOR_BYTES - 1, b"y" * SECTOR_BYTES)
        return {"before_bytes": before_bytes, "after_bytes": after_bytes, "announced": int(announced)}


def guest_shell(command: str) -> str:
    """Run a line of shell in the Linux guest at /run/lab."""
    return Shell(Path("/run/lab/guest.shell"), "guest").run(command, _WAIT_S)


def is_locked(path: str) -> bool:
    """Tell whether somebody has a POSIX lock on a file; that is what the NFS server makes of all locks."""
    with open(path, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _driver(path: str) -> str:
    return "host_device" if Path(path).is_block_device() else "file"
