"""SNP: a volume as it was at one moment, whatever becomes of the volume; or a clean refusal."""

from dataclasses import replace
from functools import partial

from voldrivers.conformance.aids.copying import (
    Kept,
    allowed,
    check_kept,
    clone,
    extend,
    keeper,
    kept_as,
    revert,
    take,
    take_if_allowed,
)
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import Broken, NotRun, expect
from voldrivers.errors import InvalidInput, InvalidState, NotFound, NotSupported
from voldrivers.model import Snapshot, SnapshotStatus, Volume

_SNAPSHOTS, _REVERT = "snapshots", "revert"


@check("SNP-001", "a snapshot is there once, and then gone", level=Level.EXTENDED, capability=_SNAPSHOTS)
def come_and_go(bench: Bench) -> None:
    """Take a snapshot and have it taken again; delete it twice, and then its volume; compare with before."""
    start, free_bytes = bench.everything(), bench.free_bytes()
    volume, driver = bench.create(), keeper(bench)
    before = bench.everything()
    snapshot = take(bench, volume).snapshot
    expect(snapshot.size_bytes == volume.size_bytes, "I1", "it is not as large as its volume")
    expect(snapshot.id in driver.list_snapshots(), "I9", "list_snapshots does not tell of it")
    expect(bench.everything().listed == before.listed, "I5", "list_volumes tells of something new")
    bench.check_agreed(volume, volume.size_bytes)
    begun = replace(snapshot, status=SnapshotStatus.CREATING, provider_data="")
    again = driver.create_snapshot(replace(volume, snapshots=(begun,)), begun)
    remembered = (bench.now(volume).provider_data, snapshot.provider_data)
    expect((again.of_volume, again.of_snapshot) == remembered, "I7", "taken again it has another answer")
    bench.engine.delete_snapshot(snapshot.id)
    driver.delete_snapshot(replace(bench.now(volume), snapshots=(snapshot,)), snapshot)
    after = bench.everything()
    # The volume may go on in another object than before.
    expect(len(after.objects) == len(before.objects), "I10", "objects are left", now=after.objects)
    expect(snapshot.id not in driver.list_snapshots(), "I10", "it is still listed")
    _check_gone(bench, snapshot)
    bench.check_agreed(volume, volume.size_bytes)
    bench.engine.delete_volume(volume.id)
    expect(bench.everything() == start, "I10", "something is left of a volume that had a snapshot")
    bench.check_room(free_bytes)


@check(
    "SNP-002",
    "what is written after a snapshot is not in it",
    level=Level.EXTENDED,
    capability=_SNAPSHOTS,
)
def point_in_time(bench: Bench) -> None:
    """Stamp, take a snapshot, stamp anew, read both."""
    volume = bench.create()
    bench.stamp(volume)
    kept = take(bench, volume)
    with bench.opened(volume) as disk:
        disk.stamp()
        disk.check()
    check_kept(bench, kept)


@check(
    "SNP-003",
    "an extend leaves the volume's snapshot as it is, in size and content",
    level=Level.EXTENDED,
    capability=_SNAPSHOTS,
)
def extend_with_snapshot(bench: Bench) -> None:
    """Stamp, take a snapshot, extend, stamp the new end, read both."""
    volume = bench.create()
    bench.stamp(volume)
    kept = take(bench, volume)
    extend(bench, volume)
    check_kept(bench, kept)


@check(
    "SNP-004",
    "all snapshots of a volume survive an extend, of a volume in use too",
    level=Level.EXTENDED,
    capability=_SNAPSHOTS,
)
def extend_with_several(bench: Bench) -> None:
    """Take two snapshots with stamps of their own, extend, in use if that is declared, read all."""
    volume = bench.create()
    kept = _two(bench, volume)
    if bench.declared.declares("in_use_extend"):
        attachment = bench.attach(volume)
        size_bytes = bench.now(volume).size_bytes + bench.step
        allowed(bench, lambda: bench.extend(volume, size_bytes), "in_use_extend", _SNAPSHOTS)
        bench.check_data(volume)
        bench.detach(volume, attachment)
    extend(bench, volume)
    for each in reversed(kept):
        check_kept(bench, each)


