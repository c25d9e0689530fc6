"""CRA: whoever works on a volume is killed, anywhere; what is started afterwards ends or undoes the work."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from voldrivers.conformance.aids.blows import (
    Blow,
    bring_to,
    check_grown,
    check_halfway,
    is_killed,
    strike_all,
)
from voldrivers.conformance.aids.pending import leave_pending
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import expect
from voldrivers.conformance.watch import Killed
from voldrivers.model import Volume, VolumeStatus

Make = Callable[[], Volume]
Act = Callable[[Volume], object]


@check(
    "CRA-001",
    "wherever an extend is killed, the size is the old or the new one, and reaches the target exactly once",
    level=Level.FAULT,
    hint="compare with volume_size before growing; never grow by a difference from volume.size_bytes",
)
def extend_killed(bench: Bench) -> None:
    """Kill an extend at each boundary of the driver, start anew, resume, compare every layer and byte."""
    strike_all(bench, (is_killed,), partial(_kill_extend, bench, bench.create))
    if bench.declared.declares("in_use_extend"):
        strike_all(bench, (is_killed,), partial(_kill_extend, bench, bench.in_use))


@check(
    "CRA-002",
    "wherever a create, delete, attach, detach or snapshot is killed, it is ended or has left nothing",
    level=Level.FAULT,
)
def others_killed(bench: Bench) -> None:
    """Kill each of them at each boundary of the driver, start anew, resume, take all away, compare."""
    attached, has_guest = partial(_attached, bench), bench.subject.places[0].instance is not None
    plain: list[tuple[Make, Act]] = [
        (bench.create, lambda _volume: bench.create()),
        (bench.create, lambda volume: bench.engine.delete_volume(volume.id)),
        (bench.create, bench.attach),
        (attached, lambda volume: bench.detach(volume, volume.attachments[0])),
    ]
    for make, act in plain:
        strike_all(bench, (is_killed,), partial(_kill, bench, make, act, reads=True))
    if bench.declared.snapshots:
        kept = attached if has_guest else bench.create
        for make, act in (
            (kept, lambda volume: bench.engine.create_snapshot(volume.id, bench.name())),
            (partial(_snapped, bench, kept), lambda volume: _drop_snapshot(bench, volume)),
        ):
            strike_all(bench, (is_killed,), partial(_kill, bench, make, act, reads=has_guest))


@check(
    "CRA-003",
    "an extend whose process is killed when the hypervisor has grown the volume is ended by the next one",
    level=Level.FAULT,
    capability="in_use_extend=by-hypervisor",
    hint="what was left to a hypervisor is seen at the volume's size, not remembered in the driver",
)
def killed_while_deferred(bench: Bench) -> None:
    """Kill an extend right after the hypervisor acted, start anew, resume, compare every layer and byte."""
    volume = bench.in_use()
    bench.stamp(volume)
    target_bytes = volume.size_bytes + bench.step
    leave_pending(bench, volume, target_bytes, grown=True)
    bench.stamp(volume)
    bring_to(bench, volume, target_bytes)
    check_grown(bench, volume, volume.size_bytes)


def _kill_extend(bench: Bench, make: Make, blow: Blow) -> None:
    volume = make()
    bench.stamp(volume)
    blow.volume, target_bytes = volume, volume.size_bytes + bench.step
    with bench.watch.struck(blow), suppress(Killed):
        bench.extend(volume, target_bytes)
    bench.restart()
    blow.look()
    check_halfway(bench, volume, volume.size_bytes, target_bytes)
    bring_to(bench, volume, target_bytes)
    check_grown(bench, volume, volume.size_bytes)
    _take_away(bench)


def _kill(bench: Bench, make: Make, act: Act, blow: Blow, *, reads: bool) -> None:
    """Kill an act and take everything away; without `reads` no byte is touched: a host reads no layers."""
    before = bench.everything()
    volume = make()
    if reads:
        bench.stamp(volume)
    with bench.watch.struck(blow), suppress(Killed):
        act(volume)
    bench.restart()
    for resumed in bench.engine.resume():
        if resumed.error is not None:
            raise resumed.error
    for left in bench.engine.volumes():
        expect(
            left.status in (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE), "I6", "it is not settled", left=left
        )
        bench.check_agreed(left, left.size_bytes)
        if reads:
            bench.check_data(left)
    _take_away(bench)
    after = bench.everything()
    expect(after == before, "I10", "all was taken away, and something is left", before=before, after=after)


def _attached(bench: Bench) -> Volume:
    volume = bench.create()
    bench.attach(volume)
    return bench.now(volume)


def _drop_snapshot(bench: Bench, volume: Volume) -> None:
    bench.engine.delete_snapshot(volume.snapshots[0].id)


def _snapped(bench: Bench, make: Make) -> Volume:
    volume = make()
    bench.engine.create_snapshot(volume.id, bench.name())
    return bench.now(volume)


def _take_away(bench: Bench) -> None:
    for volume in bench.engine.volumes():
        for attachment in volume.attachments:
            bench.detach(volume, attachment)
        for snapshot in volume.snapshots:
            bench.engine.delete_snapshot(snapshot.id)
        bench.engine.delete_volume(volume.id)
