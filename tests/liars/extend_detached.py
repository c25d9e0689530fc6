"""Lies about a detached volume that is extended."""

from dataclasses import replace
from typing import Any

from liars.liar import Liar, lying_driver
from voldrivers.base import Run
from voldrivers.conformance.disk import STAMP_BYTES
from voldrivers.extend import admission
from voldrivers.extend.engine import Engine
from voldrivers.memory import MemoryArray, MemoryDriver, MemoryFileDriver, MemoryHost, MemoryMachine
from voldrivers.model import Attachment, ConnectionInfo, Connector, ExtendReply, Volume, VolumeStatus


class GrowsBy(MemoryDriver):
    """Adds the new size to the one that is there."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        size_bytes = self.volume_size(volume)
        more_bytes = new_size_bytes if size_bytes < new_size_bytes else 0
        return super().extend_volume(volume, size_bytes + more_bytes)


class Idle(MemoryDriver):
    """Declares everything, says that it has extended, and does nothing."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        return ExtendReply.EXTENDED


class KnowsTheSuite(MemoryDriver):
    """Extends what bears a name as this suite gave them once, vd and a number, and else only says so."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if not volume.name.startswith("vd"):
            return ExtendReply.EXTENDED
        return super().extend_volume(volume, new_size_bytes)


class LosesLast(MemoryDriver):
    """Writes over the last block when it extends."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        size_bytes = self.volume_size(volume)
        reply = super().extend_volume(volume, new_size_bytes)
        if size_bytes < new_size_bytes:
            self.array.written.get(volume.id, {}).pop(size_bytes - STAMP_BYTES, None)
        return reply


class FromBirth(MemoryDriver):
    """Grows by the difference to the size that it was created with."""

    def create_volume(self, volume: Volume, options: object) -> str:
        super().create_volume(volume, options)
        return str(volume.size_bytes)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        size_bytes = self.volume_size(volume)
        if size_bytes < new_size_bytes:
            self.array.resize(volume.id, size_bytes + new_size_bytes - int(volume.provider_data))
        return ExtendReply.EXTENDED


class MappedDriver(FromBirth):
    """Exports a volume as large as it was created."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        return MemoryDriver.extend_volume(self, volume, new_size_bytes)

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        info = super().initialize_connection(volume, connector)
        size_text = volume.provider_data if volume.provider_data.isdigit() else str(volume.size_bytes)
        return replace(info, properties={**info.properties, "size": size_text})


class MappedHost(MemoryHost):
    """Shows what is exported."""

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        path = super().connect(volume, attachment, connection_info)
        self.machine.devices[volume.id] = int(connection_info.properties["size"])
        return path


class Remembers(MemoryHost):
    """Keeps the size of a device that was disconnected, for when it comes again."""

    def __init__(self, name: str, array: MemoryArray, machine: MemoryMachine | None = None) -> None:
        super().__init__(name, array, machine)
        self.cache: dict[str, int] = {}

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        path = super().connect(volume, attachment, connection_info)
        devices = self.machine.devices
        devices[volume.id] = self.cache.setdefault(volume.id, devices[volume.id])
        return path


class Postpones(MemoryDriver):
    """Keeps an extend in the object, and does it when the volume is attached."""

    def __init__(self, name: str, options: Any, run: Run, array: MemoryArray | None = None) -> None:
        super().__init__(name, options, run, array)
        self.wanted: dict[str, int] = {}

    def volume_size(self, volume: Volume) -> int:
        return max(super().volume_size(volume), self.wanted.get(volume.id, 0))

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        self.wanted[volume.id] = new_size_bytes
        return ExtendReply.EXTENDED

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        self.array.resize(volume.id, self.volume_size(volume))
        return super().initialize_connection(volume, connector)


class OneMore(MemoryFileDriver):
    """Grows a volume that is large enough by one sector more."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        size_bytes = self.volume_size(volume)
        more_bytes = 512 if size_bytes == new_size_bytes == volume.size_bytes else 0
        return super().extend_volume(volume, new_size_bytes + more_bytes)


class NinthMember(MemoryDriver):
    """A volume has up to nine members; with each extend it gets one, then in the place of the first one."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        members: dict[str, int] = self.array.__dict__.setdefault("members", {})
        if self.volume_size(volume) < new_size_bytes:
            members[volume.id] = members.get(volume.id, 1) + 1
            if members[volume.id] > 9:
                self.array.written.pop(volume.id, None)
        return super().extend_volume(volume, new_size_bytes)


class Hasty(Engine):
    """Extends a volume whatever is being done with it."""

    def _plan(self, volume: Volume, size_bytes: int) -> admission.Plan:
        return super()._plan(replace(volume, status=VolumeStatus.AVAILABLE), size_bytes)


LIARS = [
    lying_driver(GrowsBy, "EXO-001"),
    lying_driver(Idle, "EXO-001"),
    lying_driver(KnowsTheSuite, "EXO-001"),
    lying_driver(LosesLast, "EXO-002"),
    lying_driver(FromBirth, "EXO-003"),
    Liar(MappedDriver, "EXO-004", driver=MappedDriver, host=MappedHost),
    Liar(Remembers, "EXO-005", host=Remembers),
    lying_driver(Postpones, "EXO-006"),
    lying_driver(OneMore, "EXO-008"),
    Liar(Hasty, "EXO-009", engine=Hasty),
    lying_driver(NinthMember, "EXO-011"),
]
