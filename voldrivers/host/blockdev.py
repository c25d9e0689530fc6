"""Block devices of this host: what the kernel sees of them, and how it is told to look again.

Looking reads sysfs alone, which answers however dead a path is.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from voldrivers import sysfs
from voldrivers.base import Run
from voldrivers.errors import BackendError, CommandFailed, InvalidState, NotFound, OutcomeUnknown
from voldrivers.host.changes import changes_within, wait_for_change
from voldrivers.sizes import format_size

#: How long one path may take to be read anew. A healthy one takes 0.1 s; iscsid finds a silent portal
#: out after 10 s (node.conn[0].timeo.noop_out_*), so a path that takes longer is a dead one.
_PATH_S = 10.0
_RESCAN_S = 30.0
_SECTOR_BYTES = 512
_BLOCK, _SESSIONS = Path("/sys/class/block"), Path("/sys/class/iscsi_session")
_MAP_UUID = "mpath-"
DEFAULT_PORT = 3260


@dataclass(frozen=True)
class Portal:
    """Where a target is reached: an address without brackets, and a port."""

    address: str
    port: int

    @classmethod
    def of(cls, text: str) -> "Portal":
        """Take it from ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT. Raises ValueError for another text."""
        if text.startswith("["):
            address, _, port = text[1:].partition("]")
        elif text.count(":") > 1:  # IPv6 without brackets, and so without a port
            address, port = text, ""
        else:
            address, _, port = text.partition(":")
        return cls(address, int(port.lstrip(":") or DEFAULT_PORT))

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True)
class LUN:
    """One way to a volume: a logical unit of a target, behind one of its portals."""

    portal: Portal
    iqn: str
    number: int


@dataclass(frozen=True)
class Session:
    """A session of the initiator (class iscsi_session); `state` is LOGGED_IN, FAILED or FREE."""

    name: str
    iqn: str
    portal: Portal
    state: str

    @property
    def number(self) -> str:
        """What iscsiadm knows it by."""
        return self.name.removeprefix("session")


@dataclass(frozen=True)
class DevicePath:
    """A SCSI disk: `state` is running, blocked, transport-offline and so on; "" once it is gone.

    `address` is the kernel's H:C:T:L; `lun` and `session` are None for a disk that is not reached over iSCSI.
    """

    name: str
    state: str
    size_bytes: int
    address: str = ""
    lun: LUN | None = None
    session: Session | None = None

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"path {self.name}" + (f" by portal {self.lun.portal}" if self.lun else "")

    @property
    def trouble(self) -> InvalidState | None:
        """Give what keeps it from being read anew, if anything does."""
        if self.session is not None and self.session.state != "LOGGED_IN":
            subject = f"session {self.session.number} to {self.session.iqn} of {self.title}"
            return InvalidState(subject, self.session.state or "gone", "LOGGED_IN")
        if self.state != "running":
            return InvalidState(self.title, self.state or "gone", "running")
        return None


@dataclass(frozen=True)
class BlockDevice:
    """A disk, or the multipath map of several. `map_name` is the map's, "" for a disk alone."""

    name: str
    size_bytes: int
    paths: tuple[DevicePath, ...]
    map_name: str = ""


def look(path: str) -> BlockDevice:
    """Give what the kernel says of a device, without opening it. Raises NotFound."""
    name = Path(path).resolve().name
    if not path.startswith("/dev/") or not (_BLOCK / name).exists():
        raise NotFound("block device", path)
    if _is_map(name):
        paths = tuple(_path(below.name) for below in sysfs.entries(_BLOCK / name / "slaves"))
        return BlockDevice(name, _size_bytes(name), paths, sysfs.read(_BLOCK / name / "dm/name"))
    return BlockDevice(name, _size_bytes(name), (_path(name),))


def device_bytes(path: str) -> int:
    """Give the size of a device as the kernel has it. Raises NotFound."""
    return look(path).size_bytes


def check_paths(path: str, luns: Iterable[LUN] = ()) -> BlockDevice:
    """Give the device if every path of it works, and each of `luns` is reached by one; nothing is done.

    Raises NotFound; InvalidState, which names the session that is not LOGGED_IN, the path that is not
    running, or the portal without a path.
    """
    device = look(path)
    for trouble in (each.trouble for each in device.paths):
        if trouble is not None:
            raise trouble
    there = {each.lun for each in device.paths}
    missing = [lun for lun in luns if lun not in there]
    if missing or not device.paths:
        state = f"without a path by {', '.join(f'portal {lun.portal}' for lun in missing) or 'any portal'}"
        raise InvalidState(f"block device {path}", state, "reached by all its portals")
    return device


def rescan(run: Run, path: str, luns: Iterable[LUN] = (), *, timeout_s: float = _RESCAN_S) -> None:
    """Have the kernel read the size of every path anew, then of their map; only of this LUN.

    When it returns, sysfs shows the size that the target gave, on all paths and the map alike. Whether
    that is the wanted one is for the caller to compare (`wait_for_bytes`). May be repeated.
    Raises as `check_paths` before anything is done; OutcomeUnknown for a path that does not answer;
    BackendError when a path was lost meanwhile, or they do not agree.
    """
    luns, deadline = tuple(luns), time.monotonic() + timeout_s
    for each in check_paths(path, luns).paths:
        _rescan_path(run, each, min(_PATH_S, deadline - time.monotonic()))
    device = _agreed(path, luns)
    if device.map_name and device.size_bytes != device.paths[0].size_bytes:
        _resize_map(run, path, device, deadline)


