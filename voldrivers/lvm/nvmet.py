"""nvmet in the kernel, by its configfs (drivers/nvme/target/configfs.c): the parts of one exported volume.

What is there is read each time, never remembered. A half-made part, of one who was killed, is completed by
whoever makes it again.
"""

import errno
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from voldrivers.base import Run
from voldrivers.errors import BackendError, CommandFailed, InvalidState, NotSupported
from voldrivers.lvm.portals import Portal

ROOT = Path("/sys/kernel/config/nvmet")
NAMESPACE = 1
_SUBSYSTEMS, _PORTS, _HOSTS = (ROOT / kind for kind in ("subsystems", "ports", "hosts"))
#: Our ports have numbers from here on, which follow from their addresses: by that we know them for ours.
_FIRST, _RANGE, _TRIES = 0x8000, 0x7000, 16
_MODPROBE_S = 30.0
_SECTOR_BYTES = 512


@contextmanager
def opened(run: Run, nqn: str) -> Iterator[None]:
    """Have the module there, and raise what goes wrong in configfs as BackendError."""
    if not ROOT.is_dir():
        try:
            run(["modprobe", "--all", "nvmet", "nvmet-tcp"], timeout_s=_MODPROBE_S)
        except CommandFailed as error:
            raise NotSupported("NVMe targets", f"the kernel has no nvmet-tcp ({error.reason})") from error
    try:
        yield
    except OSError as error:
        raise BackendError(f"NVMe subsystem {nqn}", f"{error.strerror}: {error.filename}") from error


def ensure_subsystem(nqn: str, serial: str) -> None:
    """Make the subsystem; who is not named by `allow` is not let in."""
    (_SUBSYSTEMS / nqn).mkdir(exist_ok=True)
    _set(_SUBSYSTEMS / nqn / "attr_allow_any_host", "0")
    _set(_SUBSYSTEMS / nqn / "attr_serial", serial)


def ensure_namespace(nqn: str, device: Path, uuid: str) -> None:
    """Make the namespace. Raises InvalidState for a device in use, and when there is another namespace."""
    space = _space(nqn)
    space.mkdir(exist_ok=True)
    if _is_enabled(space):
        if not is_on(nqn, device) or _value(space / "device_uuid") != uuid:
            state = f"on device {_value(space / 'device_path')} with UUID {_value(space / 'device_uuid')}"
            raise InvalidState(f"namespace {NAMESPACE} of {nqn}", state, f"on {device} with {uuid}")
        return
    _check_free(device)
    (space / "device_path").write_text(str(device))
    (space / "device_uuid").write_text(uuid)
    (space / "enable").write_text("1")


def ensure_linked(nqn: str, portal: Portal) -> None:
    """Let the subsystem be reached at an address, by the port that answers there or a new one."""
    link = _link(_find_port(portal) or _make_port(portal), nqn)
    if not link.is_symlink():
        link.symlink_to(_SUBSYSTEMS / nqn)


def allow(nqn: str, host: str) -> None:
    """Let a host connect."""
    (_HOSTS / host).mkdir(exist_ok=True)
    if not _allowed(nqn, host).is_symlink():
        _allowed(nqn, host).symlink_to(_HOSTS / host)


def disallow(nqn: str, host: str) -> None:
    """Let a host connect no more, and end what it has.

    Linux 6.1 can end no controller alone: the subsystem leaves its ports and comes back, where others of
    it have to connect again (nvmet_port_del_ctrls). They queue their requests meanwhile.
    """
    if _allowed(nqn, host).is_symlink():
        _allowed(nqn, host).unlink()
        for link in _links(nqn):
            link.unlink()
            if allowed(nqn):
                link.symlink_to(_SUBSYSTEMS / nqn)
    with suppress(OSError):  # other subsystems let it in too
        (_HOSTS / host).rmdir()


def allowed(nqn: str) -> Sequence[str]:
    """Give the hosts that may connect."""
    return [link.name for link in _entries(_SUBSYSTEMS / nqn / "allowed_hosts")]


def remove(nqn: str, portals: Sequence[Portal]) -> None:
    """Remove the subsystem, and ports of ours on which nothing is left."""
    for link in _links(nqn):
        link.unlink()
    if _space(nqn).is_dir():
        _space(nqn).rmdir()
    if (_SUBSYSTEMS / nqn).is_dir():
        (_SUBSYSTEMS / nqn).rmdir()
    for portal in portals:
        for port in _own_ports(portal):
            if not _entries(port / "subsystems") and _answers_at(port) in (portal, None):
                port.rmdir()


