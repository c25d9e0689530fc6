"""The nouns: legal moves, names, what never shows, when a size agrees."""

import dataclasses
import pickle
import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voldrivers.capabilities import Capabilities, Condition, InUseExtend
from voldrivers.errors import InvalidInput
from voldrivers.model import (
    NEXT,
    Attachment,
    ConnectionInfo,
    Extend,
    InstanceState,
    LedgerRow,
    Phase,
    Volume,
    check_id,
    check_name,
    utc_now,
)

ENDS = {Phase.COMPLETED, Phase.FAILED, Phase.ROLLED_BACK}
IN_ORDER = [Phase.GROWING, Phase.RESCANNING, Phase.RESIZING, Phase.SETTLING]


def reachable(start: Phase) -> set[Phase]:
    found: set[Phase] = set()
    waiting = [start]
    while waiting:
        waiting += (following := NEXT[waiting.pop()] - found)
        found |= following
    return found


def test_every_phase_is_reached_and_every_walk_can_end() -> None:
    assert reachable(Phase.GROWING) == set(Phase)
    for phase in IN_ORDER:
        assert reachable(phase) >= ENDS
        assert phase.under_way


def test_ends_are_ends() -> None:
    assert {phase for phase in Phase if not NEXT[phase]} == ENDS
    assert not any(phase.under_way for phase in ENDS)


def test_every_step_may_be_taken_anew() -> None:
    assert all(Phase.GROWING in NEXT[phase] for phase in IN_ORDER)
    assert NEXT[Phase.SETTLING] == {Phase.GROWING, *ENDS}, "what settles goes back to looking, or ends"


def test_only_what_settled_is_completed() -> None:
    assert [phase for phase in Phase if Phase.COMPLETED in NEXT[phase]] == [Phase.SETTLING]


GOOD_NAMES = ["a", "7", "vol-7", "pvc-2b1f.x", "größe", "音量", "a+b@c:d=e", "x" * 128, "..a"[2:], "a..b"]
BAD_NAMES = [
    *("", ".", "..", ".hidden", "-rf", "--help", "_x", "a/b", "/etc/passwd", "../x", "a b", "a\tb", "a\n"),
    *("a\nb", "a\0b", "a'b", 'a"b', "a`b", "a$b", "a\\b", "a,b", "a;b", "a*b", "x" * 129, "x" * 300),
    *(
        "\ud800",
        "a\udcff",
        "gro\u0308ße",
        "a\u202eb",
        "a\u200bb",
        "\u0301a",
        "\u212bngström",
        "a\x1b[31m",
        "a\x7f",
    ),
]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_good_name_is_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[:20])
def test_a_bad_name_is_refused_in_one_printable_line(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_name(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


@given(st.text(max_size=140))
def test_a_name_that_is_taken_cannot_leave_its_directory(name: str) -> None:
    try:
        check_name(name)
    except InvalidInput:
        return
    assert name.isprintable()
    assert not re.search(r"[\s/\\'\"`$;&|<>*?!(){}\[\]~#]", name)
    assert name[0] not in ".-_"
    assert name.encode()


@pytest.mark.parametrize("volume_id", ["a", "0", "550e8400-e29b-41d4-a716-446655440000", "x_y", "a" * 64])
def test_a_good_id_is_taken(volume_id: str) -> None:
    check_id(volume_id)


@pytest.mark.parametrize(
    "volume_id", ["", "-a", "_a", "a.b", "..", "a/b", "é", "a\n", "a" * 65, "a b", "a\0"]
)
def test_a_bad_id_is_refused(volume_id: str) -> None:
    with pytest.raises(InvalidInput):
        check_id(volume_id)


def test_secrets_of_a_connection_never_show() -> None:
    info = ConnectionInfo("iscsi", {"auth_password": "s3cret"})
    attachment = Attachment("a", "v", "h", connection_info=info)
    assert "s3cret" not in repr(info) + repr(Volume("v", "v", "b", 1, attachments=(attachment,)))


def test_a_connection_goes_to_another_process() -> None:
    info = ConnectionInfo("iscsi", {"auth_password": "s3cret"})
    copied = pickle.loads(pickle.dumps(info))
    assert (copied, copied.properties) == (info, info.properties)


def test_connection_properties_cannot_be_changed_from_outside() -> None:
    given_properties = {"path": "x"}
    info = ConnectionInfo("file", given_properties)
    given_properties["path"] = "y"
    assert info.properties["path"] == "x"
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.driver_volume_type = "nbd"  # type: ignore[misc]  # that is what is tested


@pytest.mark.parametrize(
    ("instance", "state", "nobody"),
    [
        (None, InstanceState.UNKNOWN, True),
        ("i", InstanceState.STOPPED, True),
        ("i", InstanceState.UNKNOWN, False),
        ("i", InstanceState.RUNNING, False),
    ],
)
def test_only_a_proof_says_that_nobody_runs(instance: str | None, state: InstanceState, nobody: bool) -> None:
    stopped = Attachment("a", "v", "h", instance="other", instance_state=InstanceState.STOPPED)
    asked = Attachment("b", "v", "h", instance=instance, instance_state=state)
    assert Volume("v", "v", "b", 1, attachments=(stopped, asked)).nobody_runs is nobody


@given(st.none() | st.integers(0, 10), st.integers(0, 10), st.booleans())
def test_a_row_is_stale_when_it_must_agree_and_does_not(
    seen: int | None, expected: int, required: bool
) -> None:
    row = LedgerRow("QEMU node", "h/i", seen, expected, required)
    assert row.agrees == (seen == expected)
    assert row.stale == (required and seen != expected)


def test_an_extend_expires_at_its_moment() -> None:
    now = utc_now()
    extend = Extend(1, "v", 1, 2, 2, Phase.GROWING, expires_at=now)
    assert extend.expired(now)
    assert not extend.expired(now - timedelta(microseconds=1))


def test_a_capability_that_does_not_exist_is_an_error() -> None:
    capabilities = Capabilities(in_use_extend=InUseExtend.BY_BACKEND)
    assert capabilities.declares("in_use_extend")
    assert not capabilities.declares("multi_attach")
    with pytest.raises(ValueError, match="there is no capability 'in-use-extend'"):
        capabilities.declares("in-use-extend")
    with pytest.raises(ValueError, match="not declared: 'multi_attach'"):
        Capabilities(conditions=(Condition(capability="multi_attach", unless="it rains"),))
