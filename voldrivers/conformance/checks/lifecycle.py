"""LIF: volumes come, are listed, survive a restart, and go."""

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import check
from voldrivers.conformance.verdicts import Broken, expect
from voldrivers.errors import NotFound


@check(
    "LIF-001",
    "a new volume is on the backend, as large as the rule says, and nothing else is new",
    smoke=True,
)
def create(bench: Bench) -> None:
    """Create a volume; compare the backend before and after."""
    before = bench.everything()
    volume = bench.create()
    bench.check_agreed(volume, bench.rule.round_up(bench.small))
    after = bench.everything()
    new = after.objects.keys() - before.objects.keys()
    expect(
        len(new) == 1 or bench.subject.oracle is None, "I5", "not exactly one object is new", new=sorted(new)
    )
    kept = {name: after.objects.get(name) for name in before.objects}
    expect(kept == before.objects, "I5", "another object has changed")
    expect(after.listed - before.listed == {volume.id}, "I9", "list_volumes does not tell of it alone")


@check("LIF-002", "a deleted volume is gone, and its room is back", smoke=True)
def delete(bench: Bench) -> None:
    """Create and delete; the backend must be as before."""
    before, free = bench.everything(), bench.free_bytes()
    volume = bench.create()
    bench.engine.delete_volume(volume.id)
    after = bench.everything()
    expect(after.objects == before.objects, "I10", "objects are left", now=after.objects)
    expect(volume.id not in bench.driver.list_volumes(), "I10", "it is still listed")
    bench.check_room(free)
    try:
        size_bytes = bench.driver.volume_size(volume)
    except NotFound:
        return
    raise Broken("I10", "the driver still gives its size", size_bytes=size_bytes)


@check("LIF-004", "a volume is the same for a driver that has just been started")
def restart(bench: Bench) -> None:
    """Create, stamp, start everything anew, read."""
    volume = bench.create()
    bench.stamp(volume)
    bench.restart()
    bench.check_agreed(volume, volume.size_bytes)
    bench.check_data(volume)