@check(
    "SNP-005",
    "a deleted snapshot takes nothing with it: not the volume's new size, no byte, no other snapshot",
    level=Level.EXTENDED,
    capability=_SNAPSHOTS,
)
def delete_after_extend(bench: Bench) -> None:
    """Take two snapshots, extend, delete the older one, read the rest; delete the other one, read again."""
    volume = bench.create()
    older, newer = _two(bench, volume)
    extend(bench, volume)
    size_bytes = bench.now(volume).size_bytes
    bench.engine.delete_snapshot(older.snapshot.id)
    _check_gone(bench, older.snapshot)
    expect(newer.snapshot.id in keeper(bench).list_snapshots(), "I5", "another snapshot is gone")
    bench.check_agreed(volume, size_bytes)
    bench.check_data(volume)
    if bench.declared.clones:
        check_kept(bench, newer)
    bench.engine.delete_snapshot(newer.snapshot.id)
    bench.check_agreed(volume, size_bytes)
    bench.check_data(volume)


@check(
    "SNP-006",
    "a revert after an extend brings back size and content, and what was beyond is never seen again",
    level=Level.EXTENDED,
    capability="revert snapshots",
)
def revert_after_extend(bench: Bench) -> None:
    """Take two snapshots, extend, revert to the newer; extend anew, read zeros; revert to the older."""
    volume = bench.create()
    older, newer = _two(bench, volume)
    extend(bench, volume)
    reverted = 0
    if allowed(bench, lambda: revert(bench, newer), _REVERT):
        reverted += 1
        bench.check_agreed(volume, newer.snapshot.size_bytes)
        bench.check_data(volume)
        _check_listed(bench, older, newer)
        bench.extend(volume, newer.snapshot.size_bytes + bench.step)
        bench.check_data(volume)
    if allowed(bench, lambda: revert(bench, older), _REVERT):
        reverted += 1
        bench.check_agreed(volume, older.snapshot.size_bytes)
        bench.check_data(volume)
        _check_listed(bench, older, newer)
    if not reverted:
        raise NotRun("a declared condition refuses every revert that was tried")


@check(
    "SNP-007",
    "a snapshot of a volume in use has all that was written before it, and the volume goes on",
    level=Level.EXTENDED,
    capability=_SNAPSHOTS,
)
def taken_in_use(bench: Bench) -> None:
    """Attach, stamp, take a snapshot, stamp anew, read both, delete it, read the volume."""
    volume = bench.create()
    attachment = bench.attach(volume)
    bench.stamp(volume)
    kept = take_if_allowed(bench, volume)
    bench.check_agreed(volume, volume.size_bytes)
    bench.stamp(volume)
    bench.check_data(volume)
    if bench.declared.clones:
        check_kept(bench, kept)
    bench.engine.delete_snapshot(kept.snapshot.id)
    bench.check_data(volume)
    bench.detach(volume, attachment)
    bench.check_data(volume)


@check(
    "SNP-008",
    "what does not go with snapshots is a declared condition, refused before anything happens",
    level=Level.EXTENDED,
    capability=_SNAPSHOTS,
)
def conditions(bench: Bench) -> None:
    """Take two snapshots, revert to the older; attach, extend, take, clone: done, or refused cleanly."""
    volume = bench.create()
    older, _newer = _two(bench, volume)
    if bench.declared.revert:
        allowed(bench, lambda: revert(bench, older), _REVERT)
    bench.attach(volume)
    size_bytes = bench.now(volume).size_bytes + bench.step
    if bench.declared.declares("in_use_extend"):
        allowed(bench, lambda: bench.extend(volume, size_bytes), "in_use_extend", _SNAPSHOTS)
    allowed(bench, lambda: take(bench, volume), _SNAPSHOTS)
    if bench.declared.clones:
        allowed(bench, lambda: clone(bench, volume), "clones", _SNAPSHOTS)
    bench.check_agreed(volume, bench.now(volume).size_bytes)
    bench.check_data(volume)


@check(
    "SNP-009",
    "a volume with snapshots is not deleted",
    level=Level.EXTENDED,
    capability=_SNAPSHOTS,
)
def volume_stays(bench: Bench) -> None:
    """Take a snapshot, try to delete the volume, read both; delete the snapshot, then the volume."""
    before = bench.everything()
    volume = bench.create()
    bench.stamp(volume)
    kept = take(bench, volume)
    bench.refused(lambda: bench.engine.delete_volume(volume.id), InvalidState, invariant="I6")
    bench.check_data(volume)
    check_kept(bench, kept)
    bench.engine.delete_snapshot(kept.snapshot.id)
    bench.engine.delete_volume(volume.id)
    expect(bench.everything() == before, "I10", "something is left of a volume that had a snapshot")


