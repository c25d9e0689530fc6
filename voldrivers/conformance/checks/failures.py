"""ROL: an extend that fails leaves everything as it was, or a volume that a retry brings to its size."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from unittest.mock import patch

from voldrivers.conformance.aids.blows import (
    Blow,
    bring_to,
    check_grown,
    check_halfway,
    fails,
    is_lost,
    strike_all,
)
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import Broken, NotRun, expect
from voldrivers.errors import BackendError, InvalidSize, NoSpace, OutcomeUnknown, VolDriverError
from voldrivers.model import Volume, VolumeStatus


@check("ROL-001", "an extend that fails before anything has grown leaves size, room and status as they were")
def nothing_grew(bench: Bench) -> None:
    """Have the driver fail when it is asked to grow a volume, compare with before, then extend."""
    volume = bench.create()
    before, free = bench.sizes(volume), bench.free_bytes()
    _strike(bench, volume, before=True)
    now, read = bench.now(volume), bench.sizes(volume)
    expect(read == before, "I6", "nothing grew, and yet a size has changed", **read)
    expect(now.status is VolumeStatus.AVAILABLE, "I6", "it is not as before", status=now.status)
    bench.check_room(free)
    bring_to(bench, volume, volume.size_bytes + bench.step)


@check(
    "ROL-002",
    "an extend that there is no room for is refused with nothing changed, and goes well when there is room",
    smoke=True,
    hint="check_extend refuses it, before anything is touched",
)
def no_room(bench: Bench) -> None:
    """Fill the pool, ask for more than is left, make room, ask again."""
    volume = bench.create()
    free = bench.free_bytes()
    if free > bench.subject.max_bytes:
        raise NotRun("the pool is larger than what the checks may take (max_bytes), so it cannot be filled")
    filler = bench.create(free // 16 * 15)
    left = bench.free_bytes()
    if left > free - filler.size_bytes:
        raise NotRun("volumes take no room before they are written to, so the pool cannot be filled")
    target_bytes = volume.size_bytes + bench.rule.round_up(left + bench.granule)
    bench.refused(lambda: bench.extend(volume, target_bytes), NoSpace, invariant="I6")
    bench.check_agreed(volume, volume.size_bytes)
    bench.engine.delete_volume(filler.id)
    bring_to(bench, volume, target_bytes)


@check("ROL-003", "an extend that fails after the backend has grown says so, and a retry ends it")
def something_grew(bench: Bench) -> None:
    """Have the driver fail after it grew a volume, look at its status, retry, compare each layer and byte."""
    volume = bench.create()
    bench.stamp(volume)
    target_bytes = volume.size_bytes + bench.step
    _strike(bench, volume, before=False)
    now = bench.now(volume)
    expect(now.status is VolumeStatus.ERROR_EXTENDING, "I6", "it grew and says nothing", status=now.status)
    expect(now.size_bytes == volume.size_bytes, "I1", "a size was published that is not complete")
    check_halfway(bench, volume, volume.size_bytes, target_bytes)
    bring_to(bench, volume, target_bytes)
    check_grown(bench, volume, volume.size_bytes)


@check(
    "ROL-004",
    "whichever call of the driver or program of it fails or is not heard of, the extend can be ended",
    level=Level.FAULT,
    hint="every call looks first: what an earlier one has done is not done again, what it has not done is",
)
def each_step_fails(bench: Bench) -> None:
    """Extend and create again and again, each time with the next boundary struck; go on; compare."""
    strike_all(bench, (fails, is_lost), partial(_fail_to_create, bench))
    strike_all(bench, (fails, is_lost), partial(_fail_and_go_on, bench, bench.create))
    if bench.declared.declares("in_use_extend"):
        strike_all(bench, (fails, is_lost), partial(_fail_and_go_on, bench, bench.in_use))


@check(
    "ROL-005",
    "a host that does not read the new size is reported, and a retry brings it up",
    level=Level.FAULT,
    capability="in_use_extend=by-backend",
    hint="extend_volume is called again by the retry: a volume that is large enough already is no error",
)
def host_fails(bench: Bench) -> None:
    """Have the host's rescan fail after the backend grew, look at the status, retry, compare every layer."""
    volume = bench.in_use()
    target_bytes, host = volume.size_bytes + bench.step, bench.subject.places[0].host
    failing = BackendError("rescan", "the suite had it fail")
    with patch.object(host, "rescan", side_effect=failing) as rescan, suppress(BackendError):
        bench.extend(volume, target_bytes)
        expect(not rescan.called, "I1", "a host failed, and the extend was called a success")
        raise NotRun("the host sees the new size without a rescan")
    now = bench.now(volume)
    expect(now.status is VolumeStatus.ERROR_EXTENDING, "I1", "the host is behind, and it says nothing")
    expect(now.size_bytes == volume.size_bytes, "I1", "a size was published that the host does not show")
    bring_to(bench, volume, target_bytes)


