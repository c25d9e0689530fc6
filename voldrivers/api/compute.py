"""What Nova's specifications have a compute host answer: `os-online_extend_volume` and server events.

    PUT  /v2/TENANT/servers/SERVER/os-online_extend_volume            rescan: 202
    GET  /v2/TENANT/servers/SERVER/os-online_extend_volume/VOLUME     get_blockdev: 200, the size in bytes
    POST /v2/TENANT/servers/SERVER/os-online_extend_volume/VOLUME     assist_extend: 200
    POST /v2/TENANT/os-server-external-events                         volume-extended: 200, or 207

404: no such instance, or the volume is not attached to it. 409: a state that forbids it. 501: no monitor.
500: everything else. How a volume is attached is asked of the volume service each time, so nothing is kept.

A request may carry `Voldrivers-Extend` (the number of its extend) and `Voldrivers-Expires`. One without them
has those of the extend that its volume waits for, if it waits for one.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from voldrivers.api import whole
from voldrivers.api.agent import Agent
from voldrivers.api.client import Pending, Shown, VolumeService
from voldrivers.base import Host
from voldrivers.errors import BackendError, InvalidSize, InvalidState, NotFound, NotSupported, VolDriverError
from voldrivers.model import Attachment, Extend, Phase, Volume, VolumeStatus, utc_now
from voldrivers.process import holds_within
from voldrivers.sizes import format_size

_log = logging.getLogger(__name__)
#: For a request that says no end of its own.
_ACT_S = 120.0
_EVENTS_AT_ONCE = 32
#: Their size is what QEMU makes it; the kernel has nothing to read anew.
_FILES = ("nfs", "file")

_Id = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z._+@=:-]{0,127}$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Named(_Body):
    """The volume that is meant."""

    volume_id: _Id


class Rescan(_Body):
    """The body of a rescan."""

    online: Named = Field(alias="onlineExtendVolume")


class Size(_Body):
    """The size that is wanted."""

    new_size_bytes: whole.Bytes = Field(alias="bytes")


class Assist(_Body):
    """The body of an assist_extend."""

    online: Size = Field(alias="onlineExtendVolume")


class Event(BaseModel):
    """A server event; others than `volume-extended` are Nova's."""

    model_config = ConfigDict(extra="ignore")

    name: Literal["volume-extended"]
    server_uuid: _Id
    tag: _Id | None = None
    status: str | None = None


class Events(BaseModel):
    """The body of os-server-external-events."""

    model_config = ConfigDict(extra="ignore")

    events: Annotated[list[Event], Field(min_length=1, max_length=256)]


@dataclass(frozen=True)
class Order:
    """The extend that a request says it belongs to, and when it must have begun."""

    extend_id: int | None = None
    expires_at: datetime | None = None


