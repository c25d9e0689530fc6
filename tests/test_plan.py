"""The laws of what an extend would do, and of what a driver remembers, whatever the sizes."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from voldrivers.errors import InvalidSize
from voldrivers.extend.admission import plan
from voldrivers.memory import MemoryArray, MemoryDriver
from voldrivers.model import Volume
from voldrivers.nfs.image import FORMATS, Image, file_name, recorded_image
from voldrivers.process import run
from voldrivers.sizes import LARGEST_BYTES, GiB, SizeRule

sizes = st.integers(1, 64 * GiB)
granularities = st.sampled_from([1, 512, 4096, 10**9, 8 * GiB])
ids = st.from_regex(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}", fullmatch=True)


@given(granularities, sizes, sizes, st.integers(-1, 64 * GiB))
def test_a_plan_never_shrinks_and_gives_what_was_asked_for(
    granularity: int, published: int, more: int, asked: int
) -> None:
    rule = SizeRule(granularity)
    published = rule.round_up(published)
    array = MemoryArray(LARGEST_BYTES, sizes={"v": max(published, rule.round_up(more))})
    driver = MemoryDriver("ram", None, run, array)
    driver.size_rule = rule
    volume = Volume("v", "v", "ram", published)
    try:
        planned = plan(volume, driver, {}, asked, attached_allowed=True)
    except InvalidSize:
        assert asked < 1 or rule.round_up(asked) < published
        return
    assert planned.to_bytes >= max(published, planned.from_bytes, asked)
    assert planned.to_bytes in (planned.from_bytes, rule.round_up(asked))
    assert array.sizes["v"] == planned.from_bytes


@given(ids, st.sampled_from(FORMATS), st.booleans())
def test_what_a_driver_remembers_comes_back_whole(volume_id: str, image_format: str, allocated: bool) -> None:
    image = Image(image_format, allocated, file_name(volume_id, image_format))
    assert recorded_image(Volume(volume_id, "v", "files", 1, provider_data=image.recorded)) == image
    assert Path(image.file).name == image.file
