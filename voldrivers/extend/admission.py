"""Admission: everything that can refuse an extend before anything is touched, and the rounding."""

from dataclasses import dataclass

from voldrivers.base import Driver, Hosts, round_size
from voldrivers.capabilities import InUseExtend
from voldrivers.errors import InvalidSize, NotFound, NotSupported
from voldrivers.extend.converge import with_instance_states
from voldrivers.model import Attachment, Volume
from voldrivers.sizes import format_size

#: The protocol level of hosts that this extend needs.
HOST_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What an extend of this volume would do: from the backend's size to the rounded one."""

    volume: Volume
    from_bytes: int
    requested_bytes: int
    to_bytes: int
    grown_by: str
    steps: tuple[str, ...]
    notes: tuple[str, ...] = ()


def plan(
    volume: Volume, driver: Driver, hosts: Hosts, requested_bytes: int, *, attached_allowed: bool
) -> Plan:
    """Check everything that must hold before an extend and round its size, once.

    Looks at the backend and at every host, changes nothing. Raises InvalidSize, NotSupported,
    InvalidState, NotFound, NoSpace; what stands in the way is named.
    """
    rounded_bytes = _target(volume, driver, requested_bytes)
    if volume.attachments:
        _check_may_extend_attached(volume, driver, attached_allowed)
    # First the backend, which can say best why a volume is not there.
    from_bytes = driver.volume_size(volume)
    for attachment in volume.attachments:
        _check_host(volume, attachment, hosts)
    volume = with_instance_states(volume, hosts)
    # Somebody else may have made it larger: it is never cut, the rest is brought up to it.
    to_bytes = max(rounded_bytes, from_bytes)
    notes: tuple[str, ...] = ()
    if to_bytes > from_bytes:
        driver.check_extend(volume, to_bytes)
        notes = tuple(driver.extend_notes(volume, to_bytes))
    grown_by = _grown_by(volume, driver)
    steps = _steps(volume, grown_by, from_bytes, to_bytes)
    return Plan(volume, from_bytes, requested_bytes, to_bytes, grown_by, steps, notes)


def _target(volume: Volume, driver: Driver, requested_bytes: int) -> int:
    if isinstance(requested_bytes, int) and requested_bytes == volume.size_bytes:
        # It may have come out at a size that its rule does not give; that is no reason to grow it.
        return requested_bytes
    rounded_bytes = round_size(driver, volume.title, requested_bytes, volume.size_bytes)
    if rounded_bytes < volume.size_bytes:
        smaller = "a volume never becomes smaller"
        raise InvalidSize(volume.title, smaller, format_size(requested_bytes), volume.size_bytes)
    return rounded_bytes


def _check_may_extend_attached(volume: Volume, driver: Driver, attached_allowed: bool) -> None:
    if not driver.capabilities.declares("in_use_extend"):
        cannot = f"the driver of backend {volume.backend} does not support extending a volume that is in-use"
        raise NotSupported(volume.title, cannot)
    if not attached_allowed:
        off = "extending attached volumes is turned off (policy extend_attached); detach it first"
        raise NotSupported(volume.title, off)


def _check_host(volume: Volume, attachment: Attachment, hosts: Hosts) -> None:
    if attachment.host not in hosts:
        where = f": there is no [host.{attachment.host}], but {volume.title} is attached there"
        raise NotFound("host", attachment.host, where)
    if attachment.connection_info is not None and attachment.connection_info.encrypted:
        reason = f"it is encrypted on {attachment.place}, and decrypting is not built yet"
        raise NotSupported(volume.title, reason)
    host = hosts[attachment.host]
    if host.version < HOST_VERSION:
        too_old = f"speaks protocol {host.version}, {HOST_VERSION} is needed"
        raise NotSupported(f"host {host.name}", too_old)
    host.check_extend(volume, attachment)


def _grown_by(volume: Volume, driver: Driver) -> str:
    by_hypervisor = driver.capabilities.in_use_extend is InUseExtend.BY_HYPERVISOR
    running = [a for a in volume.attachments if a.may_run]
    return f"the QEMU of {running[0].place}" if by_hypervisor and running else f"backend {volume.backend}"


def _steps(volume: Volume, grown_by: str, from_bytes: int, to_bytes: int) -> tuple[str, ...]:
    by_backend = grown_by == f"backend {volume.backend}"
    grow = f"growing: {grown_by} makes it {format_size(to_bytes)}"
    if from_bytes == to_bytes:
        grow = f"growing: nothing, backend {volume.backend} already has {format_size(to_bytes)}"
    rescanned = [a for a in volume.attachments if by_backend or from_bytes == to_bytes or not a.may_run]
    rescans = [f"rescanning: host {a.host} reads the new size" for a in rescanned]
    resizes = [f"resizing: QEMU shows it to {a.place}" for a in volume.attachments if a.may_run]
    return (grow, *rescans, *resizes, "settling: every layer shows exactly that size")
