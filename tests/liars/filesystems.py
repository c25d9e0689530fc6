"""Lies about what the file system on a volume finds."""

from liars.liar import lying_driver
from voldrivers.memory import MemoryDriver
from voldrivers.model import ExtendReply, Volume


class LabelsTheDetached(MemoryDriver):
    """Writes a label with the new size over the first block of a detached volume."""

    is_attached = False

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        grows = self.volume_size(volume) < new_size_bytes
        reply = super().extend_volume(volume, new_size_bytes)
        if grows and bool(volume.attachments) is self.is_attached:
            self.array.write(volume.id, 0, f"{new_size_bytes} bytes".ljust(512))
        return reply


class LabelsTheMounted(LabelsTheDetached):
    """Writes a label with the new size over the first block of a volume in use."""

    is_attached = True


LIARS = [
    lying_driver(LabelsTheDetached, "EXO-007"),
    lying_driver(LabelsTheMounted, "EXI-013"),
]
