"""Drivers in RAM: one whose backend grows volumes, and one whose volumes behave like files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from voldrivers.abilities import Clones, GrownByHypervisor, Manages, Merge, Reverts, Snapshots, Taken
from voldrivers.base import Driver, Run
from voldrivers.capabilities import Capabilities, Condition, InUseExtend
from voldrivers.errors import BackendError, InvalidState, NoSpace, NotFound, NotSupported
from voldrivers.memory.array import MemoryArray
from voldrivers.model import ConnectionInfo, Connector, ExtendReply, Pool, Snapshot, Volume
from voldrivers.options import SizeBytes, option
from voldrivers.sizes import MiB, SizeRule, TiB

_IN_RAM = "in RAM"


@dataclass(frozen=True)
class MemoryOptions:
    """The options of a backend in RAM."""

    capacity: SizeBytes = option("room of the array", SizeBytes(TiB))


class MemoryDriver(Driver, Snapshots, Reverts, Clones, Manages):
    """Volumes in RAM that the backend grows, in use too; it can do everything there is."""

    capabilities = Capabilities(
        in_use_extend=InUseExtend.BY_BACKEND,
        multi_attach=True,
        snapshots=True,
        revert=True,
        clones=True,
        manage=True,
    )
    options_type = MemoryOptions
    size_rule = SizeRule(granularity_bytes=4 * MiB)

    def __init__(
        self, name: str, options: Any, run: Run, array: MemoryArray | None = None
    ) -> None:  # Any: base
        """Use `array`, or make one."""
        super().__init__(name, options, run)
        self._array = array or MemoryArray(options.capacity)

    @property
    def array(self) -> MemoryArray:
        """The array. Raises BackendError while it cannot be reached."""
        if not self._array.reachable:
            raise BackendError(f"backend {self.name}", "the array does not answer")
        return self._array

    def create_volume(self, volume: Volume, options: object) -> str:
        if volume.id not in self.array.sizes:
            self.array.resize(volume.id, volume.size_bytes)
        return _IN_RAM

    def delete_volume(self, volume: Volume) -> None:
        if any(volume_id == volume.id for volume_id, _ in self.array.exports):
            raise InvalidState(volume.title, "exported", "not exported")
        self.array.remove(volume.id)

    def list_volumes(self) -> tuple[str, ...]:
        return tuple(self.array.sizes)

    def volume_size(self, volume: Volume) -> int:
        if volume.id not in self.array.sizes:
            raise NotFound("volume", volume.name, f" on backend {self.name}")
        return self.array.sizes[volume.id]

    def pool(self) -> Pool:
        array = self.array
        return Pool(array.capacity_bytes, array.free_bytes, array.allocated_bytes)

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        more_bytes = new_size_bytes - self.volume_size(volume)
        if more_bytes > self.array.free_bytes:
            raise NoSpace(volume.title, more_bytes, self.array.free_bytes)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if self.volume_size(volume) < new_size_bytes:
            self.array.resize(volume.id, new_size_bytes)
        return ExtendReply.EXTENDED

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        self.volume_size(volume)
        self.array.exports.add((volume.id, connector.host))
        return ConnectionInfo("memory", {"volume_id": volume.id})

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        if all(a.host != connector.host for a in volume.attachments):
            self.array.exports.discard((volume.id, connector.host))

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        self.volume_size(volume)
        if snapshot.id not in self.array.snapshots:
            self.array.check_room(self.array.sizes[volume.id])
            self.array.snapshots[snapshot.id] = self.array.image(volume.id)
        return Taken(volume.provider_data, _IN_RAM)

    def delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> Merge | None:
        self.array.snapshots.pop(snapshot.id, None)
        return None

    def list_snapshots(self) -> Sequence[str]:
        return tuple(self.array.snapshots)

    def snapshot_size(self, volume: Volume, snapshot: Snapshot) -> int:
        if snapshot.id not in self.array.snapshots:
            raise NotFound("snapshot", snapshot.name, f" on backend {self.name}")
        return self.array.snapshots[snapshot.id].size_bytes

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        size_bytes = self.snapshot_size(volume, snapshot)
        self.array.fill(volume.id, self.array.snapshots[snapshot.id], size_bytes)
        return volume.provider_data

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        if volume.id in self.array.sizes:
            return _IN_RAM
        (self.volume_size(source) if snapshot is None else self.snapshot_size(source, snapshot))
        image = self.array.image(source.id) if snapshot is None else self.array.snapshots[snapshot.id]
        self.array.fill(volume.id, image, volume.size_bytes)
        return _IN_RAM

    def existing_size(self, reference: str, options: object) -> int:
        if reference not in self.array.foreign:
            raise NotFound("object", reference, f" on backend {self.name}")
        return self.array.foreign[reference].size_bytes

    def manage_existing(self, volume: Volume, reference: str, options: object) -> str:
        if volume.id not in self.array.sizes:
            size_bytes = self.existing_size(reference, options)
            self.array.fill(volume.id, self.array.foreign.pop(reference), size_bytes)
        return _IN_RAM

    def unmanage(self, volume: Volume) -> str:
        reference = f"unmanaged-{volume.id}"
        if volume.id in self.array.sizes:
            self.array.foreign[reference] = self.array.image(volume.id)
            self.array.remove(volume.id)
        return reference


class MemoryFileDriver(MemoryDriver, GrownByHypervisor):
    """Volumes in RAM that behave like files: while an instance runs, only its hypervisor may grow them.

    A snapshot adds a layer, in the volume's provider_data, which the hypervisor must go on in.
    """

    capabilities = Capabilities(
        in_use_extend=InUseExtend.BY_HYPERVISOR,
        multi_attach=True,
        snapshots=True,
        revert=True,
        clones=True,
        manage=True,
        conditions=(
            Condition(capability="snapshots", unless="the volume is attached without an instance"),
            Condition(capability="revert", unless="the snapshot is not the newest"),
        ),
    )
    size_rule = SizeRule(granularity_bytes=512)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if self.volume_size(volume) < new_size_bytes and not volume.nobody_runs:
            return ExtendReply.DEFERRED
        if self.volume_size(volume) < new_size_bytes and self.array.is_open(volume.id):
            raise InvalidState(volume.title, "open in an instance", "closed by every instance")
        return super().extend_volume(volume, new_size_bytes)

    def probe_locks(self, volume: Volume) -> None:
        self.volume_size(volume)

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        super().initialize_connection(volume, connector)
        return ConnectionInfo("memory", {"volume_id": volume.id, "layer": volume.provider_data})

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        _check_instances(volume)
        super().create_snapshot(volume, snapshot)
        return Taken(f"over {snapshot.id}", volume.provider_data)

    def delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> Merge | None:
        if snapshot.id not in self.array.snapshots:
            return None
        if snapshot.provider_data and not volume.nobody_runs and snapshot.id not in self.array.merged:
            return Merge(f"over {snapshot.id}", snapshot.id, None, None)
        self.array.merged.discard(snapshot.id)
        return super().delete_snapshot(volume, snapshot)

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        if snapshot.id != volume.snapshots[-1].id:
            raise NotSupported(snapshot.title, "only the newest snapshot can be reverted to")
        return super().revert_to_snapshot(volume, snapshot)


def _check_instances(volume: Volume) -> None:
    for attachment in volume.attachments:
        if attachment.instance is None:
            raise NotSupported(volume.title, f"attached to {attachment.place} without an instance")
