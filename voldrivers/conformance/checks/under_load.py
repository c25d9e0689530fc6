"""EXI, DAT and SNP: a volume is read and written while it, or one beside it, is extended, or kept."""

from contextlib import suppress

from voldrivers.conformance.aids.beside import Journal, check_moment, traffic
from voldrivers.conformance.aids.copying import Kept, restored, take, take_if_allowed
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import Broken, NotRun, expect
from voldrivers.errors import InvalidState, NotSupported
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


@check(
    "SNP-012",
    "a snapshot of a volume that is being written is of one moment, and no answered write is lost",
    level=Level.EXTENDED,
    capability="snapshots",
    hint="hold writes back for the moment in which the snapshot is taken, all of them and nothing longer",
)
def of_one_moment(bench: Bench) -> None:
    """Attach, write numbers in turn, take a snapshot; read the volume; read the snapshot, each number."""
    volume = bench.create()
    attachment = bench.attach(volume)
    kept: Kept | None = None
    # Nobody else looks into the guest while its disk is written.
    with traffic(bench, volume, kind=Journal) as journal, suppress(NotSupported, InvalidState):
        answered = journal.rounds[0]
        kept = take(bench, volume)
    if kept is None:
        take_if_allowed(bench, volume)
        raise Broken("I9", "a snapshot is refused while the volume is written, and is taken then")
    bench.check_data(volume)
    bench.detach(volume, attachment)
    with bench.opened(restored(bench, kept)) as disk:
        check_moment(disk, answered)


def _extend_under_load(bench: Bench, volume: Volume, depth: int) -> None:
    with traffic(bench, volume, depth):
        for number in range(1, _TIMES + 1):
            bench.extend(volume, volume.size_bytes + number * bench.step)
    bench.check_agreed(volume, bench.rule.round_up(volume.size_bytes + _TIMES * bench.step))
    bench.check_data(volume)


def _device_bytes(bench: Bench, volume: Volume) -> int:
    attachment = bench.now(volume).attachments[0]
    return bench.place(attachment).device_bytes(volume, attachment)
