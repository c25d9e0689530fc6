"""DEF: what only the hypervisor may grow is left to it, looked at afterwards, and never believed."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from unittest.mock import patch

from voldrivers.conformance.aids.blows import bring_to, check_grown, check_halfway
from voldrivers.conformance.aids.pending import answering, asked, leave_pending, say
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import Broken, expect
from voldrivers.errors import (
    BackendError,
    InvalidInput,
    InvalidState,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.model import Extend, Volume, VolumeStatus, utc_now

deferred = partial(check, level=Level.EXTENDED, capability="in_use_extend=by-hypervisor")


@deferred(
    "DEF-001",
    "when the hypervisor is asked nothing has grown, no room is taken, and the target is recorded",
    hint="a driver that answers DEFERRED has done nothing",
)
def nothing_done_yet(bench: Bench) -> None:
    """Extend; when the hypervisor is asked, compare size, room and record with before."""
    volume = bench.in_use()
    target_bytes, free, looks = bench.rule.round_up(volume.size_bytes + bench.step), bench.free_bytes(), []

    def look() -> None:
        now, read = bench.now(volume), bench.sizes(volume)
        looks.append(now)
        expect(set(read.values()) == {volume.size_bytes}, "I9", "it was deferred, and yet it grew", **read)
        bench.check_room(free)
        expect(now.status is VolumeStatus.EXTENDING, "I1", "it is not extending", status=now.status)
        recorded = now.extend_new_size_bytes
        expect(recorded == target_bytes, "I1", "extend_new_size is not the target", recorded=recorded)

    with asked(bench, before=look):
        bench.extend(volume, target_bytes)
    expect(looks, "I9", "no hypervisor was asked, though one has the volume")
    bench.check_agreed(volume, target_bytes)


@deferred(
    "DEF-002",
    "when the hypervisor has grown it the extend ends at the target, and keeps what its guest wrote",
    smoke=True,
    hint="the call after the hypervisor has grown it answers EXTENDED, and never writes to what has grown",
)
def completed(bench: Bench) -> None:
    """Stamp, extend, have the guest write to its new end at once, compare every layer and byte."""
    volume = bench.in_use()
    bench.stamp(volume)
    target_bytes = bench.rule.round_up(volume.size_bytes + bench.step)
    with asked(bench, after=lambda: bench.stamp(volume)):
        bench.extend(volume, target_bytes)
    bench.check_agreed(volume, target_bytes)
    check_grown(bench, volume, volume.size_bytes)
    _check_nothing_pending(bench, volume)


@deferred(
    "DEF-003",
    "when the hypervisor has failed and nothing grew, size, room and status are what they were",
    smoke=True,
)
def failed(bench: Bench) -> None:
    """Have the hypervisor fail, compare with before, then extend with one that works."""
    volume = bench.in_use()
    before, free = bench.sizes(volume), bench.free_bytes()
    target_bytes = volume.size_bytes + bench.step
    with answering(bench, BackendError("hypervisor", "the suite had it fail")):
        _raises(bench, volume, target_bytes, BackendError)
    read = bench.sizes(volume)
    expect(read == before, "I6", "nothing grew, and yet a size has changed", **read)
    bench.check_room(free)
    _check_nothing_pending(bench, volume)
    bring_to(bench, volume, bench.rule.round_up(target_bytes))


@deferred("DEF-004", "a completion that comes again, or says the opposite later, changes nothing", smoke=True)
def completed_twice(bench: Bench) -> None:
    """Extend, tell of its completion twice and of its failure, compare."""
    volume = bench.in_use()
    bench.extend(volume, volume.size_bytes + bench.step)
    number = _last(bench, volume).id
    with bench.unchanged("a completion came too late"):
        for error in (False, False, True):
            _hint(bench, volume, number, error=error)
        bench.engine.resume()
    bench.check_agreed(volume, bench.rule.round_up(volume.size_bytes + bench.step))


@deferred("DEF-005", "a completion of an extend that never was changes nothing")
def completed_without(bench: Bench) -> None:
    """Tell of the completion of an extend that was not asked for, compare."""
    volume = bench.in_use()
    with bench.unchanged("there was nothing to complete"):
        for error in (False, True):
            _hint(bench, volume, 1, error=error)
        bench.engine.resume()
    bench.check_agreed(volume, volume.size_bytes)


@deferred("DEF-006", "extends of several volumes that wait at once are told apart, whichever ends first")
def completed_in_reverse(bench: Bench) -> None:
    """Have two extends pending, complete the wrong one, then end them in reverse order."""
    first, second = bench.in_use(), bench.in_use()
    for volume, steps in ((first, 1), (second, 2)):
        leave_pending(bench, volume, volume.size_bytes + steps * bench.step)
    with bench.unchanged("the completion was of another volume's extend"):
        _hint(bench, first, _last(bench, second).id)
        _hint(bench, second, _last(bench, first).id)
    bring_to(bench, second, bench.rule.round_up(second.size_bytes + 2 * bench.step))
    expect(bench.now(first).status is VolumeStatus.EXTENDING, "I5", "the other one is no longer extending")
    expect(set(bench.sizes(first).values()) == {first.size_bytes}, "I5", "the other one has changed")
    bring_to(bench, first, bench.rule.round_up(first.size_bytes + bench.step))


@deferred("DEF-007", "while an extend is pending another one is refused, and the first one ends as asked")
def extended_again(bench: Bench) -> None:
    """Have an extend pending, ask for a larger one, end the first."""
    volume = bench.in_use()
    leave_pending(bench, volume, volume.size_bytes + bench.step)
    larger_bytes = volume.size_bytes + 2 * bench.step
    bench.refused(lambda: bench.extend(volume, larger_bytes), InvalidState, invariant="I6")
    bring_to(bench, volume, bench.rule.round_up(volume.size_bytes + bench.step))


@deferred("DEF-008", "while an extend is pending the volume cannot be detached, deleted or copied")
def left_alone(bench: Bench) -> None:
    """Have an extend pending, try everything else, end the extend."""
    volume = bench.in_use()
    leave_pending(bench, volume, volume.size_bytes + bench.step)
    engine, kind = bench.engine, InvalidState
    bench.refused(lambda: bench.detach(volume, volume.attachments[0]), kind, invariant="I6")
    bench.refused(lambda: engine.delete_volume(volume.id), kind, invariant="I6")
    bench.refused(lambda: bench.attach(volume, instance=False), kind, invariant="I6")
    if bench.declared.snapshots:
        bench.refused(lambda: engine.create_snapshot(volume.id, bench.name()), kind, invariant="I6")
    if bench.declared.clones:
        bench.refused(lambda: engine.clone_volume(bench.name(), volume.id), kind, invariant="I6")
    bring_to(bench, volume, bench.rule.round_up(volume.size_bytes + bench.step))


@deferred("DEF-009", "an extend that is pending when everything is started anew is still known, and can end")
def survives(bench: Bench) -> None:
    """Have an extend pending, start everything anew, look at its record, end it."""
    volume = bench.in_use()
    target_bytes = bench.rule.round_up(volume.size_bytes + bench.step)
    leave_pending(bench, volume, target_bytes)
    recorded = bench.now(volume).extend_new_size_bytes
    expect(recorded == target_bytes, "I14", "the target is forgotten", recorded=recorded)
    ended = bench.engine.resume(volume.id)
    expect(ended, "I14", "nothing was found under way")
    bring_to(bench, volume, target_bytes)
    _check_nothing_pending(bench, volume)


@deferred(
    "DEF-010",
    "an extend without an answer is rolled back only when its host can no longer carry it out",
    hint="a host looks at the time of a request right before the act, not after",
)
def unanswered(bench: Bench) -> None:
    """Lose the answer; cancel without and with the host's word; then send the host the old request."""
    volume = bench.in_use()
    host, lost = bench.subject.places[0].host, OutcomeUnknown("a request", "the suite had its answer lost")
    with answering(bench, lost):
        _raises(bench, volume, volume.size_bytes + bench.step, OutcomeUnknown)
    bench.engine.cancel(volume.id)
    with patch.object(host, "cancel", side_effect=lost):
        bench.engine.resume(volume.id)
        stays = bench.now(volume).status is VolumeStatus.EXTENDING
        expect(stays, "I14", "it was rolled back though its host might still carry it out")
    bench.engine.resume(volume.id)
    bench.check_agreed(volume, volume.size_bytes)
    _check_nothing_pending(bench, volume)
    old = replace(_last(bench, volume), expires_at=utc_now() - timedelta(hours=1))
    attachment = bench.now(volume).attachments[0]
    bench.refused(lambda: host.assist_extend(volume, attachment, old), InvalidState, invariant="I14")
    bench.check_agreed(volume, volume.size_bytes)


