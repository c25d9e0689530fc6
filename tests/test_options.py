"""Options: names and types are checked, every message names the key, every option is explained."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voldrivers.errors import InvalidInput
from voldrivers.options import (
    NoOptions,
    OptionHelp,
    SizeBytes,
    check_options,
    explain,
    option,
    read_options,
)
from voldrivers.sizes import GiB, MiB

WHERE = "[backend.b]"


@dataclass(frozen=True)
class Options:
    share: Path = option("where the files are")
    format: str = option("of new volumes", "raw", choices=("raw", "qcow2"))
    reserve: SizeBytes = option("what stays free", SizeBytes(GiB))
    ratio: float = option("how much may be promised", 1.5)
    retries: int = option("how often", 3)
    locked: bool = option("whether locks are proved", True)
    token_file: Path | None = option("where the token is", None)


@dataclass(frozen=True)
class Ranged:
    lowest: int = option("at least", 7, minimum=5)
    highest: float = option("at most", 0.5, maximum=2.5)
    between: int = option("in between", 1, minimum=0, maximum=99)
    place: str = option("where", "", or_remote=True)

    def __post_init__(self) -> None:
        if self.lowest == self.between:
            raise ValueError("lowest must not be between")


def read(**table: object) -> Options:
    return read_options(Options, table, WHERE)


def test_defaults_hold_where_nothing_is_given() -> None:
    assert read(share="/s") == Options(Path("/s"), "raw", SizeBytes(GiB), 1.5, 3, True, None)


def test_values_become_their_types() -> None:
    options = read(share="s", format="qcow2", reserve="20M", ratio=2, locked=False, token_file="/t")
    assert options == Options(Path("s"), "qcow2", SizeBytes(20 * MiB), 2.0, 3, False, Path("/t"))
    assert isinstance(options.ratio, float)
    assert read(share="s", reserve=4096).reserve == 4096


@pytest.mark.parametrize("key", ["shar", "Share", "share ", "", "formats", "__class__", "größe"])
def test_an_option_that_does_not_exist_is_an_error_that_lists_those_that_do(key: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(share="/s", **{key: 1})
    known = "share, format, reserve, ratio, retries, locked, token_file"
    assert str(caught.value) == f"{WHERE} {key}: there is no such option; known: {known}"


def test_a_driver_without_options_takes_none() -> None:
    assert read_options(NoOptions, {}, WHERE) == NoOptions()
    with pytest.raises(InvalidInput, match="known: none"):
        read_options(NoOptions, {"share": "/s"}, WHERE)


def test_a_missing_option_is_named_with_its_meaning() -> None:
    with pytest.raises(InvalidInput) as caught:
        read()
    assert str(caught.value) == f"{WHERE} share: must be given: where the files are"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("share", value) for value in ("", "a\0b", 1, True, None, ["/s"], {"path": "/s"})),
        *(("format", value) for value in ("RAW", "vmdk", "", 1, ["raw"])),
        *(("reserve", value) for value in ("lots", "-1G", "1.5", "", -1, True, 1.5, None)),
        *(("ratio", value) for value in ("1.5", True, None, math.nan, -math.inf, 10**400)),
        *(("retries", value) for value in ("3", 3.0, True)),
        *(("locked", value) for value in (1, 0, "true", "no")),
        *(("token_file", value) for value in ("", 1, "a\0")),
    ],
)
def test_a_wrong_value_is_refused_and_its_key_named(key: str, value: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(**{"share": "/s", key: value})
    assert caught.value.subject == f"{WHERE} {key}"
    assert str(caught.value).isprintable()


toml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
keys = st.sampled_from([*Options.__dataclass_fields__]) | st.text(max_size=5)


@given(st.dictionaries(keys, toml_values, max_size=4))
def test_any_table_is_read_or_refused_by_key(table: dict[str, object]) -> None:
    try:
        options = read(**{"share": "/s", **table})
    except InvalidInput as error:
        key = error.subject.removeprefix(f"{WHERE} ")
        assert key in table
        return
    assert isinstance(options.share, Path)
    assert options.format in ("raw", "qcow2")
    assert type(options.retries) is int
    assert type(options.ratio) is float
    assert type(options.locked) is bool
    assert options.reserve >= 0
    assert math.isfinite(options.ratio)


def test_every_option_is_explained() -> None:
    assert explain(Options) == [
        OptionHelp("share", "a path", "where the files are", "required"),
        OptionHelp("format", "raw | qcow2", "of new volumes", "raw"),
        OptionHelp("reserve", "a size such as 20G", "what stays free", "1 GiB"),
        OptionHelp("ratio", "a number", "how much may be promised", "1.5"),
        OptionHelp("retries", "a whole number", "how often", "3"),
        OptionHelp("locked", "true or false", "whether locks are proved", "true"),
        OptionHelp("token_file", "a path", "where the token is", "none"),
    ]


@pytest.mark.parametrize(
    ("key", "good", "wrong", "said"),
    [
        ("lowest", [5, 10**30], [4, -(10**400)], "must be 5 or more, not "),
        ("highest", [2.5, 2, -1e18], [2.6, 3], "must be 2.5 or less, not "),
        ("between", [0, 99], [-1, 100, 10**5000], "must be 0 to 99, not "),
    ],
)
def test_a_number_out_of_its_range_is_refused(
    key: str, good: list[object], wrong: list[object], said: str
) -> None:
    for value in good:
        assert getattr(read_options(Ranged, {key: value}, WHERE), key) == value
    for value in wrong:
        with pytest.raises(InvalidInput, match=said) as caught:
            read_options(Ranged, {key: value}, WHERE)
        assert caught.value.subject == f"{WHERE} {key}"


def test_a_range_is_explained() -> None:
    kinds = [described.kind for described in explain(Ranged)]
    assert kinds == ["a whole number, 5 or more", "a number, 2.5 or less", "a whole number, 0 to 99", "text"]


def test_all_that_is_wrong_is_told_at_once() -> None:
    table = {"format": "vmdk", "nix": 1, "retries": "3", "ratio": 2.0}
    checked = check_options(Options, table, WHERE)
    assert checked.options is None
    keys = [problem.subject.removeprefix(f"{WHERE} ") for problem in checked.problems]
    assert keys == ["format", "nix", "retries", "share"]


def test_what_the_options_themselves_refuse_is_wrong_input() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_options(Ranged, {"between": 7}, WHERE)
    assert str(caught.value) == f"{WHERE}: lowest must not be between"


def test_relative_paths_start_at_the_given_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    base = Path("/etc/x")
    options = read_options(Options, {"share": "s/t", "token_file": "/abs"}, WHERE, base)
    assert (options.share, options.token_file) == (Path("/etc/x/s/t"), Path("/abs"))
    assert read_options(Options, {"share": "s"}, WHERE).share == Path("s")


@pytest.mark.parametrize(
    ("given_", "seen"),
    [
        ("files", "/etc/x/files"),
        ("./a:b", "/etc/x/a:b"),
        ("a/b:c", "/etc/x/a/b:c"),
        ("/srv/files", "/srv/files"),
        ("server:/export", "server:/export"),
        ("server:export", "server:export"),
        ("[::1]:/export", "[::1]:/export"),
    ],
)
def test_a_directory_here_is_told_from_one_elsewhere(given_: str, seen: str) -> None:
    assert read_options(Ranged, {"place": given_}, WHERE, Path("/etc/x")).place == seen


@pytest.mark.parametrize("value", ["", "a\0b"])
def test_what_is_no_path_is_not_made_one(value: str) -> None:
    with pytest.raises(InvalidInput, match="place: must be a path"):
        read_options(Ranged, {"place": value}, WHERE, Path("/etc/x"))


@dataclass(frozen=True)
class ArrayOptions:
    """Options with a secret."""

    user: str = option("who logs in")
    password: str = option("what proves it", "opensesame", secret=True)


def test_a_secret_is_not_shown() -> None:
    shown = [repr(ArrayOptions("me", "hunter2")), *map(repr, explain(ArrayOptions))]
    with pytest.raises(InvalidInput) as caught:
        read_options(ArrayOptions, {"user": "me", "password": ["hunter2"]}, "backend a")
    assert str(caught.value) == "backend a password: must be text; it is not shown"
    assert not any(secret in text for text in shown for secret in ("hunter2", "opensesame"))
    assert "user='me'" in shown[0]
    assert read_options(ArrayOptions, {"user": "me"}, "backend a").password == "opensesame"
