"""CRA, DAT and ROL: backends and instances that go away in the middle and come back, and torn records."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from unittest.mock import patch

from voldrivers.conformance.aids.blows import Blow, bring_to, check_grown, check_halfway, is_killed
from voldrivers.conformance.aids.pending import asked
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import Broken, NotApplicable, NotRun, expect
from voldrivers.conformance.watch import Killed
from voldrivers.errors import NotFound, VolDriverError
from voldrivers.model import Volume
from voldrivers.process import holds_within

#: An NFS client tries its server again after longer and longer pauses (net/sunrpc/xprtsock.c).
_BACK_S = 60.0


@check(
    "CRA-004",
    "a worker that is killed while a host reads the new size leaves a host that the next one brings up",
    level=Level.FAULT,
    capability="in_use_extend=by-backend",
    hint="have every host look again; that it was told to is no proof that it did",
)
def killed_in_rescan(bench: Bench) -> None:
    """Kill before and after the host reads the size, start anew, resume, compare every layer and byte."""
    host = bench.subject.places[0].host
    for tells in (False, True):
        volume, really = bench.in_use(), host.rescan
        bench.stamp(volume)
        target_bytes = bench.rule.round_up(volume.size_bytes + bench.step)

        def rescan(*told: object, tells: bool = tells, really: Callable[..., None] = really) -> None:
            if tells:
                really(*told)
            raise Killed

        with patch.object(host, "rescan", rescan), suppress(Killed):
            bench.extend(volume, target_bytes)
            raise NotRun("the host sees the new size without a rescan")
        bench.restart()
        check_halfway(bench, volume, volume.size_bytes, target_bytes)
        _check_recovers(bench, volume, target_bytes)


@check(
    "CRA-005",
    "when the hypervisor dies while it grows a volume, that has the old size or the new one, and all bytes",
    level=Level.FAULT,
    capability="in_use_extend=by-hypervisor",
    hint="look at the file; an image that was not closed must open clean",
)
def hypervisor_dies(bench: Bench) -> None:
    """Stop the instance before and after its hypervisor acts, look, start it, end the extend, compare."""
    place = bench.subject.places[0]
    with place.stopped():
        pass  # Raises NotRun where that cannot be.
    for has_acted in (False, True):
        volume = bench.in_use()
        bench.stamp(volume)
        target_bytes = bench.rule.round_up(volume.size_bytes + bench.step)
        with ExitStack() as gone:
            when = "after" if has_acted else "before"
            died = asked(bench, **{when: lambda gone=gone: gone.enter_context(place.stopped())})
            with died, suppress(VolDriverError):
                bench.extend(volume, target_bytes)
            seen = bench.driver.volume_size(bench.now(volume))
            expect(
                seen in (volume.size_bytes, target_bytes), "I6", "neither the old size nor the new", seen=seen
            )
        _check_recovers(bench, volume, target_bytes)


@check(
    "CRA-006",
    "a backend that goes away in the middle of an extend and comes back has the old size or the new one",
    level=Level.FAULT,
    hint="after an outage look at the size that is there; nothing that was asked before it counts",
)
def backend_goes_away(bench: Bench) -> None:
    """Have the backend go before and after it grows a volume, come back, end the extend, compare."""
    outage = _outage(bench)
    makes = [bench.create, *([bench.in_use] if bench.declared.declares("in_use_extend") else [])]
    for make in makes:
        for before in (True, False):
            volume = make()
            bench.stamp(volume)
            target_bytes = bench.rule.round_up(volume.size_bytes + bench.step)
            with ExitStack() as away:
                _extend_into(bench, volume, target_bytes, away, outage, before=before)
            check_halfway(bench, volume, volume.size_bytes, target_bytes)
            _check_recovers(bench, volume, target_bytes)


@check(
    "CRA-007",
    "what a driver has remembered of a volume, and is damaged, is found to be, and not acted on",
    level=Level.FAULT,
    hint="check provider_data whole before you use any of it, and raise BackendError",
)
def torn_record(bench: Bench) -> None:
    """Give the driver half of its provider_data, too much, and garbage; compare, and read all volumes."""
    volume, other = bench.create(), bench.create()
    for each in (volume, other):
        bench.stamp(each)
    whole = bench.now(volume)
    record = whole.provider_data
    if not record:
        raise NotApplicable("the driver remembers nothing of a volume")
    for damaged in (record[: len(record) // 2], record[:-1], record * 2, "\0", "{}", "null", other.id):
        torn = replace(whole, provider_data=damaged)
        with bench.unchanged("its record was damaged"), suppress(VolDriverError):
            seen = bench.driver.volume_size(torn)
            expect(seen == volume.size_bytes, "I1", f"it believes {damaged!r}", seen=seen)
        with bench.unchanged("its record was damaged"), suppress(VolDriverError):
            bench.driver.extend_volume(torn, volume.size_bytes)
    with suppress(VolDriverError):
        bench.driver.delete_volume(replace(whole, provider_data=record[: len(record) // 2]))
    bench.engine.delete_volume(volume.id)  # whether that was done or not
    bench.check_agreed(other, other.size_bytes)
    bench.check_data(other)


@check(
    "DAT-006",
    "what was written is there after the worker was killed and the backend went away and came back",
    level=Level.EXTENDED,
    hint="a write that was answered is on the medium: no cache of the target's may hold it",
)
def acknowledged(bench: Bench) -> None:
    """Stamp, kill an extend, have the backend go and come back, start anew, read; end the extend, read."""
    outage = _outage(bench)
    volume = bench.in_use() if bench.declared.declares("in_use_extend") else bench.create()
    bench.stamp(volume)
    target_bytes = bench.rule.round_up(volume.size_bytes + bench.step)
    blow = Blow(bench, is_killed, 0, lambda name, before: (name, before) == ("extend_volume", False), volume)
    with bench.watch.struck(blow), suppress(Killed):
        bench.extend(volume, target_bytes)
    with outage():
        pass  # what was not on the medium is gone now
    bench.restart()
    if bench.now(volume).attachments:
        bench.check_data(volume)
    _check_recovers(bench, volume, target_bytes)


@check(
    "ROL-006",
    "a backend that is out of reach is never taken for an empty one, and an answer that it gives is true",
    level=Level.FAULT,
    hint="NotFound means: it is proved to be gone; raise BackendError when nobody answers",
)
def out_of_reach(bench: Bench) -> None:
    """Have the backend be away, ask for everything; have it come back, compare, extend."""
    outage, volume = _outage(bench), bench.create()
    bench.stamp(volume)
    driver, target_bytes = bench.driver, bench.rule.round_up(volume.size_bytes + bench.step)
    asked_for: dict[str, Callable[[], object]] = {
        "list_volumes": driver.list_volumes,
        "pool": driver.pool,
        "volume_size": lambda: driver.volume_size(volume),
        "check_extend": lambda: driver.check_extend(volume, target_bytes),
        "extend_volume": lambda: driver.extend_volume(volume, target_bytes),
        "delete_volume": lambda: driver.delete_volume(volume),
        "an extend": lambda: bench.extend(volume, target_bytes),
    }
    with outage():
        for name, act in asked_for.items():
            _check_fails(name, act, truth=volume.size_bytes if name == "volume_size" else None)
    bench.engine.resume()
    bench.check_agreed(volume, volume.size_bytes)
    bring_to(bench, volume, target_bytes)
    bench.check_data(volume)


def _outage(bench: Bench) -> Callable[[], AbstractContextManager[None]]:
    if bench.subject.outage is None:
        raise NotRun("nobody can have the backend be out of reach here")
    return partial(_away, bench, bench.subject.outage)


@contextmanager
def _away(bench: Bench, outage: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Have the backend be away; wait until it answers again, but what it says then is for the check."""
    with outage():
        yield
    holds_within(lambda: _answers(bench), _BACK_S, bench.subject.sleep)


