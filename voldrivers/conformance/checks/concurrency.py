"""CON: several work at once, each with a driver and records of its own, as processes do."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from operator import methodcaller
from unittest.mock import patch

from voldrivers.capabilities import InUseExtend
from voldrivers.conformance.aids.beside import (
    Act,
    at_once,
    beside,
    check_settled,
    expect_no_error,
    in_the_middle,
)
from voldrivers.conformance.aids.blows import Blow, bring_to, fails, is_killed
from voldrivers.conformance.aids.copying import check_kept, keeper, kept_as
from voldrivers.conformance.bench import Bench, Everything
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import Broken, NotRun, expect
from voldrivers.conformance.watch import Killed
from voldrivers.errors import BackendError, InvalidState, VolDriverError
from voldrivers.extend.engine import Engine
from voldrivers.model import Volume

#: So many create volumes at once, extend one volume, and do something with a volume each.
_CREATING, _EXTENDING, _EACH = 4, 10, 3


@check("CON-001", "volumes that are created at once are all there, each of its own size, and nothing else is")
def created_at_once(bench: Bench) -> None:
    """Create volumes of different sizes in threads, compare every layer and the backend with before."""
    before = bench.everything()
    sizes = {bench.name(): bench.small + number * bench.granule for number in range(_CREATING)}
    acts = [_create(bench, name, size_bytes) for name, size_bytes in sizes.items()]
    expect_no_error(at_once(bench, acts), 0)
    for name, size_bytes in sizes.items():
        bench.check_agreed(bench.engine.volume(name), size_bytes)
    _check_new(bench, before, _CREATING)


@check("CON-002", "of those that create a volume of one name at once exactly one succeeds")
def one_name(bench: Bench) -> None:
    """Create a volume of the same name in threads; look for more than one on the backend."""
    before, name = bench.everything(), bench.name()
    act = _create(bench, name, bench.small)
    expect_no_error(at_once(bench, [act] * _CREATING), _CREATING - 1)
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
        check_settled(bench, volume, errors)
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
    errors = at_once(bench, [act] * _EXTENDING)
    expect(None in errors, "I12", "none of them succeeded", errors=errors)
    expect_no_error(errors, _EXTENDING - 1)
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
        check_settled(bench, volume, _in_the_middle(bench, volume, act(volume), before=False))
    if bench.declared.declares("in_use_extend"):
        volume = bench.in_use()
        detach = methodcaller("detach", name=volume.id)
        with bench.place(volume.attachments[0]).letting_go():
            errors = _in_the_middle(bench, volume, detach, before=False)
        check_settled(bench, volume, errors)


@check(
    "CON-006",
    "two driver objects that work on one pool by turns see all that the other one has done",
    level=Level.EXTENDED,
    hint="keep no table of volumes in the object, and never write a whole table back",
)
def by_turns(bench: Bench) -> None:
    """Two create, extend what the other made, look, and delete it; then both at once, each its own."""
    with bench.another() as other:
        one, turns = bench.engine, (bench.engine, other)
        made = [_create(bench, bench.name(), bench.small + n * bench.granule)(e) for n, e in enumerate(turns)]
        ids = [volume.id for volume in sorted(one.volumes(), key=lambda each: each.size_bytes)]
        expect(len(ids) == len(made), "I5", "not both are there", ids=ids)
        for engine, volume_id in zip(reversed(turns), ids, strict=True):
            engine.extend(volume_id, engine.volume(volume_id).size_bytes + bench.step)
        for engine in turns:
            _check_seen_by(engine, one.volumes())
        other.delete_volume(ids[0])
        _check_seen_by(one, other.volumes())
        one.delete_volume(ids[1])
        _check_seen_by(other, ())
    names = [bench.name() for _ in range(_CREATING)]
    expect_no_error(at_once(bench, [partial(_live, bench, name) for name in names]), 0)
    _check_seen_by(bench.engine, ())


@check(
    "CON-007",
    "while an extend takes long other volumes are created, extended and deleted",
    level=Level.EXTENDED,
    hint="hold what belongs to one volume; hold the whole backend only for what is short",
)
def others_go_on(bench: Bench) -> None:
    """Have an extend wait for another volume's whole life, which must end within the time of an extend."""
    slow, over = bench.create(), list[bool]()
    with beside(bench, partial(_live, bench, bench.name())) as other:

        def wait(_number: int, name: str, before: bool) -> None:
            if (name, before) == ("extend_volume", True) and not other.is_told:
                other.begin()
                over.append(other.is_over)

        with bench.watch.struck(wait):
            bench.extend(slow, slow.size_bytes + bench.step)
        failed = other.error
    expect(failed is None, "I12", f"another volume was refused meanwhile: {failed}")
    expect(over == [True], "I12", "another volume waits for a slow extend")
    bench.check_agreed(slow, slow.size_bytes + bench.step)