def wait_for_bytes(path: str, wanted_bytes: int, *, timeout_s: float) -> None:
    """Return as soon as the device is at least so large. Raises NotFound, OutcomeUnknown when it never is."""
    what = f"{path} to be {format_size(wanted_bytes)}"
    wait_for_change(lambda: device_bytes(path) >= wanted_bytes, timeout_s, what)


def sessions() -> Sequence[Session]:
    """Give all sessions of this host."""
    return [_session(each.name) for each in sysfs.entries(_SESSIONS)]


def disks(session: Session) -> Sequence[DevicePath]:
    """Give the disks that are reached by a session. Those without a disk driver have no name, only a LUN."""
    units = (_SESSIONS / session.name / "device").glob("target*/*:*:*:*")
    return [_unit(unit, session) for unit in sorted(units)]


def disks_behind(luns: Iterable[LUN]) -> Sequence[DevicePath]:
    """Give the disks that are reached as any of these LUNs, as far as they have a disk driver."""
    wanted = set(luns)
    return [disk for each in sessions() for disk in disks(each) if disk.lun in wanted and disk.name]


def maps_over(names: Iterable[str]) -> Sequence[str]:
    """Give the multipath maps (dm-N) that hold any of these disks."""
    holders = (holder.name for name in names for holder in sysfs.entries(_BLOCK / name / "holders"))
    return sorted({holder for holder in holders if _is_map(holder)})


def holders_of(name: str) -> Sequence[str]:
    """Give the devices that lie over this one and are no multipath map."""
    return [each.name for each in sysfs.entries(_BLOCK / name / "holders") if not _is_map(each.name)]


def _is_map(name: str) -> bool:
    return sysfs.read(_BLOCK / name / "dm/uuid").startswith(_MAP_UUID)


def _size_bytes(name: str) -> int:
    return int(sysfs.read(_BLOCK / name / "size") or 0) * _SECTOR_BYTES


def _path(name: str) -> DevicePath:
    """Follow a disk to its session: .../sessionN/targetH:C:T/H:C:T:L/block/NAME."""
    place = (_BLOCK / name).resolve()
    session = next((part for part in place.parts if part.startswith("session")), "")
    if not session:
        return DevicePath(name, sysfs.read(_BLOCK / name / "device/state"), _size_bytes(name))
    return _unit(place.parent.parent, _session(session))


def _unit(unit: Path, session: Session) -> DevicePath:
    name = next((disk.name for disk in sysfs.entries(unit / "block")), "")
    lun = LUN(session.portal, session.iqn, int(unit.name.rpartition(":")[2]))
    return DevicePath(
        name, sysfs.read(unit / "state"), _size_bytes(name) if name else 0, unit.name, lun, session
    )


def _session(name: str) -> Session:
    connection = Path("/sys/class/iscsi_connection") / f"connection{name.removeprefix('session')}:0"
    # The persistent address is the one that was asked for; the other one that a target redirected to.
    address = sysfs.read(connection / "persistent_address")
    port = int(sysfs.read(connection / "persistent_port") or 0)
    home = _SESSIONS / name
    return Session(name, sysfs.read(home / "targetname"), Portal(address, port), sysfs.read(home / "state"))


def _rescan_path(run: Run, path: DevicePath, timeout_s: float) -> None:
    try:
        sysfs.write(run, _BLOCK / path.name / "device/rescan", "1", timeout_s=max(timeout_s, 0.1))
    except OutcomeUnknown as error:
        reason = f"it did not answer within {timeout_s:.0f} seconds"
        raise OutcomeUnknown(f"the rescan of {path.title}", reason) from error
    except CommandFailed as error:
        raise BackendError(path.title, f"cannot be rescanned: {error.reason}") from error


def _agreed(path: str, luns: Iterable[LUN]) -> BlockDevice:
    """Give the device after a rescan, if its paths are of one size, and that not below the map's.

    The kernel says that it rescanned a path that is not running, too (scsi_rescan_device, Linux 6.1).
    """
    try:
        device = check_paths(path, luns)
    except (InvalidState, NotFound) as error:
        raise BackendError(f"block device {path}", f"lost a path during its rescan: {error}") from error
    sizes = {each.size_bytes for each in device.paths}
    if len(sizes) > 1 or (device.map_name and min(sizes) < device.size_bytes):
        seen = ", ".join(f"{each.name} is {format_size(each.size_bytes)}" for each in device.paths)
        reason = f"its paths disagree after a rescan: {seen}, the device {format_size(device.size_bytes)}"
        raise BackendError(f"block device {path}", reason)
    return device


def _resize_map(run: Run, path: str, device: BlockDevice, deadline: float) -> None:
    """Have multipathd take the size of the paths, for this map alone; it is asked again while it is busy.

    It says "ok" though nothing grew (multipath-tools 0.9.4), so its word is not taken for it.
    """
    wanted_bytes = device.paths[0].size_bytes
    refused: CommandFailed | None = None
    while device_bytes(path) != wanted_bytes:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            now = format_size(device_bytes(path))
            reason = f"is {now} and its paths {format_size(wanted_bytes)}" + (
                f": {refused}" if refused else ""
            )
            raise BackendError(f"multipath map {device.map_name}", reason) from refused
        try:
            run(["multipathd", "resize", "map", device.map_name], timeout_s=max(left_s, 0.1))
        except CommandFailed as error:
            refused = error
        changes_within(lambda: device_bytes(path) == wanted_bytes, timeout_s=0.2)
