"""EXO: a detached volume is extended, and whoever attaches it then has all of it."""

from voldrivers.conformance.aids import direct
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import check
from voldrivers.conformance.verdicts import expect
from voldrivers.errors import BackendError, InvalidState, VolDriverError
from voldrivers.model import ExtendReply, Volume, VolumeStatus

#: So often one volume is extended.
_TIMES = 20


@check(
    "EXO-001",
    "a detached volume grows to exactly what was asked for",
    smoke=True,
    hint="new_size_bytes is the size to reach, not what is to be added",
)
def grows(bench: Bench) -> None:
    """Extend one volume by a granule, one by a step, one to twice its size."""
    for more_bytes in (bench.granule, bench.step, bench.small):
        volume = bench.create()
        bench.extend(volume, volume.size_bytes + more_bytes)
        bench.check_agreed(volume, bench.rule.round_up(volume.size_bytes + more_bytes))
        bench.engine.delete_volume(volume.id)


@check("EXO-002", "an extend keeps every byte, and what is new reads as zeros and can be written", smoke=True)
def keeps_data(bench: Bench) -> None:
    """Stamp both ends and the middle, extend, read; then stamp the new ends."""
    volume = bench.create()
    bench.stamp(volume)
    bench.extend(volume, volume.size_bytes + bench.step)
    with bench.opened(volume) as disk:
        disk.check()
        disk.check_zeros(volume.size_bytes, volume.size_bytes + bench.step)
        disk.stamp()
        disk.check()


@check("EXO-003", "a volume can be extended again and again")
def again_and_again(bench: Bench) -> None:
    """Extend three times, stamped each time; read everything."""
    volume = bench.create()
    for _ in range(3):
        bench.stamp(volume)
        size_bytes = bench.now(volume).size_bytes + bench.step
        bench.extend(volume, size_bytes)
        bench.check_agreed(volume, size_bytes)
        bench.check_data(volume)


@check(
    "EXO-004",
    "whoever attaches an extended volume has all of it",
    hint="what is exported must be as large as what was extended",
)
def attached_then(bench: Bench) -> None:
    """Extend, attach, compare, write to the last block."""
    volume = bench.create()
    bench.extend(volume, volume.size_bytes + bench.step)
    _check_attached(bench, volume)


@check(
    "EXO-005",
    "a host that had the volume before it was extended sees the new size when it has it again",
    hint="a detach must leave nothing on the host that remembers the size",
)
def attached_before(bench: Bench) -> None:
    """Attach, stamp, detach, extend, attach to the same host."""
    volume = bench.create()
    attachment = bench.attach(volume)
    bench.stamp(volume)
    bench.detach(volume, attachment)
    bench.extend(volume, volume.size_bytes + bench.step)
    _check_attached(bench, volume)


@check(
    "EXO-006",
    "an extend is on the backend when it ends: a driver that is started then needs nothing else",
    hint="keep nothing in the object",
)
def restarted_then(bench: Bench) -> None:
    """Extend, start the driver anew, attach."""
    volume = bench.create()
    bench.extend(volume, volume.size_bytes + bench.step)
    bench.restart()
    _check_attached(bench, volume)


@check("EXO-008", "an odd size is rounded by the rule, and asking for the rounded one again changes nothing")
def odd_size(bench: Bench) -> None:
    """Extend to an odd size; then have engine and driver do it again with the rounded one."""
    volume = bench.create()
    asked = volume.size_bytes + bench.step + 1
    rounded = bench.rule.round_up(asked)
    bench.extend(volume, asked)
    bench.check_agreed(volume, rounded)
    bench.extend(volume, rounded)
    bench.check_agreed(volume, rounded)
    with bench.unchanged("it had that size"):
        reply = bench.driver.extend_volume(bench.now(volume), rounded)
    expect(reply is ExtendReply.EXTENDED, "I7", "it is large enough, and not said to be", reply=reply)


@check("EXO-009", "a volume that is being made, extended, mended or removed is not extended")
def wrong_states(bench: Bench) -> None:
    """Have creating, extending and deleting stop in the middle; ask for an extend each time; go on."""
    name = bench.name()
    with direct.lost_answer(bench, "create_volume"):
        bench.engine.create_volume(name, bench.small)
    volume = bench.engine.volume(name)
    _check_refused(bench, volume, VolumeStatus.CREATING)
    bench.engine.resume()
    bench.engine.extend(volume.id, volume.size_bytes + bench.step, wait=False)
    _check_refused(bench, volume, VolumeStatus.EXTENDING)
    bench.engine.resume()
    failed: VolDriverError = BackendError("the answer", "is an error")
    with direct.lost_answer(bench, "extend_volume", failed):
        bench.extend(volume, volume.size_bytes + 2 * bench.step)
    _check_refused(bench, volume, VolumeStatus.ERROR_EXTENDING)
    bench.engine.retry(volume.id)
    bench.check_agreed(volume, volume.size_bytes + 2 * bench.step)
    with direct.lost_answer(bench, "delete_volume"):
        bench.engine.delete_volume(volume.id)
    _check_refused(bench, volume, VolumeStatus.DELETING)
    bench.engine.resume()


@check(
    "EXO-011",
    "a volume that has grown by a granule twenty times is whole, with every byte",
    hint="where a volume is made of a limited number of parts, make the last of them larger",
)
def by_little_and_often(bench: Bench) -> None:
    """Stamp, extend by a granule ten times, and so once more, each time compare; read everything."""
    volume = bench.create()
    size_bytes = volume.size_bytes
    for _ in range(2):
        bench.stamp(volume)
        for _ in range(_TIMES // 2):
            size_bytes += bench.granule
            bench.extend(volume, size_bytes)
            bench.check_agreed(volume, size_bytes)
    bench.check_data(volume)


def _check_attached(bench: Bench, volume: Volume) -> None:
    """Attach; compare all sizes, read what was written, and write to both ends."""
    bench.attach(volume)
    bench.check_agreed(volume, volume.size_bytes + bench.step)
    with bench.opened(volume) as disk:
        disk.check()
        disk.stamp()
        disk.check()


def _check_refused(bench: Bench, volume: Volume, status: VolumeStatus) -> None:
    found = bench.now(volume).status
    expect(found is status, "I6", f"it is not {status}", found=found)
    wanted = volume.size_bytes + 3 * bench.step
    bench.refused(lambda: bench.extend(volume, wanted), InvalidState, invariant="I9")