@deferred("DEF-012", "a hypervisor that says that it is done and has done nothing is not believed")
def not_believed(bench: Bench) -> None:
    """Have the hypervisor only say so, compare with before, then extend with one that works."""
    volume = bench.in_use()
    before, target_bytes = bench.sizes(volume), volume.size_bytes + bench.step
    with answering(bench, None):
        _raises(bench, volume, target_bytes, VolDriverError)
    read = bench.sizes(volume)
    expect(read == before, "I1", "a size has changed though nobody grew anything", **read)
    bring_to(bench, volume, bench.rule.round_up(target_bytes))


@deferred("DEF-013", "a hypervisor that grew it and reports an error, or nothing at all, is looked at")
def looked_at(bench: Bench) -> None:
    """Have the answer be wrong, and lost, after the volume grew; go on each time."""
    volume = bench.in_use()
    for number, kind in ((1, BackendError), (2, OutcomeUnknown)):
        old_bytes, new_bytes = (volume.size_bytes + n * bench.step for n in (number - 1, number))
        with asked(bench, after=partial(say, kind)):
            _raises(bench, volume, new_bytes, kind)
        check_halfway(bench, volume, old_bytes, new_bytes)
        bench.stamp(volume)
        bring_to(bench, volume, new_bytes)
        bench.check_data(volume)


