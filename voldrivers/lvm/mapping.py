"""The kernel's device of a logical volume, as sysfs shows it: no program is run.

A killed lvextend leaves one of three things (lvm2 2.03.16, killed in the lab at each of its steps):
  1. a larger table waits, the metadata is old. Whatever suspends and resumes the device next, be it
     `lvchange --refresh`, makes it larger than its metadata, over extents that are not its own;
  2. that, and the device is suspended (of a thin volume the whole pool too, and all in it): I/O hangs;
  3. the same with new metadata.
lvm commits its metadata only while the device is suspended. So one that is not suspended is as large as
its metadata says, or has been changed by other hands.

Of a thick volume with snapshots the bytes are in a device `NAME-real`, on which stand the volume and all its
snapshots. Of a killed `lvcreate --snapshot` or `lvconvert --splitsnapshot` tables of several of them wait.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from voldrivers import sysfs

_BLOCK, _SECTOR_BYTES, _REAL = Path("/sys/block"), 512, "-real"
#: How lvm makes them, of the uuids of group and volume (lib/activate/dev_manager.c, build_dm_uuid).
_LVM_UUID = re.compile(r"LVM-\w{32}(?P<volume>\w{32})(?P<layer>(-.*)?)")


@dataclass(frozen=True)
class Device:
    """A device of device-mapper, now."""

    name: str
    #: The volume's, without hyphens.
    uuid: str
    size_bytes: int
    is_suspended: bool
    #: Devices of lvm under it that are suspended, the lowest first: data, metadata and pool of a thin volume.
    suspended_below: tuple[str, ...]

    @property
    def is_held_up(self) -> bool:
        """Tell that its I/O waits."""
        return self.is_suspended or bool(self.suspended_below)


def look(path: str) -> Device | None:
    """Look at the device of a volume by its `lv_dm_path`; None for one that is not active."""
    node = _BLOCK / Path(path).resolve().name
    # The link is udev's, who may be behind: the kernel says whose device it is.
    return _device(node) if _name(node) == Path(path).name else None


def find(uuid: str) -> Device | None:
    """Look for the device of a volume by its `lv_uuid`: a killed lvrename leaves it with another name."""
    found = (_device(node) for node in sysfs.entries(_BLOCK) if _uuid(node) == uuid.replace("-", ""))
    return next(found, None)


def family(device: Device) -> Sequence[Device]:
    """Look at a thick volume, last, and before it at all that stands or waits to stand on its `NAME-real`.

    The device may be the volume or one of the others; alone when there is no such thing.
    """
    nodes = {_name(node): node for node in sysfs.entries(_BLOCK)}
    # The kernel links a device with what its tables need, the one that waits too (6.1, open_table_device).
    below = map(_name, sysfs.entries(nodes.get(device.name, _BLOCK) / "slaves"))
    real = next((name for name in below if _uuid(nodes.get(name, _BLOCK), _REAL)), device.name + _REAL)
    if real not in nodes:
        return (device,)
    owner = real.removesuffix(_REAL)
    above = {_name(each) for each in sysfs.entries(nodes[real] / "holders")}
    found = (_device(nodes[name]) for name in (*sorted(above - {owner}), owner) if name in nodes)
    return [each for each in found if each is not None]


def path_of(group: str, name: str) -> str:
    """Give what lvm calls `lv_dm_path`: hyphens in names are doubled (libdm, dm_build_dm_name)."""
    return f"/dev/mapper/{group.replace('-', '--')}-{name.replace('-', '--')}"


def _suspended_below(node: Path) -> Iterator[Path]:
    for each in sysfs.entries(node / "slaves"):
        if sysfs.read(each / "dm/uuid").startswith("LVM-"):
            yield from _suspended_below(each)
            if _is_suspended(each):
                yield each


def _device(node: Path) -> Device | None:
    size = sysfs.read(node / "size")
    if not size.isdigit():
        return None
    below = tuple(_name(each) for each in _suspended_below(node))
    return Device(_name(node), _uuid(node), int(size) * _SECTOR_BYTES, _is_suspended(node), below)


def _name(node: Path) -> str:
    return sysfs.read(node / "dm/name")


def _uuid(node: Path, layer: str = "") -> str:
    """Give the part that is the volume's; "" for what is no device of lvm, or of another layer."""
    found = _LVM_UUID.fullmatch(sysfs.read(node / "dm/uuid"))
    return found["volume"] if found and found["layer"] == layer else ""


def _is_suspended(device: Path) -> bool:
    return sysfs.read(device / "dm/suspended") == "1"
