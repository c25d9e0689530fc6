"""Snapshots, clones and reverts of volumes that a guest works on, in the lab, on both drivers.

What a snapshot holds is compared with what the guest must have had at that moment: see `replay`.
"""

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
import sweeps
from labs import shell
from lvmsite import NOWHERE, SIZE, STEP
from replay import Contents
from snapshotsite import OverISCSI, OverNFS, SnapshotSite, Thin
from sweeps import Figures

from voldrivers.lab.lab import Lab

SWEEP = "of snapshots in the lab"
#: A whole kill sweep takes hours; its parts can be run one by one. The first has every kind of point once.
_PARTS = 4
LARGER = SIZE + 2 * STEP
_REFUSED = "a thick volume with a snapshot cannot be extended while it is in use"
#: A block of the old range, and one that only the larger clone has, where the guest does not write.
_ONES, _TWOS = 100, (SIZE + STEP) // 4096

KINDS = pytest.mark.parametrize("site", [OverISCSI, OverNFS, Thin], indirect=True)


@pytest.fixture
def site(attached: Lab, request: pytest.FixtureRequest) -> Iterator[SnapshotSite]:
    """Give a site of the kind that a test is for."""
    running: SnapshotSite = request.param(attached)
    yield running
    running.close()


def write_block(site: SnapshotSite, name: str, block: int) -> None:
    """Write something that no guest writes, with the volume's own reader past the caches."""
    how = "bs=4096 count=1 iflag=fullblock oflag=direct conv=notrunc,fsync status=none"
    shell(site.lab, site.controller, f"dd if=/dev/urandom of={site.path(name)} seek={block} {how}")


def check_clones(site: SnapshotSite, snapshot: str, kept: Contents) -> dict[str, Contents]:
    """Make two clones of a snapshot, one of them larger; have them be what it is, and go their own ways."""
    made = {"one": "", "two": f"{LARGER} "}
    for name, size in made.items():
        site.cli(f"volume create {name} {size}--from-snapshot {snapshot}")
    assert {name: site.observed_bytes(name) for name in made} == {"one": site.size_bytes, "two": LARGER}
    assert [site.stored(name) for name in made] == [kept, kept]  # so the larger one's rest is zeroes
    write_block(site, "one", _ONES)
    write_block(site, "two", _TWOS)
    stored = {name: site.stored(name) for name in made}
    assert {name: changed(content, kept) for name, content in stored.items()} == {
        "one": {_ONES},
        "two": {_TWOS},
    }
    assert site.kept(snapshot) == kept
    return stored


def changed(content: Contents, before: Contents) -> set[int]:
    return {block for block in {*content, *before} if content.get(block) != before.get(block)}


def check_extend(site: SnapshotSite) -> None:
    """Extend a volume in use that has a snapshot, or have it refused before anything happens."""
    if site.extends:
        site.extend()
    else:
        answer = site.do("extend", name=site.name, size_bytes=site.size_bytes + STEP)
        assert answer.startswith("NotSupported"), answer
        assert f"{_REFUSED}: detach it, or delete" in answer
    site.check_agreed()


def check_reverted(site: SnapshotSite, snapshot: str, kept: Contents) -> None:
    """Detach the volume, have it grow, and be what its snapshot is again, in size and content."""
    taken_bytes = site.snapshots()[snapshot]["size_bytes"]
    assert site.do("detach", name=site.name) is None
    assert site.do("extend", name=site.name, size_bytes=site.size_bytes + STEP) == "completed"
    assert site.do("revert", snapshot=snapshot) == taken_bytes
    assert site.observed_bytes(site.name) == taken_bytes
    assert site.stored(site.name) == kept
    assert site.kept(snapshot) == kept
    site.size_bytes = taken_bytes
    site.attach()
    site.check_agreed()


def points(site: SnapshotSite, act: Callable[[], object]) -> list[str]:
    """Give the points that an operation passes that is only counted."""
    act()
    passed: list[str] = site.do("passed")
    return passed


