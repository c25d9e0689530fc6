"""Lies about what is not declared: it is begun before it is refused, or done all the same."""

from collections.abc import Mapping

from liars.liar import Liar
from voldrivers.capabilities import Capabilities
from voldrivers.extend.engine import Engine
from voldrivers.memory import MemoryDriver
from voldrivers.model import Snapshot, Volume, VolumeStatus


class Modest(MemoryDriver):
    """It can do what every driver must, and nothing more."""

    capabilities = Capabilities()


class NoRevert(MemoryDriver):
    """It takes snapshots, and does not revert to them."""

    capabilities = Capabilities(snapshots=True)


class SnapshotRecorded(Engine):
    """Records a snapshot before it finds that the driver takes none."""

    def create_snapshot(self, volume_name: str, name: str) -> Snapshot:
        try:
            return super().create_snapshot(volume_name, name)
        finally:
            volume = self.store.volume(volume_name)
            self.store.add_snapshot(Snapshot(self.site.new_id(), name, volume.id, volume.size_bytes))


class RevertBegun(Engine):
    """Marks a volume as being reverted before it finds that the driver cannot."""

    def revert_to_snapshot(self, name: str) -> Volume:
        snapshot = self.store.snapshot(name)
        self.store.begin_revert(self.store.volume(snapshot.volume_id), snapshot)
        return super().revert_to_snapshot(name)


class EmptyClone(Engine):
    """Gives an empty volume where the driver makes no clones."""

    def clone_volume(
        self,
        name: str,
        source: str | None = None,
        snapshot: str | None = None,
        size_bytes: int | None = None,
        options: Mapping[str, object] | None = None,
        *,
        multi_attach: bool = False,
    ) -> Volume:
        size_bytes = size_bytes or self.store.volume(source or "").size_bytes
        return self.create_volume(name, size_bytes, None, options, multi_attach=multi_attach)


class UnmanageBegun(Engine):
    """Marks a volume as being given up before it finds that the driver cannot."""

    def unmanage_volume(self, name: str) -> str:
        self.store.begin_removal(self.store.volume(name), VolumeStatus.UNMANAGING)
        return super().unmanage_volume(name)


class AttachedOnce(Engine):
    """Makes a volume that can be attached once, whatever it was asked for."""

    def create_volume(
        self,
        name: str,
        size_bytes: int,
        backend: str | None = None,
        options: Mapping[str, object] | None = None,
        *,
        multi_attach: bool = False,
    ) -> Volume:
        return super().create_volume(name, size_bytes, backend, options)


LIARS = [
    Liar(SnapshotRecorded, "SNP-090", driver=Modest, engine=SnapshotRecorded),
    Liar(RevertBegun, "SNP-091", driver=NoRevert, engine=RevertBegun),
    Liar(EmptyClone, "CLN-090", driver=Modest, engine=EmptyClone),
    Liar(UnmanageBegun, "LIF-090", driver=Modest, engine=UnmanageBegun),
    Liar(AttachedOnce, "ATT-090", driver=Modest, engine=AttachedOnce),
]
