"""Lies about volumes that come and go."""

from typing import Any, ClassVar

from liars.liar import lying_driver
from voldrivers.base import Run
from voldrivers.errors import BackendError, NotFound
from voldrivers.memory import MemoryArray, MemoryDriver
from voldrivers.model import ConnectionInfo, Connector, Volume


class KeepsASpare(MemoryDriver):
    """Makes a second object for each volume, which goes with it and is told of nowhere."""

    def create_volume(self, volume: Volume, options: object) -> str:
        self.array.sizes[f"spare-{volume.id}"] = volume.size_bytes
        return super().create_volume(volume, options)

    def delete_volume(self, volume: Volume) -> None:
        super().delete_volume(volume)
        self.array.sizes.pop(f"spare-{volume.id}", None)

    def list_volumes(self) -> tuple[str, ...]:
        return tuple(each for each in super().list_volumes() if not each.startswith("spare-"))


class Leaky(MemoryDriver):
    """Deletes a volume from its list, not from the array."""

    def delete_volume(self, volume: Volume) -> None:
        size_bytes = self.array.sizes.get(volume.id)
        super().delete_volume(volume)
        if size_bytes is not None:
            self.array.sizes[f"trash-{volume.id}"] = size_bytes

    def list_volumes(self) -> tuple[str, ...]:
        return tuple(each for each in super().list_volumes() if not each.startswith("trash-"))


class Greedy(MemoryDriver):
    """Lists objects of others as its volumes."""

    def list_volumes(self) -> tuple[str, ...]:
        return (*super().list_volumes(), *self.array.foreign)


class Forgetful(MemoryDriver):
    """Knows only the volumes that it has made itself since it was started."""

    def __init__(self, name: str, options: Any, run: Run, array: MemoryArray | None = None) -> None:
        super().__init__(name, options, run, array)
        self.made: set[str] = set()

    def create_volume(self, volume: Volume, options: object) -> str:
        self.made.add(volume.id)
        return super().create_volume(volume, options)

    def volume_size(self, volume: Volume) -> int:
        if volume.id not in self.made:
            raise NotFound("volume", volume.name)
        return super().volume_size(volume)


class Short(MemoryDriver):
    """Names objects by the first 63 characters of the volume's name, and takes one that is there."""

    names: ClassVar[dict[str, str]] = {}

    def create_volume(self, volume: Volume, options: object) -> str:
        taken = {self.names[each] for each in self.array.sizes if each in self.names}
        if (name := volume.name[:63]) not in taken:
            super().create_volume(volume, options)
            self.names[volume.id] = name
        return ""


class NamesExports(MemoryDriver):
    """Makes the name of an export of the volume's name, and lets nobody in where that makes none."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        if not volume.name.isascii() or len(volume.name) > 100:
            raise BackendError(volume.title, "no export can be named like it")
        return super().initialize_connection(volume, connector)


class FoldsExports(MemoryDriver):
    """Names exports by the volumes' names in small letters: of two that differ in case one is exported."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        exports: dict[str, str] = self.array.__dict__.setdefault("exported", {})
        before = exports.get(volume.name.lower(), volume.id)
        exports[volume.name.lower()] = volume.id
        if before != volume.id:
            self.array.exports.discard((before, connector.host))
        return super().initialize_connection(volume, connector)


class Prefixed(MemoryDriver):
    """Deletes whatever begins with the volume's id."""

    def delete_volume(self, volume: Volume) -> None:
        super().delete_volume(volume)
        for other in [each for each in self.array.sizes if each.startswith(volume.id)]:
            self.array.remove(other)


class Undeleted(MemoryDriver):
    """Leaves what was written to a deleted volume where the next one of that name finds it."""

    def delete_volume(self, volume: Volume) -> None:
        written = self.array.written.get(volume.id)
        super().delete_volume(volume)
        if written is not None:
            self.array.written[volume.id] = written


class Formatting(MemoryDriver):
    """Empties what it takes over."""

    def manage_existing(self, volume: Volume, reference: str, options: object) -> str:
        provider_data = super().manage_existing(volume, reference, options)
        self.array.written.pop(volume.id, None)
        return provider_data


class RewritesTheList(MemoryDriver):
    """Empties its list and writes it anew whenever a volume is removed."""

    def delete_volume(self, volume: Volume) -> None:
        super().delete_volume(volume)
        others = dict(self.array.sizes)
        self.array.sizes.clear()
        self.run(["write", "list"], timeout_s=60)
        self.array.sizes.update(others)


class FirstPage(MemoryDriver):
    """Lists the first page of what the array answers, which is of 50 volumes."""

    def list_volumes(self) -> tuple[str, ...]:
        return super().list_volumes()[:50]


LIARS = [
    lying_driver(KeepsASpare, "LIF-001"),
    lying_driver(Leaky, "LIF-002"),
    lying_driver(Greedy, "LIF-003"),
    lying_driver(Forgetful, "LIF-004"),
    lying_driver(Short, "LIF-005"),
    lying_driver(NamesExports, "LIF-005"),
    lying_driver(FoldsExports, "LIF-005"),
    lying_driver(Prefixed, "LIF-006"),
    lying_driver(Undeleted, "LIF-008"),
    lying_driver(Formatting, "LIF-009"),
    lying_driver(RewritesTheList, "LIF-007"),
    lying_driver(FirstPage, "LIF-011"),
]
