"""CLN: new volumes that begin as copies, and go their own way; or a clean refusal."""

from functools import partial
from operator import methodcaller

from voldrivers.abilities import Clones
from voldrivers.base import able
from voldrivers.conformance.aids import direct
from voldrivers.conformance.aids.beside import check_settled, in_the_middle
from voldrivers.conformance.aids.copying import check_kept, clone, take
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import NotRun
from voldrivers.errors import InvalidSize, NoSpace, NotSupported
from voldrivers.model import Volume

_CLONES = "clones"


@check(
    "CLN-001",
    "a clone has the bytes of its source, and what is written to either is not in the other",
    level=Level.EXTENDED,
    capability=_CLONES,
)
def independent(bench: Bench) -> None:
    """Clone, stamp the source, read the clone, and the other way round; then so in the other order."""
    volume = bench.create()
    bench.stamp(volume)
    _check_independent(bench, volume, clone(bench, volume))
    _check_independent(bench, clone(bench, volume), volume)
    if bench.declared.snapshots:
        kept = take(bench, volume)
        made = clone(bench, volume, kept)
        bench.stamp(made)
        check_kept(bench, kept)
        bench.check_data(volume)


@check(
    "CLN-002",
    "a clone of a snapshot has the snapshot's size and bytes, not those of its volume",
    level=Level.EXTENDED,
    capability="clones snapshots",
)
def of_an_older_snapshot(bench: Bench) -> None:
    """Stamp, take a snapshot, extend, stamp anew, clone the snapshot, read it."""
    volume = bench.create()
    bench.stamp(volume)
    kept = take(bench, volume)
    bench.extend(volume, volume.size_bytes + bench.step)
    bench.stamp(volume)
    made = clone(bench, volume, kept)
    bench.check_agreed(made, volume.size_bytes)
    bench.check_data(made)
    bench.check_data(volume)


@check(
    "CLN-003",
    "a clone larger than its source is as large as was asked for, and zero beyond the source",
    level=Level.EXTENDED,
    capability=_CLONES,
    hint="clear what lies beyond the copied bytes; the room may have been a deleted volume's",
)
def larger(bench: Bench) -> None:
    """Fill and delete a volume; stamp another one, clone it larger, read; and so of a snapshot."""
    large_bytes = bench.rule.round_up(bench.small + 2 * bench.step)
    deleted = bench.create(large_bytes)
    with bench.opened(deleted) as disk:
        disk.stamp(33)
    bench.engine.delete_volume(deleted.id)
    volume = bench.create()
    bench.stamp(volume)
    sources = [None, take(bench, volume)] if bench.declared.snapshots else [None]
    for kept in sources:
        made = clone(bench, volume, kept, large_bytes)
        bench.check_agreed(made, large_bytes)
        with bench.opened(made) as disk:
            disk.check()
            disk.check_zeros(volume.size_bytes, large_bytes)


@check(
    "CLN-004",
    "a clone smaller than its source is refused",
    level=Level.EXTENDED,
    capability=_CLONES,
)
def smaller(bench: Bench) -> None:
    """Ask for a clone that is a granule smaller, of a volume and of its snapshot, and compare."""
    volume = bench.create(bench.small + bench.step)
    smaller_bytes = volume.size_bytes - bench.granule
    bench.refused(lambda: clone(bench, volume, size_bytes=smaller_bytes), InvalidSize)
    if bench.declared.snapshots:
        kept = take(bench, volume)
        bench.refused(lambda: clone(bench, volume, kept, smaller_bytes), InvalidSize)


@check(
    "CLN-005",
    "an extend of a clone leaves its source as it is, and the other way round",
    level=Level.EXTENDED,
    capability=_CLONES,
)
def extended(bench: Bench) -> None:
    """Stamp, clone, extend the clone, read both; extend the source further, read both."""
    volume = bench.create()
    bench.stamp(volume)
    made = clone(bench, volume)
    larger_bytes = bench.rule.round_up(made.size_bytes + bench.step)
    bench.extend(made, larger_bytes)
    bench.stamp(made)
    _check_both(bench, {volume: volume.size_bytes, made: larger_bytes})
    largest_bytes = bench.rule.round_up(larger_bytes + bench.step)
    bench.extend(volume, largest_bytes)
    bench.stamp(volume)
    _check_both(bench, {volume: largest_bytes, made: larger_bytes})


