"""Lies about what is taken over and given up."""

from liars.liar import lying_driver
from voldrivers.errors import NotSupported
from voldrivers.memory import MemoryDriver
from voldrivers.model import ExtendReply, Volume


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


class GivenUpAtBirthSize(MemoryDriver):
    """What is given up has the size of its label, which is written when a volume is made, and never again."""

    def create_volume(self, volume: Volume, options: object) -> str:
        self.array.written.setdefault("labels", {}).setdefault(volume.size_bytes, volume.id)
        return super().create_volume(volume, options)

    def unmanage(self, volume: Volume) -> str:
        reference = super().unmanage(volume)
        labels = self.array.written.get("labels", {})
        for size_bytes in [each for each, whose in labels.items() if whose == volume.id]:
            self.array.foreign[reference].size_bytes = size_bytes
            del labels[size_bytes]
        return reference


class KeepsTheReference(MemoryDriver):
    """What was taken over is still there under its reference, to be taken over by another volume, too."""

    def manage_existing(self, volume: Volume, reference: str, options: object) -> str:
        found = self.array.foreign.get(reference)
        provider_data = super().manage_existing(volume, reference, options)
        if found is not None:
            self.array.foreign[reference] = found
        return provider_data

    def delete_volume(self, volume: Volume) -> None:
        super().delete_volume(volume)
        self.array.foreign.clear()


class TakesOverVolumes(MemoryDriver):
    """Takes over whatever it is told the name of, volumes too: the one that it was is gone."""

    def existing_size(self, reference: str, options: object) -> int:
        if reference in self.array.sizes:
            return self.array.sizes[reference]
        return super().existing_size(reference, options)

    def manage_existing(self, volume: Volume, reference: str, options: object) -> str:
        if reference in self.array.sizes:
            self.array.foreign[reference] = self.array.image(reference)
            self.array.remove(reference)
        return super().manage_existing(volume, reference, options)


class NotMadeHere(MemoryDriver):
    """What was taken over cannot be extended: it was not made here."""

    def manage_existing(self, volume: Volume, reference: str, options: object) -> str:
        self.array.written.setdefault("not made here", {})[volume.size_bytes] = volume.id
        return super().manage_existing(volume, reference, options)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if volume.id in self.array.written.get("not made here", {}).values():
            raise NotSupported(volume.title, "was not made here")
        return super().extend_volume(volume, new_size_bytes)


LIARS = [
    lying_driver(LosesTheEnd, "LIF-009"),
    lying_driver(Discards, "LIF-009"),
    lying_driver(GivenUpAtBirthSize, "LIF-010"),
    lying_driver(KeepsTheReference, "LIF-010"),
    lying_driver(TakesOverVolumes, "LIF-010"),
    lying_driver(NotMadeHere, "LIF-010"),
]
