"""Options as typed, explained fields: what a TOML table, a driver and `config check` share.

A driver describes its options as a frozen dataclass whose fields are made by `option`. Reading a
table checks names, types and ranges; a name that does not exist is an error, never ignored.
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from voldrivers.errors import InvalidInput
from voldrivers.sizes import format_size, parse_size

Options = TypeVar("Options")

#: As mount(8), scp(1) and rsync(1) tell another machine's directory from one of ours.
_REMOTE = re.compile(r"[^/]*:")


class SizeBytes(int):
    """A size option: TOML holds `"20G"` or a number of bytes, the driver gets bytes."""


@dataclass(frozen=True)
class NoOptions:
    """For a driver that takes no options."""


@dataclass(frozen=True)
class OptionHelp:
    """One option as `config check` explains it."""

    name: str
    kind: str
    meaning: str
    default: str


@dataclass(frozen=True)
class Checked(Generic[Options]):
    """What a table holds: the options, or everything that is wrong with it."""

    options: Options | None
    problems: tuple[InvalidInput, ...]


def option(
    meaning: str,
    default: Any = MISSING,  # Any: as dataclasses.field
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    or_remote: bool = False,
    secret: bool = False,
) -> Any:  # Any: as dataclasses.field
    """Make one option; without a default it must be given. `meaning` is shown to operators.

    A number lies between `minimum` and `maximum`, both included. A path is relative to the directory that
    its reader names, for a configuration the one of its file; a text with `or_remote` is such a path
    too, unless a colon stands before its first slash (`server:/export`). A `secret` is shown by no repr, no
    explanation and no error.
    """
    metadata = {"meaning": meaning, "choices": choices, "or_remote": or_remote}
    metadata |= {"minimum": minimum, "maximum": maximum, "secret": secret}
    return field(default=default, repr=not secret, metadata=metadata)


def read_options(
    kind: type[Options], table: Mapping[str, object], where: str, directory: Path | None = None
) -> Options:
    """Turn a table into `kind`. Raises InvalidInput, the first problem of `check_options`."""
    checked = check_options(kind, table, where, directory)
    if checked.options is None:
        raise checked.problems[0]
    return checked.options


def check_options(
    kind: type[Options], table: Mapping[str, object], where: str, directory: Path | None = None
) -> Checked[Options]:
    """Turn a table into `kind`, or say all that is wrong: each problem names `where` and the key.

    Relative paths start at `directory`. A ValueError of `kind` itself (a `__post_init__` that compares
    options) is a problem of the whole table.
    """
    known = {f.name: f for f in _fields(kind)}
    values: dict[str, object] = {}
    problems: list[InvalidInput] = []
    for key, value in table.items():
        try:
            values[key] = _read(kind, known, key, value, directory)
        except ValueError as error:
            problems.append(InvalidInput(f"{where} {key}", _told(kind, known.get(key), error)))
    # Last: one that is missing may be there under a name that was mistyped.
    problems += [
        InvalidInput(f"{where} {name}", f"must be given: {missing.metadata['meaning']}")
        for name, missing in known.items()
        if name not in table and missing.default is MISSING
    ]
    try:
        return Checked(None if problems else kind(**values), tuple(problems))
    except ValueError as error:
        return Checked(None, (InvalidInput(where, str(error)),))


def explain(kind: type) -> list[OptionHelp]:
    """List the options of `kind` with meaning, type and default, in the order of their definition."""
    hints = get_type_hints(kind)
    return [
        OptionHelp(
            f.name,
            " | ".join(f.metadata["choices"]) or f"{_kind_name(hints[f.name])}{_range(f.metadata)}",
            f.metadata["meaning"],
            _default(f),
        )
        for f in _fields(kind)
    ]


def written(value: object) -> str:
    """Show a value of a table; 0x... may be an integer that Python does not print (4300 digits)."""
    try:
        return str(value).lower() if isinstance(value, bool) else str(value)
    except ValueError:
        return "a number of thousands of digits"


def _fields(kind: type) -> tuple[Field[Any], ...]:  # Any: a field's own type differs from field to field
    return fields(kind)


def _read(
    kind: type,
    known: Mapping[str, Field[Any]],  # Any: as in _fields
    key: str,
    value: object,
    directory: Path | None,
) -> object:
    """Give the value of one key. Raises ValueError with what it must be."""
    if key not in known:
        raise ValueError(f"there is no such option; known: {', '.join(known) or 'none'}")
    limits = known[key].metadata
    converted = _convert(get_type_hints(kind)[key], value)
    if limits["choices"] and converted not in limits["choices"]:
        raise ValueError(f"must be one of {', '.join(limits['choices'])}, not {_quoted(value)}")
    if isinstance(converted, int | float) and not _within(limits, converted):
        raise ValueError(f"must be {_range(limits).lstrip(', ')}, not {_quoted(value)}")
    if directory is not None and isinstance(converted, Path):
        return directory / converted
    if limits["or_remote"] and (not converted or "\0" in str(converted)):
        raise ValueError(f"must be a path, not {_quoted(value)}")
    if directory is not None and limits["or_remote"] and not _REMOTE.match(str(converted)):
        return str(directory / str(converted))
    return converted


def _told(kind: type, known: Field[Any] | None, error: ValueError) -> str:  # Any: as in _fields
    """Say what is wrong with a value; of a secret only what it must be."""
    if known is None or not known.metadata["secret"]:
        return str(error)
    return f"must be {_kind_name(get_type_hints(kind)[known.name])}{_range(known.metadata)}; it is not shown"


def _within(limits: Mapping[str, Any], value: float) -> bool:  # Any: metadata of a field
    minimum, maximum = limits["minimum"], limits["maximum"]
    return (minimum is None or value >= minimum) and (maximum is None or value <= maximum)


def _range(limits: Mapping[str, Any]) -> str:  # Any: metadata of a field
    minimum, maximum = limits["minimum"], limits["maximum"]
    if minimum is not None and maximum is not None:
        return f", {minimum} to {maximum}"
    if minimum is not None:
        return f", {minimum} or more"
    return "" if maximum is None else f", {maximum} or less"


def _convert(kind: Any, value: object) -> object:  # Any: a type hint has no type of its own
    if isinstance(kind, UnionType):
        kind = next(member for member in get_args(kind) if member is not type(None))
    if kind is SizeBytes and isinstance(value, str):
        return SizeBytes(parse_size(value))
    if kind is SizeBytes and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return SizeBytes(value)
    if kind is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    if kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63:  # no NaN
            return float(value)
    elif type(value) is kind:
        return value
    raise ValueError(f"must be {_kind_name(kind)}, not {_quoted(value)}")


def _quoted(value: object) -> str:
    return repr(value) if isinstance(value, str) else written(value)


def _kind_name(kind: Any) -> str:  # Any: a type hint has no type of its own
    if isinstance(kind, UnionType):
        kind = next(member for member in get_args(kind) if member is not type(None))
    names = {str: "text", bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}
    return names.get(kind, "a size such as 20G")


def _default(option: Field[Any]) -> str:  # Any: as in _fields
    if option.default is MISSING:
        return "required"
    return "not shown" if option.metadata["secret"] else _shown(option.default)


def _shown(default: object) -> str:
    if default is None:
        return "none"
    return format_size(default) if isinstance(default, SizeBytes) else written(default)
