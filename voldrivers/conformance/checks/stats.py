"""STA: what a backend says of itself is true: its room, and what it can do."""

from voldrivers.capabilities import NAMES
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import expect
from voldrivers.errors import NoSpace, NotSupported
from voldrivers.model import Pool

#: So many blocks are written where it is about much.
_MANY = 33


@check(
    "STA-001",
    "the room is told in whole bytes, none of them below zero",
    smoke=True,
    hint="not in GiB, and never 'infinite' or 'unknown'",
)
def whole_bytes(bench: Bench) -> None:
    """Read the pool with a volume in it; where more may be promised than there is, free may exceed all."""
    volume = bench.create()
    pool = bench.driver.pool()
    expect(isinstance(pool, Pool), "I8", "pool() gives no Pool", pool=pool)
    for figure in (pool.total_bytes, pool.free_bytes, pool.allocated_bytes):
        is_number = isinstance(figure, int) and not isinstance(figure, bool)
        expect(is_number and figure >= 0, "I8", "a figure is no number of bytes", pool=pool)
    expect(pool.max_over_subscription_ratio >= 1, "I8", "less may be promised than there is", pool=pool)
    enough = pool.total_bytes >= volume.size_bytes <= pool.allocated_bytes
    expect(enough, "I8", "a volume is larger than all that there is", pool=pool, size=volume.size_bytes)


@check(
    "STA-002",
    "what is allocated follows every create, extend and delete by exactly its bytes",
    hint="look the room up in pool(), never count it in the object",
)
def follows(bench: Bench) -> None:
    """Read the pool before and after a volume is created, extended, deleted."""
    room = _Room(bench)
    volume = bench.create()
    room.took(volume.size_bytes, "create")
    bench.extend(volume, volume.size_bytes + bench.step)
    room.took(volume.size_bytes + bench.step, "extend")
    bench.engine.delete_volume(volume.id)
    room.took(0, "delete")  # that what is free comes back, every check looks at its end


@check(
    "STA-003",
    "the room is what it is now, also where somebody else has changed it",
    hint="look it up each time; what is cached is wrong when it matters",
)
def looked_up(bench: Bench) -> None:
    """Read the pool; create, extend and delete a volume with another driver object, read it each time."""
    before = bench.driver.pool().allocated_bytes
    name, options = bench.name(), bench.subject.volume_options
    with bench.another() as elsewhere:
        volume = elsewhere.create_volume(name, bench.small, options=options)
        _check_allocated(bench, before + volume.size_bytes, "created")
        elsewhere.extend(name, volume.size_bytes + bench.step)
        _check_allocated(bench, before + volume.size_bytes + bench.step, "extended")
        elsewhere.delete_volume(name)
        _check_allocated(bench, before, "deleted")


@check(
    "STA-004",
    "what was promised to a volume counts from the start, and no more when it is written to",
    level=Level.EXTENDED,
    hint="allocated are the sizes of the volumes, not what is written in them",
)
def promised(bench: Bench) -> None:
    """Create a volume, write to it, read the pool before and after."""
    volume = bench.create()
    before = bench.driver.pool()
    with bench.opened(volume) as disk:
        disk.stamp(_MANY)
    now = bench.driver.pool()
    seen = {"before": before, "now": now}
    expect(
        now.allocated_bytes == before.allocated_bytes, "I8", "a write has changed what is promised", **seen
    )
    expect(now.free_bytes <= before.free_bytes, "I8", "a write has made room", **seen)


@check(
    "STA-005", "what is said to be free can be had, and more than that is refused before anything is touched"
)
def full(bench: Bench) -> None:
    """Create a volume of nearly all that is free, if it may be; plan an extend by more than is free."""
    volume, granule = bench.create(), bench.granule
    free_bytes = bench.driver.pool().free_bytes
    # What the backend itself needs meanwhile is left to it.
    nearly_all = (free_bytes - free_bytes // 64) // granule * granule
    if bench.rule.round_up(1) <= nearly_all <= min(bench.subject.max_bytes, bench.rule.maximum_bytes):
        bench.create(nearly_all)
        free_bytes = bench.driver.pool().free_bytes
    over_bytes = volume.size_bytes + free_bytes + granule
    if over_bytes <= bench.rule.maximum_bytes // granule * granule:
        bench.refused(lambda: bench.engine.plan(volume.id, over_bytes), NoSpace, invariant="I8")


@check(
    "STA-006",
    "what is told of the capabilities is what is declared, and what is done",
    level=Level.EXTENDED,
)
def verdicts(bench: Bench) -> None:
    """Read each capability of the object; plan an in-use extend, which is admitted if it is declared."""
    told = {name: bench.driver.capabilities.declares(name) for name in NAMES}
    declared = {name: bench.declared.declares(name) for name in NAMES}
    expect(told == declared, "I9", "object and class do not tell the same", told=told, declared=declared)
    volume = bench.in_use()
    wanted = volume.size_bytes + bench.step
    if told["in_use_extend"]:
        with bench.unchanged("it was only planned"):
            plan = bench.engine.plan(volume.id, wanted)
        expect(plan.to_bytes == bench.rule.round_up(wanted), "I3", "another size is planned", plan=plan)
    else:
        bench.refused(lambda: bench.engine.plan(volume.id, wanted), NotSupported, invariant="I9")


def _check_allocated(bench: Bench, wanted_bytes: int, what: str) -> None:
    seen = bench.driver.pool().allocated_bytes
    expect(
        seen == wanted_bytes,
        "I8",
        f"it does not see what was {what} elsewhere",
        seen=seen,
        is_now=wanted_bytes,
    )


class _Room:
    """The pool as it was before, to compare with."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.before = bench, bench.driver.pool()

    def took(self, size_bytes: int, after: str) -> None:
        """Have so much more be allocated than before, and not more be free."""
        before, now = self.before, self.bench.driver.pool()
        seen = {"before": before, "now": now, "size": size_bytes}
        more = now.allocated_bytes - before.allocated_bytes
        expect(more == size_bytes, "I8", f"after the {after} not just its bytes are allocated", **seen)
        expect(now.free_bytes <= before.free_bytes, "I8", f"more is free after the {after}", **seen)
        expect(now.total_bytes == before.total_bytes, "I8", f"the {after} changed the total", **seen)
