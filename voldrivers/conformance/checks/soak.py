"""CON: many volumes with many lives, one after the other and mixed."""

import random

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import expect
from voldrivers.errors import NoSpace
from voldrivers.model import Volume

#: So many volumes are there at once, if there is room; the same choices each time.
_VOLUMES, _SEED = 8, 2026


@check(
    "CON-008",
    "after many operations on many volumes, mixed, every volume has its size and its bytes",
    level=Level.SOAK,
    hint="the number of rounds is soak_rounds of the subject",
)
def churn(bench: Bench) -> None:
    """Create, stamp, extend, attach, detach, delete by lot; compare every layer and byte of all volumes."""
    draw = random.Random(_SEED)  # noqa: S311 - which volume comes next is no secret
    for _ in range(bench.subject.soak_rounds):
        _create(bench)
        for act in (_stamp, _extend, _plug, _remove):
            act(bench, draw.choice(bench.volumes()))
    for volume in bench.engine.volumes():
        bench.check_agreed(volume, volume.size_bytes)
        bench.check_data(volume)
    pool = bench.driver.pool()
    known = sum(volume.size_bytes for volume in bench.engine.volumes())
    expect(pool.allocated_bytes >= known, "I8", "less is allocated than there is", pool=pool, known=known)


def _create(bench: Bench) -> None:
    while len(bench.engine.volumes()) < _VOLUMES:
        try:
            bench.create()
        except NoSpace:
            if bench.engine.volumes():
                return
            raise


def _stamp(bench: Bench, volume: Volume) -> None:
    bench.stamp(volume)


def _extend(bench: Bench, volume: Volume) -> None:
    in_use = bool(volume.attachments)
    room = bench.room_bytes >= bench.step
    if room and (not in_use or bench.declared.declares("in_use_extend")):
        bench.extend(volume, volume.size_bytes + bench.step)


def _plug(bench: Bench, volume: Volume) -> None:
    if volume.attachments:
        bench.detach(volume, volume.attachments[0])
    else:
        bench.attach(volume)


def _remove(bench: Bench, volume: Volume) -> None:
    """Look at it once more, and delete it."""
    bench.check_agreed(volume, volume.size_bytes)
    bench.check_data(volume)
    for attachment in volume.attachments:
        bench.detach(volume, attachment)
    bench.engine.delete_volume(volume.id)
