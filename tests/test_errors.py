"""The errors: sentences for people, causes kept, equal only to themselves."""

import copy
import json
import pickle
from dataclasses import dataclass, fields
from typing import Any

import pytest

from voldrivers.errors import (
    BackendError,
    CommandFailed,
    HostUnreachable,
    InvalidInput,
    InvalidSize,
    InvalidState,
    NoSpace,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
    from_document,
    leaves,
    to_document,
)
from voldrivers.sizes import GiB

SENTENCES: list[tuple[VolDriverError, str]] = [
    (InvalidInput("option share", "must be a path"), "option share: must be a path"),
    (
        InvalidSize("volume v", "it cannot become smaller", "1 GiB", 2 * GiB),
        "volume v: cannot be 1 GiB, it is 2 GiB: it cannot become smaller",
    ),
    (InvalidSize("volume v", "no size", "abc"), "volume v: cannot be abc: no size"),
    (NotFound("volume", "v"), "volume v does not exist"),
    (NotFound("volume", "v", " on share s"), "volume v does not exist on share s"),
    (
        HostUnreachable("host h at http://a:1", "unreachable", "up", host="h"),
        "host h at http://a:1 is unreachable, must be up",
    ),
    (
        InvalidState("volume v", "extending", "available or in-use"),
        "volume v is extending, must be available or in-use",
    ),
    (NotSupported("backend b", "no in-use extend"), "backend b: no in-use extend"),
    (NoSpace("pool p", 2 * GiB, 512), "pool p: no space, 2 GiB needed and 512 B free"),
    (NoSpace("pool p", 2 * GiB), "pool p: no space, 2 GiB needed and an unknown amount free"),
    (BackendError("file f", "cannot be read"), "file f: cannot be read"),
    (
        CommandFailed("lvs", "no such VG", argv=("lvs", "vg"), exit_code=5),
        "lvs ended with exit code 5: no such VG",
    ),
    (OutcomeUnknown("qemu-img", "no answer"), "the outcome of qemu-img is unknown: no answer"),
]


@pytest.mark.parametrize(("error", "sentence"), SENTENCES, ids=lambda value: type(value).__name__)
def test_an_error_says_what_happened(error: VolDriverError, sentence: str) -> None:
    assert str(error) == sentence


def test_every_leaf_has_a_sentence_here() -> None:
    ours = {leaf for leaf in leaves() if leaf.__module__ == "voldrivers.errors"}
    assert ours == {type(error) for error, _ in SENTENCES}


@pytest.mark.parametrize("fact", ["{0}", "{subject}", "{", "}}", "{reason.__class__}", "%s"])
def test_a_fact_is_never_taken_for_a_format(fact: str) -> None:
    assert str(InvalidInput(fact, fact)) == f"{fact}: {fact}"
    assert fact in str(InvalidSize("v", fact, fact))


@pytest.mark.parametrize("error", [error for error, _ in SENTENCES], ids=lambda error: type(error).__name__)
def test_an_error_survives_a_copy_and_a_process_border(error: VolDriverError) -> None:
    assert str(copy.copy(error)) == str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("error", [error for error, _ in SENTENCES], ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_after_a_way_as_json(error: VolDriverError) -> None:
    error = copy.copy(error)
    error.add_note("look there")
    read = from_document(json.loads(json.dumps(to_document(error))))
    assert type(read) is type(error)
    assert [getattr(read, f.name) for f in fields(read)] == [getattr(error, f.name) for f in fields(error)]
    assert (str(read), read.__notes__) == (str(error), ["look there"])


def test_an_error_of_a_vendor_arrives_as_the_class_that_is_known_everywhere() -> None:
    @dataclass(eq=False)
    class NoSpace(BackendError):  # of the same name as one of ours, and another kind
        shelf: int = 0

    read = from_document(to_document(NoSpace("array a", "full", shelf=5)))
    assert (type(read), str(read)) == (BackendError, "array a: full")
    ours = from_document(to_document(globals()["NoSpace"]("pool p", 512)))
    assert type(ours) is globals()["NoSpace"]


def test_an_unknown_error_is_a_failure() -> None:
    facts = {"subject": "host h", "reason": "haunted"}
    read = from_document({"type": "Haunted", "fields": facts, "notes": []})
    assert (type(read), str(read)) == (BackendError, "host h: haunted")


@pytest.mark.parametrize(
    "document",
    [
        "text",
        None,
        [],
        {},
        {"type": "NotFound"},
        {"type": [], "fields": {}, "notes": []},
        {"type": "NotFound", "fields": [], "notes": []},
        {"type": "NotFound", "fields": {"kind": "v"}, "notes": []},
        {"type": "NotFound", "fields": {"kind": "v", "name": "n", "more": 1}, "notes": []},
        {"type": "NotFound", "fields": {"kind": "v", "name": "n"}, "notes": [1]},
        {"type": "NoSpace", "fields": {"subject": "v", "needed_bytes": "many"}, "notes": []},
        {"type": "VolDriverError", "fields": {}, "notes": []},
    ],
)
def test_what_is_no_error_is_noticed(document: Any) -> None:  # Any: that is the test
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        from_document(document)


def test_two_errors_are_never_the_same() -> None:
    assert NotFound("volume", "v") != NotFound("volume", "v")
    assert len({NotFound("volume", "v"), NotFound("volume", "v")}) == 2


def test_a_caller_may_catch_the_wider_class() -> None:
    assert issubclass(InvalidSize, InvalidInput)
    assert issubclass(CommandFailed, BackendError)