@check(
    "CLN-006",
    "a volume that is asked to be extended while it is being copied stays whole, and so does its copy",
    level=Level.EXTENDED,
    capability=_CLONES,
    hint="hold the source for as long as it is copied, or copy a moment of it",
)
def extended_meanwhile(bench: Bench) -> None:
    """Extend elsewhere before and after the driver copies: refused, or both are whole; compare and read."""
    for before in (True, False):
        volume, made = bench.create(), list[Volume]()
        bench.stamp(volume)
        larger = methodcaller("extend", name=volume.id, size_bytes=volume.size_bytes + bench.step)
        copy, here = partial(_clone_into, bench, volume, made), ("clone_volume", before)
        errors = in_the_middle(bench, copy, larger, partial(_is_at, here))
        check_settled(bench, volume, errors)
        bench.check_data(volume)
        for each in made:
            bench.check_agreed(each, each.size_bytes)
            bench.check_data(each)


@check(
    "CLN-007",
    "a clone does not need its source, nor the snapshot that it is of, nor are they hurt by its end",
    level=Level.EXTENDED,
    capability=_CLONES,
)
def source_deleted(bench: Bench) -> None:
    """Clone twice, delete one clone, read the source; delete the source, read and extend the other one."""
    volume = bench.create()
    bench.stamp(volume)
    kept = take(bench, volume) if bench.declared.snapshots else None
    first, second = clone(bench, volume), clone(bench, volume, kept)
    bench.engine.delete_volume(first.id)
    bench.check_data(volume)
    if kept is not None:
        bench.engine.delete_snapshot(kept.snapshot.id)
    bench.engine.delete_volume(volume.id)
    bench.check_data(second)
    bench.extend(second, second.size_bytes + bench.step)
    bench.check_data(second)


@check(
    "CLN-009",
    "a clone that there is no room for is refused, and nothing of it is left",
    level=Level.EXTENDED,
    capability=_CLONES,
    hint="look for room first; clone_volume removes what it has made before it raises",
)
def no_room(bench: Bench) -> None:
    """Ask for a clone larger than all that is free, have the driver alone do it too, compare, read."""
    volume, driver = bench.create(), able(bench.driver, Clones, "the conformance suite")
    bench.stamp(volume)
    over_bytes = bench.driver.pool().free_bytes + bench.small + bench.granule
    if over_bytes > bench.rule.maximum_bytes // bench.granule * bench.granule:
        raise NotRun("more is free than any volume may have")
    wanted_bytes = bench.rule.round_up(over_bytes)
    bench.refused(lambda: clone(bench, volume, size_bytes=wanted_bytes), NoSpace, invariant="I6")
    large, options = direct.blank(bench, wanted_bytes), direct.usual_options(bench)
    try:  # past the engine, which removes what is left of a clone that fails
        copy = partial(driver.clone_volume, large, options, bench.now(volume))
        bench.refused(copy, NoSpace, invariant="I6")
    finally:
        bench.driver.delete_volume(large)
    bench.check_data(volume)


@check("CLN-090", "a clone of a driver that declares none is refused", absent=_CLONES)
def refused_when_absent(bench: Bench) -> None:
    """Ask for a clone, compare."""
    volume = bench.create()
    bench.refused(lambda: clone(bench, volume), NotSupported, invariant="I9")
    bench.check_agreed(volume, volume.size_bytes)


def _clone_into(bench: Bench, volume: Volume, made: list[Volume]) -> None:
    made.append(clone(bench, volume))


def _is_at(here: tuple[str, bool], name: str, before: bool) -> bool:
    return (name, before) == here


def _check_independent(bench: Bench, one: Volume, other: Volume) -> None:
    """Write to the one first: what the other has not written itself yet must stay as well."""
    bench.check_agreed(one, other.size_bytes)
    for written, read in ((one, other), (other, one)):
        bench.stamp(written)
        bench.check_data(read)


def _check_both(bench: Bench, sizes: dict[Volume, int]) -> None:
    for volume, size_bytes in sizes.items():
        bench.check_agreed(volume, size_bytes)
        bench.check_data(volume)
