"""DAT, SNP and CLN: copies of any kind are whole, and of the whole volume."""

from voldrivers.conformance.aids.copying import allowed, check_kept, revert, take
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.model import Volume


@check(
    "DAT-009",
    "no byte is lost on the way into a snapshot, nor out of it by a clone or a revert",
    level=Level.EXTENDED,
    capability="snapshots",
    hint="compare how many bytes were asked for with how many were copied, for every piece",
)
def whole_copies(bench: Bench) -> None:
    """Fill a volume, take a snapshot, fill it anew; read every byte of both; revert, read every byte."""
    volume = bench.create()
    _fill(bench, volume)
    kept = take(bench, volume)
    _fill(bench, volume)
    bench.check_data(volume)
    check_kept(bench, kept)
    if bench.declared.revert and allowed(bench, lambda: revert(bench, kept), "revert"):
        bench.check_data(volume)


def _fill(bench: Bench, volume: Volume) -> None:
    with bench.opened(volume) as disk:
        disk.fill()