@check(
    "EXI-010",
    "a detach while the hosts are being told of a new size is refused, or both hold",
    level=Level.EXTENDED,
    capability="in_use_extend",
)
def detached_meanwhile(bench: Bench) -> None:
    """Detach elsewhere when the host is told to read the new size, or its hypervisor to show it; compare."""
    volume, host = bench.in_use(), bench.subject.places[0].host
    by_backend = bench.declared.in_use_extend is InUseExtend.BY_BACKEND
    step = "rescan" if by_backend else "assist_extend"
    really, failed = getattr(host, step), None
    with beside(bench, methodcaller("detach", name=volume.id)) as other:

        def act(*asked: object) -> None:
            other.begin()
            really(*asked)

        with bench.place(volume.attachments[0]).letting_go(), patch.object(host, step, act):
            try:
                bench.extend(volume, volume.size_bytes + bench.step)
            except VolDriverError as error:
                failed = error
        if not other.is_told:
            raise NotRun("the host was told nothing: it sees a new size by itself")
        errors = (failed, other.error)
    check_settled(bench, volume, errors)


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


@check(
    "ATT-012",
    "of volumes attached to a host at once, and detached at once, each is there with its own bytes, and gone",
    level=Level.EXTENDED,
    hint="never read a list of who is let in and write the whole of it back: add and remove one entry",
)
def attached_at_once(bench: Bench) -> None:
    """Attach several volumes in threads, compare, stamp all, read all that is raw; detach them in threads."""
    host = bench.subject.places[0].host.name
    volumes = [bench.create() for _ in range(_EACH)]
    before = bench.everything()
    expect_no_error(at_once(bench, [methodcaller("attach", name=v.id, host=host) for v in volumes]), 0)
    for volume in volumes:
        bench.check_agreed(volume, volume.size_bytes)
    for act in (bench.stamp, bench.check_data):
        for volume in filter(_is_raw, map(bench.now, volumes)):
            act(volume)
    expect_no_error(at_once(bench, [methodcaller("detach", name=volume.id) for volume in volumes]), 0)
    after = bench.everything()
    expect(after == before, "I10", "attaches and detaches leave something", before=before, after=after)


@check(
    "SNP-011",
    "snapshots that are taken at once of different volumes are all there, each as its own volume was",
    level=Level.EXTENDED,
    capability="snapshots",
    hint="keep no table of snapshots, and never write a whole table back",
)
def taken_at_once(bench: Bench) -> None:
    """Stamp volumes of different sizes, take a snapshot of each in threads, read all snapshots."""
    volumes = [bench.create(bench.small + number * bench.granule) for number in range(_EACH)]
    for volume in volumes:
        bench.stamp(volume)
    acts = [methodcaller("create_snapshot", volume_name=each.id, name=bench.name()) for each in volumes]
    expect_no_error(at_once(bench, acts), 0)
    snapshots = [snapshot for volume in volumes for snapshot in bench.now(volume).snapshots]
    expect(len(snapshots) == _EACH, "I5", "not each volume has its snapshot", snapshots=snapshots)
    listed = keeper(bench).list_snapshots()
    lacking = {each.id for each in snapshots}.difference(listed)
    expect(not lacking, "I5", "a snapshot is lost", lacking=lacking, listed=listed)
    for snapshot in snapshots:
        check_kept(bench, kept_as(bench, snapshot))


def _is_raw(volume: Volume) -> bool:
    """Tell whether the host that has a volume without an instance reads and writes it as it is."""
    infos = [attachment.connection_info for attachment in volume.attachments]
    return all(info is None or info.properties.get("format", "raw") == "raw" for info in infos)


def _create(bench: Bench, name: str, size_bytes: int) -> Act:
    options = bench.subject.volume_options
    return methodcaller("create_volume", name=name, size_bytes=size_bytes, options=options)


def _in_the_middle(
    bench: Bench, volume: Volume, act: Act, *, before: bool
) -> tuple[VolDriverError | None, VolDriverError | None]:
    """Extend by a step, do something elsewhere when the driver is asked to grow; give both errors."""
    size_bytes = volume.size_bytes + bench.step
    here = ("extend_volume", before)
    return in_the_middle(
        bench, lambda: bench.extend(volume, size_bytes), act, lambda name, at: (name, at) == here
    )


def _live(bench: Bench, name: str, engine: Engine) -> None:
    """Create a volume elsewhere, extend it, compare, delete it."""
    volume = _create(bench, name, bench.small)(engine)
    larger_bytes = bench.small + bench.step
    engine.extend(name, larger_bytes)
    seen = engine.site.driver(engine.volume(name)).volume_size(engine.volume(name))
    expect(seen == larger_bytes, "I5", f"{volume} is not as large as was asked for", seen=seen)
    engine.delete_volume(name)


def _check_seen_by(engine: Engine, volumes: Sequence[Volume]) -> None:
    """Have a driver object list just these, each with its size."""
    (driver,) = engine.site.drivers.values()
    listed, wanted = set(driver.list_volumes()), {volume.id for volume in volumes}
    expect(listed >= wanted, "I5", "it does not know what another one has made", listed=listed)
    known = {volume.id for volume in engine.volumes()}
    expect(known == wanted, "I5", "what another one has deleted is still known", known=known)
    for volume in volumes:
        seen = driver.volume_size(volume)
        expect(seen == volume.size_bytes, "I1", "it does not see what another one has done", seen=seen)


def _check_new(bench: Bench, before: Everything, count: int) -> None:
    now = bench.everything()
    new, ours = now.objects.keys() - before.objects.keys(), now.listed - before.listed
    expect(len(new) == count or bench.subject.oracle is None, "I5", "not as many objects are new", new=new)
    expect(len(ours) == count, "I5", "not as many volumes are new", new=ours)
