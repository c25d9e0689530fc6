"""Lies of drivers that take their own process for the only one."""

from typing import ClassVar

from liars.liar import lying_driver
from voldrivers.errors import NotFound
from voldrivers.memory import MemoryDriver
from voldrivers.model import ConnectionInfo, Connector, ExtendReply, Volume


class RemembersVolumes(MemoryDriver):
    """Knows the volumes that its own process has made, in a variable of the class."""

    made: ClassVar[set[str]] = set()

    def create_volume(self, volume: Volume, options: object) -> str:
        self.made.add(volume.id)
        return super().create_volume(volume, options)

    def list_volumes(self) -> tuple[str, ...]:
        return tuple(each for each in super().list_volumes() if each in self.made)


class RemembersSizes(MemoryDriver):
    """Asks the array for the size of a volume once, and then remembers it for the whole process."""

    sizes: ClassVar[dict[str, int]] = {}

    def volume_size(self, volume: Volume) -> int:
        if volume.id not in self.array.sizes:
            raise NotFound("volume", volume.name)
        return self.sizes.setdefault(volume.id, super().volume_size(volume))

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        reply = super().extend_volume(volume, new_size_bytes)
        self.sizes[volume.id] = max(self.sizes.get(volume.id, 0), new_size_bytes)
        return reply


class RemembersTheDeleted(RemembersSizes):
    """Gives the size of what another process has deleted, because its own has not."""

    def volume_size(self, volume: Volume) -> int:
        if volume.id in self.array.sizes:
            self.sizes[volume.id] = self.array.sizes[volume.id]
        if volume.id not in self.sizes:
            raise NotFound("volume", volume.name)
        return self.sizes[volume.id]

    def delete_volume(self, volume: Volume) -> None:
        super().delete_volume(volume)
        self.sizes.pop(volume.id, None)


class NumbersExports(MemoryDriver):
    """Numbers the volumes that its own process exports to a host; whoever had the number loses it."""

    numbers: ClassVar[dict[tuple[str, str], int]] = {}

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        to_host = {v: number for (v, host), number in self.numbers.items() if host == connector.host}
        number = to_host.get(volume.id, next(n for n in range(100) if n not in to_host.values()))
        self.numbers[volume.id, connector.host] = number
        exported: dict[tuple[str, int], str] = self.array.__dict__.setdefault("numbered", {})
        before = exported.get((connector.host, number), volume.id)
        exported[connector.host, number] = volume.id
        if before != volume.id:
            self.array.exports.discard((before, connector.host))
        return super().initialize_connection(volume, connector)

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        super().terminate_connection(volume, connector)
        self.numbers.pop((volume.id, connector.host), None)


class CountsExports(MemoryDriver):
    """Takes a host's target away with the last volume that its own process has exported there."""

    exported: ClassVar[set[tuple[str, str]]] = set()

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        self.exported.add((volume.id, connector.host))
        return super().initialize_connection(volume, connector)

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        super().terminate_connection(volume, connector)
        self.exported.discard((volume.id, connector.host))
        if not any(host == connector.host for _, host in self.exported):
            for other in [each for each in self.array.exports if each[1] == connector.host]:
                self.array.exports.discard(other)


LIARS = [
    lying_driver(RemembersVolumes, "LIF-012"),
    lying_driver(RemembersSizes, "LIF-012"),
    lying_driver(RemembersTheDeleted, "LIF-012"),
    lying_driver(NumbersExports, "ATT-014"),
    lying_driver(CountsExports, "ATT-014"),
]
