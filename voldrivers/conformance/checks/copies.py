"""DAT, SNP and CLN: copies of any kind are whole, and of the whole volume, however many and whenever."""

from functools import partial

from voldrivers.conformance.aids.copying import (
    Kept,
    allowed,
    check_kept,
    clone,
    extend,
    keeper,
    revert,
    take,
    take_if_allowed,
)
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import NotRun, expect
from voldrivers.model import Volume
from voldrivers.sizes import MiB

#: So many snapshots are many; before these of them something new is written.
_SNAPSHOTS, _STAMPED = 10, (0, 5, 9)
_PIECE_BYTES = MiB


@check(
    "DAT-009",
    "no byte is lost on the way into a snapshot, nor out of it by a clone or a revert",
    level=Level.EXTENDED,
    capability="snapshots",
    hint="compare how many bytes were asked for with how many were copied, for every piece",
)
def whole_copies(bench: Bench) -> None:
    """Fill a volume, take a snapshot, fill it anew; read every byte of both; revert, read every byte."""
    volume = bench.create()
    _fill(bench, volume)
    kept = take(bench, volume)
    _fill(bench, volume)
    bench.check_data(volume)
    check_kept(bench, kept)
    if bench.declared.revert and allowed(bench, lambda: revert(bench, kept), "revert"):
        bench.check_data(volume)


@check(
    "SNP-013",
    "all of many snapshots of one volume are listed, and read as they were taken",
    level=Level.EXTENDED,
    capability="snapshots",
    hint="follow a list to its last page; what can be had so many times only is a declared condition",
)
def many(bench: Bench) -> None:
    """Take ten snapshots of three contents, look for each in the list, read one of each content."""
    if bench.room_bytes < 3 * bench.small + _SNAPSHOTS * (bench.small + bench.granule):
        raise NotRun(f"volumes may take {bench.room_bytes} bytes, too few for {_SNAPSHOTS} snapshots")
    volume, kept = bench.create(), list[Kept]()
    for number in range(_SNAPSHOTS):
        if number in _STAMPED:
            bench.stamp(volume)
        if not allowed(bench, lambda: kept.append(take(bench, volume)), "snapshots"):
            bench.told.append(f"a declared condition allows {len(kept)} snapshots")
            break
    if len(kept) < 2:
        raise NotRun("a declared condition refuses to take a second snapshot")
    lacking = {each.snapshot.id for each in kept} - set(keeper(bench).list_snapshots())
    expect(not lacking, "I5", f"not all of {len(kept)} snapshots are listed", lacking=lacking)
    bench.check_data(volume)
    for each in reversed([kept[number] for number in _STAMPED if number < len(kept)]):
        check_kept(bench, each)


@check(
    "SNP-014",
    "a snapshot of a volume that was extended has all of it, and a revert goes up to it as well as down",
    level=Level.EXTENDED,
    capability="snapshots",
    hint="ask how large the volume is when the snapshot is taken, and how large the snapshot at the revert",
)
def of_an_extended_volume(bench: Bench) -> None:
    """Take a snapshot, extend, stamp, take another, read it; revert to the older, then up to the newer."""
    volume = bench.create()
    bench.stamp(volume)
    older = take(bench, volume)
    extend(bench, volume)
    newer = take(bench, volume)
    bench.stamp(volume)
    check_kept(bench, newer)
    for kept in (older, newer) if bench.declared.revert else ():
        if allowed(bench, partial(revert, bench, kept), "revert"):
            bench.check_agreed(volume, kept.snapshot.size_bytes)
            bench.check_data(volume)


@check(
    "SNP-015",
    "a snapshot that is deleted while its volume is in use takes nothing with it, not what an extend added",
    level=Level.EXTENDED,
    capability="snapshots in_use_extend",
    hint="merge into something as large as the volume is now, not as it was",
)
def deleted_in_use(bench: Bench) -> None:
    """Attach, stamp, take a snapshot, extend, stamp, delete the snapshot; read, detach, read."""
    volume = bench.in_use()
    bench.stamp(volume)
    kept = take_if_allowed(bench, volume)
    size_bytes = bench.rule.round_up(volume.size_bytes + bench.step)
    if not allowed(bench, lambda: bench.extend(volume, size_bytes), "in_use_extend", "snapshots"):
        raise NotRun("a declared condition refuses to extend a volume in use that has a snapshot")
    bench.stamp(volume)
    bench.engine.delete_snapshot(kept.snapshot.id)
    bench.check_agreed(volume, size_bytes)
    bench.check_data(volume)
    bench.detach(volume, volume.attachments[0])
    bench.check_agreed(volume, size_bytes)
    bench.check_data(volume)


@check(
    "DAT-010",
    "no byte of a deleted snapshot is ever read again",
    level=Level.EXTENDED,
    capability="snapshots",
    hint="what was kept for a snapshot is room that was written, as a volume's is",
)
def no_stale_snapshot(bench: Bench) -> None:
    """Fill a volume, take a snapshot, fill it anew, delete the snapshot; read every byte of a new volume."""
    volume = bench.create()
    _fill(bench, volume)
    kept = take(bench, volume)
    _fill(bench, volume)  # what the snapshot holds is its alone by now
    bench.engine.delete_snapshot(kept.snapshot.id)
    with bench.opened(bench.create(volume.size_bytes + bench.step)) as disk:
        for begin in range(0, disk.size_bytes, _PIECE_BYTES):
            found = disk.read(begin, min(_PIECE_BYTES, disk.size_bytes - begin)).lstrip(b"\0")
            expect(not found, "I13", f"a deleted snapshot can be read beyond {begin}", found=found[:60])


@check(
    "CLN-008",
    "a clone of a volume that was extended has every byte of it, and so has one of a volume in use",
    level=Level.EXTENDED,
    capability="clones",
    hint="copy as much as the source has now; what a host was answered to is part of it",
)
def of_an_extended_source(bench: Bench) -> None:
    """Extend, attach, fill; clone it in use if that is allowed; detach, clone; read every byte of each."""
    volume, made = bench.create(), list[Volume]()
    bench.extend(volume, volume.size_bytes + bench.step)
    attachment = bench.attach(volume)
    _fill(bench, volume)
    allowed(bench, lambda: made.append(clone(bench, volume)), "clones")
    bench.check_data(volume)
    bench.detach(volume, attachment)
    made.append(clone(bench, volume))
    for each in made:
        bench.check_agreed(each, bench.now(volume).size_bytes)
        bench.check_data(each)


def _fill(bench: Bench, volume: Volume) -> None:
    with bench.opened(volume) as disk:
        disk.fill()
