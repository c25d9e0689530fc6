"""DAT: what is written is read again, and nothing else is."""

from math import lcm

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import check
from voldrivers.conformance.copying import allowed, take
from voldrivers.conformance.disk import STAMP_BYTES
from voldrivers.conformance.verdicts import expect
from voldrivers.model import Volume

#: So many blocks are written where the whole of a volume is meant.
_MANY = 17


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
    """Stamp all over, extend, snapshot, restart, extend in use; read everything after each of them."""
    volume = bench.create()
    _stamp_all_over(bench, volume)
    bench.extend(volume, bench.now(volume).size_bytes + bench.step)
    _stamp_all_over(bench, volume)
    if bench.declared.snapshots:
        kept = take(bench, volume)
        _stamp_all_over(bench, volume)
        bench.engine.delete_snapshot(kept.snapshot.id)
        bench.check_data(volume)
    bench.restart()
    if bench.declared.declares("in_use_extend"):
        bench.attach(volume)
        size_bytes = bench.now(volume).size_bytes + bench.step
        allowed(bench, lambda: bench.extend(volume, size_bytes), "in_use_extend")
    _stamp_all_over(bench, volume)
    bench.check_data(volume)


@check(
    "DAT-003",
    "no byte of a deleted volume is ever read again",
    smoke=True,
    hint="clear room before it is given out, or when it comes back; a new tail is given out too",
)
def no_stale_bytes(bench: Bench) -> None:
    """Fill, delete, create a smaller one in that room, extend it over the rest; read zeros at each step."""
    large_bytes = bench.small + bench.step
    deleted = bench.create(large_bytes)
    offsets = _piecewise(bench, large_bytes)
    with bench.opened(deleted) as disk:
        for offset in offsets:
            disk.write(offset, f"secret of {deleted.id} ".encode().ljust(STAMP_BYTES, b"#"))
    bench.engine.delete_volume(deleted.id)
    volume = bench.create()
    _check_no_bytes(bench, volume, [each for each in offsets if each < volume.size_bytes])
    bench.extend(volume, large_bytes)
    _check_no_bytes(bench, volume, offsets)


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
