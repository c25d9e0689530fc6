"""Options as typed, explained fields: what a TOML table, a driver and `config check` share.

A driver describes its options as a frozen dataclass whose fields are made by `option`. Reading a
table checks names and types; a name that does not exist is an error, never ignored.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from voldrivers.errors import InvalidInput
from voldrivers.sizes import format_size, parse_size

Options = TypeVar("Options")


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


def option(
    meaning: str,
    default: Any = MISSING,  # Any: as dataclasses.field
    *,
    choices: tuple[str, ...] = (),
) -> Any:  # Any: as dataclasses.field
    """Make one option; without a default it must be given. `meaning` is shown to operators."""
    metadata = {"meaning": meaning, "choices": choices}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def read_options(kind: type[Options], table: Mapping[str, object], where: str) -> Options:
    """Turn a table into `kind`. Raises InvalidInput naming `where`, the key and what it must be."""
    known = {f.name: f for f in _fields(kind)}
    for key in table:
        if key not in known:
            names = ", ".join(known) or "none"
            raise InvalidInput(f"{where} {key}", f"there is no such option; known: {names}")
    for name, known_field in known.items():
        if name not in table and known_field.default is MISSING:
            raise InvalidInput(f"{where} {name}", f"must be given: {known_field.metadata['meaning']}")
    hints = get_type_hints(kind)
    values = {key: _convert(hints[key], value, f"{where} {key}") for key, value in table.items()}
    for name, value in values.items():
        choices = known[name].metadata["choices"]
        if choices and value not in choices:
            raise InvalidInput(f"{where} {name}", f"must be one of {', '.join(choices)}, not {value!r}")
    return kind(**values)


def explain(kind: type) -> list[OptionHelp]:
    """List the options of `kind` with meaning, type and default, in the order of their definition."""
    hints = get_type_hints(kind)
    return [
        OptionHelp(
            f.name,
            " | ".join(f.metadata["choices"]) or _kind_name(hints[f.name]),
            f.metadata["meaning"],
            "required" if f.default is MISSING else _shown(f.default),
        )
        for f in _fields(kind)
    ]


def _fields(kind: type) -> tuple[Field[Any], ...]:  # Any: a field's own type differs from field to field
    return fields(kind)


def _convert(kind: Any, value: object, where: str) -> object:  # Any: a type hint has no type of its own
    if isinstance(kind, UnionType):
        kind = next(member for member in get_args(kind) if member is not type(None))
    if kind is SizeBytes and isinstance(value, str):
        try:
            return SizeBytes(parse_size(value))
        except ValueError as error:
            raise InvalidInput(where, str(error)) from error
    if kind is SizeBytes and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return SizeBytes(value)
    if kind is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    if kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63:  # no NaN
            return float(value)
    elif type(value) is kind:
        return value
    raise InvalidInput(where, f"must be {_kind_name(kind)}, not {value!r}")


def _kind_name(kind: Any) -> str:  # Any: a type hint has no type of its own
    if isinstance(kind, UnionType):
        kind = next(member for member in get_args(kind) if member is not type(None))
    names = {str: "text", bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}
    return names.get(kind, "a size such as 20G")


def _shown(default: object) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return format_size(default) if isinstance(default, SizeBytes) else str(default)
