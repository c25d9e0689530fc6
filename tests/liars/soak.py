"""Lies that take many volumes, or much time, to be seen."""

from liars.liar import lying_driver
from voldrivers.memory import MemoryDriver
from voldrivers.model import ConnectionInfo, Connector, Volume
from voldrivers.sizes import MiB


class FourNumbers(MemoryDriver):
    """Has room for four volumes in its table, and lets the fifth one be the first one, too."""

    def create_volume(self, volume: Volume, options: object) -> str:
        provider_data = super().create_volume(volume, options)
        if len(self.array.sizes) > 4:
            first = next(iter(self.array.sizes))
            self.array.written[volume.id] = self.array.written.setdefault(first, {})
        return provider_data


class KeepsEveryAnswer(MemoryDriver):
    """Keeps 1 MiB of notes of each connection that it has ever given."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        vars(self).setdefault("notes", []).append(b"x" * (2 * MiB))
        return super().initialize_connection(volume, connector)


LIARS = [
    lying_driver(FourNumbers, "CON-008"),
    lying_driver(KeepsEveryAnswer, "LEK-007"),
]
