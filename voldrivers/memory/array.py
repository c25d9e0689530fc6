"""An array in RAM: sizes, what was written where, snapshots, and who may reach what."""

from dataclasses import dataclass, field

from voldrivers.errors import NoSpace
from voldrivers.sizes import TiB


@dataclass
class MemoryImage:
    """A size, and what was written: a word for each offset in bytes. Where nothing was written are zeros."""

    size_bytes: int
    written: dict[int, str] = field(default_factory=dict)


@dataclass
class MemoryArray:
    """An array: size and content of each volume by id, snapshots by id, and what is none of ours by name.

    `merged` are the snapshots that a hypervisor has merged into the layer over them. `instances` are
    each machine's, with the sizes of the volumes that they have open.
    One that is not `reachable` answers its drivers nothing.
    """

    capacity_bytes: int = TiB
    sizes: dict[str, int] = field(default_factory=dict)
    written: dict[str, dict[int, str]] = field(default_factory=dict)
    snapshots: dict[str, MemoryImage] = field(default_factory=dict)
    foreign: dict[str, MemoryImage] = field(default_factory=dict)
    exports: set[tuple[str, str]] = field(default_factory=set)
    merged: set[str] = field(default_factory=set)
    instances: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    reachable: bool = True

    @property
    def allocated_bytes(self) -> int:
        """What volumes and snapshots take."""
        return sum(self.sizes.values()) + sum(each.size_bytes for each in self.snapshots.values())

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return self.capacity_bytes - self.allocated_bytes

    def is_open(self, volume_id: str) -> bool:
        """Tell whether an instance has a volume open, as the lock of a file would."""
        return any(volume_id in nodes for each in self.instances.values() for nodes in each.values())

    def resize(self, volume_id: str, new_size_bytes: int) -> None:
        """Give a volume its size. Raises NoSpace."""
        self.check_room(new_size_bytes - self.sizes.get(volume_id, 0))
        self.sizes[volume_id] = new_size_bytes

    def check_room(self, more_bytes: int) -> None:
        """Refuse what there is no room for. Raises NoSpace."""
        if more_bytes > self.free_bytes:
            raise NoSpace("the array", more_bytes, self.free_bytes)

    def write(self, volume_id: str, offset_bytes: int, word: str) -> None:
        """Write to a volume, as its guest would."""
        self.written.setdefault(volume_id, {})[offset_bytes] = word

    def image(self, volume_id: str) -> MemoryImage:
        """Give a copy of a volume as it is now."""
        return MemoryImage(self.sizes[volume_id], dict(self.written.get(volume_id, {})))

    def fill(self, volume_id: str, image: MemoryImage, size_bytes: int) -> None:
        """Make a volume what an image is, of at least its size. Raises NoSpace, nothing changed."""
        self.resize(volume_id, size_bytes)
        self.written[volume_id] = dict(image.written)

    def remove(self, volume_id: str) -> None:
        """Remove a volume; one that is not there is no error."""
        self.sizes.pop(volume_id, None)
        self.written.pop(volume_id, None)
