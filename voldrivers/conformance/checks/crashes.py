"""CRA: whoever works on a volume is killed, anywhere; what is started afterwards ends or undoes the work."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from voldrivers.abilities import Manages
from voldrivers.base import able
from voldrivers.conformance.aids.blows import (
    Blow,
    bring_to,
    check_grown,
    check_halfway,
    is_killed,
    strike_all,
)
from voldrivers.conformance.aids.copying import Kept, allowed, check_kept, clone, revert, take
from voldrivers.conformance.aids.pending import leave_pending
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import NotRun, expect
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


@check(
    "CRA-009",
    "wherever a clone is killed, it is a whole copy or none afterwards, and its source is as it was",
    level=Level.FAULT,
    capability="clones",
    hint="mark what is not whole yet, or name it so: what is there already was perhaps never finished",
)
def clone_killed(bench: Bench) -> None:
    """Kill a larger clone at each boundary of the driver, start anew, resume, read; and so of a snapshot."""
    source = bench.create()
    bench.stamp(source)
    strike_all(bench, (is_killed,), partial(_kill_clone, bench, source, None))
    if bench.declared.snapshots:
        kept = take(bench, source)
        bench.stamp(source)
        strike_all(bench, (is_killed,), partial(_kill_clone, bench, source, kept))
    bench.check_data(source)


@check(
    "CRA-010",
    "wherever a revert is killed, the volume is what the snapshot is afterwards, and that is still there",
    level=Level.FAULT,
    capability="revert snapshots",
    hint="whoever begins anew must find either the old volume or the reverted one, not a mixture of them",
)
def revert_killed(bench: Bench) -> None:
    """Kill a revert after an extend at each boundary of the driver, start anew, resume, read both."""
    kept = _extended_since(bench)
    if not allowed(bench, partial(revert, bench, kept), "revert"):
        raise NotRun("a declared condition refuses every revert here")
    _take_away(bench)
    strike_all(bench, (is_killed,), partial(_kill_revert, bench))


@check(
    "CRA-011",
    "wherever giving up or taking over is killed, it is ended by the next one, and every byte is there",
    level=Level.FAULT,
    capability="manage",
    hint="one step makes it a volume, or none of ours; what comes before and after can be taken again",
)
def managing_killed(bench: Bench) -> None:
    """Kill an unmanage, and a manage, at each boundary of the driver, start anew, resume, read the bytes."""
    strike_all(bench, (is_killed,), partial(_kill_unmanage, bench))
    strike_all(bench, (is_killed,), partial(_kill_manage, bench))


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
    _killed(bench, blow, partial(act, volume))
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


def _kill_clone(bench: Bench, source: Volume, kept: Kept | None, blow: Blow) -> None:
    size_bytes = bench.rule.round_up(source.size_bytes + bench.step)
    with bench.unchanged("its clone was deleted"):
        _killed(bench, blow, partial(clone, bench, source, kept, size_bytes))
        bench.check_agreed(source, source.size_bytes)
        for made in bench.engine.volumes():
            if made.id != source.id:
                bench.stamps[made.id] = kept.stamps if kept else bench.stamps[source.id]
                _check_whole(bench, made, size_bytes)
                bench.engine.delete_volume(made.id)


def _kill_revert(bench: Bench, blow: Blow) -> None:
    with bench.unchanged("all of it was deleted"):
        kept = _extended_since(bench)
        _killed(bench, blow, partial(revert, bench, kept))
        (volume,) = bench.engine.volumes()
        bench.stamps[volume.id] = kept.stamps
        _check_whole(bench, volume, kept.snapshot.size_bytes)
        check_kept(bench, kept)
        _take_away(bench)


def _kill_unmanage(bench: Bench, blow: Blow) -> None:
    with bench.unchanged("all of it was deleted"):
        volume = bench.create()
        bench.stamp(volume)
        last = bench.now(volume)
        _killed(bench, blow, lambda: bench.engine.unmanage_volume(volume.id))
        # What it was given up as has perhaps died with the process: the driver says it again.
        reference = able(bench.driver, Manages, "the conformance suite").unmanage(last)
        expect(volume.id not in bench.driver.list_volumes(), "I9", "it was given up, and is still listed")
        _check_taken_over(bench, volume, _manage(bench, bench.name(), reference))


def _kill_manage(bench: Bench, blow: Blow) -> None:
    with bench.unchanged("all of it was deleted"):
        volume, name = bench.create(), bench.name()
        bench.stamp(volume)
        reference = bench.engine.unmanage_volume(volume.id)
        _killed(bench, blow, lambda: _manage(bench, name, reference))
        if not bench.engine.volumes():  # killed before it was recorded
            _manage(bench, name, reference)
        _check_taken_over(bench, volume, bench.engine.volume(name))


def _killed(bench: Bench, blow: Blow, act: Callable[[], object]) -> None:
    """Kill an act, start anew, and end what it has left under way."""
    with bench.watch.struck(blow), suppress(Killed):
        act()
    bench.restart()
    for resumed in bench.engine.resume():
        if resumed.error is not None:
            raise resumed.error


def _check_whole(bench: Bench, volume: Volume, size_bytes: int) -> None:
    now = bench.now(volume)
    expect(now.status is VolumeStatus.AVAILABLE, "I6", "it is not settled", now=now)
    bench.check_agreed(volume, size_bytes)
    bench.check_data(volume)


def _check_taken_over(bench: Bench, given_up: Volume, managed: Volume) -> None:
    bench.stamps[managed.id] = bench.stamps.pop(given_up.id)
    _check_whole(bench, managed, given_up.size_bytes)
    bench.engine.delete_volume(managed.id)


def _manage(bench: Bench, name: str, reference: str) -> Volume:
    return bench.engine.manage_volume(name, reference, options=bench.subject.volume_options)


def _extended_since(bench: Bench) -> Kept:
    """Give a snapshot whose volume was extended and written to afterwards."""
    volume = bench.create()
    bench.stamp(volume)
    kept = take(bench, volume)
    bench.extend(volume, volume.size_bytes + bench.step)
    bench.stamp(volume)
    return kept


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