class Compute:
    """The host of an agent, as Nova's specifications have it."""

    def __init__(self, agent: Agent, service: VolumeService | None) -> None:
        """Answer for the agent's host, with what its volume service knows."""
        self._agent, self._given = agent, service
        self._events = ThreadPoolExecutor(_EVENTS_AT_ONCE, "event")

    @property
    def host(self) -> Host:
        """The host that is answered for."""
        return self._agent.host

    def rescan(self, server: str, volume_id: str, order: Order) -> None:
        """Let the kernel read a volume's size anew."""
        volume, attachment = self._attached(server, volume_id)
        if not _is_file(attachment):
            self._act("rescan", order.expires_at, volume=volume, attachment=attachment)

    def get_blockdev(self, server: str, volume_id: str) -> int:
        """Give the size in bytes that the host sees, looked up now."""
        nameless = Volume(volume_id, volume_id, "", 0)
        return self._agent.host.get_blockdev(nameless, self._attachment(server, nameless))

    def assist_extend(self, server: str, volume_id: str, new_size_bytes: int, order: Order) -> None:
        """Let QEMU show the size to the guest."""
        attachment = self._attachment(server, Volume(volume_id, volume_id, "", 0))
        shown = self._service.volume(volume_id)
        _check_wanted(shown, attachment, new_size_bytes)
        pending = shown.pending if order.extend_id is None else None
        wanted = Pending(
            new_size_bytes,
            pending.extend_id if pending else order.extend_id,
            order.expires_at or (pending.expires_at if pending else None),
        )
        self._assist(shown.volume, attachment, wanted)

    def take(self, events: Events) -> list[Mapping[str, object]]:
        """Take events, to be carried out by and by; tell of each whether it is taken: its code is 200."""
        return [self._taken(event) for event in events.events]

    def _taken(self, event: Event) -> Mapping[str, object]:
        said = {"name": event.name, "server_uuid": event.server_uuid, "tag": event.tag}
        if event.tag is None:
            return {**said, "status": "failed", "code": 400}
        try:
            self._agent.host.find_instance(_wanted(event.server_uuid, event.tag))
        except NotFound:
            return {**said, "status": "failed", "code": 404}
        except VolDriverError as error:
            _log.warning("event for instance %s: %s", event.server_uuid, error)
            return {**said, "status": "failed", "code": 422}
        self._events.submit(copy_context().run, self._volume_extended, event.server_uuid, event.tag)
        return {**said, "status": "completed", "code": 200}

    def _volume_extended(self, server: str, volume_id: str) -> None:
        """Look what the volume waits for. `extending`: resize, and say how it went; else as ever."""
        try:
            shown = self._service.volume(volume_id)
        except VolDriverError as error:
            _log.warning("event volume-extended of volume %s: %s", volume_id, error)
            return
        extend_id = shown.pending.extend_id if shown.pending else None
        failed = False
        try:
            pending = shown.pending
            if shown.volume.status == "extending":
                pending = _sensible(shown.volume, pending)
            wanted = pending or Pending(shown.volume.size_bytes)
            volume, attachment = self._attached(server, volume_id)
            self._bring_up(volume, attachment, wanted)
        except VolDriverError as error:
            _log.warning("event volume-extended of volume %s: %s", volume_id, error)
            failed = True
        if shown.volume.status == "extending":
            self._complete(volume_id, extend_id, failed=failed)

    def _complete(self, volume_id: str, extend_id: int | None, *, failed: bool) -> None:
        """Say how it went; who waits looks anyway, so what is lost here is only late."""
        try:
            self._service.complete_extend(volume_id, extend_id, error=failed)
        except VolDriverError as error:
            _log.warning("completion of the extend of volume %s: %s", volume_id, error)

    def _bring_up(self, volume: Volume, attachment: Attachment, wanted: Pending) -> None:
        """Have the kernel read the size, if it is a device, then QEMU show it."""
        host = self._agent.host

        def is_seen() -> bool:
            return host.get_blockdev(volume, attachment) >= wanted.new_size_bytes

        if not _is_file(attachment) and not is_seen():
            self._act("rescan", wanted.expires_at, volume=volume, attachment=attachment)
            if not holds_within(is_seen, _left_s(wanted.expires_at)):
                size = format_size(wanted.new_size_bytes)
                raise BackendError(volume.title, f"waited in vain for host {host.name} to see {size}")
        self._assist(volume, attachment, wanted)

    def _assist(self, volume: Volume, attachment: Attachment, wanted: Pending) -> None:
        expires_at = wanted.expires_at or utc_now() + timedelta(seconds=_ACT_S)
        extend = Extend(
            id=self._agent.number(volume.id) if wanted.extend_id is None else wanted.extend_id,
            volume_id=volume.id,
            from_bytes=volume.size_bytes,
            requested_bytes=wanted.new_size_bytes,
            to_bytes=wanted.new_size_bytes,
            phase=Phase.RESIZING,
            expires_at=expires_at,
        )
        self._act("assist_extend", expires_at, volume=volume, attachment=attachment, extend=extend)

    def _act(self, name: str, expires_at: datetime | None, **arguments: object) -> None:
        until = expires_at or utc_now() + timedelta(seconds=_ACT_S)
        self._agent.perform(name, arguments, until)

    def _attached(self, server: str, volume_id: str) -> tuple[Volume, Attachment]:
        """Find a volume in an instance of this host. Raises NotFound, NotSupported, InvalidState."""
        volume = Volume(volume_id, volume_id, "", 0)
        attachment = self._attachment(server, volume)
        return self._service.volume(volume_id).volume, attachment

    def _attachment(self, server: str, volume: Volume) -> Attachment:
        """Find how a volume is attached to an instance of this host, as `_attached`."""
        host, service = self._agent.host, self._service
        host.find_instance(_wanted(server, volume.id))  # before anybody is asked about a server that is none
        attachment = service.attachment(volume.id, server)
        if attachment.monitor is None:
            attachment = host.find_instance(replace(attachment, host=host.name))
        if attachment.device_path is None and attachment.connection_info is not None:
            path = host.connect(volume, attachment, attachment.connection_info)
            attachment = replace(attachment, device_path=path)
        return attachment

    @property
    def _service(self) -> VolumeService:
        if self._given is None:
            needs = "its agent's configuration has no table [volume_service]"
            raise NotSupported(f"host {self._agent.host.name}", needs)
        return self._given


def _wanted(server: str, volume_id: str) -> Attachment:
    return Attachment("", volume_id, "", server)


def _check_wanted(shown: Shown, attachment: Attachment, new_size_bytes: int) -> None:
    """Refuse to grow a file beyond what its records say, or wait for. Raises InvalidState.

    A device cannot become larger by this. A service that says `extending` and not how far is believed.
    """
    if shown.volume.status is VolumeStatus.EXTENDING and shown.pending is None:
        return
    known_bytes = shown.pending.new_size_bytes if shown.pending else shown.volume.size_bytes
    if _is_file(attachment) and new_size_bytes > known_bytes:
        state = f"{shown.volume.status}, to be {format_size(known_bytes)}"
        raise InvalidState(shown.volume.title, state, f"extending to {format_size(new_size_bytes)}")


def _sensible(volume: Volume, pending: Pending | None) -> Pending:
    if pending is None:
        raise BackendError(volume.title, "is extending, but its metadata holds no sensible extend_new_size")
    if pending.new_size_bytes < volume.size_bytes:
        size = format_size(pending.new_size_bytes)
        raise InvalidSize(volume.title, "extend_new_size would make it smaller", size, volume.size_bytes)
    return pending


def _is_file(attachment: Attachment) -> bool:
    info = attachment.connection_info
    return info is not None and info.driver_volume_type in _FILES


def _left_s(expires_at: datetime | None) -> float:
    return _ACT_S if expires_at is None else max(0.0, (expires_at - utc_now()).total_seconds())
