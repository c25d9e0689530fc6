"""The file of a run: the driver's options, what may be destroyed, and where devices are looked at.

    [driver]        # as in a table [backend.NAME]
    volume_group = "scratch-vg"
    [scratch]
    pool = "scratch-vg"
    max_bytes = "20GiB"
    [[host]]        # one or more; some checks need two
    name = "local"

"env:NAME" is what the environment has under that name, wherever it stands.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from voldrivers.errors import InvalidInput
from voldrivers.options import SizeBytes, option, read_options
from voldrivers.registry import read_document
from voldrivers.sizes import GiB

_FROM_ENVIRONMENT = "env:"
_KEYS = ("driver", "volume", "scratch", "oracle", "limits", "host", "report", "outage")

Options = TypeVar("Options")


@dataclass(frozen=True)
class Scratch:
    """The table `[scratch]`."""

    pool: str = option("the pool in which everything may be destroyed, as its backend calls it")
    max_bytes: SizeBytes = option("what the volumes of one check may take together", SizeBytes(20 * GiB))


@dataclass(frozen=True)
class OracleTable:
    """The table `[oracle]`, for a driver whose package offers none."""

    use: str = option("module:Class; it is given the driver's options")


@dataclass(frozen=True)
class ReportTable:
    """The table `[report]`."""

    mode: str = option("how the driver is set up, as far as proof depends on it: thin, over iSCSI", "")


@dataclass(frozen=True)
class Limits:
    """The table `[limits]`."""

    extend_s: float = option("seconds that an extend may take", 60.0, minimum=0.1, maximum=3600)
    sweep_s: float = option(
        "seconds for which one operation is disturbed at one boundary after the other", 120.0, minimum=1
    )
    check_s: float = option("seconds that a check may take", 1800.0, minimum=1, maximum=24 * 3600)


@dataclass(frozen=True)
class OutageTable:
    """The table `[outage]`: commands that have the backend be out of reach, as one that is started anew."""

    begin: str = option("command that takes the backend away; no shell reads it, so name one if you need it")
    end: str = option("command that brings it back, and ends when the backend can be used")
    limit_s: float = option("seconds that each may take", 60.0, minimum=1, maximum=3600)

    def __post_init__(self) -> None:
        """Refuse what is no command."""
        for name, text in (("begin", self.begin), ("end", self.end)):
            try:
                words = shlex.split(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if not words:
                raise ValueError(f"{name} must be a command")


@dataclass(frozen=True)
class RunConfig:
    """What the file says. The tables of the driver, its volumes and the hosts are read by who knows them."""

    path: Path
    driver: Mapping[str, object]
    scratch: Scratch
    hosts: Sequence[Mapping[str, object]]
    volume: Mapping[str, object] = field(default_factory=dict)
    oracle: str | None = None
    limits: Limits = field(default_factory=Limits)
    mode: str = ""
    outage: OutageTable | None = None

    def read(self, kind: type[Options], table: Mapping[str, object], name: str) -> Options:
        """Read one of those tables. Raises InvalidInput."""
        return read_options(kind, table, f"{self.path}: {name}", self.path.parent)


def read_config(path: Path, environ: Mapping[str, str] = os.environ) -> RunConfig:
    """Read the file. Raises InvalidInput, the first of its mistakes, with table and key."""
    path = path.absolute()
    document = read_document(path, "file")
    for name in document:
        if name not in _KEYS:
            raise InvalidInput(f"{path}: {name}", f"there is no such table; known: {', '.join(_KEYS)}")
    where, directory = f"{path}: [%s]", path.parent
    document = _revealed(path, "", document, environ)
    oracle, outage = _table(path, document, "oracle"), _table(path, document, "outage")
    return RunConfig(
        path,
        _table(path, document, "driver"),
        read_options(Scratch, _table(path, document, "scratch"), where % "scratch", directory),
        _hosts(path, document.get("host", [{"name": "local"}])),
        _table(path, document, "volume"),
        read_options(OracleTable, oracle, where % "oracle", directory).use if oracle else None,
        read_options(Limits, _table(path, document, "limits"), where % "limits", directory),
        read_options(ReportTable, _table(path, document, "report"), where % "report", directory).mode,
        read_options(OutageTable, outage, where % "outage", directory) if outage else None,
    )


def _table(path: Path, document: Mapping[str, object], name: str) -> Mapping[str, object]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise InvalidInput(f"{path}: [{name}]", "must be a table")
    return table


def _hosts(path: Path, given: object) -> Sequence[Mapping[str, object]]:
    if not isinstance(given, list) or not given or not all(isinstance(each, dict) for each in given):
        raise InvalidInput(f"{path}: host", "must be one or more tables [[host]]")
    return given


def _revealed(path: Path, key: str, value: Any, environ: Mapping[str, str]) -> Any:  # Any: what TOML holds
    """Take values from the environment that stand in no file. Raises InvalidInput for one that is missing."""
    if isinstance(value, dict):
        return {name: _revealed(path, f"{key} {name}", each, environ) for name, each in value.items()}
    if isinstance(value, list):
        return [_revealed(path, key, each, environ) for each in value]
    if not isinstance(value, str) or not value.startswith(_FROM_ENVIRONMENT):
        return value
    variable = value.removeprefix(_FROM_ENVIRONMENT)
    if variable not in environ:
        raise InvalidInput(f"{path}:{key}", f"the environment has no variable {variable}")
    return environ[variable]
