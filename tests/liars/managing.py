"""Lies about what is taken over and given up."""

from liars.liar import lying_driver
from voldrivers.memory import MemoryDriver
from voldrivers.model import Volume


class LosesTheEnd(MemoryDriver):
    """Taking something over loses its last bytes."""

    def manage_existing(self, volume: Volume, reference: str, options: object) -> str:
        provider_data = super().manage_existing(volume, reference, options)
        if written := self.array.written.get(volume.id):
            del written[max(written)]
        return provider_data


class Discards(MemoryDriver):
    """Giving a volume up deletes it."""

    def unmanage(self, volume: Volume) -> str:
        reference = super().unmanage(volume)
        self.array.foreign.pop(reference, None)
        return reference


LIARS = [lying_driver(LosesTheEnd, "LIF-009"), lying_driver(Discards, "LIF-009")]
