"""Snapshots and clones on a bench, each with what must be read from it."""

from collections.abc import Callable
from dataclasses import dataclass

from voldrivers.abilities import Snapshots
from voldrivers.base import able
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.disk import Stamps
from voldrivers.conformance.verdicts import NotRun, expect
from voldrivers.errors import InvalidState, NotSupported
from voldrivers.model import Snapshot, Volume


@dataclass(frozen=True)
class Kept:
    """A snapshot, and what its volume held when it was taken."""

    snapshot: Snapshot
    stamps: Stamps


def keeper(bench: Bench) -> Snapshots:
    """Give the driver as one that takes snapshots."""
    return able(bench.driver, Snapshots, "the conformance suite")


def take(bench: Bench, volume: Volume) -> Kept:
    """Take a snapshot."""
    return kept_as(bench, bench.engine.create_snapshot(volume.id, bench.name()))


def kept_as(bench: Bench, snapshot: Snapshot) -> Kept:
    """Give a snapshot that was just taken with what its volume holds now."""
    return Kept(snapshot, _copied(bench.stamps.get(snapshot.volume_id)))


def take_if_allowed(bench: Bench, volume: Volume) -> Kept:
    """Take a snapshot of a volume in use. Raises NotRun where a declared condition refuses it."""
    taken: list[Kept] = []
    if not allowed(bench, lambda: taken.append(take(bench, volume)), "snapshots"):
        raise NotRun("a declared condition refuses snapshots of a volume that is in use here")
    return taken[0]


def clone(bench: Bench, volume: Volume, kept: Kept | None = None, size_bytes: int | None = None) -> Volume:
    """Make a clone of a volume, or of its snapshot."""
    source, snapshot = (None, kept.snapshot.id) if kept else (volume.id, None)
    options = bench.subject.volume_options
    made = bench.engine.clone_volume(bench.name(), source, snapshot, size_bytes, options)
    bench.stamps[made.id] = _copied(kept.stamps if kept else bench.stamps.get(volume.id))
    return made


def revert(bench: Bench, kept: Kept) -> None:
    """Make a volume what its snapshot is."""
    bench.engine.revert_to_snapshot(kept.snapshot.id)
    bench.stamps[kept.snapshot.volume_id] = _copied(kept.stamps)


def check_kept(bench: Bench, kept: Kept) -> None:
    """Have a snapshot be as it was taken (I5).

    It is read through a clone; where there are none its volume is reverted to it.
    """
    taken = kept.snapshot
    volume = bench.engine.volume(taken.volume_id)
    listed = keeper(bench).list_snapshots()
    expect(taken.id in listed, "I5", "a snapshot is gone", listed=listed)
    published, seen = bench.engine.snapshot(taken.id), keeper(bench).snapshot_size(volume, taken)
    sizes = {taken.size_bytes, published.size_bytes, seen}
    expect(len(sizes) == 1, "I5", "the size of a snapshot has changed", taken=taken.size_bytes, driver=seen)
    volume = restored(bench, kept)
    bench.check_agreed(volume, taken.size_bytes)
    bench.check_data(volume)
    if bench.declared.clones:
        bench.engine.delete_volume(volume.id)


def restored(bench: Bench, kept: Kept) -> Volume:
    """Give a volume that holds what a snapshot does: a clone, or its own, reverted. Raises NotRun."""
    volume = bench.engine.volume(kept.snapshot.volume_id)
    if bench.declared.clones:
        return clone(bench, volume, kept)
    if not bench.declared.revert or not allowed(bench, lambda: revert(bench, kept), "revert"):
        raise NotRun("there is no clone and no revert by which this snapshot could be read")
    return volume


def extend(bench: Bench, volume: Volume) -> None:
    """Extend a detached volume, and write to its new end. Raises NotRun where a condition refuses it."""
    size_bytes = bench.now(volume).size_bytes + bench.step
    if not allowed(bench, lambda: bench.extend(volume, size_bytes), "snapshots"):
        raise NotRun("a declared condition refuses to extend a volume that has a snapshot")
    bench.check_agreed(volume, bench.rule.round_up(size_bytes))
    bench.stamp(volume)
    bench.check_data(volume)


def allowed(bench: Bench, act: Callable[[], object], *capabilities: str) -> bool:
    """Do what a condition of these capabilities may forbid, and tell whether it was done.

    Who refuses must have declared a condition (I9), and has changed nothing (I6).
    """
    before, free_bytes = bench.everything(), bench.free_bytes()
    try:
        act()
    except (NotSupported, InvalidState) as refusal:
        declared = any(each.capability in capabilities for each in bench.declared.conditions)
        expect(declared, "I9", f"no condition is declared, and it is refused: {refusal}")
        expect(bench.everything() == before, "I6", f"it is refused, and something changed: {refusal}")
        bench.check_room(free_bytes)
        bench.told.append(f"a declared condition refused it: {refusal}")
        return False
    return True


def _copied(stamps: Stamps | None) -> Stamps:
    return Stamps(dict(stamps.written), stamps.generation) if stamps else Stamps()
