"""Lies about what is done again."""

from dataclasses import replace
from itertools import count

from liars.liar import lying_driver
from voldrivers.errors import InvalidSize, InvalidState, NotFound
from voldrivers.memory import MemoryDriver
from voldrivers.model import ConnectionInfo, Connector, ExtendReply, Snapshot, Volume

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


class ClonesOnce(MemoryDriver):
    """Refuses to make a clone that is there, though only its answer was lost."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        if volume.id in self.array.sizes:
            raise InvalidState(volume.title, "there already", "new")
        return super().clone_volume(volume, options, source, snapshot)


class CopiesAgain(MemoryDriver):
    """Copies the snapshot once more over a clone that is there."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        if snapshot is not None and volume.id in self.array.sizes:
            self.array.fill(volume.id, self.array.snapshots[snapshot.id], volume.size_bytes)
        return super().clone_volume(volume, options, source, snapshot)


class TakesOverOnce(MemoryDriver):
    """Does not find what it has taken over already, though only its answer was lost."""

    def manage_existing(self, volume: Volume, reference: str, options: object) -> str:
        self.existing_size(reference, options)
        return super().manage_existing(volume, reference, options)


class GivesUpOnce(MemoryDriver):
    """Does not find what it has given up already, though only its answer was lost."""

    def unmanage(self, volume: Volume) -> str:
        self.volume_size(volume)
        return super().unmanage(volume)


class AnotherReference(MemoryDriver):
    """Answers what it has given up already with a name under which there is nothing."""

    def unmanage(self, volume: Volume) -> str:
        known = volume.id in self.array.sizes
        return super().unmanage(volume) if known else volume.name


LIARS = [
    lying_driver(Emptying, "IDM-001"),
    lying_driver(NewPassword, "IDM-001"),
    lying_driver(OnlyLarger, "IDM-002"),
    lying_driver(Resizing, "IDM-003"),
    lying_driver(DetachesOnce, "IDM-004"),
    lying_driver(Delta, "IDM-005"),
    lying_driver(CreatesOnce, "IDM-005"),
    lying_driver(ClonesOnce, "IDM-006"),
    lying_driver(CopiesAgain, "IDM-006"),
    lying_driver(TakesOverOnce, "IDM-007"),
    lying_driver(GivesUpOnce, "IDM-007"),
    lying_driver(AnotherReference, "IDM-007"),
]
