"""The kernel's device of a logical volume, as sysfs shows it: no program is run.

A killed lvextend leaves one of three things (lvm2 2.03.16, killed in the lab at each of its steps):
  1. a larger table waits, the metadata is old. Whatever suspends and resumes the device next, be it
     `lvchange --refresh`, makes it larger than its metadata, over extents that are not its own;
  2. that, and the device is suspended (of a thin volume the whole pool too, and all in it): I/O hangs;
  3. the same with new metadata.
lvm commits its metadata only while the device is suspended. So one that is not suspended is as large as
its metadata says, or has been changed by other hands.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from voldrivers import sysfs

_BLOCK, _SECTOR_BYTES = Path("/sys/block"), 512


@dataclass(frozen=True)
class Device:
    """A device of device-mapper, now."""

    name: str
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
    size = sysfs.read(node / "size")
    if sysfs.read(node / "dm/name") != Path(path).name or not size.isdigit():
        return None
    below = tuple(sysfs.read(each / "dm/name") for each in _suspended_below(node))
    return Device(Path(path).name, int(size) * _SECTOR_BYTES, _is_suspended(node), below)


def path_of(group: str, name: str) -> str:
    """Give what lvm calls `lv_dm_path`: hyphens in names are doubled (libdm, dm_build_dm_name)."""
    return f"/dev/mapper/{group.replace('-', '--')}-{name.replace('-', '--')}"


def _suspended_below(node: Path) -> Iterator[Path]:
    for each in sysfs.entries(node / "slaves"):
        if sysfs.read(each / "dm/uuid").startswith("LVM-"):
            yield from _suspended_below(each)
            if _is_suspended(each):
                yield each


def _is_suspended(device: Path) -> bool:
    return sysfs.read(device / "dm/suspended") == "1"
