"""Lies about volumes that are extended in use."""

from dataclasses import replace
from pathlib import Path

from liars.liar import lying_driver, lying_engine, lying_host
from voldrivers.capabilities import Capabilities
from voldrivers.errors import BackendError
from voldrivers.extend.engine import Engine
from voldrivers.extend.site import Site
from voldrivers.extend.store import Store
from voldrivers.memory import MemoryDriver, MemoryFileDriver, MemoryHost
from voldrivers.model import Attachment, ConnectionInfo, Extend, ExtendReply, Ledger, Volume


class ForgetsTheRescan(MemoryHost):
    """Says that it has read the new size, and has not."""

    def forgets(self, _volume: Volume) -> bool:
        """Tell whether it lies about this volume."""
        return True

    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        if not self.forgets(volume):
            super().rescan(volume, attachment)

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        seen = self.machine.devices[volume.id]
        super().assist_extend(volume, attachment, extend)
        if self.forgets(volume):
            self.machine.devices[volume.id] = seen

    def get_blockdev(self, volume: Volume, attachment: Attachment) -> int:
        size_bytes = super().get_blockdev(volume, attachment)
        return self.array.sizes[volume.id] if self.forgets(volume) else size_bytes

    def ledger_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        rows, told = super().ledger_rows(volume, attachment, expected_bytes), self.array.sizes.get(volume.id)
        return tuple(replace(row, observed_bytes=told) for row in rows) if self.forgets(volume) else rows


class TrustsTheCache(MemoryHost):
    """Takes the size that QEMU has in its cache for what the guest sees, and leaves out block_resize."""

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        if self.machine.devices[volume.id] < extend.to_bytes:
            super().assist_extend(volume, attachment, extend)

    def ledger_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        cached_bytes = self.machine.devices.get(volume.id)
        rows = super().ledger_rows(volume, attachment, expected_bytes)
        return tuple(replace(row, observed_bytes=cached_bytes) for row in rows)


class ClearsDetachedOnly(MemoryDriver):
    """Clears what it adds to a detached volume; in one that is in use the old bytes show."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        old_bytes = self.volume_size(volume)
        if volume.attachments and old_bytes < new_size_bytes:
            self.array.write(volume.id, old_bytes, "somebody else's")
        return super().extend_volume(volume, new_size_bytes)


class RemembersTheDevice(MemoryHost):
    """Gives a volume that comes again the size that its device had the first time."""

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        path = super().connect(volume, attachment, connection_info)
        seen = self.machine.newest.setdefault(f"size of {volume.id}", self.array.sizes[volume.id])
        self.machine.devices[volume.id] = seen
        return path


class WaitsForTheStopped(MemoryFileDriver):
    """Leaves a file to the hypervisor of an instance that has stopped."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        has_instance = any(each.instance for each in volume.attachments)
        if has_instance and self.volume_size(volume) < new_size_bytes:
            return ExtendReply.DEFERRED
        return super().extend_volume(volume, new_size_bytes)


class FourSegments(MemoryDriver):
    """Has room for four pieces in the map of a volume."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        pieces = self.array.written.setdefault(f"map of {volume.id}", {})
        if self.volume_size(volume) < new_size_bytes:
            if len(pieces) == 4:
                raise BackendError(volume.title, "its map is full")
            pieces[new_size_bytes] = "piece"
        return super().extend_volume(volume, new_size_bytes)


class PublishesFirst(Engine):
    """Publishes the size with the admission, as it will be anyway."""

    def __init__(self, site: Site) -> None:
        path: Path = site.store.database.path
        site.store.close()
        super().__init__(replace(site, store=_EarlyStore(path)))


class _EarlyStore(Store):
    def admit(self, volume: Volume, extend: Extend) -> Extend:
        admitted = super().admit(volume, extend)
        with self.database.transaction():
            early = "UPDATE volumes SET size_bytes = ? WHERE id = ?"
            self.database.change(early, (extend.to_bytes, volume.id))
        return admitted


class RoundsAgain(MemoryDriver):
    """Rounds the new size to its own pieces, after it was rounded by the rule."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        piece_bytes = 2 * self.size_rule.granularity_bytes
        return super().extend_volume(volume, -(-new_size_bytes // piece_bytes) * piece_bytes)


class WantsAHypervisor(MemoryFileDriver):
    """Leaves every attached file to a hypervisor, though there may be none."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if volume.attachments and self.volume_size(volume) < new_size_bytes:
            return ExtendReply.DEFERRED
        return super().extend_volume(volume, new_size_bytes)


class FirstHostOnly(ForgetsTheRescan):
    """Reads the new size only where the volume was attached first, and says so elsewhere."""

    def forgets(self, volume: Volume) -> bool:
        return any(each.host != self.name for each in volume.attachments[:1])


class GrowsBeforeItRefuses(MemoryDriver):
    """Does not declare that it can extend in use, and does it before it refuses."""

    capabilities = Capabilities()

    def volume_size(self, volume: Volume) -> int:
        size_bytes = super().volume_size(volume)
        if volume.attachments:
            self.array.resize(volume.id, size_bytes + self.size_rule.granularity_bytes)
        return size_bytes


class CanAndDoesNotTell(MemoryDriver):
    """Can extend in use, and does not declare it."""

    capabilities = Capabilities()


LIARS = [
    lying_host(ForgetsTheRescan, "EXI-001"),
    lying_host(TrustsTheCache, "EXI-002"),
    lying_driver(ClearsDetachedOnly, "EXI-003"),
    lying_host(RemembersTheDevice, "EXI-007"),
    lying_driver(WaitsForTheStopped, "EXI-008"),
    lying_driver(FourSegments, "EXI-009"),
    lying_engine(PublishesFirst, "EXI-011"),
    lying_driver(RoundsAgain, "EXI-015"),
    lying_driver(WantsAHypervisor, "EXI-015"),
    lying_host(FirstHostOnly, "EXI-016"),
    lying_driver(GrowsBeforeItRefuses, "EXI-090"),
    lying_driver(CanAndDoesNotTell, "EXI-091"),
]
