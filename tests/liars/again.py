"""Lies about what is done again."""

from dataclasses import replace
from itertools import count

from liars.liar import lying_driver
from voldrivers.errors import InvalidSize, InvalidState, NotFound
from voldrivers.memory import MemoryDriver
from voldrivers.model import ConnectionInfo, Connector, ExtendReply, Volume

_SERIAL = count()


class Emptying(MemoryDriver):
    """Empties a volume that is created again."""

    def create_volume(self, volume: Volume, options: object) -> str:
        self.array.written.pop(volume.id, None)
        return super().create_volume(volume, options)


class NewPassword(MemoryDriver):
    """Gives another password each time that the same host asks, so that earlier ones end."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        info = super().initialize_connection(volume, connector)
        return replace(info, properties={**info.properties, "auth_password": f"secret {next(_SERIAL)}"})


class OnlyLarger(MemoryDriver):
    """Refuses an extend to the size that the volume has."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if self.volume_size(volume) == new_size_bytes:
            raise InvalidSize(volume.title, "it must become larger", str(new_size_bytes))
        return super().extend_volume(volume, new_size_bytes)


class Resizing(MemoryDriver):
    """Gives a volume that is created again the size that is asked for then."""

    def create_volume(self, volume: Volume, options: object) -> str:
        self.array.resize(volume.id, volume.size_bytes)
        return ""


class DetachesOnce(MemoryDriver):
    """Does not find the export that was taken back already."""

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        if (volume.id, connector.host) not in self.array.exports:
            raise NotFound("export", volume.name)
        super().terminate_connection(volume, connector)


class Delta(MemoryDriver):
    """Adds the difference between the new and the published size, whatever has grown already."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        more_bytes = max(0, new_size_bytes - volume.size_bytes)
        self.array.resize(volume.id, self.volume_size(volume) + more_bytes)
        return ExtendReply.EXTENDED


class CreatesOnce(MemoryDriver):
    """Refuses to create a volume that is there, though only its answer was lost."""

    def create_volume(self, volume: Volume, options: object) -> str:
        if volume.id in self.array.sizes and not volume.backend_bytes:
            raise InvalidState(volume.title, "there already", "new")
        return super().create_volume(volume, options)


LIARS = [
    lying_driver(Emptying, "IDM-001"),
    lying_driver(NewPassword, "IDM-001"),
    lying_driver(OnlyLarger, "IDM-002"),
    lying_driver(Resizing, "IDM-003"),
    lying_driver(DetachesOnce, "IDM-004"),
    lying_driver(Delta, "IDM-005"),
    lying_driver(CreatesOnce, "IDM-005"),
]