@check("ROL-007", "after a failed extend that was given up the next one goes on from the true size")
def true_size(bench: Bench) -> None:
    """Have an extend fail after the backend grew, give it up, stamp, ask for less, then for more; compare."""
    volume = bench.create()
    grown_bytes = volume.size_bytes + 2 * bench.step
    _strike(bench, volume, before=False, size_bytes=grown_bytes)
    bench.engine.reset_status(volume.id, VolumeStatus.AVAILABLE)
    bench.stamp(volume)
    bench.extend(volume, volume.size_bytes + bench.step)
    bench.check_agreed(volume, grown_bytes)
    _strike(bench, volume, before=False, size_bytes=grown_bytes + bench.step)
    bench.engine.reset_status(volume.id, VolumeStatus.AVAILABLE)
    bench.extend(volume, grown_bytes + 2 * bench.step)
    bench.check_agreed(volume, grown_bytes + 2 * bench.step)
    bench.check_data(volume)


@check(
    "ROL-008",
    "an error tells what can be done next: another size, room, another backend, a look, or nothing",
    level=Level.FAULT,
    hint="choose the class by the table of voldrivers.errors; a BackendError is the last resort",
)
def told_apart(bench: Bench) -> None:
    """Ask for what can never be, for what there is no room for; have the driver fail, and not be heard."""
    volume, rule = bench.create(), bench.rule
    bench.refused(lambda: bench.extend(volume, rule.maximum_bytes + 1), InvalidSize)
    over_bytes = volume.size_bytes + bench.driver.pool().free_bytes + bench.granule
    if over_bytes <= rule.maximum_bytes // rule.granularity_bytes * rule.granularity_bytes:
        wanted = rule.round_up(over_bytes)
        bench.refused(lambda: bench.driver.check_extend(volume, wanted), NoSpace)
    for harm, kind in ((fails, BackendError), (is_lost, OutcomeUnknown)):
        blow = Blow(bench, harm, 0, lambda name, at: (name, at) == ("extend_volume", True), volume)
        with bench.watch.struck(blow):
            _expect_error(bench, volume, volume.size_bytes + bench.step, kind)
        bench.engine.resume()
    bring_to(bench, volume, rule.round_up(volume.size_bytes + bench.step))


@check(
    "ROL-009",
    "after a large extend that failed a smaller one goes well",
    hint="a target counts for its own extend only",
)
def smaller_then(bench: Bench) -> None:
    """Have a large extend fail before anything grew, and one be refused for its size; ask for a small one."""
    volume = bench.create()
    _strike(bench, volume, before=True, size_bytes=volume.size_bytes + 4 * bench.step)
    bench.refused(lambda: bench.extend(volume, bench.rule.maximum_bytes + 1), InvalidSize)
    target_bytes = bench.rule.round_up(volume.size_bytes + bench.step)
    bench.extend(volume, target_bytes)
    bench.check_agreed(volume, target_bytes)


def _strike(bench: Bench, volume: Volume, *, before: bool, size_bytes: int = 0) -> None:
    """Have the driver fail before or after it has grown a volume."""
    here = ("extend_volume", before)
    blow = Blow(bench, fails, 0, lambda name, at: (name, at) == here, volume)
    with bench.watch.struck(blow):
        _expect_error(bench, volume, size_bytes or volume.size_bytes + bench.step)


def _expect_error(
    bench: Bench, volume: Volume, size_bytes: int, kind: type[VolDriverError] = BackendError
) -> None:
    try:
        bench.extend(volume, size_bytes)
    except kind:
        return
    raise Broken("I1", "a step failed, and the extend was called a success")


def _fail_and_go_on(bench: Bench, make: Callable[[], Volume], blow: Blow) -> None:
    volume = make()
    bench.stamp(volume)
    blow.volume, target_bytes = volume, volume.size_bytes + bench.step
    failed = False
    with bench.watch.struck(blow):
        try:
            bench.extend(volume, target_bytes)
        except VolDriverError:
            failed = True
    blow.look()
    expect(not failed or blow.landed, "I9", "it failed although nothing was struck")
    check_halfway(bench, volume, volume.size_bytes, target_bytes)
    if not failed:
        bench.check_agreed(volume, target_bytes)
    bring_to(bench, volume, target_bytes)
    check_grown(bench, volume, volume.size_bytes)
    _remove(bench, volume)


def _fail_to_create(bench: Bench, blow: Blow) -> None:
    before, name = bench.everything(), bench.name()
    with bench.watch.struck(blow):
        try:
            bench.engine.create_volume(name, bench.small, options=bench.subject.volume_options)
        except VolDriverError:
            expect(blow.landed, "I9", "it failed although nothing was struck")
    bench.engine.resume()
    for volume in bench.engine.volumes():
        if volume.name == name:
            bench.check_agreed(volume, bench.small)
            bench.engine.delete_volume(volume.id)
    after = bench.everything()
    expect(
        after == before, "I10", "a volume that was not made, or removed again, left something", after=after
    )


def _remove(bench: Bench, volume: Volume) -> None:
    for attachment in bench.now(volume).attachments:
        bench.detach(volume, attachment)
    bench.engine.delete_volume(volume.id)
