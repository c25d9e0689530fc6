"""Lies about volumes that come and go."""

from liars.liar import lying_driver
from voldrivers.memory import MemoryDriver
from voldrivers.model import Volume


class Leaky(MemoryDriver):
    """Deletes a volume from its list, not from the array."""

    def delete_volume(self, volume: Volume) -> None:
        size_bytes = self.array.sizes.get(volume.id)
        super().delete_volume(volume)
        if size_bytes is not None:
            self.array.sizes[f"trash-{volume.id}"] = size_bytes

    def list_volumes(self) -> tuple[str, ...]:
        return tuple(each for each in super().list_volumes() if not each.startswith("trash-"))


LIARS = [lying_driver(Leaky, "LIF-002")]
