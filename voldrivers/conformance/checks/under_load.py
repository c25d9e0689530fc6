"""EXI and DAT: a volume is read and written without a pause while it, or one beside it, is extended."""

from voldrivers.conformance.aids.beside import traffic
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import NotRun, expect
from voldrivers.model import Volume

#: So many reads and writes are under way at once where that is the point.
_DEPTH = 32
_TIMES = 3


@check(
    "EXI-004",
    "whoever reads and writes a volume while it is extended sees no error, no wrong byte and no long pause",
    level=Level.EXTENDED,
    capability="in_use_extend",
    hint="grow it in place: nothing is taken away from a host, not for a moment",
)
def no_pause(bench: Bench) -> None:
    """Write, read back and compare all the time; extend three times; compare every layer and byte."""
    volume = bench.in_use()
    _extend_under_load(bench, volume, 1)


@check(
    "EXI-006",
    "an extend is seen by its own volume's device only: the one beside it is not read anew, nor disturbed",
    level=Level.EXTENDED,
    capability="in_use_extend=by-backend",
    hint="rescan one LUN of one session, never the whole session or bus",
)
def neighbour(bench: Bench) -> None:
    """Have a volume grow and tell no host; extend another one; the first one's device is as it was."""
    volume, other = bench.in_use(), bench.in_use()
    grown_bytes = bench.rule.round_up(other.size_bytes + bench.step)
    bench.driver.extend_volume(bench.now(other), grown_bytes)
    if _device_bytes(bench, other) != other.size_bytes:
        raise NotRun("the host sees a new size without being told")
    with traffic(bench, other):
        bench.extend(volume, volume.size_bytes + bench.step)
    seen = _device_bytes(bench, other)
    expect(seen == other.size_bytes, "I5", "the device of another volume was read anew", seen=seen)
    bench.extend(other, other.size_bytes)
    bench.check_agreed(other, grown_bytes)
    bench.check_data(other)


@check(
    "DAT-007",
    "of many writes that are under way at once while a volume is extended none is lost",
    level=Level.EXTENDED,
    capability="in_use_extend",
    hint="never copy a volume to grow it, unless nobody can write to it meanwhile",
)
def many_at_once(bench: Bench) -> None:
    """Attach to a host alone, write and read back in many threads, extend three times, read everything."""
    volume = bench.create()
    bench.attach(volume, instance=False)
    _extend_under_load(bench, volume, _DEPTH)


def _extend_under_load(bench: Bench, volume: Volume, depth: int) -> None:
    with traffic(bench, volume, depth):
        for number in range(1, _TIMES + 1):
            bench.extend(volume, volume.size_bytes + number * bench.step)
    bench.check_agreed(volume, bench.rule.round_up(volume.size_bytes + _TIMES * bench.step))
    bench.check_data(volume)


def _device_bytes(bench: Bench, volume: Volume) -> int:
    attachment = bench.now(volume).attachments[0]
    return bench.place(attachment).device_bytes(volume, attachment)
