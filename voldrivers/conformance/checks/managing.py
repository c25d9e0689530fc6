"""LIF: a volume is given up and taken over with all its bytes; or a clean refusal."""

from functools import partial

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import expect
from voldrivers.errors import InvalidInput, InvalidState, NotFound, NotSupported
from voldrivers.model import Volume

_MANAGE = "manage"


@check(
    "LIF-009",
    "what is given up is none of ours and keeps every byte, and becomes a volume again",
    level=Level.EXTENDED,
    capability=_MANAGE,
)
def give_up_and_take_over(bench: Bench) -> None:
    """Stamp, unmanage, ask for something that is not there, manage, read."""
    volume = bench.create()
    bench.stamp(volume)
    reference = bench.engine.unmanage_volume(volume.id)
    expect(volume.id not in bench.driver.list_volumes(), "I9", "it is still listed")
    try:
        size_bytes = bench.driver.volume_size(volume)
    except NotFound:
        size_bytes = 0
    expect(not size_bytes, "I9", "what was given up still is a volume", size_bytes=size_bytes)
    bench.refused(lambda: bench.engine.manage_volume(bench.name(), f"{reference}-not"), NotFound)
    managed = _manage(bench, reference)
    bench.stamps[managed.id] = bench.stamps.pop(volume.id)
    bench.check_agreed(managed, volume.size_bytes)
    bench.check_data(managed)


@check(
    "LIF-010",
    "what is taken over has the size and bytes that it really has, is taken over once, and can be extended",
    level=Level.EXTENDED,
    capability=_MANAGE,
    hint="look at the object itself; refuse one that is a volume already, whatever name it is called by",
)
def take_over_what_has_grown(bench: Bench) -> None:
    """Extend, stamp, unmanage, manage, read; ask for the same once more by each name; extend, read."""
    volume = bench.create()
    size_bytes = bench.rule.round_up(volume.size_bytes + bench.step)
    bench.extend(volume, size_bytes)
    bench.stamp(volume)
    reference = bench.engine.unmanage_volume(volume.id)
    managed = _manage(bench, reference)
    bench.stamps[managed.id] = bench.stamps.pop(volume.id)
    bench.check_agreed(managed, size_bytes)
    bench.check_data(managed)
    for name in (reference, managed.name, managed.id, *_objects(bench, managed)):
        refusals = (NotFound, InvalidState, InvalidInput)
        bench.refused(partial(_manage, bench, name), *refusals, invariant="I5")
    larger_bytes = bench.rule.round_up(size_bytes + bench.step)
    bench.extend(managed, larger_bytes)
    bench.check_agreed(managed, larger_bytes)
    bench.check_data(managed)


@check("LIF-090", "taking over and giving up are refused where they are not declared", absent=_MANAGE)
def refused_when_absent(bench: Bench) -> None:
    """Ask for both, compare."""
    volume, engine = bench.create(), bench.engine
    bench.stamp(volume)
    bench.refused(lambda: engine.manage_volume(bench.name(), "something"), NotSupported, invariant="I9")
    bench.refused(lambda: engine.unmanage_volume(volume.id), NotSupported, invariant="I9")
    bench.check_agreed(volume, volume.size_bytes)
    bench.check_data(volume)


def _manage(bench: Bench, reference: str) -> Volume:
    return bench.engine.manage_volume(bench.name(), reference, options=bench.subject.volume_options)


def _objects(bench: Bench, volume: Volume) -> list[str]:
    """Give what the pool calls a volume, as the oracle sees it."""
    oracle = bench.subject.oracle
    return [name for name in oracle.objects() if volume.id in name] if oracle else []