def _answers(bench: Bench) -> bool:
    try:
        for volume in bench.engine.volumes():
            bench.sizes(volume)
    except VolDriverError:
        return False
    return True


def _extend_into(
    bench: Bench,
    volume: Volume,
    size_bytes: int,
    away: ExitStack,
    outage: Callable[[], AbstractContextManager[None]],
    *,
    before: bool,
) -> None:
    """Extend; the backend is away from the moment when it is asked to grow, or has grown, the volume."""
    gone: list[str] = []

    def strike(_number: int, name: str, at: bool) -> None:
        if (name, at) == ("extend_volume", before) and not gone:
            gone.append(name)
            away.enter_context(outage())

    with bench.watch.struck(strike), suppress(VolDriverError):
        bench.extend(volume, size_bytes)
    expect(gone, "I9", "the driver was not asked to grow it")


def _check_fails(name: str, act: Callable[[], object], truth: int | None) -> None:
    """Have it be an error, or the truth: a kernel may know a size of which the backend does not tell."""
    try:
        answer = act()
    except NotFound as error:
        raise Broken("I6", f"{name}: what is out of reach is taken for gone: {error}") from error
    except VolDriverError:
        return
    is_true = truth is not None and answer == truth
    expect(is_true, "I6", f"{name}: the backend is out of reach, and there is an answer", answer=answer)


def _check_recovers(bench: Bench, volume: Volume, size_bytes: int) -> None:
    """End the extend, compare every layer and byte, remove the volume."""
    bring_to(bench, volume, size_bytes)
    check_grown(bench, volume, volume.size_bytes)
    for attachment in bench.now(volume).attachments:
        bench.detach(volume, attachment)
    bench.engine.delete_volume(volume.id)
