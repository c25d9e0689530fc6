"""The laws of sizes: rounding, reading, printing."""

from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from voldrivers.base import round_size
from voldrivers.errors import InvalidSize
from voldrivers.memory import MemoryDriver, MemoryOptions
from voldrivers.process import run
from voldrivers.sizes import LARGEST_BYTES, GiB, KiB, MiB, SizeRule, TiB, format_room, format_size, parse_size

#: Powers of two and of ten and odd figures, from one byte to 8 GiB.
granularities = st.one_of(
    st.integers(0, 33).map(lambda power: 2**power),
    st.integers(0, 9).map(lambda power: 10**power),
    st.integers(1, 8 * GiB),
)
sizes = st.one_of(st.integers(1, LARGEST_BYTES), st.integers(1, 64 * GiB))


@st.composite
def rules(draw: st.DrawFn) -> SizeRule:
    granularity, minimum, maximum = draw(granularities), draw(sizes), draw(sizes)
    assume(-(-minimum // granularity) * granularity <= maximum)
    return SizeRule(granularity, minimum, maximum)


@given(rules(), sizes)
@example(SizeRule(8 * GiB, 1, 8 * GiB), 8 * GiB)
@example(SizeRule(10**9, 1, LARGEST_BYTES), LARGEST_BYTES)
def test_a_rounded_size_keeps_every_promise_or_is_refused(rule: SizeRule, asked: int) -> None:
    try:
        rounded = rule.round_up(asked)
    except ValueError:
        # Only when no size of the rule holds it.
        largest = rule.maximum_bytes // rule.granularity_bytes * rule.granularity_bytes
        assert asked > largest
        return
    assert rounded >= asked
    assert rounded % rule.granularity_bytes == 0
    assert rule.minimum_bytes <= rounded <= rule.maximum_bytes
    assert rule.round_up(rounded) == rounded
    assert rounded - rule.granularity_bytes < max(asked, rule.minimum_bytes), "not the smallest"


@given(rules(), sizes, sizes)
def test_rounding_is_monotone(rule: SizeRule, one: int, other: int) -> None:
    smaller, larger = sorted((one, other))
    try:
        rounded = rule.round_up(larger)
    except ValueError:
        return
    assert rule.round_up(smaller) <= rounded


@pytest.mark.parametrize("asked", [0, -1, -(2**63), True, 1.5, float("nan"), "1G", None])
def test_what_is_no_size_is_not_rounded(asked: int) -> None:
    with pytest.raises(ValueError, match="a size"):
        SizeRule().round_up(asked)


@pytest.mark.parametrize("asked", [LARGEST_BYTES + 1, 2**63, 2**64, 10**30])
def test_what_no_file_can_hold_is_refused(asked: int) -> None:
    with pytest.raises(ValueError, match="the largest size here is 1 EiB"):
        SizeRule().round_up(asked)


@pytest.mark.parametrize(
    ("granularity", "minimum", "maximum"), [(0, 1, 9), (-512, 1, 9), (1, 0, 9), (1, 5, 4), (10, 1, 9)]
)
def test_a_rule_that_no_size_can_satisfy_is_refused(granularity: int, minimum: int, maximum: int) -> None:
    with pytest.raises(ValueError, match="granularity"):
        SizeRule(granularity, minimum, maximum)


def test_a_refused_size_names_the_volume_and_both_sizes() -> None:
    driver = MemoryDriver("m", MemoryOptions(), run)
    with pytest.raises(InvalidSize) as caught:
        round_size(driver, "volume v", 2**63, current_bytes=GiB)
    assert str(caught.value) == "volume v: cannot be 8 EiB, it is 1 GiB: the largest size here is 1 EiB"


@pytest.mark.parametrize("asked", [1.5, float("nan"), float("inf"), 2.0 * GiB, "1G", None, True])
def test_what_is_no_whole_number_is_no_size(asked: Any) -> None:  # Any: callers need not be typed
    driver = MemoryDriver("m", MemoryOptions(), run)
    with pytest.raises(InvalidSize, match=r"cannot be .*, it is 1 GiB: a size is a whole number of bytes"):
        round_size(driver, "volume v", asked, current_bytes=GiB)


@pytest.mark.parametrize("asked", [10**30, 10**5000, -(10**5000)], ids=["30", "5000", "negative"])
def test_what_has_too_many_digits_is_no_size(asked: int) -> None:
    driver = MemoryDriver("m", MemoryOptions(), run)
    with pytest.raises(InvalidSize, match=r"volume v: cannot be -?10\^30 B or (more|less), it is 1 GiB: "):
        round_size(driver, "volume v", asked, current_bytes=GiB)


@given(st.integers(0, 2**70) | st.integers(0, 10**15).map(lambda n: n * 10**9))
@example(GiB + 1)
@example(10**30 - 1)
@example(LARGEST_BYTES)
@example(1023)
def test_what_is_printed_is_read_back_to_the_byte(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes
    assert format_size(-size_bytes).removeprefix("-") == format_size(size_bytes)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (10**10, "10 GB"),
        (10**12, "1 TB"),
        (1536, "1.5 KiB"),
        (512_000, "500 KiB"),
        (1010, "1010 B"),
        (1025, "1025 B"),
        (2_000_683_008, "1908 MiB"),
        (12_582_911, "12582911 B"),
    ],
)
def test_the_shortest_exact_figure_is_printed(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("room_bytes", "text"),
    [
        (1650233440 * KiB, "about 1.53 TiB"),
        (10 * GiB - 1, "about 9.99 GiB"),
        (123 * GiB + MiB, "about 123 GiB"),
        (1500 * GiB, "about 1.46 TiB"),
        (20 * GiB, "20 GiB"),
        (1023, "1023 B"),
        (0, "0 B"),
    ],
)
def test_room_is_printed_in_three_digits(room_bytes: int, text: str) -> None:
    assert format_room(room_bytes) == text


@given(st.integers(0, 2**70))
def test_room_is_never_overstated_and_almost_all_of_it(room_bytes: int) -> None:
    shown = format_room(room_bytes)
    read = parse_size(shown.removeprefix("about "))
    assert 0.99 * room_bytes <= read <= room_bytes + 1  # a fraction is read rounded up
    assert shown.startswith("about ") or read == room_bytes
    assert len(shown) <= len("about 1023.9 KiB")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("20G", 20 * GiB),
        ("20g", 20 * GiB),
        (" 20 GiB\n", 20 * GiB),
        ("1.5TiB", 3 * TiB // 2),
        ("10GB", 10**10),
        ("0.5k", 512),
        ("512", 512),
        ("512B", 512),
        ("1E", LARGEST_BYTES),
        ("1EB", 10**18),
        ("0.000000001GB", 1),
        (str(2**63), 2**63),
        ("0", 0),
        ("007M", 7 * MiB),
        ("1.1T", -(-11 * TiB // 10)),
        ("0.1G", 107374183),
        ("0.1 KiB", 103),
        ("0.0000000001GB", 1),
        ("1.0", 1),
    ],
)
def test_sizes_as_people_write_them(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


HOSTILE = [
    *("", " ", "abc", "G", "B", "-1", "-20G", "+5", "NaN", "inf", "-inf", "1e3", "1E3", "0x10", "1_000"),
    *("1,5G", "1.G", ".5G", "1.5", "1.5B", "1.5 bytes", "0.5", "1iB", "1Gi", "1GiBB", "1 G B", "1G 1M"),
    *(
        "٣G",
        "²",
        "\uff11G",
        "20Ⓖ",
        "20\u00a0G",
        "1\u200bG",
        "1G\0",
        "1G; rm",
        "--help",
        "9" * 31,
        "1" * 10**6,
    ),
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:20])
def test_a_hostile_text_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ValueError, match=r"write a size as|whole number of bytes"):
        parse_size(text)


@given(st.text(max_size=12) | st.from_regex(r"[0-9.eE+-]{1,8} ?[KMGTPEkib]{0,3}", fullmatch=True))
def test_any_text_gives_whole_bytes_or_a_reason(text: str) -> None:
    try:
        size_bytes = parse_size(text)
    except ValueError:
        return
    assert size_bytes >= 0
    assert parse_size(format_size(size_bytes)) == size_bytes


@given(
    st.integers(1, 10**6),
    st.sampled_from("KMGTPE"),
    st.sampled_from([("", 1024), ("iB", 1024), ("B", 1000)]),
)
def test_a_unit_is_its_power(number: int, prefix: str, kind: tuple[str, int]) -> None:
    suffix, base = kind
    assert parse_size(f"{number}{prefix}{suffix}") == number * base ** ("KMGTPE".index(prefix) + 1)


def test_units_are_powers_of_1024() -> None:
    assert (KiB, MiB, GiB, TiB) == (2**10, 2**20, 2**30, 2**40)