@deferred("DEF-014", "a host whose agent is too old is refused before anything is recorded or touched")
def too_old(bench: Bench) -> None:
    """Have the host be of an older version, ask for an extend, compare."""
    volume = bench.in_use()
    with patch.object(bench.subject.places[0].host, "version", 0):
        larger_bytes = volume.size_bytes + bench.step
        bench.refused(lambda: bench.extend(volume, larger_bytes), NotSupported, invariant="I9")
    bench.check_agreed(volume, volume.size_bytes)


def _raises(bench: Bench, volume: Volume, size_bytes: int, kind: type[VolDriverError]) -> None:
    try:
        bench.extend(volume, size_bytes)
    except kind:
        return
    raise Broken("I1", "an extend that has not been carried out was called a success")


def _hint(bench: Bench, volume: Volume, extend_id: int, *, error: bool = False) -> None:
    with suppress(InvalidState, InvalidInput):
        bench.engine.completion(volume.id, extend_id, error=error)


def _last(bench: Bench, volume: Volume) -> Extend:
    extend = bench.engine.last_extend(volume)
    if extend is None:
        raise Broken("I14", "an extend left no record")
    return extend


def _check_nothing_pending(bench: Bench, volume: Volume) -> None:
    now = bench.now(volume)
    expect(now.status is VolumeStatus.IN_USE, "I6", "it is not in use as before", status=now.status)
    expect(now.extend_new_size_bytes is None, "I6", "extend_new_size is still there")
