"""What tells whether a snapshot is one moment of a disk, over disks in RAM: it notices what is not."""

import pytest
from replay import Contents, Replay, _Life

from voldrivers.sizes import MiB

SERIAL = "volume-1"


def contents(life: _Life) -> dict[int, list[str]]:
    return {block: [content.hex()] for block, content in life.disk.blocks.items()}


def life(writes: int, grown_at: int = 0) -> _Life:
    """A guest's disk after so many writes, which had grown after some of them."""
    alive = _Life(SERIAL, MiB)
    if grown_at:
        alive.work(grown_at).disk.size_bytes = 2 * MiB
    return alive.work(writes)


@pytest.fixture
def replay() -> Replay:
    return Replay(SERIAL, MiB)


def test_a_moment_is_found(replay: Replay) -> None:
    assert replay.moment(contents(life(50)), 40, 60) == 50
    assert replay.moment({}, 0, 5) == 0


def test_a_moment_after_the_disk_grew_is_found(replay: Replay) -> None:
    replay.grow(2 * MiB, 20, 40)
    assert replay.moment(contents(life(70, 30)), 60, 90) == 70
    assert replay.moment(contents(life(80, 30)), 75, 90) == 80


def test_a_write_that_is_half_done_may_be_there(replay: Replay) -> None:
    before, after = contents(life(50)), contents(life(51))
    ((block, new),) = ((block, told[0]) for block, told in after.items() if before.get(block) != told)
    (old,) = before.get(block, ["00" * 64])
    assert replay.moment(before | {block: [new] * 3 + [old] * 5}, 40, 60) == 50


@pytest.mark.parametrize(
    ("held", "least", "most"),
    [
        (contents(life(50)), 51, 60),
        (contents(life(50)), 30, 48),
        (contents(life(50)) | {7: ["ff" * 64]}, 40, 60),
        (dict(list(contents(life(50)).items())[:-2]), 40, 60),
        (contents(life(60)) | dict(list(contents(life(30)).items())[:6]), 0, 100),
    ],
    ids=["acknowledged writes are missing", "newer ones are there", "foreign", "lost", "of two moments"],
)
def test_what_is_no_moment_is_refused(replay: Replay, held: Contents, least: int, most: int) -> None:
    with pytest.raises(AssertionError, match="not what the guest had"):
        replay.moment(held, least, most)