def other_namespaces(nqn: str) -> Sequence[str]:
    """Give the namespaces that are not ours."""
    found = _entries(_SUBSYSTEMS / nqn / "namespaces")
    return [each.name for each in found if each.name != str(NAMESPACE)]


def obstacle(nqn: str, portals: Iterable[Portal], hosts: Sequence[str]) -> str:
    """Say what keeps these hosts, who know these portals, from connecting; "" for nothing."""
    if not _is_enabled(_space(nqn)):
        return f"without namespace {NAMESPACE}"
    ports = {portal: _find_port(portal) for portal in portals}
    if silent := [str(at) for at, port in ports.items() if not port or not _link(port, nqn).is_symlink()]:
        return f"not answering at {', '.join(silent)}"
    if strangers := sorted(set(hosts) - set(allowed(nqn))):
        return f"closed to {', '.join(strangers)}"
    return ""


def is_on(nqn: str, device: Path) -> bool:
    """Tell whether the namespace is of this device, whatever it is called."""
    path = Path(_value(_space(nqn) / "device_path"))
    return path.exists() and path.stat().st_rdev == device.stat().st_rdev


def shown_bytes(nqn: str) -> int | None:
    """Give what the namespace answers to Identify; None without one.

    nvmet asks the block device each time (nvmet_execute_identify_ns, nvmet_ns_revalidate): so do we.
    """
    if not _is_enabled(_space(nqn)):
        return None
    number = Path(_value(_space(nqn) / "device_path")).stat().st_rdev
    sectors = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/size").read_text()
    return int(sectors) * _SECTOR_BYTES


def announce(nqn: str) -> None:
    """Have nvmet look at the device; if it has grown, all who are connected are told (Linux 5.8)."""
    if (_space(nqn) / "revalidate_size").exists():
        (_space(nqn) / "revalidate_size").write_text("1")


def _check_free(device: Path) -> None:
    """Refuse a device that somebody has: nvmet opens it without asking."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise InvalidState(f"device {device}", "in use (mounted, or exported otherwise)", "free") from error


def _make_port(portal: Portal) -> Path:
    port = next((port for port in _numbered(portal) if _is_blank(port)), None)
    if port is None:
        raise BackendError(f"NVMe portal {portal}", "the numbers of its port are taken by others")
    port.mkdir(exist_ok=True)
    address = portal.address.strip("[]")
    (port / "addr_trtype").write_text("tcp")
    (port / "addr_adrfam").write_text("ipv6" if ":" in address else "ipv4")
    (port / "addr_trsvcid").write_text(str(portal.port))
    (port / "addr_traddr").write_text(address)  # the last: without it a port is not complete
    return port


def _is_blank(port: Path) -> bool:
    return not port.exists() or (not _value(port / "addr_traddr") and not _entries(port / "subsystems"))


def _find_port(portal: Portal) -> Path | None:
    return next((port for port in _entries(_PORTS) if _answers_at(port) == portal), None)


def _own_ports(portal: Portal) -> Sequence[Path]:
    return [port for port in _numbered(portal) if port.is_dir()]


def _numbered(portal: Portal) -> Sequence[Path]:
    first = _FIRST + zlib.crc32(str(portal).encode()) % _RANGE
    return [_PORTS / str(number) for number in range(first, first + _TRIES)]


def _answers_at(port: Path) -> Portal | None:
    """Give the address of a port, None for one that is not complete or not of TCP."""
    address, number = _value(port / "addr_traddr"), _value(port / "addr_trsvcid")
    if _value(port / "addr_trtype") != "tcp" or not address or not number.isdigit():
        return None
    return Portal(f"[{address}]" if ":" in address else address, int(number))


def _links(nqn: str) -> Sequence[Path]:
    links = (_link(port, nqn) for port in _entries(_PORTS))
    return [link for link in links if link.is_symlink()]


def _link(port: Path, nqn: str) -> Path:
    return port / "subsystems" / nqn


def _space(nqn: str) -> Path:
    return _SUBSYSTEMS / nqn / "namespaces" / str(NAMESPACE)


def _allowed(nqn: str, host: str) -> Path:
    return _SUBSYSTEMS / nqn / "allowed_hosts" / host


def _is_enabled(space: Path) -> bool:
    return _value(space / "enable") == "1"


def _set(attribute: Path, value: str) -> None:
    if _value(attribute) != value:
        attribute.write_text(value)


def _value(attribute: Path) -> str:
    try:
        return attribute.read_text().strip()
    except FileNotFoundError:
        return ""


def _entries(directory: Path) -> Sequence[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []
