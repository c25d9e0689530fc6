"""LIF: a volume is given up and taken over with all its bytes; or a clean refusal."""

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import expect
from voldrivers.errors import NotFound, NotSupported

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
    managed = bench.engine.manage_volume(bench.name(), reference, options=bench.subject.volume_options)
    bench.stamps[managed.id] = bench.stamps.pop(volume.id)
    bench.check_agreed(managed, volume.size_bytes)
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
