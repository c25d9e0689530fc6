"""Logging in: os-brick's iSCSI connector, through our own `run`, without ever seeing the secret.

It knows how to get a session out of iscsiadm. Waiting for disks and maps is ours: it looks once a second.
"""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voldrivers import brick
from voldrivers.base import Run
from voldrivers.errors import (
    BackendError,
    CommandFailed,
    InvalidState,
    NotSupported,
    VolDriverError,
)
from voldrivers.host import iscsinodes
from voldrivers.host.blockdev import LUN, Portal, disks_behind, maps_over, sessions
from voldrivers.host.changes import changes_within, wait_for_change
from voldrivers.host.connection import Connection

_ANSWER_S = 2.0
_LOCKS = Path("/run/lock/voldrivers")
#: How long a disk takes after its scan, and its map; what multipathd has to be told of takes longer.
_DISK_S, _MAP_S, _TOLD_S = 5.0, 1.0, 10.0
#: ISCSI_ERR_LOGIN_AUTH_FAILED (open-iscsi, include/iscsi_err.h).
_REFUSED = 24
#: Stands where os-brick knows the secret.
_PLACEHOLDER = "-"


def check_ways(run: Run, wanted: Connection) -> None:
    """Refuse a portal that is silent, and several without multipathd; nothing is done.

    iscsid would try a silent one for minutes, and go on trying when nobody waits any more.
    Raises InvalidState, NotSupported.
    """
    open_ones = {each.portal for each in sessions() if each.state == "LOGGED_IN"}
    for portal in dict.fromkeys(lun.portal for lun in wanted.luns):
        if portal not in open_ones and not answers(portal):
            raise InvalidState(f"portal {portal}", "not answering", "reachable")
    if len(wanted.luns) > 1:
        try:
            run(["multipathd", "show", "status"], timeout_s=_ANSWER_S)
        except VolDriverError as error:
            reason = f"{len(wanted.luns)} portals need multipathd, which does not answer"
            raise NotSupported("multipath on this host", reason) from error


def answers(portal: Portal) -> bool:
    """Tell within two seconds whether anybody listens there. LIO logs it as a login that failed."""
    try:
        socket.create_connection((portal.address, portal.port), timeout=_ANSWER_S).close()
    except OSError:
        return False
    return True


def log_in(run: Run, wanted: Connection, deadline: float) -> None:
    """Log in at one portal after the other and find the disks; with several, have a map made of them.

    Raises InvalidState when a target refuses us, BackendError, OutcomeUnknown; something may be there then.
    """
    commands = brick.Commands(run, deadline, instead=lambda argv: _writes_setting(argv, wanted))
    connector = _connector(commands)
    try:
        for lun in wanted.luns:
            session, _ = connector._connect_to_iscsi_portal(_known_to_os_brick(wanted, lun))
            if commands.failures:
                raise commands.failures[0]
            if address := connector._linuxscsi.get_hctl(session, lun.number):
                connector._linuxscsi.scan_iscsi(*address)
        names = _disks(wanted)
        if len(wanted.luns) > 1:
            _have_map(connector, names)
    except brick.errors() as error:
        reason = _reason(commands, wanted)
        if reason is None and isinstance(error, VolDriverError):
            raise
        raise reason or BackendError(wanted.title, f"was not found: {error}") from error


def _connector(commands: brick.Commands) -> Any:  # Any: os-brick has no types
    try:
        with brick.without_eventlet():
            from os_brick.initiator.connectors import base, iscsi  # 160 ms: only who connects pays
    except ImportError as error:
        raise NotSupported("iSCSI on this host", "needs the extra: pip install 'voldrivers[lvm]'") from error
    base.CONF.set_override("lock_path", str(_LOCKS), "os_brick")

    class Connector(iscsi.ISCSIConnector):  # type: ignore[misc]  # os-brick has no types
        def _get_iscsi_sessions_full(self) -> list[tuple[str, str, str, str, str]]:
            """Read them where iscsiadm would: transport, number, portal, group, target."""
            return [("tcp:", each.number, str(each.portal), "", each.iqn) for each in sessions()]

    return Connector("", execute=commands)


def _disks(wanted: Connection) -> list[str]:
    """Give the disks by name as soon as each portal shows one. Raises BackendError when one does not."""

    def missing() -> set[LUN]:
        return set(wanted.luns).difference(disk.lun for disk in disks_behind(wanted.luns))

    if not changes_within(lambda: not missing(), _DISK_S) and (silent := missing()):
        portals = ", ".join(sorted(str(lun.portal) for lun in silent))
        raise BackendError(wanted.title, f"was not found behind {portals} after logging in")
    return [disk.name for disk in disks_behind(wanted.luns)]


def _have_map(connector: Any, names: Sequence[str]) -> None:  # Any: os-brick has no types
    """Have a map of the disks that can be used. A multipathd that makes none by itself is told to.

    It makes none of what it does not know to have several paths (multipath.conf(5), find_multipaths).
    """
    if not changes_within(lambda: bool(maps_over(names)), _MAP_S):
        connector._linuxscsi.multipath_add_wwid(connector._linuxscsi.get_sysfs_wwn(list(names)))
        for name in names:
            connector._linuxscsi.multipath_add_path(f"/dev/{name}")
        wait_for_change(lambda: bool(maps_over(names)), _TOLD_S, f"a multipath map of {', '.join(names)}")
    for name in maps_over(names):
        connector._linuxscsi.wait_for_mpath_device(name)


def _known_to_os_brick(wanted: Connection, lun: LUN) -> Mapping[str, object]:
    known = {"target_portal": str(lun.portal), "target_iqn": lun.iqn, "target_lun": lun.number}
    if wanted.secret:
        known |= {"auth_method": "CHAP", "auth_username": wanted.user, "auth_password": _PLACEHOLDER}
    return known


def _writes_setting(argv: tuple[str, ...], wanted: Connection) -> bool:
    """Write a setting where iscsiadm would, which shows its arguments, secrets too, to everybody."""
    if argv[-6:-4] != ("--op", "update"):
        return False
    iqn, portal, name, value = (argv[argv.index(option) + 1] for option in ("-T", "-p", "-n", "-v"))
    value = wanted.secret if name == iscsinodes.SECRET else value
    iscsinodes.set_value(iqn, Portal.of(portal), name, value)
    return True


def _reason(commands: brick.Commands, wanted: Connection) -> VolDriverError | None:
    """Give what failed first, in words that help."""
    first = next(iter(commands.failures), None)
    if not isinstance(first, CommandFailed) or first.exit_code != _REFUSED:
        return first
    state = f"refusing CHAP user {wanted.user}" if wanted.user else "asking for a CHAP user"
    return InvalidState(f"target {wanted.luns[0].iqn}", state, "accepting this host, its user and secret")
