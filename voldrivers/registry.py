"""The configuration: one TOML file that names backends and hosts, and the classes behind the names.

Drivers and hosts are found through the entry-point groups `voldrivers.drivers` and
`voldrivers.hosts`, so a vendor's package is used by being installed. Whatever the file says that
nobody knows is an error, never ignored.
"""

import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from voldrivers.base import Driver, Host, Run
from voldrivers.errors import InvalidInput, NotSupported, VolDriverError
from voldrivers.options import OptionHelp, explain, option, read_options

FILE_NAME = "voldrivers.toml"
VARIABLE = "VOLDRIVERS_CONFIG"

_DRIVERS, _HOSTS = "voldrivers.drivers", "voldrivers.hosts"
_TABLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EXTRA = re.compile(r"(?P<name>[A-Za-z0-9._-]+).*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"]")

Options = TypeVar("Options")


@dataclass(frozen=True)
class Policy:
    """The table `[policy]`: what the operator allows."""

    extend_attached: bool = option("whether a volume may be extended while it is attached", True)
    deadline_s: float = option("seconds that an extend may take; requests to hosts expire then", 300.0)


@dataclass(frozen=True)
class TopLevel:
    """The keys that stand in no table."""

    state_dir: Path = option("directory of voldrivers' own records, on a local disk")


@dataclass(frozen=True)
class BackendEntry:
    """One table `[backend.NAME]`; `options` is an instance of the driver's `options_type`."""

    name: str
    driver: str
    options: object


@dataclass(frozen=True)
class HostEntry:
    """One table `[host.NAME]`; `options` is an instance of the host's `options_type`."""

    name: str
    kind: str
    options: object


@dataclass(frozen=True)
class Config:
    """A file that was read and found right."""

    path: Path
    state_dir: Path
    policy: Policy
    backends: Mapping[str, BackendEntry]
    hosts: Mapping[str, HostEntry]


@dataclass(frozen=True)
class Setting:
    """One key of the file, explained, with its value as text; None where it is missing."""

    table: str
    help: OptionHelp
    value: str | None
    given: bool


@dataclass(frozen=True)
class Checked:
    """Everything that is known about a file.

    `config` is None when the file is wrong. A driver that cannot be loaded is a problem (NotSupported)
    of its own backend only: the others can be used, and `make_driver` says what is missing.
    """

    path: Path
    settings: tuple[Setting, ...]
    problems: tuple[VolDriverError, ...]
    config: Config | None


