"""NVMe over TCP as the kernel sees it: a volume is one namespace, reached by a controller for each portal.

The kernel itself joins the paths (nvme_core.multipath) and hears of a new size. Looking reads sysfs alone,
which answers however dead a path is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voldrivers import sysfs
from voldrivers.base import Run
from voldrivers.errors import BackendError, CommandFailed, InvalidInput, InvalidState, NotSupported
from voldrivers.host.blockdev import Portal, device_bytes

CONTROLLERS = Path("/sys/class/nvme")
_RESCAN_S = 10.0
_NQN = re.compile(r"nqn\.[\w.:-]+", re.ASCII)
_SECTOR_BYTES = 512


@dataclass(frozen=True)
class Subsystem:
    """A volume by its ways: a namespace of a subsystem, and its portals."""

    nqn: str
    uuid: str
    portals: tuple[Portal, ...]

    @property
    def path(self) -> str:
        """The path that udev makes of it, the same after every connecting."""
        return f"/dev/disk/by-id/nvme-uuid.{self.uuid}"

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"NVMe subsystem {self.nqn}"


@dataclass(frozen=True)
class Controller:
    """One way to a subsystem: `state` is live, connecting, resetting and so on.

    `size_bytes` is that of the namespace, None where it is not seen this way.
    """

    name: str
    portal: Portal
    state: str
    size_bytes: int | None

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"controller {self.name} by portal {self.portal}"

    @property
    def trouble(self) -> InvalidState | None:
        """Give what keeps it from being read anew, if anything does."""
        if self.state != "live":
            return InvalidState(self.title, self.state or "gone", "live")
        return (
            InvalidState(self.title, "without the namespace", "with it") if self.size_bytes is None else None
        )


def read_properties(properties: Mapping[str, str]) -> Subsystem:
    """Take target_nqn, vol_uuid and portals, each ADDRESS:PORT, with commas.

    Raises InvalidInput; NotSupported for another transport than tcp.
    """
    if (transport := properties.get("transport_type", "tcp")) != "tcp":
        raise NotSupported("connection properties", f"there is no transport {transport}, only tcp")
    nqn, uuid = (properties.get(name, "") for name in ("target_nqn", "vol_uuid"))
    try:
        portals = tuple(Portal.of(text) for text in properties.get("portals", "").split(",") if text)
    except ValueError as error:
        raise InvalidInput(
            "connection properties", "its portals must be ADDRESS:PORT, with commas"
        ) from error
    if not _NQN.fullmatch(nqn) or not re.fullmatch(r"[0-9a-f-]{36}", uuid) or not portals:
        raise InvalidInput("connection properties", "need target_nqn, vol_uuid and portals")
    return Subsystem(nqn, uuid, portals)


def controllers(wanted: Subsystem) -> Sequence[Controller]:
    """Give the controllers of the subsystem, on this host now."""
    found = (each for each in sysfs.entries(CONTROLLERS) if sysfs.read(each / "subsysnqn") == wanted.nqn)
    return [_controller(each, wanted) for each in found]


def check_paths(wanted: Subsystem) -> Sequence[Controller]:
    """Give the controllers if each portal has one and all are live; nothing is done. Raises InvalidState."""
    found = controllers(wanted)
    for trouble in (each.trouble for each in found):
        if trouble is not None:
            raise trouble
    missing = [str(portal) for portal in wanted.portals if portal not in {each.portal for each in found}]
    if missing:
        state = f"without a controller by portal {', '.join(missing)}"
        raise InvalidState(wanted.title, state, "reached by all its portals")
    return found


def size_bytes(wanted: Subsystem) -> int:
    """Give the least that any path and the device show. Raises as `check_paths`; NotFound.

    The kernel takes the size of one path for the device as soon as that is read anew; a request that it sends
    by another one would fail there.
    """
    paths = [each.size_bytes or 0 for each in check_paths(wanted)]
    return min(device_bytes(wanted.path), *paths)


def rescan(run: Run, wanted: Subsystem) -> None:
    """Have the kernel read the namespace anew by every path; it may be done with that later.

    Raises as `check_paths` before anything is done; OutcomeUnknown, BackendError.
    """
    for each in check_paths(wanted):
        try:
            sysfs.write(run, CONTROLLERS / each.name / "rescan_controller", "1", timeout_s=_RESCAN_S)
        except CommandFailed as error:
            raise BackendError(each.title, f"cannot be rescanned: {error.reason}") from error


def _controller(home: Path, wanted: Subsystem) -> Controller:
    address = dict(part.partition("=")[::2] for part in sysfs.read(home / "address").split(","))
    portal = Portal(address.get("traddr", ""), int(address.get("trsvcid") or 0))
    spaces = (each for each in home.glob("nvme*n*") if sysfs.read(each / "uuid") == wanted.uuid)
    sectors = next((sysfs.read(each / "size") for each in spaces), "")
    return Controller(
        home.name, portal, sysfs.read(home / "state"), int(sectors) * _SECTOR_BYTES if sectors else None
    )
