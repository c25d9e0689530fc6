"""LIF: volumes come, are listed, survive a restart, and go."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from voldrivers.conformance.aids import direct
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import Broken, expect
from voldrivers.errors import NotFound
from voldrivers.model import Volume
from voldrivers.sizes import MiB

#: One more than a page has.
_MANY = 101


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


@check("LIF-003", "the list has the volumes that are there, and nothing that is deleted or not ours")
def listed(bench: Bench) -> None:
    """Create two, delete one, give the other up if that can be done; look at the list each time."""
    before = set(bench.driver.list_volumes())
    kept, deleted = bench.create(), bench.create()
    expect(_listed(bench) == before | {kept.id, deleted.id}, "I9", "what is new is not listed")
    bench.engine.delete_volume(deleted.id)
    expect(_listed(bench) == before | {kept.id}, "I9", "what was deleted is listed, or not what was kept")
    if bench.declared.manage:
        with given_up(bench, kept):
            expect(_listed(bench) == before, "I5", "what is none of ours is listed", now=_listed(bench))


@check("LIF-004", "a volume is the same for a driver that has just been started")
def restart(bench: Bench) -> None:
    """Create, stamp, start everything anew, read."""
    volume = bench.create()
    bench.stamp(volume)
    bench.restart()
    bench.check_agreed(volume, volume.size_bytes)
    bench.check_data(volume)


@check(
    "LIF-005",
    "volumes with the longest and the strangest names that are allowed are kept apart, attached and extended",
    hint="name objects and exports on the backend by the volume's id",
)
def strange_names(bench: Bench) -> None:
    """Create volumes whose names differ at the end, in case, in script; attach three at once; delete one."""
    begin = bench.name()
    long, wide = begin.ljust(127, "x"), begin.ljust(127, "\N{CJK UNIFIED IDEOGRAPH-5377}")
    names = (f"{long}a", f"{long}b", f"{wide}1", f"{wide}2", f"{begin}=A", f"{begin}=a", f"{begin}..@b+c:d")
    sizes = [bench.rule.round_up(1) + number % 2 * bench.granule for number in range(len(names))]
    options = bench.subject.volume_options
    volumes = [
        bench.engine.create_volume(name, size_bytes, options=options)
        for name, size_bytes in zip(names, sizes, strict=True)
    ]
    _check_used(bench, volumes[3:6])  # the longest in bytes, and two that differ in case
    _check_apart(bench, [bench.now(volume) for volume in volumes])


@check("LIF-006", "volumes whose names and ids begin with those of others are kept apart")
def prefixes(bench: Bench) -> None:
    """Create volumes named as a volume and more; extend and delete the shortest; look at the others."""
    name, begin = bench.name(), bench.new_id()[:16]
    volumes = []
    for number, (end, end_of_id) in enumerate((("", ""), ("0", "0"), ("-1", "-1"), ("_x", "x"))):
        bench.ids = [f"{begin}{end_of_id}"]
        size_bytes = bench.rule.round_up(1) + number * bench.granule
        options = bench.subject.volume_options
        volumes.append(bench.engine.create_volume(f"{name}{end}", size_bytes, options=options))
    bench.extend(volumes[0], volumes[0].size_bytes + bench.step)
    _check_apart(bench, [bench.now(volume) for volume in volumes])


@check(
    "LIF-007",
    "the list has what is there all along once and always, while other volumes come and go",
    level=Level.EXTENDED,
    hint="never write a new list over the old one in two steps; go on after the last id, not the last number",
)
def stable_list(bench: Bench) -> None:
    """Create two; while others are made, extended, copied and removed, have another driver object list."""
    kept = (bench.create(), bench.create())
    looking: list[str] = []
    with bench.another() as elsewhere:
        (driver,) = elsewhere.site.drivers.values()

        def look(_number: int, name: str, _before: bool) -> None:
            if looking:  # it comes by here itself
                return
            looking.append(name)
            listed = list(driver.list_volumes())
            looking.clear()
            seen = [listed.count(volume.id) for volume in kept]
            expect(seen == [1, 1], "I5", f"at {name} not each is listed once", listed=listed)

        with bench.watch.struck(look):
            other = bench.create()
            bench.extend(other, other.size_bytes + bench.step)
            if bench.declared.clones:
                copy = bench.engine.clone_volume(bench.name(), other.id, options=bench.subject.volume_options)
                bench.engine.delete_volume(copy.id)
            bench.engine.delete_volume(other.id)


@check("LIF-008", "a volume that is made again under the name or id of a deleted one is new")
def made_again(bench: Bench) -> None:
    """Create, stamp, delete, create a smaller one under its name, then under its id: zeros, and its size."""
    first = bench.create(bench.small + bench.step)
    bench.stamp(first)
    bench.engine.delete_volume(first.id)
    bench.stamps.clear()
    for volume_id in (bench.new_id(), first.id):
        bench.ids = [volume_id]
        again = bench.engine.create_volume(first.name, bench.small)
        bench.check_agreed(again, bench.small)
        bench.check_data(again)
        bench.engine.delete_volume(again.id)


@check(
    "LIF-011",
    "the list has every volume, however many there are",
    level=Level.SOAK,
    hint="a backend that answers page by page is asked until the last one",
)
def long_list(bench: Bench) -> None:
    """Have the driver make the smallest volumes, 101 if room and time allow; look for each in the list."""
    size_bytes, began = bench.rule.round_up(1), time.monotonic()
    most = min(_MANY, bench.room_bytes // max(size_bytes, MiB) - 1)  # the smallest of files takes more
    ids: set[str] = set()
    with ExitStack() as ending:
        while len(ids) < most and time.monotonic() - began < bench.subject.sweep_s:
            volume = direct.blank(bench, size_bytes)
            ending.enter_context(direct.made(bench, volume))
            ids.add(volume.id)
        lacking = ids - _listed(bench)
        expect(not lacking, "I9", "not all volumes are listed", made=len(ids), lacking=len(lacking))
    if len(ids) < _MANY:
        bench.told.append(f"there were {len(ids)} volumes, as room and time allow, not {_MANY}")


@contextmanager
def given_up(bench: Bench, volume: Volume) -> Iterator[None]:
    """Give a volume up, and take it over at the end under its name."""
    reference = bench.engine.unmanage_volume(volume.id)
    try:
        yield
    finally:
        bench.engine.manage_volume(volume.name, reference, options=bench.subject.volume_options)


def _listed(bench: Bench) -> set[str]:
    ids = bench.driver.list_volumes()
    expect(len(ids) == len(set(ids)), "I9", "a volume is listed twice", ids=ids)
    return set(ids)


def _check_used(bench: Bench, volumes: list[Volume]) -> None:
    """Attach all at once, stamp them, read; detach, extend and read them."""
    attachments = [bench.attach(volume) for volume in volumes]
    for volume in volumes:
        bench.stamp(volume)
    for volume, attachment in zip(volumes, attachments, strict=True):
        bench.check_agreed(volume, volume.size_bytes)
        bench.check_data(volume)
        bench.detach(volume, attachment)
        bench.extend(volume, volume.size_bytes + bench.step)
        bench.check_data(volume)


def _check_apart(bench: Bench, volumes: list[Volume]) -> None:
    """Have all of them be there, each with its size, and without the first one the others still."""
    for volume in volumes:
        bench.check_agreed(volume, volume.size_bytes)
    first, *others = volumes
    bench.engine.delete_volume(first.id)
    listed = _listed(bench)
    expect(first.id not in listed, "I10", "the deleted one is listed")
    for volume in others:
        expect(volume.id in listed, "I5", f"{volume.name} has gone with {first.name}")
        bench.check_agreed(volume, volume.size_bytes)
