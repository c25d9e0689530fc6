"""Lies about sizes."""

from liars.liar import lying_driver, lying_host
from voldrivers.memory import MemoryDriver, MemoryHost
from voldrivers.model import Attachment, ConnectionInfo, ExtendReply, Volume
from voldrivers.sizes import GiB, MiB, SizeRule, TiB


class RoundsDown(MemoryDriver):
    """Rounds down to extents of 8 MiB, which its rule does not tell of."""

    def create_volume(self, volume: Volume, options: object) -> str:
        provider_data = super().create_volume(volume, options)
        self.array.sizes[volume.id] -= self.array.sizes[volume.id] % (8 * MiB)
        return provider_data


class Wraps(MemoryDriver):
    """Keeps the number of sectors in 32 bits, so that sizes wrap at 2 TiB."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        reply = super().extend_volume(volume, new_size_bytes)
        self.array.sizes[volume.id] %= 2 * TiB
        return reply


class WrapsAtBirth(MemoryDriver):
    """Creates a volume of 2 TiB and more without the upper bits of its size."""

    def create_volume(self, volume: Volume, options: object) -> str:
        provider_data = super().create_volume(volume, options)
        self.array.sizes[volume.id] %= 2 * TiB
        return provider_data


class Echo(MemoryDriver):
    """Answers with the size that was recorded, not with the one that is there."""

    def volume_size(self, volume: Volume) -> int:
        super().volume_size(volume)
        return volume.size_bytes


class HalfMade(MemoryDriver):
    """Leaves an empty object where it had no room for the volume."""

    def create_volume(self, volume: Volume, options: object) -> str:
        if volume.id not in self.array.sizes:
            self.array.sizes[volume.id] = 0
            self.array.resize(volume.id, volume.size_bytes)
        return ""


class FillsUp(MemoryDriver):
    """Extends as far as there is room, and says only then that there was not enough."""

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        self.volume_size(volume)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        room = self.volume_size(volume) + self.array.free_bytes
        if room < new_size_bytes:
            super().extend_volume(volume, room)
        return super().extend_volume(volume, new_size_bytes)


class NearestRule(SizeRule):
    """A rule that rounds to the nearest multiple."""

    def round_up(self, asked_bytes: int) -> int:
        up = super().round_up(asked_bytes)
        nearer = up - self.granularity_bytes
        return nearer if nearer >= self.minimum_bytes and asked_bytes - nearer < up - asked_bytes else up


class Nearest(MemoryDriver):
    """Has a rule that rounds to the nearest multiple."""

    size_rule = NearestRule(4 * MiB)


class WholePieces(MemoryHost):
    """Shows whole pieces of 8 MiB of a volume only."""

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        path = super().connect(volume, attachment, connection_info)
        self.machine.devices[volume.id] -= self.machine.devices[volume.id] % (8 * MiB)
        return path


class LargeSectors(MemoryHost):
    """Shows sectors of 4096 bytes as soon as a volume has more than so many."""

    def sector_bytes(self, volume: Volume) -> tuple[int, int]:
        return (4096, 4096) if self.array.sizes[volume.id] > 16 * MiB else (512, 4096)


class StopsAtTwoTebibytes(MemoryDriver):
    """A volume in use that grows across 2 TiB gets 2 TiB."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if volume.attachments and new_size_bytes > 2 * TiB > self.volume_size(volume):
            self.array.resize(volume.id, 2 * TiB)
            return ExtendReply.EXTENDED
        return super().extend_volume(volume, new_size_bytes)


class MovesFourGibibytes(MemoryDriver):
    """An extend of a volume of 4 GiB and more moves it, and loses what stands beyond those."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        written = self.array.written.get(volume.id, {})
        for at in [each for each in written if each >= 4 * GiB]:
            del written[at]
        return super().extend_volume(volume, new_size_bytes)


LIARS = [
    lying_driver(RoundsDown, "SIZ-001"),
    lying_driver(Wraps, "SIZ-002"),
    lying_driver(WrapsAtBirth, "SIZ-002"),
    lying_driver(Echo, "SIZ-003"),
    lying_driver(HalfMade, "SIZ-004"),
    lying_driver(FillsUp, "SIZ-004"),
    lying_driver(Nearest, "SIZ-007"),
    lying_host(WholePieces, "SIZ-005"),
    lying_host(LargeSectors, "SIZ-006"),
    lying_driver(StopsAtTwoTebibytes, "SIZ-008"),
    lying_driver(MovesFourGibibytes, "SIZ-009"),
]
