"""The end of a check: whatever it made is taken away again, the newest first."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from voldrivers.conformance.verdicts import Broken
from voldrivers.errors import VolDriverError
from voldrivers.extend.engine import Engine
from voldrivers.model import VolumeStatus

if TYPE_CHECKING:
    from voldrivers.conformance.bench import Bench


def check_steady(bench: "Bench") -> None:
    """Have all sizes of every volume that rests be the same (I1), whatever the check was about."""
    for volume in bench.engine.volumes():
        if volume.status in (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE):
            bench.check_agreed(volume, volume.size_bytes)


def take_away(bench: "Bench") -> None:
    """Detach, and remove snapshots and volumes of a bench; what fails does not keep the rest from it.

    Raises the first of what failed, the others as its notes: most of them follow from it.
    """
    engine = bench.engine
    failed: list[VolDriverError | Broken] = []

    def tried(act: Callable[..., None], *things: object) -> None:
        try:
            act(*things)
        except (VolDriverError, Broken) as error:
            failed.append(error)

    with suppress(VolDriverError):
        engine.resume()
    with ExitStack() as ending:
        for volume in bench.volumes():
            ending.callback(tried, _delete, engine, volume.id)
            for snapshot in volume.snapshots:
                ending.callback(tried, engine.delete_snapshot, snapshot.id)
            for attachment in volume.attachments:
                ending.callback(tried, bench.detach, volume, attachment)
    if failed:
        first, *others = failed
        for each in others:
            first.add_note(f"then: {each}")
        raise first


def _delete(engine: Engine, volume_id: str) -> None:
    volume = engine.volume(volume_id)
    if volume.status is VolumeStatus.ERROR_EXTENDING:
        engine.retry(volume_id)
    engine.delete_volume(volume_id)
