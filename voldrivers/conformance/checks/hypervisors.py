"""DEF: what a hypervisor must not do, what is kept from it, and what it answers."""

from dataclasses import replace
from datetime import timedelta
from functools import partial

from voldrivers.conformance.aids.blows import bring_to
from voldrivers.conformance.aids.pending import answering
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import Broken, expect
from voldrivers.errors import (
    BackendError,
    CommandFailed,
    InvalidState,
    NotFound,
    NotSupported,
    VolDriverError,
)
from voldrivers.model import VolumeStatus, utc_now

deferred = partial(check, level=Level.EXTENDED, capability="in_use_extend=by-hypervisor")


@deferred(
    "DEF-011",
    "a request whose target is missing, malformed or not larger than the volume makes nothing smaller",
    hint="block_resize cuts a live disk without a word: compare with node and file right before",
)
def wrong_target(bench: Bench) -> None:
    """Extend; then send the host requests with such targets; compare every layer and byte each time."""
    volume = bench.in_use()
    bench.stamp(volume)
    bench.extend(volume, volume.size_bytes + bench.step)
    now, last = bench.now(volume), bench.engine.last_extend(volume)
    attachment, host = now.attachments[0], bench.subject.places[0].host
    if last is None:
        raise Broken("I14", "an extend left no record")
    soon = utc_now() + timedelta(hours=1)
    for number, wrong in enumerate((volume.size_bytes, bench.granule, 0, -bench.granule), 1):
        request = replace(last, id=last.id + number, to_bytes=wrong, expires_at=soon)
        with bench.unchanged(f"the target was {wrong}"):
            try:
                host.assist_extend(now, attachment, request)
            except VolDriverError:
                continue
    bench.check_agreed(volume, now.size_bytes)
    bench.check_data(volume)


@deferred(
    "DEF-015",
    "a file that a hypervisor has open is never grown past it, though the records know of nobody",
    hint="take the lock that QEMU respects, or look for it; never force a resize",
)
def locked(bench: Bench) -> None:
    """Have the driver extend a volume in use as if it were detached, compare; detach, extend, compare."""
    volume = bench.in_use()
    bench.stamp(volume)
    target_bytes = bench.rule.round_up(volume.size_bytes + bench.step)
    detached = replace(bench.now(volume), attachments=(), status=VolumeStatus.AVAILABLE)
    kinds = (InvalidState, BackendError, CommandFailed)
    bench.refused(lambda: bench.driver.extend_volume(detached, target_bytes), *kinds, invariant="I6")
    bench.check_agreed(volume, volume.size_bytes)
    bench.detach(volume, volume.attachments[0])
    bench.extend(volume, target_bytes)
    bench.check_agreed(volume, target_bytes)
    bench.check_data(volume)


@deferred(
    "DEF-016",
    "what a hypervisor answers reaches the caller as what it is: not there, not now, never, or broken",
    hint="who asked does something else after each of them",
)
def answers(bench: Bench) -> None:
    """Have the hypervisor answer with each kind of error, look at what comes out, compare with before."""
    volume = bench.in_use()
    before, larger_bytes = bench.sizes(volume), volume.size_bytes + bench.step
    for error in (
        NotFound("instance", "of the suite"),
        InvalidState("instance", "migrating, says the suite", "running"),
        NotSupported("hypervisor", "the suite says that it cannot"),
        BackendError("hypervisor", "the suite had it fail"),
    ):
        with answering(bench, error):
            seen = _error_of(bench, partial(bench.extend, volume, larger_bytes))
        expect(
            type(seen) is type(error), "I11", f"{type(error).__name__} became {type(seen).__name__}: {seen}"
        )
        read, status = bench.sizes(volume), bench.now(volume).status
        expect(read == before, "I6", "nothing grew, and yet a size has changed", **read)
        expect(status is VolumeStatus.IN_USE, "I6", "it is not in use as before", status=status)
    bring_to(bench, volume, bench.rule.round_up(larger_bytes))


def _error_of(bench: Bench, act: partial[None]) -> VolDriverError:
    try:
        act()
    except VolDriverError as error:
        return error
    raise Broken(
        "I1", "the hypervisor refused, and the extend was called a success", now=bench.engine.volumes()
    )
