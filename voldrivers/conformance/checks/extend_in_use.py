"""EXI: a volume in use is extended, and everybody agrees; or it is refused, and nothing has changed."""

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.errors import NotSupported

_IN_USE = "in_use_extend"


@check(
    "EXI-001",
    "every attached host shows the new size without a detach",
    level=Level.EXTENDED,
    capability=_IN_USE,
    smoke=True,
)
def hosts_agree(bench: Bench) -> None:
    """Attach, extend, compare every layer."""
    volume = bench.in_use()
    bench.extend(volume, volume.size_bytes + bench.step)
    bench.check_agreed(volume, bench.rule.round_up(volume.size_bytes + bench.step))


@check(
    "EXI-090",
    "an in-use extend that is not declared is refused before anything is touched",
    absent=_IN_USE,
    smoke=True,
)
def refused_when_absent(bench: Bench) -> None:
    """Attach, ask for an extend, compare."""
    volume = bench.create()
    bench.attach(volume)
    bench.refused(lambda: bench.extend(volume, volume.size_bytes + bench.step), NotSupported, invariant="I9")
    bench.check_agreed(volume, volume.size_bytes)
