"""NVMe over TCP on this host: connecting a volume by all its portals, and letting go of it.

nvme-cli connects. Letting go is ours: the kernel waits for a dead portal while it removes a controller.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from voldrivers import locks, sysfs
from voldrivers.base import Run
from voldrivers.errors import (
    BackendError,
    CommandFailed,
    InvalidState,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.host import login, removal
from voldrivers.host.blockdev import Portal, device_bytes, holders_of
from voldrivers.host.changes import changes_within
from voldrivers.host.nvmepaths import (
    CONTROLLERS,
    Controller,
    Subsystem,
    check_paths,
    controllers,
    read_properties,
)
from voldrivers.process import holds_within

_SUBJECT = "NVMe on this host"
_HOST_NQN = Path("/etc/nvme/hostnqn")
_LOCKS = Path("/run/lock/voldrivers")
_MULTIPATH = Path("/sys/module/nvme_core/parameters/multipath")
_CONNECT_S, _DISCONNECT_S, _LINK_S, _FLUSH_S = 60.0, 90.0, 10.0, 20.0
#: A silent portal is found out by keep-alives, which the kernel sends every 5 s.
_SILENCE_S = 15.0
#: Tries again after so long, and does so for ever, as iSCSI does: who waits for its storage must not lose it.
_HOW = ("--reconnect-delay=2", "--ctrl-loss-tmo=-1")


def host_nqn(file: Path = _HOST_NQN) -> str | None:
    """Give the name of this host, for its connector; None without nvme-cli."""
    return sysfs.read(file) or None


def connect(run: Run, properties: Mapping[str, str], *, timeout_s: float = _CONNECT_S) -> str:
    """Connect by all portals and give the path of the volume, which stays; what is connected is left alone.

    It is all portals or none: on failure nothing is left that was not there. Needs root.
    Raises InvalidInput; InvalidState (a silent portal); NotSupported (no nvme-cli, no multipath in the
    kernel); BackendError (refused), OutcomeUnknown.
    """
    wanted, deadline = read_properties(properties), time.monotonic() + timeout_s
    with _alone(timeout_s):
        before = controllers(wanted)
        missing = [portal for portal in wanted.portals if portal not in {each.portal for each in before}]
        _check_ways(wanted, missing)
        try:
            for portal in missing:
                _connect(run, wanted, portal, deadline)
            return _appeared(wanted)
        except VolDriverError as error:
            if not before:  # what is there may be in use
                _undo(run, wanted, error)
            raise


def disconnect(run: Run, properties: Mapping[str, str], *, timeout_s: float = _DISCONNECT_S) -> None:
    """Flush, and remove the controllers of this volume; may be repeated, and what is not there is no error.

    Where no portal answers nothing is flushed: what was not written is lost. Needs root.
    Raises InvalidState while the device is in use, nothing then having been removed; OutcomeUnknown when
    a controller does not go in time; BackendError.
    """
    wanted, deadline = read_properties(properties), time.monotonic() + timeout_s
    with _alone(timeout_s):
        _remove(run, wanted, deadline)


def _check_ways(wanted: Subsystem, missing: Sequence[Portal]) -> None:
    if len(wanted.portals) > 1 and sysfs.read(_MULTIPATH) != "Y":
        reason = f"{len(wanted.portals)} portals need multipath: load nvme_core with multipath=Y"
        raise NotSupported(_SUBJECT, reason)
    for portal in missing:
        if not login.answers(portal):
            raise InvalidState(f"portal {portal}", "not answering", "reachable")


def _connect(run: Run, wanted: Subsystem, portal: Portal, deadline: float) -> None:
    where = [f"--traddr={portal.address}", f"--trsvcid={portal.port}", f"--nqn={wanted.nqn}"]
    try:
        run(["nvme", "connect", "--transport=tcp", *where, *_HOW], timeout_s=_left_s(deadline))
    except CommandFailed as error:
        reason = f"refused this host at portal {portal}: {error.reason}"
        raise BackendError(wanted.title, reason) from error


def _appeared(wanted: Subsystem) -> str:
    """Wait until udev has made the path, and all is there."""

    def is_there() -> bool:
        with suppress(NotFound):
            return device_bytes(wanted.path) > 0 and not any(each.trouble for each in controllers(wanted))
        return False

    if not changes_within(is_there, _LINK_S):
        check_paths(wanted)
        raise OutcomeUnknown(f"connecting {wanted.title}", f"udev made no path in {_LINK_S:g} seconds")
    check_paths(wanted)
    return wanted.path


def _undo(run: Run, wanted: Subsystem, error: VolDriverError) -> None:
    """Let go of what was connected; what keeps us from it is told with the error."""
    try:
        _remove(run, wanted, time.monotonic() + _DISCONNECT_S)
    except VolDriverError as left:
        error.add_note(f"and something is left of it: {left}")


def _remove(run: Run, wanted: Subsystem, deadline: float) -> None:
    found, device = controllers(wanted), Path(wanted.path)
    silent = {each.portal for each in found if not login.answers(each.portal)}
    if device.exists():
        name = device.resolve().name
        if above := holders_of(name):
            raise InvalidState(f"block device {name}", f"used by {', '.join(above)}", "used by nobody")
        removal.check_closed(name, deadline)
        if any(each.trouble is None and each.portal not in silent for each in found):
            run(["blockdev", "--flushbufs", str(device)], timeout_s=min(_FLUSH_S, _left_s(deadline)))
    _wait_until_known(wanted, silent, deadline)
    for each in found:
        _delete(run, each, deadline)
    if not holds_within(lambda: not controllers(wanted) and not device.exists(), _left_s(deadline)):
        raise OutcomeUnknown(f"disconnecting {wanted.title}", "its controllers are still there")


def _wait_until_known(wanted: Subsystem, silent: set[Portal], deadline: float) -> None:
    """Let the kernel find out what is silent: it would wait a minute for the answer to a farewell."""

    def is_known() -> bool:
        return not any(each.state == "live" and each.portal in silent for each in controllers(wanted))

    holds_within(is_known, min(_SILENCE_S, _left_s(deadline)))


def _delete(run: Run, controller: Controller, deadline: float) -> None:
    home = CONTROLLERS / controller.name
    try:
        sysfs.write(run, home / "delete_controller", "1", timeout_s=_left_s(deadline))
    except CommandFailed as error:
        if home.exists():
            raise BackendError(controller.title, f"cannot be removed: {error.reason}") from error


def _alone(timeout_s: float) -> AbstractContextManager[None]:
    """Keep all other connecting of this host away."""
    return locks.in_turn(_LOCKS, "nvme", _SUBJECT, timeout_s)


def _left_s(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())
