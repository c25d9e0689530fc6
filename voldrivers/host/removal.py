"""Letting go of iSCSI disks: their map, themselves, and their sessions when nobody else uses them.

What is dead is found out first, because everything that touches a dead disk waits for it.
"""

import errno
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from voldrivers import sysfs
from voldrivers.base import Run
from voldrivers.errors import BackendError, CommandFailed, InvalidState, OutcomeUnknown
from voldrivers.host import iscsinodes, login
from voldrivers.host.blockdev import LUN, DevicePath, Session, disks, holders_of, maps_over, sessions
from voldrivers.host.changes import changes_within
from voldrivers.process import holds_within

_FLUSH_S, _STEP_S = 20.0, 15.0
#: Who opens a map for a moment, as udev does to look at it, has closed it by then.
_CLOSED_S = 3.0
_SETTLE_S = 5
_BLOCK = Path("/sys/class/block")
#: ISCSI_ERR_SESS_NOT_FOUND, ISCSI_ERR_NO_OBJS_FOUND (open-iscsi, include/iscsi_err.h).
_NOT_THERE = (2, 21)
_MAP_LINK = "dm-uuid-"


def remove(run: Run, luns: Sequence[LUN], path: str, deadline: float) -> None:
    """Remove what these LUNs are on this host: see `iscsi.disconnect`."""
    ours = [each for each in sessions() if any(_is_of(each, lun) for lun in luns)]
    found = [disk for each in ours for disk in disks(each) if disk.lun in luns]
    maps = _maps(found, path)
    _check_unused(found, maps)
    alive = _alive(found)
    for disk in () if maps else alive:  # a map that is open cannot be removed, a disk alone can
        check_closed(disk.name, deadline)
    for name in maps:
        _remove_map(run, name, deadline, flush=bool(alive))
    for session in ours:
        is_dead = not any(disk.session == session for disk in alive)
        if not (
            is_dead and _is_alone(session, luns)
        ):  # a dead one's disks would make us wait, so they go with it
            for disk in (disk for disk in found if disk.session == session):
                _remove_disk(run, disk, deadline, flush=not (maps or is_dead))
        if _is_alone(session, luns):
            _log_out(run, session, deadline)
    for lun in luns:
        _forget(run, lun, deadline)
    _check_gone(luns, deadline)
    if maps and not alive:
        _settle(run, deadline)


def _is_of(session: Session, lun: LUN) -> bool:
    return (session.iqn, session.portal) == (lun.iqn, lun.portal)


def _is_alone(session: Session, luns: Sequence[LUN]) -> bool:
    """Tell whether nobody else's disk is left in a session."""
    return all(disk.lun in luns for disk in disks(session))


def _maps(found: Sequence[DevicePath], path: str) -> Sequence[str]:
    """Give the maps over the disks, and the one that `path` names, which may have lost all of them."""
    uuid = Path(path).name.removeprefix(_MAP_LINK)
    named = [dm.parent.parent.name for dm in _BLOCK.glob("dm-*/dm/uuid") if path and sysfs.read(dm) == uuid]
    return sorted({*maps_over(disk.name for disk in found), *named})


def _check_unused(found: Sequence[DevicePath], maps: Sequence[str]) -> None:
    """Refuse a map of other disks too, and what other devices lie over."""
    ours = {disk.name for disk in found}
    for name in maps:
        others = {slave.name for slave in sysfs.entries(_BLOCK / name / "slaves")} - ours
        if others:
            state = f"made of {', '.join(sorted(others))} too"
            raise InvalidState(f"multipath map {name}", state, "of the connected paths alone")
    for name in (*maps, *ours):
        if above := holders_of(name):
            raise InvalidState(f"block device {name}", f"used by {', '.join(above)}", "used by nobody")


def check_closed(name: str, deadline: float) -> None:
    """Refuse a disk that stays mounted, or open in a process: a QEMU would lose it. Raises InvalidState."""
    closed_by = min(_CLOSED_S, _left_s(deadline))
    if not holds_within(lambda: not _users(name), closed_by):
        users = _users(name)
        raise InvalidState(
            f"block device {name}", f"used by {', '.join(users) or 'somebody'}", "used by nobody"
        )


