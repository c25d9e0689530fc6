"""Lies about what is left."""

import os
import weakref

from liars.liar import Liar, lying_driver
from voldrivers.memory import MemoryDriver, MemoryHost, MemoryImage
from voldrivers.model import Attachment, ConnectionInfo, Connector, Snapshot, Volume


class LeavesTheMoment(MemoryDriver):
    """Leaves the snapshot that a clone of a volume in use was copied from."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        if source.attachments and snapshot is None:
            self.array.snapshots[f"copy-{volume.id}"] = self.array.image(source.id)
        return super().clone_volume(volume, options, source, snapshot)


class LeavesTheRescanned(MemoryHost):
    """A device that was rescanned stays after the detach."""

    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        super().rescan(volume, attachment)
        self.machine.devices[f"stale-{volume.id}"] = self.array.sizes[volume.id]


class LosesRoom(MemoryDriver):
    """The room of the tail that a revert cuts off is lost."""

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        old_size_bytes = self.volume_size(volume)
        provider_data = super().revert_to_snapshot(volume, snapshot)
        self.array.capacity_bytes -= old_size_bytes - self.volume_size(volume)
        return provider_data


class OpensFiles(MemoryDriver):
    """Opens a file for each connection and closes none."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        weakref.finalize(self, os.close, os.open("/dev/null", os.O_RDONLY))
        return super().initialize_connection(volume, connector)


class UpsetsTheKernel(MemoryHost):
    """Takes a device away while the kernel still reads it."""

    def disconnect(self, volume: Volume, attachment: Attachment) -> None:
        super().disconnect(volume, attachment)
        self.machine.log.append(f"<3>I/O error, dev {volume.id}, sector 0 op 0x0:(READ)")


class LeavesAMark(MemoryDriver):
    """Leaves the mark of a deletion that it had begun when it is asked for it again."""

    def delete_volume(self, volume: Volume) -> None:
        if volume.id not in self.array.sizes and volume.backend_bytes:
            self.array.foreign[f"deleting-{volume.id}"] = MemoryImage(0)
        super().delete_volume(volume)


LIARS = [
    lying_driver(LeavesTheMoment, "LEK-001"),
    Liar(LeavesTheRescanned, "LEK-002", host=LeavesTheRescanned),
    lying_driver(OpensFiles, "LEK-003"),
    lying_driver(LosesRoom, "LEK-005"),
    Liar(UpsetsTheKernel, "LEK-004", host=UpsetsTheKernel),
    lying_driver(LeavesAMark, "LEK-006"),
]
