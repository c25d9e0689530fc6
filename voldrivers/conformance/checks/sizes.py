"""SIZ: sizes are what the rule makes of them, up to the largest, and are read, not remembered."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from voldrivers.conformance.aids import direct
from voldrivers.conformance.aids.copying import allowed
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.disk import STAMP_BYTES
from voldrivers.conformance.verdicts import Broken, NotRun, expect
from voldrivers.errors import InvalidSize, NoSpace
from voldrivers.model import Volume
from voldrivers.sizes import GiB, SizeRule, TiB

_WRAP_BYTES, _WORD_BYTES = 2 * TiB, 4 * GiB


@check(
    "SIZ-001",
    "around every edge a volume is as large as the rule says",
    smoke=True,
    hint="round up, never down, and declare the granularity that the backend really has",
)
def edges(bench: Bench) -> None:
    """Create volumes of one byte, about one granule and about the minimum; ask for more than the maximum."""
    rule, granule = bench.rule, bench.granule
    asked = {granule + more for more in (-1, 0, 1, granule + 1)}
    asked |= {1, *(rule.minimum_bytes + more for more in (-1, 0, 1))}
    largest_bytes = rule.maximum_bytes // granule * granule
    if largest_bytes <= bench.room_bytes:
        asked.add(largest_bytes)
    for size_bytes in sorted(each for each in asked if each > 0):
        volume = bench.create(size_bytes)
        bench.check_agreed(volume, rule.round_up(size_bytes))
        bench.engine.delete_volume(volume.id)
    bench.refused(lambda: bench.create(rule.maximum_bytes + 1), InvalidSize, invariant="I3")


@check(
    "SIZ-002",
    "a volume about 2 TiB and 16 TiB is that large, and grows across it",
    level=Level.EXTENDED,
    hint="2 TiB is where 32 bits for a number of sectors end, 16 TiB for one of pages",
)
def wrap(bench: Bench) -> None:
    """Create below, at and above 2 TiB; extend across 2 TiB and across 16 TiB; read the last block."""
    rule, step = bench.rule, bench.step
    _check_maximum(bench)
    with bench.vast(_WRAP_BYTES + 2 * step) as vast:
        for size_bytes in (_WRAP_BYTES, _WRAP_BYTES + 1):
            volume = vast.create(size_bytes)
            vast.check_agreed(volume, rule.round_up(size_bytes))
            vast.engine.delete_volume(volume.id)
        _cross(vast, _WRAP_BYTES)
        if min(rule.maximum_bytes, vast.room_bytes) >= 8 * _WRAP_BYTES + 2 * step:
            _cross(vast, 8 * _WRAP_BYTES)


@check(
    "SIZ-003",
    "the size that the driver gives is the backend's, whatever the records say",
    smoke=True,
    hint="look the size up; volume.size_bytes is what is published, and may be behind",
)
def actual(bench: Bench) -> None:
    """Create with an odd size; ask with records that tell of another size."""
    volume = bench.create(bench.small + 1)
    bench.check_agreed(volume, bench.rule.round_up(bench.small + 1))
    for believed in (volume.size_bytes + bench.step, bench.granule):
        records = replace(volume, size_bytes=believed, backend_bytes=believed)
        read = bench.driver.volume_size(records)
        expect(read == volume.size_bytes, "I1", "it repeats the records", records=believed, read=read)


@check(
    "SIZ-004",
    "a size that cannot be had is refused, and nothing of it is left",
    hint="create_volume removes what it has made before it raises",
)
def limit(bench: Bench) -> None:
    """Extend beyond the maximum; have the driver make and extend what there is no room for."""
    volume, driver = bench.create(), bench.driver
    bench.refused(lambda: bench.extend(volume, bench.rule.maximum_bytes + 1), InvalidSize)
    over_bytes = driver.pool().free_bytes + bench.small + bench.granule
    if over_bytes + volume.size_bytes > bench.rule.maximum_bytes:
        return
    large = direct.blank(bench, bench.rule.round_up(over_bytes))
    try:
        bench.refused(lambda: direct.make(bench, large), NoSpace, invariant="I6")
    finally:
        driver.delete_volume(large)
    wanted = bench.rule.round_up(over_bytes + volume.size_bytes)
    bench.refused(lambda: _extend(bench, volume, wanted), NoSpace, invariant="I6")


@check(
    "SIZ-005",
    "the device is as large as the volume, to the byte, whatever the size",
    hint="what a target or a mapping adds or takes away must not be seen on the device",
)
def device(bench: Bench) -> None:
    """Create volumes of even and odd numbers of granules, attach each, read device, host and last block."""
    place = bench.subject.places[0]
    for granules in (0, 1, 3):
        volume = bench.create(bench.small + granules * bench.granule)
        for instance in sorted({False, place.instance is not None}):
            attachment = bench.attach(volume, instance=instance)
            read = {
                "device": place.device_bytes(volume, attachment),
                "host": place.host.get_blockdev(bench.now(volume), attachment),
            }
            expect(
                set(read.values()) == {volume.size_bytes},
                "I1",
                "not its size",
                size=volume.size_bytes,
                **read,
            )
            place.read(volume, attachment, volume.size_bytes - STAMP_BYTES, STAMP_BYTES)
            bench.detach(volume, attachment)
        bench.engine.delete_volume(volume.id)


@check(
    "SIZ-006",
    "an extend leaves the sector sizes of the device as they are",
    level=Level.EXTENDED,
    hint="a guest has laid out its file system by them",
)
def sectors(bench: Bench) -> None:
    """Attach, read both sector sizes, detach, extend to twice the size, attach, read them again."""
    volume, place = bench.create(), bench.subject.places[0]
    read = []
    for size_bytes in (volume.size_bytes, 2 * volume.size_bytes):
        bench.extend(volume, size_bytes)
        attachment = bench.attach(volume, instance=False)
        read.append(place.sector_bytes(volume, attachment))
        bench.detach(volume, attachment)
    expect(read[0] == read[1], "I4", "the sector sizes have changed", before=read[0], after=read[1])


@check("SIZ-007", "the rule never rounds down, is monotone, and leaves its own sizes alone", smoke=True)
def rule_holds(bench: Bench) -> None:
    """Round sizes around powers of two, multiples of the granule and both ends; no volume is made."""
    rule, last = bench.rule, 0
    for size_bytes in sorted({each for each in _sizes(rule) if 1 <= each <= rule.maximum_bytes}):
        try:
            rounded = rule.round_up(size_bytes)
        except ValueError as error:
            granule = rule.granularity_bytes
            if size_bytes > rule.maximum_bytes // granule * granule:
                continue
            raise Broken("I3", f"a size within its limits is refused: {error}", size=size_bytes) from error
        seen = {"asked": size_bytes, "rounded": rounded}
        expect(rounded >= size_bytes, "I3", "it rounds down", **seen)
        expect(rounded >= last, "I3", "more was asked for, and less given", **seen, before=last)
        expect(rule.round_up(rounded) == rounded, "I3", "its own size is rounded again", **seen)
        expect(
            rounded - max(size_bytes, rule.minimum_bytes) < rule.granularity_bytes, "I3", "too large", **seen
        )
        last = rounded


@check(
    "SIZ-008",
    "a volume in use grows across 2 TiB",
    level=Level.EXTENDED,
    capability="in_use_extend",
    hint="what hands the new size on must have room for more than 32 bits of sectors",
)
def wrap_in_use(bench: Bench) -> None:
    """Attach, extend to below 2 TiB, across it and once more; compare, read and write each time."""
    _check_maximum(bench)
    step = bench.step
    with bench.vast(_WRAP_BYTES + 3 * step) as vast:
        volume = vast.in_use()
        for size_bytes in (_WRAP_BYTES - step, _WRAP_BYTES + step, _WRAP_BYTES + 2 * step):
            vast.stamp(volume)
            if not allowed(vast, partial(vast.extend, volume, size_bytes), "in_use_extend"):
                raise NotRun("a declared condition refuses to extend so large a volume in use")
            vast.check_agreed(volume, bench.rule.round_up(size_bytes))
            vast.check_data(volume)


@check(
    "SIZ-009",
    "a volume that grows across 4 GiB, and is extended again, keeps every byte",
    level=Level.EXTENDED,
    hint="4 GiB is where 32 bits for a number of bytes end",
)
def some_gibibytes(bench: Bench) -> None:
    """Create below 4 GiB, stamp, extend across it, stamp the new end, extend once more, read everything."""
    if bench.rule.maximum_bytes < _WORD_BYTES + 3 * bench.step:
        raise NotRun("the rule's maximum is below 4 GiB")
    with bench.vast(_WORD_BYTES + 3 * bench.step) as vast:
        volume = vast.create(_WORD_BYTES - vast.step)
        for steps in (1, 2):
            vast.stamp(volume)
            size_bytes = vast.rule.round_up(_WORD_BYTES + steps * vast.step)
            vast.extend(volume, size_bytes)
            vast.check_agreed(volume, size_bytes)
        vast.check_data(volume)


def _check_maximum(bench: Bench) -> None:
    if bench.rule.maximum_bytes < _WRAP_BYTES + 3 * bench.step:
        raise NotRun("the rule's maximum is below 2 TiB")


def _extend(bench: Bench, volume: Volume, size_bytes: int) -> None:
    """Have the driver extend a volume as the engine does: asked first whether it can."""
    bench.driver.check_extend(volume, size_bytes)
    bench.driver.extend_volume(volume, size_bytes)


def _cross(bench: Bench, edge_bytes: int) -> None:
    """Extend from a step below the edge to a step above it, and write to the end of both."""
    volume = bench.create(edge_bytes - bench.step)
    bench.stamp(volume)
    wanted = bench.rule.round_up(edge_bytes + bench.step)
    bench.extend(volume, wanted)
    bench.check_agreed(volume, wanted)
    bench.check_data(volume)
    bench.stamp(volume)
    bench.check_data(volume)
    bench.engine.delete_volume(volume.id)


def _sizes(rule: SizeRule) -> Iterator[int]:
    granule = rule.granularity_bytes
    near = (-granule, -512, -1, 0, 1, 512, granule // 3, granule // 2, granule)
    places = [
        rule.minimum_bytes,
        rule.maximum_bytes,
        *(1 << power for power in range(64)),
        *(10**power for power in range(19)),
        *(granule * number for number in range(1, 130)),
    ]
    yield from (place + more for place in places for more in near)
