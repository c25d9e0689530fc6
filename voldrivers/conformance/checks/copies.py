"""DAT, SNP and CLN: copies of any kind are whole, and of the whole volume, however many and whenever."""

from functools import partial

from voldrivers.conformance.aids.copying import (
    allowed,
    check_kept,
    clone,
    extend,
    revert,
    take,
)
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.model import Volume


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
