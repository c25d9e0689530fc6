"""iSCSI on this host: connecting a volume by all its portals, and letting go of it.

os-brick connects. Letting go is ours: os-brick hangs for two minutes on a session that is dead.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from voldrivers import locks, sysfs
from voldrivers.base import Run
from voldrivers.errors import NotSupported, OutcomeUnknown, VolDriverError
from voldrivers.host import login, removal
from voldrivers.host.blockdev import check_paths, disks_behind, look, maps_over
from voldrivers.host.changes import wait_for_change
from voldrivers.host.connection import Connection, read_properties

#: In the lab two portals take seconds to connect and to let go; a daemon that hangs is found out by these.
_CONNECT_S, _DISCONNECT_S = 60.0, 60.0
_LINK_S = 10.0
_INITIATOR = Path("/etc/iscsi/initiatorname.iscsi")
_LOCKS = Path("/run/lock/voldrivers")


def initiator_name(file: Path = _INITIATOR) -> str:
    """Give the name of this host's initiator, for its connector. Raises NotSupported without one."""
    match = re.search(r"^\s*InitiatorName=(\S+)", sysfs.read(file), re.MULTILINE)
    if match is None:
        raise NotSupported("iSCSI on this host", f"{file} names no initiator: install open-iscsi")
    return match[1]


def connect(run: Run, properties: Mapping[str, object], *, timeout_s: float = _CONNECT_S) -> str:
    """Log in at all portals and give a path of the volume that stays; what is connected is left alone.

    With several portals it is their multipath map, /dev/disk/by-id/dm-uuid-mpath-WWID: the identifier comes
    from the target's disk, while /dev/mapper/NAME is a setting of multipathd and /dev/dm-N whatever was free.
    With one it is /dev/disk/by-path/ip-PORTAL-iscsi-IQN-lun-N: /dev/disk/by-id/wwn-* would lead a QEMU to
    another device as soon as multipathd makes a map. Both are the same after a new login and after a
    reboot, where the volume has to be connected again (os-brick sets `node.session.scan` to manual).

    It is all portals or none: on failure nothing is left that was not there. Needs root.
    Raises InvalidInput; InvalidState (a silent portal, a target that refuses us); NotSupported (no os-brick,
    no multipathd); BackendError, OutcomeUnknown.
    """
    wanted, deadline = read_properties(properties), time.monotonic() + timeout_s
    with _alone(timeout_s):
        before = disks_behind(wanted.luns)
        if len(before) == len(wanted.luns) and (path := _path(wanted)):
            check_paths(path, wanted.luns)
            return path
        login.check_ways(run, wanted)
        try:
            login.log_in(run, wanted, deadline)
            return _appeared(wanted)
        except VolDriverError as error:
            if not before:  # what is there may be in use
                _undo(run, wanted, error)
            raise


def disconnect(
    run: Run, properties: Mapping[str, object], path: str, *, timeout_s: float = _DISCONNECT_S
) -> None:
    """Flush, remove map and paths of this volume, log out where no other one is left; may be repeated.

    What is not there is no error. Other LUNs of the same target keep their sessions. Where every session is
    dead nothing is flushed: what was not written is lost, and nobody waits for it. Needs root.
    Raises InvalidState while a map is in use, nothing then having been removed; OutcomeUnknown when a device
    does not let go in time; BackendError.
    """
    wanted, deadline = read_properties(properties), time.monotonic() + timeout_s
    with _alone(timeout_s):
        removal.remove(run, wanted.luns, path, deadline)


def _alone(timeout_s: float) -> AbstractContextManager[None]:
    """Keep all other connecting of this host away: who logs out must know that nobody is logging in."""
    return locks.in_turn(_LOCKS, "iscsi", "iSCSI on this host", timeout_s)


def _appeared(wanted: Connection) -> str:
    """Wait until the stable path leads to what is connected, and all of it works."""
    with suppress(OutcomeUnknown):
        wait_for_change(lambda: _path(wanted) is not None, _LINK_S, f"the device of {wanted.title}")
    if (path := _path(wanted)) is None:
        raise OutcomeUnknown(f"connecting {wanted.title}", f"udev made no path in {_LINK_S:g} seconds")
    check_paths(path, wanted.luns)
    return path


def _path(wanted: Connection) -> str | None:
    """Give the stable path, if it leads to the disks that the sessions show."""
    found = {disk.name for disk in disks_behind(wanted.luns)}
    for path in _links(wanted, found):
        if Path(path).exists() and found == {each.name for each in look(path).paths}:
            return path
    return None


def _links(wanted: Connection, found: set[str]) -> Iterator[str]:
    if len(wanted.luns) == 1:
        lun = wanted.luns[0]
        where = f"ip-{str(lun.portal).translate({ord(c): None for c in '[]'})}-iscsi-{lun.iqn}"
        # udev writes numbers from 256 on as the bytes of the address (src/udev/udev-builtin-path_id.c).
        number = (
            lun.number if lun.number < 256 else f"0x{lun.number & 0xFFFF:04x}{lun.number >> 16:04x}00000000"
        )
        yield f"/dev/disk/by-path/{where}-lun-{number}"
        return
    for name in maps_over(found):
        yield f"/dev/disk/by-id/dm-uuid-{sysfs.read(Path('/sys/class/block') / name / 'dm/uuid')}"


def _undo(run: Run, wanted: Connection, error: VolDriverError) -> None:
    """Let go of what was connected; what keeps us from it is told with the error."""
    try:
        removal.remove(run, wanted.luns, "", time.monotonic() + _DISCONNECT_S)
    except VolDriverError as left:
        error.add_note(f"and something is left of it: {left}")
