"""Lies about volumes that are read and written while something is extended."""

from liars.liar import lying_driver, lying_host
from voldrivers.abilities import Taken
from voldrivers.memory import MemoryDriver, MemoryHost, MemoryImage
from voldrivers.model import Attachment, ExtendReply, Snapshot, Volume


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


class TornSnapshot(MemoryDriver):
    """A snapshot of a volume in use is of two moments: its halves are copied one after the other."""

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        if snapshot.id not in self.array.snapshots:
            half = self.array.sizes[volume.id] // 2
            first = {at: word for at, word in self.array.image(volume.id).written.items() if at < half}
            self.run(["copy", volume.id], timeout_s=60)
            then = self.array.image(volume.id)
            second = {at: word for at, word in then.written.items() if at >= half}
            self.array.snapshots[snapshot.id] = MemoryImage(then.size_bytes, first | second)
        return super().create_snapshot(volume, snapshot)


class LosesWritesMeanwhile(MemoryDriver):
    """Takes a snapshot by a copy and a switch, and loses what is written in between."""

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        if snapshot.id in self.array.snapshots:
            return super().create_snapshot(volume, snapshot)
        taken = super().create_snapshot(volume, snapshot)
        self.run(["switch", volume.id], timeout_s=60)
        image = self.array.snapshots[snapshot.id]
        self.array.fill(volume.id, image, image.size_bytes)
        return taken


LIARS = [
    lying_driver(TakesTheExportAway, "EXI-004"),
    lying_host(RescansAll, "EXI-006"),
    lying_driver(TornSnapshot, "SNP-012"),
    lying_driver(LosesWritesMeanwhile, "SNP-012"),
]
