"""Lies about what is left."""

import os
import weakref

from liars.liar import Liar, lying_driver
from voldrivers.memory import MemoryDriver, MemoryHost
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


LIARS = [
    lying_driver(LeavesTheMoment, "LEK-001"),
    Liar(LeavesTheRescanned, "LEK-002", host=LeavesTheRescanned),
    lying_driver(OpensFiles, "LEK-003"),
    lying_driver(LosesRoom, "LEK-005"),
]