def find_config(explicit: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Choose the file: the explicit one, that in VOLDRIVERS_CONFIG, or the first that exists.

    The places are those of the XDG Base Directory Specification, then /etc/voldrivers. Raises
    InvalidInput, with the places looked at, when there is none.
    """
    if explicit is not None:
        return explicit
    if environ.get(VARIABLE):
        return Path(environ[VARIABLE])
    places = list(_places(environ))
    for place in places:
        if os.path.isfile(place):  # Path.is_file raises where the directory is not readable
            return place
    looked = ", ".join(map(str, places))
    raise InvalidInput("configuration", f"there is no --config, no {VARIABLE} and no file at {looked}")


def load(path: Path) -> Config:
    """Read the file. Raises InvalidInput, the first of its mistakes, with table and key."""
    checked = check(path)
    if checked.config is None:
        raise next(problem for problem in checked.problems if isinstance(problem, InvalidInput))
    return checked.config


def check(path: Path) -> Checked:
    """Read the file and explain it key by key, with everything that is wrong.

    Raises InvalidInput when it cannot be read at all: missing, not UTF-8, no TOML (with the line).
    """
    path = path.absolute()
    reading = _Reading(path, _document(path))
    config = reading.config()
    wrong = any(isinstance(problem, InvalidInput) for problem in reading.problems)
    return Checked(path, tuple(reading.settings), tuple(reading.problems), None if wrong else config)


def make_driver(entry: BackendEntry, run: Run) -> Driver:
    """Make the driver of a backend. Raises InvalidInput, NotSupported as `driver_class`."""
    return driver_class(entry.driver)(entry.name, entry.options, run)


def make_host(entry: HostEntry, run: Run) -> Host:
    """Make a host. Raises InvalidInput for an unknown kind, NotSupported for one that cannot be loaded."""
    return host_class(entry.kind)(entry.name, entry.options, run)


def driver_names() -> tuple[str, ...]:
    """List the installed drivers."""
    return tuple(sorted(_entry_points(_DRIVERS)))


def driver_class(name: str) -> type[Driver]:
    """Find an installed driver. Raises InvalidInput for an unknown one, NotSupported for a broken one."""
    found: type[Driver] = _load(_DRIVERS, name, Driver)
    return found


def host_class(name: str) -> type[Host]:
    """Find an installed kind of host. Raises as `driver_class`."""
    found: type[Host] = _load(_HOSTS, name, Host)
    return found


def read_value(text: str) -> object:
    """Read the value of an option from a command line: true, false, a number, and else the text itself."""
    try:
        values = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = values["value"] if len(values) == 1 else text
    return value if isinstance(value, bool | int | float | str) else text


def missing_library(error: ModuleNotFoundError, distribution: str = "voldrivers") -> NotSupported:
    """Say which extra brings the library that `error` misses, as the distribution declares it."""
    module = str(error.name).split(".")[0]
    if _plain(module) == _plain(distribution):
        return NotSupported(f"module {error.name}", f"this installation of {distribution} lacks it")
    for requirement in metadata.requires(distribution) or ():
        match = _EXTRA.match(requirement)
        if match and f"{_plain(match['name'])}_".startswith(f"{_plain(module)}_"):
            package = f"{distribution}[{match['extra']}]"
            return NotSupported(f"library {module}", f"it is not installed; run: pip install '{package}'")
    return NotSupported(f"library {module}", f"it is not installed, and no extra of {distribution} brings it")


@dataclass
class _Reading:
    """One pass over a document that goes on after a mistake, so that all are told at once."""

    path: Path
    document: Mapping[str, object]
    settings: list[Setting] = field(default_factory=list)
    problems: list[VolDriverError] = field(default_factory=list)

    def config(self) -> Config | None:
        """Read every table; None when a key without which there is no configuration is wrong."""
        known = ("state_dir", "policy", "backend", "host")
        for key in (key for key in self.document if key not in known):
            shown = "state_dir, [policy], [backend.NAME], [host.NAME]"
            self._wrong(key, f"there is no such key or table; known: {shown}")
        top = self._options("", TopLevel, {k: v for k, v in self.document.items() if k == "state_dir"})
        policy = self._options("policy", Policy, self._table("policy", self.document.get("policy", {})))
        if policy and policy.deadline_s <= 0:
            self._wrong("[policy] deadline_s", f"must be above zero, not {policy.deadline_s}")
        backends, hosts = self._backends(), self._hosts()
        if top is None or policy is None:
            return None
        state_dir = self.path.parent / top.state_dir
        return Config(self.path, state_dir, policy, MappingProxyType(backends), MappingProxyType(hosts))

    def _backends(self) -> dict[str, BackendEntry]:
        entries = {}
        for name, table in self._named("backend").items():
            driver, options = self._plugin(f"backend.{name}", "driver", _DRIVERS, table)
            entries[name] = BackendEntry(name, driver, options)
        if not entries:
            self._wrong("[backend.NAME]", f"one is needed, with a driver: {', '.join(driver_names())}")
        return entries

    def _hosts(self) -> dict[str, HostEntry]:
        entries = {}
        for name, table in (self._named("host") or {"local": {"kind": "local"}}).items():
            kind, options = self._plugin(f"host.{name}", "kind", _HOSTS, table)
            entries[name] = HostEntry(name, kind, options)
        return entries

    def _named(self, kind: str) -> dict[str, Mapping[str, object]]:
        """The tables below `[backend]` or `[host]`."""
        found = {}
        for name, table in self._table(kind, self.document.get(kind, {})).items():
            if _TABLE_NAME.fullmatch(name):
                found[name] = self._table(f"{kind}.{name}", table)
            else:
                self._wrong(f"[{kind}.{name!r}]", "a name must be letters, digits and . _ -, at most 64")
        return found

    def _plugin(
        self, table: str, key: str, group: str, given: Mapping[str, object]
    ) -> tuple[str, object | None]:
        """Read a table whose `key` names the class that knows the other keys."""
        name = given.get(key)
        names = " | ".join(sorted(_entry_points(group)))
        help_ = OptionHelp(key, names, f"which {key} this is", "required")
        self.settings.append(Setting(table, help_, None if name is None else str(name), name is not None))
        if not isinstance(name, str):
            self._wrong(f"[{table}] {key}", f"must be given, one of: {names}")
            return "", None
        try:
            kind = (driver_class if group == _DRIVERS else host_class)(name).options_type
        except InvalidInput as error:
            self._wrong(f"[{table}] {key}", error.reason)
        except NotSupported as error:
            self.problems.append(NotSupported(f"{self.path}: [{table}] {error.subject}", error.reason))
        else:
            return name, self._options(table, kind, {k: v for k, v in given.items() if k != key})
        return name, None

    def _options(self, table: str, kind: type[Options], given: Mapping[str, object]) -> Options | None:
        for help_ in explain(kind):
            default = None if help_.default == "required" else help_.default
            value = _shown(given[help_.name]) if help_.name in given else default
            self.settings.append(Setting(table, help_, value, help_.name in given))
        try:
            return read_options(kind, given, f"{self.path}: [{table}]" if table else f"{self.path}:")
        except InvalidInput as error:
            self.problems.append(error)
            return None

    def _table(self, name: str, value: object) -> Mapping[str, object]:
        if isinstance(value, dict):
            return value
        self._wrong(f"[{name}]", f"must be a table, not {value!r}")
        return {}

    def _wrong(self, where: str, reason: str) -> None:
        self.problems.append(InvalidInput(f"{self.path}: {where}", reason))


def _places(environ: Mapping[str, str]) -> Iterator[Path]:
    """The XDG specification has relative directories ignored."""
    home = environ.get("HOME", "")
    directories = [environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")]
    directories += (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    yield from (Path(each) / "voldrivers" / FILE_NAME for each in directories if each.startswith("/"))
    yield Path("/etc/voldrivers") / FILE_NAME


def _document(path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise InvalidInput(f"configuration {path}", f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"configuration {path}", f"is not UTF-8 at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"configuration {path}", f"is not TOML: {error}") from error


def _entry_points(group: str) -> Mapping[str, tuple[metadata.EntryPoint, ...]]:
    return _scanned(group, tuple(sys.path))


@cache  # a scan takes 2 ms, and every table asks for one
def _scanned(group: str, _path: tuple[str, ...]) -> Mapping[str, tuple[metadata.EntryPoint, ...]]:
    found: dict[str, tuple[metadata.EntryPoint, ...]] = {}
    for point in metadata.entry_points(group=group):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def _load(group: str, name: str, base: type) -> Any:  # Any: a concrete subclass of base, proved below
    subject = f"{base.__name__.lower()} {name}"
    points = _entry_points(group).get(name, ())
    if not points:
        names = ", ".join(sorted(_entry_points(group))) or "none"
        raise InvalidInput(subject, f"{name!r} is not installed; installed: {names}")
    if len(points) > 1:
        packages = " and ".join(_package(point) for point in points)
        raise InvalidInput(subject, f"{name!r} is offered by {packages}; uninstall one")
    try:
        loaded = points[0].load()
    except ModuleNotFoundError as error:
        raise NotSupported(subject, str(missing_library(error, _package(points[0])))) from error
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise NotSupported(subject, f"cannot be loaded from {points[0].value}: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise NotSupported(subject, f"{points[0].value} is no {base.__name__}")
    if lacking := sorted(getattr(loaded, "__abstractmethods__", ())):
        raise NotSupported(subject, f"{points[0].value} lacks {', '.join(lacking)}")
    return loaded


def _package(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "voldrivers"


def _plain(name: str) -> str:
    """One spelling for a distribution and its module: `os-brick`, `os_brick`."""
    return re.sub(r"[-_.]+", "_", name).lower()


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
