"""Logging in: os-brick's iSCSI connector, through our own `run`, without ever seeing the secret."""

import socket
from collections.abc import Mapping
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
from voldrivers.host.blockdev import Portal, sessions
from voldrivers.host.connection import Connection

_ANSWER_S = 2.0
_LOCKS = Path("/run/lock/voldrivers")
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
    """Log in at all portals and find the disks. Raises InvalidState when a target refuses us, BackendError.

    Something may be connected after a failure.
    """
    commands = brick.Commands(
        run, deadline, instead=lambda argv: _writes_secret(argv, wanted), ends_at_failure=True
    )
    connector = _connector(commands, wanted)
    try:
        connector.connect_volume(_known_to_os_brick(wanted))
    except brick.errors() as error:
        raise _reason(commands, wanted) or BackendError(wanted.title, f"was not found: {error}") from error
    if reason := _reason(commands, wanted):  # os-brick is content with some of the portals
        raise reason


def _connector(commands: brick.Commands, wanted: Connection) -> Any:  # Any: os-brick has no types
    try:
        with brick.without_eventlet():
            from os_brick.initiator.connectors import base, iscsi  # 160 ms: only who connects pays
    except ImportError as error:
        raise NotSupported("iSCSI on this host", "needs the extra: pip install 'voldrivers[lvm]'") from error
    base.CONF.set_override("lock_path", str(_LOCKS), "os_brick")

    class Connector(iscsi.ISCSIConnector):  # type: ignore[misc]  # os-brick has no types
        def supports_multipath(self) -> bool:
            """Believe us, who have asked: os-brick asks with its own way to run programs."""
            return self.use_multipath is True

        def _cleanup_connection(self, *_arguments: object, **_named: object) -> None:
            """Leave what a failure left to us, who have a time limit; try nothing again that was refused."""
            if commands.failures:
                raise commands.failures[0]

    # A new disk is there when its scan returns; one that is not there is looked for once more after 4 s.
    return Connector("", execute=commands, use_multipath=len(wanted.luns) > 1, device_scan_attempts=0)


def _known_to_os_brick(wanted: Connection) -> Mapping[str, object]:
    known: dict[str, object] = {
        "target_portals": [str(lun.portal) for lun in wanted.luns],
        "target_iqns": [lun.iqn for lun in wanted.luns],
        "target_luns": [lun.number for lun in wanted.luns],
    }
    if wanted.secret:
        known |= {"auth_method": "CHAP", "auth_username": wanted.user, "auth_password": _PLACEHOLDER}
    return known


def _writes_secret(argv: tuple[str, ...], wanted: Connection) -> bool:
    """Write the secret where iscsiadm would, which shows its arguments to everybody."""
    if iscsinodes.SECRET not in argv:
        return False
    iqn, portal = (argv[argv.index(option) + 1] for option in ("-T", "-p"))
    iscsinodes.set_secret(iqn, Portal.of(portal), wanted.secret)
    return True


def _reason(commands: brick.Commands, wanted: Connection) -> VolDriverError | None:
    """Give what failed first, in words that help."""
    first = next(iter(commands.failures), None)
    if not isinstance(first, CommandFailed) or first.exit_code != _REFUSED:
        return first
    state = f"refusing CHAP user {wanted.user}" if wanted.user else "asking for a CHAP user"
    return InvalidState(f"target {wanted.luns[0].iqn}", state, "accepting this host, its user and secret")
