"""Lies about clones."""

from collections.abc import ItemsView, Mapping

from liars.liar import Liar, lying_driver
from voldrivers.errors import InvalidState, NoSpace
from voldrivers.extend import lifecycle
from voldrivers.extend.engine import Engine
from voldrivers.memory import MemoryDriver, MemoryImage
from voldrivers.model import ExtendReply, Snapshot, Source, Volume


class Over(dict[int, str]):
    """What is written to one volume, over what another one holds now."""

    def __init__(self, below: Mapping[int, str]) -> None:
        super().__init__()
        self.below = below

    def items(self) -> ItemsView[int, str]:  # type: ignore[override]  # dict's own kind cannot be made
        return {**self.below, **{each: self[each] for each in self}}.items()


class Linked(MemoryDriver):
    """A clone reads through to its source, later writes included."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        super().clone_volume(volume, options, source, snapshot)
        if snapshot is None:
            self.array.written[volume.id] = Over(self.array.written.setdefault(source.id, {}))
        return f"of {source.id}"


class LinkedBack(MemoryDriver):
    """A source reads through to its clone, later writes included."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        provider_data = super().clone_volume(volume, options, source, snapshot)
        self.array.written[source.id] = Over(self.array.written[volume.id])
        return provider_data


class ClonesTheVolume(MemoryDriver):
    """A clone of a snapshot is a copy of the live volume."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        provider_data = super().clone_volume(volume, options, source, snapshot)
        if snapshot is not None:
            self.array.fill(volume.id, self.array.image(source.id), volume.size_bytes)
        return provider_data


class NoZeroTail(MemoryDriver):
    """What lies beyond the source in a larger clone is what was there before."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        provider_data = super().clone_volume(volume, options, source, snapshot)
        if volume.size_bytes > source.size_bytes:
            self.array.write(volume.id, source.size_bytes, "old")
        return provider_data


class Shrinks(MemoryDriver):
    """A clone is as large as its source, whatever was asked for."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        provider_data = super().clone_volume(volume, options, source, snapshot)
        origin_bytes = self.array.sizes[source.id]
        self.array.resize(volume.id, origin_bytes if snapshot is None else snapshot.size_bytes)
        return provider_data


class Obliging(Engine):
    """Makes a clone as large as its source where a smaller one was asked for."""

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
        least_bytes = (self.snapshot(snapshot) if snapshot else self.volume(source or "")).size_bytes
        asked_bytes = max(size_bytes or 0, least_bytes)
        return super().clone_volume(name, source, snapshot, asked_bytes, options, multi_attach=multi_attach)


class ExtendsTheSource(MemoryDriver):
    """Extending a clone extends its source."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        super().clone_volume(volume, options, source, snapshot)
        return source.id

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if volume.provider_data in self.array.sizes:
            self.array.resize(volume.provider_data, new_size_bytes)
        return super().extend_volume(volume, new_size_bytes)


class NeedsTheSource(MemoryDriver):
    """A source cannot be deleted while it has clones."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        super().clone_volume(volume, options, source, snapshot)
        self.array.written[f"clone {volume.id} of {source.id}"] = {}
        return ""

    def delete_volume(self, volume: Volume) -> None:
        for link in [each for each in self.array.written if each.startswith("clone ")]:
            if link.endswith(volume.id):
                raise InvalidState(volume.title, "the source of clones", "without clones")
        super().delete_volume(volume)
        for link in [each for each in self.array.written if each.startswith(f"clone {volume.id}")]:
            del self.array.written[link]


class DiesWithTheSource(NeedsTheSource):
    """A clone loses its bytes with its source."""

    def delete_volume(self, volume: Volume) -> None:
        for link in [each for each in self.array.written if each.startswith("clone ")]:
            _, made, _, source = link.split()
            if source == volume.id:
                del self.array.written[link]
                self.array.written.pop(made, None)
        super().delete_volume(volume)


class LeavesHalfAClone(MemoryDriver):
    """Leaves the snapshot that it copies from where there is no room for the clone."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        if volume.id in self.array.sizes:
            return super().clone_volume(volume, options, source, snapshot)
        moment = f"copy-{volume.id}"
        self.array.snapshots[moment] = MemoryImage(0)
        provider_data = super().clone_volume(volume, options, source, snapshot)
        del self.array.snapshots[moment]
        return provider_data


class ClonesHalf(MemoryDriver):
    """Makes a clone's object before it looks for room, and leaves removing it to others."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        if volume.id not in self.array.sizes and volume.size_bytes > self.array.free_bytes:
            self.array.resize(volume.id, 0)
            raise NoSpace(volume.title, volume.size_bytes, self.array.free_bytes)
        return super().clone_volume(volume, options, source, snapshot)


class WritesTheSourceBack(Engine):
    """Copies a volume without holding it, and writes its record back as it was before."""

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
        origin = self.volume(source or "")
        wanted = lifecycle.clone_of(self.site, name, origin, None, size_bytes, multi_attach=multi_attach)
        made = self._make(wanted, options or {}, Source(origin.id))
        with self.store.database.transaction():
            wrong = "UPDATE volumes SET size_bytes = ? WHERE id = ?"
            self.store.database.change(wrong, (origin.size_bytes, origin.id))
        return made


LIARS = [
    lying_driver(Linked, "CLN-001"),
    lying_driver(LinkedBack, "CLN-001"),
    lying_driver(ClonesTheVolume, "CLN-002"),
    lying_driver(NoZeroTail, "CLN-003"),
    lying_driver(Shrinks, "CLN-003"),
    Liar(Obliging, "CLN-004", engine=Obliging),
    lying_driver(ExtendsTheSource, "CLN-005"),
    lying_driver(NeedsTheSource, "CLN-007"),
    lying_driver(DiesWithTheSource, "CLN-007"),
    lying_driver(LeavesHalfAClone, "CLN-009"),
    lying_driver(ClonesHalf, "CLN-009"),
    Liar(WritesTheSourceBack, "CLN-006", engine=WritesTheSourceBack),
]
