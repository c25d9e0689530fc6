"""CON: several work at once, each with a driver and records of its own, as processes do."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from operator import methodcaller
from threading import Barrier

from voldrivers.conformance.bench import Bench, Everything
from voldrivers.conformance.blows import Blow, bring_to, fails, is_killed
from voldrivers.conformance.catalogue import check
from voldrivers.conformance.verdicts import Broken, expect
from voldrivers.conformance.watch import Killed
from voldrivers.errors import BackendError, InvalidSize, InvalidState, NotFound, VolDriverError
from voldrivers.extend.engine import Engine
from voldrivers.model import Volume, VolumeStatus

Act = Callable[[Engine], object]

#: So many create volumes at once, and extend one volume.
_CREATING, _EXTENDING = 4, 10
_START_S = 60.0
#: What one of two that are at it at once may be answered.
_REFUSED = (InvalidState, InvalidSize, NotFound)


@check("CON-001", "volumes that are created at once are all there, each of its own size, and nothing else is")
def created_at_once(bench: Bench) -> None:
    """Create volumes of different sizes in threads, compare every layer and the backend with before."""
    before = bench.everything()
    sizes = {bench.name(): bench.small + number * bench.granule for number in range(_CREATING)}
    acts = [_create(bench, name, size_bytes) for name, size_bytes in sizes.items()]
    _expect_no_error(_at_once(bench, acts), 0)
    for name, size_bytes in sizes.items():
        bench.check_agreed(bench.engine.volume(name), size_bytes)
    _check_new(bench, before, _CREATING)


@check("CON-002", "of those that create a volume of one name at once exactly one succeeds")
def one_name(bench: Bench) -> None:
    """Create a volume of the same name in threads; look for more than one on the backend."""
    before, name = bench.everything(), bench.name()
    act = _create(bench, name, bench.small)
    _expect_no_error(_at_once(bench, [act] * _CREATING), _CREATING - 1)
    bench.check_agreed(bench.engine.volume(name), bench.small)
    _check_new(bench, before, 1)


@check(
    "CON-003", "of two extends of one volume at once one is refused, or they end as one after the other would"
)
def two_extends(bench: Bench) -> None:
    """In the middle of an extend ask for a larger one, elsewhere; compare every layer."""
    for before in (True, False):
        volume = bench.create()
        larger_bytes = volume.size_bytes + 2 * bench.step
        larger = methodcaller("extend", name=volume.id, size_bytes=larger_bytes)
        errors = _in_the_middle(bench, volume, larger, before=before)
        _check_settled(bench, volume, errors)
        sizes = (volume.size_bytes + bench.step, larger_bytes)
        ended = [size for size, error in zip(sizes, errors, strict=True) if error is None]
        expect(ended, "I12", "neither of them succeeded", errors=errors)
        bench.check_agreed(volume, max(ended))


@check("CON-004", "the same extend asked for by many at once takes effect once")
def same_extend(bench: Bench) -> None:
    """Ask for the same size in ten threads; compare every layer."""
    volume = bench.create()
    size_bytes = volume.size_bytes + bench.step
    act = methodcaller("extend", name=volume.id, size_bytes=size_bytes)
    errors = _at_once(bench, [act] * _EXTENDING)
    expect(None in errors, "I12", "none of them succeeded", errors=errors)
    _expect_no_error(errors, _EXTENDING - 1)
    bench.check_agreed(volume, size_bytes)


@check("CON-005", "beside an extend a detach, delete or snapshot is refused, or both hold")
def beside_an_extend(bench: Bench) -> None:
    """In the middle of an extend try each of them, elsewhere; each time compare every layer."""
    acts: list[Callable[[Volume], Act]] = [
        lambda volume: methodcaller("delete_volume", name=volume.id),
        lambda volume: methodcaller("attach", name=volume.id, host=bench.subject.places[0].host.name),
    ]
    if bench.declared.snapshots:
        acts.append(lambda v: methodcaller("create_snapshot", volume_name=v.id, name=bench.name()))
    for act in acts:
        volume = bench.create()
        _check_settled(bench, volume, _in_the_middle(bench, volume, act(volume), before=False))
    if bench.declared.declares("in_use_extend"):
        volume = bench.in_use()
        detach = methodcaller("detach", name=volume.id)
        with bench.place(volume.attachments[0]).letting_go():
            errors = _in_the_middle(bench, volume, detach, before=False)
        _check_settled(bench, volume, errors)


@check(
    "CON-009",
    "a volume whose work has ended with an error, or whose worker is killed, can be worked on at once",
)
def let_go(bench: Bench) -> None:
    """Have an extend fail, and one be killed; go on elsewhere each time."""
    for harm in (fails, is_killed):
        volume = bench.create()
        size_bytes = volume.size_bytes + bench.step
        before_growing = Blow(bench, harm, 0, lambda name, before: name == "extend_volume" and before, volume)
        with bench.watch.struck(before_growing), suppress(BackendError, Killed):
            bench.extend(volume, size_bytes)
        try:
            with bench.another() as elsewhere:
                elsewhere.resume(volume.id)
                elsewhere.extend(volume.id, size_bytes)
        except InvalidState as error:
            raise Broken("I12", f"it is still held: {error}") from error
        bring_to(bench, volume, size_bytes)


def _create(bench: Bench, name: str, size_bytes: int) -> Act:
    options = bench.subject.volume_options
    return methodcaller("create_volume", name=name, size_bytes=size_bytes, options=options)


def _at_once(bench: Bench, acts: Sequence[Act]) -> list[VolDriverError | None]:
    """Do things at once, each in a thread with an engine of its own; give the error of each."""
    barrier = Barrier(len(acts))

    def work(act: Act) -> None:
        with bench.another() as engine:
            barrier.wait(_START_S)
            act(engine)

    with ThreadPoolExecutor(len(acts)) as pool:
        return [_error(future) for future in [pool.submit(work, act) for act in acts]]


def _in_the_middle(
    bench: Bench, volume: Volume, act: Act, *, before: bool
) -> tuple[VolDriverError | None, VolDriverError | None]:
    """Extend by a step, do something elsewhere when the driver is asked to grow; give both errors."""
    begun: list[Future[None]] = []

    def work() -> None:
        with bench.another() as elsewhere:
            act(elsewhere)

    waiting = [work]

    def strike(_number: int, name: str, at: bool) -> None:
        if (name, at) == ("extend_volume", before) and waiting:
            begun.append(pool.submit(waiting.pop()))
            with suppress(TimeoutError):  # it may wait for its turn
                begun[0].exception(timeout=bench.subject.deadline_s)

    failed: VolDriverError | None = None
    with ThreadPoolExecutor(1) as pool, bench.watch.struck(strike):
        try:
            bench.extend(volume, volume.size_bytes + bench.step)
        except VolDriverError as error:
            failed = error
    expect(begun, "I9", "the driver was not asked to grow it")
    return failed, _error(begun[0])


def _error(future: Future[None]) -> VolDriverError | None:
    error = future.exception()
    if error is None or isinstance(error, VolDriverError):
        return error
    raise error


def _expect_no_error(errors: Sequence[VolDriverError | None], refused: int) -> None:
    """Have none failed but those that were refused, of which there may be so many."""
    failed = [error for error in errors if error is not None]
    expect(all(isinstance(error, _REFUSED) for error in failed), "I11", "one failed", errors=failed)
    expect(len(failed) <= refused, "I9", "too many were refused", errors=failed)


def _check_settled(bench: Bench, volume: Volume, errors: Sequence[VolDriverError | None]) -> None:
    """Have each of two succeeded or been refused, and the volume be whole, or gone."""
    _expect_no_error(errors, 1)
    if all(each.id != volume.id for each in bench.engine.volumes()):
        expect(volume.id not in bench.driver.list_volumes(), "I10", "it was deleted, and is still there")
        return
    now = bench.now(volume)
    expect(now.status in (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE), "I6", "it is not settled", now=now)
    bench.check_agreed(volume, now.size_bytes)


def _check_new(bench: Bench, before: Everything, count: int) -> None:
    now = bench.everything()
    new, ours = now.objects.keys() - before.objects.keys(), now.listed - before.listed
    expect(len(new) == count or bench.subject.oracle is None, "I5", "not as many objects are new", new=new)
    expect(len(ours) == count, "I5", "not as many volumes are new", new=ours)