@check(
    "SNP-010",
    "a snapshot's name is taken once, however little others differ, and names of what does not exist refused",
    level=Level.EXTENDED,
    capability=_SNAPSHOTS,
)
def conflicts(bench: Bench) -> None:
    """Ask for names that are taken, bad, of nothing that is there; take snapshots of names much alike."""
    volume, other = bench.create(), bench.create()
    name, engine = take(bench, volume).snapshot.name, bench.engine
    for each in (volume, other):
        bench.refused(partial(engine.create_snapshot, each.id, name), InvalidState)
    bench.refused(lambda: engine.create_snapshot(volume.id, "../escaped"), InvalidInput)
    bench.refused(lambda: engine.create_snapshot(bench.name(), bench.name()), NotFound)
    bench.refused(lambda: engine.delete_snapshot(bench.name()), NotFound)
    if bench.declared.revert:
        bench.refused(lambda: engine.revert_to_snapshot(bench.name()), NotFound)
    _check_apart(bench, other)


@check("SNP-090", "a snapshot of a driver that declares none is refused", absent=_SNAPSHOTS)
def refused_when_absent(bench: Bench) -> None:
    """Ask for a snapshot, compare."""
    volume = bench.create()
    bench.refused(lambda: bench.engine.create_snapshot(volume.id, bench.name()), NotSupported, invariant="I9")
    bench.check_agreed(volume, volume.size_bytes)


@check("SNP-091", "a revert of a driver that declares none is refused", absent=_REVERT)
def revert_refused_when_absent(bench: Bench) -> None:
    """Ask for a revert, to a snapshot if there can be one, compare."""
    volume = bench.create()
    if not bench.declared.snapshots:
        bench.refused(lambda: bench.engine.revert_to_snapshot(bench.name()), NotFound, NotSupported)
        return
    bench.stamp(volume)
    kept = take(bench, volume)
    bench.stamp(volume)
    bench.refused(lambda: bench.engine.revert_to_snapshot(kept.snapshot.id), NotSupported, invariant="I9")
    bench.check_data(volume)


def _check_apart(bench: Bench, volume: Volume) -> None:
    """Take snapshots whose names differ from others' in case, at the end; read them without those."""
    begin = bench.name()
    long, wide = begin.ljust(127, "x"), begin.ljust(127, "\N{CJK UNIFIED IDEOGRAPH-5377}")
    taken = []
    for names in ((f"{begin}=A", f"{long}a", f"{wide}1"), (f"{begin}=a", f"{long}b", f"{wide}2")):
        bench.stamp(volume)
        taken.append([kept_as(bench, bench.engine.create_snapshot(volume.id, name)) for name in names])
    for each in taken[0]:
        bench.engine.delete_snapshot(each.snapshot.id)
    _check_listed(bench, *taken[1])
    if bench.declared.clones:
        for each in taken[1]:
            check_kept(bench, each)


def _two(bench: Bench, volume: Volume) -> tuple[Kept, Kept]:
    """Take two snapshots, each of something else."""
    bench.stamp(volume)
    older = take(bench, volume)
    bench.stamp(volume)
    newer = take(bench, volume)
    bench.stamp(volume)
    return older, newer


def _check_gone(bench: Bench, snapshot: Snapshot) -> None:
    try:
        size_bytes = keeper(bench).snapshot_size(bench.engine.volume(snapshot.volume_id), snapshot)
    except NotFound:
        return
    raise Broken("I10", "the driver still gives the size of a deleted snapshot", size_bytes=size_bytes)


def _check_listed(bench: Bench, *all_kept: Kept) -> None:
    driver = keeper(bench)
    listed = driver.list_snapshots()
    for snapshot in (each.snapshot for each in all_kept):
        expect(snapshot.id in listed, "I5", "a snapshot has gone with another one or a revert", listed=listed)
        size_bytes = driver.snapshot_size(bench.engine.volume(snapshot.volume_id), snapshot)
        expect(size_bytes == snapshot.size_bytes, "I5", "the size of a snapshot has changed")
