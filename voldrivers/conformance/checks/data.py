"""DAT: what is written is read again, and nothing else is."""

from functools import partial
from math import lcm

from voldrivers.conformance.aids.copying import allowed, check_kept, take
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.disk import STAMP_BYTES
from voldrivers.conformance.verdicts import NotRun, expect
from voldrivers.model import Volume
from voldrivers.sizes import MiB

#: So many blocks are written where the whole of a volume is meant.
_MANY = 17
#: So far into a volume is looked, where there is room: some clear the beginning only.
_FAR_BYTES = 128 * MiB


@check("DAT-001", "what was written is there after a detach, wherever it is attached next")
def detached(bench: Bench) -> None:
    """Attach, stamp, detach, attach to another host if there is one, read."""
    volume = bench.create()
    attachment = bench.attach(volume)
    bench.stamp(volume)
    bench.detach(volume, attachment)
    bench.attach(volume, bench.subject.places[-1], instance=False)
    bench.check_data(volume)


@check("DAT-002", "no operation changes a byte, anywhere in the volume")
def whole_size(bench: Bench) -> None:
    """Stamp one all over, fill another one; extend, snapshot, restart, extend in use; read after each."""
    volume, full = bench.create(), bench.create()
    _stamp_all_over(bench, volume)
    with bench.opened(full) as disk:
        disk.fill()
    bench.extend(full, full.size_bytes + bench.step)
    bench.check_data(full)
    bench.extend(volume, bench.now(volume).size_bytes + bench.step)
    _stamp_all_over(bench, volume)
    if bench.declared.snapshots:
        kept = take(bench, volume)
        _stamp_all_over(bench, volume)
        bench.engine.delete_snapshot(kept.snapshot.id)
        bench.check_data(volume)
    bench.restart()
    if bench.declared.declares("in_use_extend"):
        for each in (volume, full):
            bench.attach(each)
            size_bytes = bench.now(each).size_bytes + bench.step
            allowed(bench, partial(bench.extend, each, size_bytes), "in_use_extend")
    _stamp_all_over(bench, volume)
    bench.check_data(volume)
    bench.check_data(full)


@check(
    "DAT-003",
    "no byte of a deleted volume is ever read again",
    smoke=True,
    hint="clear room before it is given out, or when it comes back; a new tail is given out too",
)
def no_stale_bytes(bench: Bench) -> None:
    """Fill, delete, create a smaller one in that room, extend it over the rest; read zeros at each step."""
    far_bytes = min(_FAR_BYTES, bench.room_bytes // 2)
    large_bytes = bench.rule.round_up(max(bench.small + bench.step, far_bytes))
    deleted = bench.create(large_bytes)
    offsets = _piecewise(bench, large_bytes)
    with bench.opened(deleted) as disk:
        for offset in offsets:
            disk.write(offset, f"secret of {deleted.id} ".encode().ljust(STAMP_BYTES, b"#"))
    bench.engine.delete_volume(deleted.id)
    volume = bench.create(bench.rule.round_up(large_bytes // 2))
    _check_no_bytes(bench, volume, [each for each in offsets if each < volume.size_bytes])
    bench.extend(volume, large_bytes)
    _check_no_bytes(bench, volume, offsets)


@check(
    "DAT-004",
    "what is discarded across the end that a volume had before its extend reads as zeros, and nothing else",
    level=Level.EXTENDED,
    hint="nothing may remember the old end: not a limit for discards, not a table of what is allocated",
)
def discarded(bench: Bench) -> None:
    """Stamp, extend, stamp both sides of the old end, discard a block on each, read all four."""
    volume = bench.create()
    bench.stamp(volume)
    bench.extend(volume, volume.size_bytes + bench.step)
    attachment, end = bench.attach(volume, instance=False), volume.size_bytes
    around = [end + blocks * STAMP_BYTES for blocks in (-2, -1, 0, 1)]
    with bench.opened(volume) as disk:
        for at in around:
            disk.write(at, f"{volume.id} {at} ".encode().ljust(STAMP_BYTES, b"#"))
        disk.place.discard(volume, attachment, around[1], 2 * STAMP_BYTES)
        for at in around[1:3]:
            del disk.stamps.written[at]
            expect(not any(disk.read(at)), "I4", f"what was discarded at {at} is still read", end=end)
        disk.check()


@check("DAT-005", "what is written to one volume is never in another one, after an extend either")
def no_alias(bench: Bench) -> None:
    """Make two volumes, stamp one, read both; extend one, stamp it, read the other one."""
    one, other = bench.create(), bench.create()
    bench.stamp(one)
    bench.check_data(other)
    bench.stamp(other)
    bench.check_data(one)
    bench.extend(one, one.size_bytes + bench.step)
    bench.stamp(one)
    bench.check_data(other)
    bench.check_data(one)


@check(
    "DAT-008",
    "of a volume with a snapshot only the object grows that is written to, detached and in use",
    level=Level.EXTENDED,
    capability="snapshots",
    hint="what a snapshot reads from stays as long as it was",
)
def active_only(bench: Bench) -> None:
    """Take a snapshot; extend detached, then in use; compare every object of the backend with before."""
    oracle = bench.subject.oracle
    if oracle is None:
        raise NotRun("no oracle tells of the objects on the backend")
    volume = bench.create()
    bench.stamp(volume)
    kept = take(bench, volume)
    for in_use in (False, True):
        if in_use and not bench.declared.declares("in_use_extend"):
            break
        if in_use:
            bench.attach(volume)
        before, size_bytes = dict(oracle.objects()), bench.now(volume).size_bytes + bench.step
        allowed(bench, partial(bench.extend, volume, size_bytes), "in_use_extend", "snapshots")
        after = oracle.objects()
        grown = [name for name, was in before.items() if after.get(name) != was]
        expect(len(grown) <= 1, "I5", "more than one object has changed", changed=grown)
        expect(after.keys() == before.keys(), "I5", "objects have come or gone", before=before, after=after)
        bench.check_data(volume)
    for attachment in bench.now(volume).attachments:
        bench.detach(volume, attachment)
    check_kept(bench, kept)


def _stamp_all_over(bench: Bench, volume: Volume) -> None:
    """Read what was written so far, then write something new."""
    with bench.opened(volume) as disk:
        disk.check()
        disk.stamp(_MANY)


def _piecewise(bench: Bench, size_bytes: int) -> list[int]:
    """Give where pieces of whole granules begin: room is given out in such pieces."""
    block_bytes = lcm(bench.granule, STAMP_BYTES)
    return list(range(0, size_bytes, max(block_bytes, size_bytes // _MANY // block_bytes * block_bytes)))


def _check_no_bytes(bench: Bench, volume: Volume, offsets: list[int]) -> None:
    with bench.opened(volume) as disk:
        for offset in offsets:
            found = disk.read(offset)
            expect(not any(found), "I13", f"a deleted volume can be read at {offset}", found=found[:60])