def moments_of(passed: list[str], part: int) -> list[int]:
    """Give the moments of one part of a sweep, before and after each of its points."""
    new = [number for number, name in enumerate(passed) if name not in passed[:number]]
    again = [number for number in range(len(passed)) if number not in new]
    chosen = again[part - 1 :: _PARTS - 1] if part else new
    return [moment for number in chosen for moment in (2 * number, 2 * number + 1)]


@KINDS
@pytest.mark.full
@pytest.mark.timeout(1800)
def test_what_is_done_with_snapshots_while_the_guest_works(
    site: SnapshotSite, rng: random.Random, request: pytest.FixtureRequest
) -> None:
    s = site.take("s", pause_at=NOWHERE)
    of_take = site.do("passed")
    site.check_agreed()
    clones = check_clones(site, "s", s)
    check_extend(site)
    t = site.take("t", kill_at=rng.randrange(2 * len(of_take)))
    assert [snapshot["name"] for snapshot in site.cli(f"snapshot list {site.name}")] == ["s", "t"]
    site.delete("s", pause_at=NOWHERE)
    of_delete = site.do("passed")
    check_extend(site)
    assert site.kept("t") == t
    for name, content in clones.items():
        assert site.stored(name) == content
        site.cli(f"volume delete {name}")
    check_reverted(site, "t", t)
    site.delete("t", kill_at=rng.randrange(2 * len(of_delete)))
    site.extend()
    site.check_agreed()
    site.check_nothing_left()
    for what, passed in (("take", of_take), ("delete", of_delete)):
        figures = Figures(SWEEP, f"{what} a snapshot in use, {site.title}", 1, 2 * len(passed))
        sweeps.count(request, figures)


@KINDS
@pytest.mark.full
@pytest.mark.timeout(3600)
def test_snapshots_are_deleted_in_every_order_while_the_guest_works(site: SnapshotSite) -> None:
    for order in itertools.permutations("abc"):
        held = {name: site.take(name) for name in "abc"}
        for name in order:
            site.delete(name)
            del held[name]
            assert {name: site.kept(name) for name in held} == held, order
        site.extend()
        site.check_agreed()
        site.check_nothing_left()


@KINDS
@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(_PARTS))
def test_killed_at_every_point_of_a_snapshot(
    site: SnapshotSite, part: int, request: pytest.FixtureRequest
) -> None:
    """The one before stays as it is; the guest works on; nothing is left over."""
    first = site.take("first")
    of_take = points(site, lambda: site.take("counted", pause_at=NOWHERE))
    of_delete = points(site, lambda: site.delete("counted", pause_at=NOWHERE))
    moments = [moments_of(passed, part) for passed in (of_take, of_delete)]
    for taking, deleting in itertools.zip_longest(*moments):
        print(f"killed at {taking} of {len(of_take)} taking, {deleting} of {len(of_delete)} deleting")
        taken = site.take("s", kill_at=taking)
        assert site.kept("s") == taken
        site.delete("s", kill_at=deleting)
        assert site.kept("first") == first
        site.check_agreed()
    site.delete("first")
    site.check_nothing_left()
    for what, passed in (("take", of_take), ("delete", of_delete)):
        scenario = f"{what} a snapshot in use, {site.title}, part {part + 1} of {_PARTS}"
        killed = len(moments_of(passed, part))
        sweeps.count(request, Figures(SWEEP, scenario, killed, 2 * len(passed)))


@KINDS
@pytest.mark.full
def test_a_volume_that_is_given_up_and_taken_over_has_all_its_bytes(site: SnapshotSite) -> None:
    kept = site.take("s")
    site.cli("volume create copy --from-snapshot s")
    reference = site.cli("volume unmanage copy")["reference"]
    assert site.do("volume", name="copy").startswith("NotFound")
    assert site.do("manage", name="again", reference=reference) == SIZE
    assert site.stored("again") == kept
    assert site.do("delete", name="again") is None
    site.delete("s")
    site.check_nothing_left()
