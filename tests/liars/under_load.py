"""Lies about volumes that are read and written while something is extended."""

from liars.liar import lying_driver, lying_host
from voldrivers.memory import MemoryDriver, MemoryHost
from voldrivers.model import Attachment, ExtendReply, Volume


class TakesTheExportAway(MemoryDriver):
    """Takes a volume from its hosts for the moment in which it grows."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        exports = {each for each in self.array.exports if each[0] == volume.id}
        self.array.exports -= exports
        self.run(["resize", volume.id], timeout_s=60)
        self.array.exports |= exports
        return super().extend_volume(volume, new_size_bytes)


class RescansAll(MemoryHost):
    """Reads the size of every device anew when it is told to read one."""

    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        super().rescan(volume, attachment)
        for volume_id in self.machine.devices:
            self.machine.devices[volume_id] = self.array.sizes[volume_id]


LIARS = [
    lying_driver(TakesTheExportAway, "EXI-004"),
    lying_host(RescansAll, "EXI-006"),
]