def _users(name: str) -> Sequence[str]:
    """Give who has a disk mounted, or open; udev does for a moment when its writer has closed it."""
    device = f"/dev/{name}"
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))  # EBUSY: mounted (open(2))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return ["a mount"]
        raise BackendError(f"block device {name}", f"cannot be opened: {error.strerror}") from error
    links = Path("/proc").glob("[0-9]*/fd/*")
    return sorted({f"process {link.parts[2]}" for link in links if _leads_to(link, device)})


def _leads_to(link: Path, device: str) -> bool:
    try:
        return os.readlink(link) == device
    except OSError:  # closed meanwhile
        return False


def _alive(found: Sequence[DevicePath]) -> Sequence[DevicePath]:
    """Give the disks that answer; that a portal is silent is known to the kernel only some seconds later."""
    well = [disk for disk in found if disk.trouble is None and disk.lun]
    silent = {portal for portal in {d.lun.portal for d in well if d.lun} if not login.answers(portal)}
    return [disk for disk in well if disk.lun and disk.lun.portal not in silent]


def _remove_map(run: Run, name: str, deadline: float, *, flush: bool) -> None:
    map_name = sysfs.read(_BLOCK / name / "dm/name")
    if flush:
        _flush(run, name, deadline)
    else:  # what waits for a path to come back fails, so that the map is closed
        with suppress(CommandFailed):
            run(["multipathd", "disablequeueing", "map", map_name], timeout_s=_left_s(deadline))
    closed_by = min(deadline, time.monotonic() + _CLOSED_S)
    while (_BLOCK / name).exists():
        try:
            run(["multipath", "-f", map_name], timeout_s=_left_s(deadline))
        except CommandFailed as error:
            if time.monotonic() >= closed_by and (_BLOCK / name).exists():
                subject = f"multipath map {map_name}"
                raise InvalidState(subject, f"in use ({error.reason})", "closed by all who use it") from error
        changes_within(lambda: not (_BLOCK / name).exists(), 0.2)


def _settle(run: Run, deadline: float) -> None:
    """Wait for udev, which makes a link anew where it was reading from a map when its paths died.

    It takes that away itself, too; where it never does, a link to nothing harms nobody.
    """
    with suppress(BackendError, OutcomeUnknown):
        run(["udevadm", "settle", f"--timeout={_SETTLE_S}"], timeout_s=_left_s(deadline))


def _remove_disk(run: Run, disk: DevicePath, deadline: float, *, flush: bool) -> None:
    if flush and disk.name:
        _flush(run, disk.name, deadline)
    device = Path("/sys/bus/scsi/devices") / disk.address
    try:
        sysfs.write(run, device / "delete", "1", timeout_s=_left_s(deadline))
    except CommandFailed as error:
        if device.exists():
            raise BackendError(disk.title, f"cannot be removed: {error.reason}") from error


def _flush(run: Run, name: str, deadline: float) -> None:
    run(["blockdev", "--flushbufs", f"/dev/{name}"], timeout_s=min(_FLUSH_S, _left_s(deadline)))


def _log_out(run: Run, session: Session, deadline: float) -> None:
    argv = ["iscsiadm", "--mode", "session", "--sid", session.number, "--logout"]
    _run_unless_gone(run, argv, _left_s(deadline))


def _forget(run: Run, lun: LUN, deadline: float) -> None:
    """Remove the node records, with the secret in them, unless a session for other LUNs needs them."""
    if not any(_is_of(each, lun) for each in sessions()) and iscsinodes.exists(lun.iqn, lun.portal):
        where = ["--targetname", lun.iqn, "--portal", str(lun.portal)]
        _run_unless_gone(run, ["iscsiadm", "--mode", "node", *where, "--op", "delete"], _left_s(deadline))


def _run_unless_gone(run: Run, argv: Sequence[str], timeout_s: float) -> None:
    try:
        run(argv, timeout_s=timeout_s)
    except CommandFailed as error:
        if error.exit_code not in _NOT_THERE:
            raise


def _check_gone(luns: Sequence[LUN], deadline: float) -> None:
    def left() -> list[str]:
        return [disk.title for each in sessions() for disk in disks(each) if disk.lun in luns]

    if not changes_within(lambda: not left(), min(_STEP_S, _left_s(deadline))):
        raise OutcomeUnknown(f"removing {', '.join(left())}", f"still there after {_STEP_S:g} seconds")


def _left_s(deadline: float) -> float:
    return max(0.1, min(_STEP_S, deadline - time.monotonic()))
