"""Cinder killed in the middle of an extend in use, at every request to a host's agent, and started again."""

import random
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from between import Between, Meddle, Passing, forward, standing
from cindersite import CinderSite, new_guest
from servicesite import SOON_S

from voldrivers.guests.device import DeviceGuest
from voldrivers.sizes import GiB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.needs("qemu-system-x86_64", "qemu-img"),
]
#: Longer than Cinder's queue is given to deliver a call of which nothing was begun.
_GIVEN_BACK_S = 120.0


@pytest.fixture(scope="module")
def between() -> Iterator[Between]:
    with standing("") as made:
        made.also_looks = True
        yield made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, between: Between) -> Iterator[CinderSite]:
    made = CinderSite(tmp_path_factory.mktemp("cinder"), between=between)
    yield made
    made.end()


@pytest.fixture
def guest(site: CinderSite) -> Iterator[DeviceGuest]:
    with new_guest(site.directory) as made:
        yield made


def test_killed_at_a_request(
    site: CinderSite, guest: DeviceGuest, between: Between, tier: str, rng: random.Random
) -> None:
    """What was recorded as begun is carried on, after the act too; what was not leaves nothing changed."""
    volume_id = site.create(1)
    with site.attached(volume_id, guest):
        for size_gib in (2, 3):  # the first time a worker asks for the agent's version, too
            between.seen.clear()
            site.extend(volume_id, size_gib)
            site.wait(volume_id, "in-use")
        asked = [urlsplit(each.url).path for each in between.seen]
        begun = next(number for number, path in enumerate(asked) if path.endswith("assist_extend"))
        moments = [(number, is_after) for number in range(len(asked)) for is_after in (False, True)]
        recorded = [each for each in moments if each[0] >= begun]
        chosen = moments if tier == "full" else rng.sample(recorded, 2)
        for number, is_after in chosen:
            before = int(site.client().volumes.get(volume_id).size)
            between.seen.clear()
            between.meddle = killing(site, between, number, is_after=is_after)
            site.extend(volume_id, before + 1)
            between.wait(number + 1)
            site.cinder.wait(SOON_S)
            between.meddle = forward
            site.start()
            after = int(site.wait(volume_id, "in-use", _GIVEN_BACK_S).size)
            where = f"killed {'after' if is_after else 'before'} {asked[number]}, request {number}"
            assert after in (before, before + 1), where
            assert after == before + 1 or number < begun, where
            sizes = {after * GiB, guest.disk(volume_id).capacity_bytes(), site.file_bytes(volume_id)}
            assert len(sizes) == 1, where
            assert not site.record(volume_id), where
            site.extend(volume_id, after + 1)
            assert site.wait(volume_id, "in-use").size == after + 1
        print(f"{len(chosen)} of {len(moments)} moments")
        assert site.usage() == int(site.client().volumes.get(volume_id).size)
    site.wait(volume_id, "available")
    site.delete(volume_id)


def killing(site: CinderSite, between: Between, number: int, *, is_after: bool) -> Meddle:
    """Kill Cinder when the agent is asked for the nth time, before it hears of it or when it has answered."""

    cinder = site.cinder

    def meddle(passing: Passing) -> tuple[int, bytes]:
        is_it = len(between.seen) == number + 1
        if is_it and not is_after:
            cinder.kill()
        answer = passing.forward()
        if is_it and is_after:
            cinder.kill()
        return answer

    return meddle
