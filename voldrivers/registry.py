"""The configuration: one TOML file that names backends and hosts, with their options.

Whatever the file says that nobody knows is an error, never ignored.
"""

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from voldrivers.base import Driver, Host, Run
from voldrivers.config import (
    AgentConfig,
    AgentOptions,
    BackendEntry,
    CallerOptions,
    Config,
    HostEntry,
    Policy,
    ServiceOptions,
    TopLevel,
    VolumeServiceOptions,
)
from voldrivers.errors import InvalidInput, NotSupported, VolDriverError
from voldrivers.options import OptionHelp, check_options, explain, written
from voldrivers.plugins import driver_class, driver_names, host_class, host_names, missing_library

FILE_NAME = "voldrivers.toml"
VARIABLE = "VOLDRIVERS_CONFIG"

_TABLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Options = TypeVar("Options")
Entry = TypeVar("Entry", "BackendEntry", "HostEntry")


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
    of its own backend only: the others can be used, and `make_driver` says what is missing. `state_dir`
    is there whatever else is wrong.
    """

    path: Path
    state_dir: Path | None
    settings: tuple[Setting, ...]
    problems: tuple[VolDriverError, ...]
    config: Config | AgentConfig | None


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
    config = _load(path)
    if isinstance(config, AgentConfig):
        raise InvalidInput(
            f"{config.path}: [agent]", "this is the configuration of an agent, without backends"
        )
    return config


def load_agent(path: Path) -> AgentConfig:
    """Read the file of an agent. Raises InvalidInput as `load`."""
    if "agent" not in read_document(path):
        raise InvalidInput(f"{path.absolute()}: [agent]", "must be there, with listen and token_file")
    config = _load(path)
    if isinstance(config, Config):
        raise InvalidInput(f"{config.path}: [agent]", "was there, and is gone while it is read")
    return config


def check(path: Path) -> Checked:
    """Read the file and explain it key by key, with everything that is wrong.

    Every driver and host is made, so that what they refuse is told as well; making one opens nothing.
    Raises InvalidInput when the file cannot be read at all: missing, not UTF-8, no TOML (with the line).
    """
    return _check(path, makes=True)


def make_driver(entry: BackendEntry, run: Run) -> Driver:
    """Make the driver of a backend. Raises InvalidInput, NotSupported as `driver_class`."""
    return driver_class(entry.driver)(entry.name, entry.options, run)


def make_host(entry: HostEntry, run: Run) -> Host:
    """Make a host. Raises InvalidInput for an unknown kind, NotSupported for one that cannot be loaded."""
    return host_class(entry.kind)(entry.name, entry.options, run)


def read_value(text: str) -> object:
    """Read the value of an option from a command line: true, false, a number, and else the text itself."""
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = values["value"] if len(values) == 1 else text
    return value if isinstance(value, bool | int | float | str) else text


def read_document(path: Path, title: str = "configuration") -> Mapping[str, object]:
    """Read a TOML file. Raises InvalidInput, with the `title` of such files, the path and the line."""
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise InvalidInput(f"{title} {path}", f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{title} {path}", f"is not UTF-8 at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{title} {path}", f"is not TOML: {error}") from error
    except (ValueError, RecursionError) as error:  # of tomllib: 4300 digits, a thousand brackets
        raise InvalidInput(f"{title} {path}", f"cannot be read: {error}") from error


def _load(path: Path) -> Config | AgentConfig:
    checked = _check(path, makes=False)
    if checked.config is None:
        raise next(problem for problem in checked.problems if isinstance(problem, InvalidInput))
    return checked.config


def _check(path: Path, *, makes: bool) -> Checked:
    path = path.absolute()
    reading = _Reading(path, read_document(path), makes)
    config = reading.agent_config() if "agent" in reading.document else reading.config()
    wrong = any(isinstance(problem, InvalidInput) for problem in reading.problems)
    settings, problems = tuple(reading.settings), tuple(reading.problems)
    return Checked(path, reading.state_dir, settings, problems, None if wrong else config)


@dataclass
class _Reading:
    """One pass over a document that goes on after a mistake, so that all are told at once."""

    path: Path
    document: Mapping[str, object]
    makes: bool
    state_dir: Path | None = None
    settings: list[Setting] = field(default_factory=list)
    problems: list[VolDriverError] = field(default_factory=list)

    def config(self) -> Config | None:
        """Read every table; None when a key without which there is no configuration is wrong."""
        self._check_keys(
            "state_dir", "[policy]", "[backend.NAME]", "[host.NAME]", "[service]", "[caller.NAME]"
        )
        top = self._options("", TopLevel, {k: v for k, v in self.document.items() if k == "state_dir"})
        policy = self._options("policy", Policy, self._table("policy", self.document.get("policy", {})))
        backends, hosts = self._backends(), self._hosts()
        service, callers = self._service(), self._callers()
        self.state_dir = None if top is None else top.state_dir
        if top is None or policy is None:
            return None
        return Config(
            self.path,
            top.state_dir,
            policy,
            MappingProxyType(backends),
            MappingProxyType(hosts),
            service,
            MappingProxyType(callers),
        )

    def _service(self) -> ServiceOptions | None:
        if "service" not in self.document:
            return None
        return self._options("service", ServiceOptions, self._table("service", self.document["service"]))

    def _callers(self) -> dict[str, CallerOptions]:
        read = {
            name: self._options(f"caller.{name}", CallerOptions, table)
            for name, table in self._named("caller").items()
        }
        return {name: options for name, options in read.items() if options is not None}

    def agent_config(self) -> AgentConfig | None:
        """Read the tables of an agent."""
        self._check_keys("[agent]", "[host.NAME]", "[volume_service]")
        agent = self._options("agent", AgentOptions, self._table("agent", self.document["agent"]))
        hosts = list(self._hosts().values())
        if len(hosts) != 1 or "host" not in self.document:
            self._wrong("[host.NAME]", "exactly one is needed, with the name that the controller knows it by")
        if agent is not None and hosts:
            self._check_conformance(agent, hosts[0])
        given = self.document.get("volume_service")
        service = (
            None
            if given is None
            else self._options("volume_service", VolumeServiceOptions, self._table("volume_service", given))
        )
        return None if agent is None or not hosts else AgentConfig(self.path, agent, hosts[0], service)

    def _check_conformance(self, agent: AgentOptions, host: HostEntry) -> None:
        """Refuse what could show no devices, or have no guest that its host finds."""
        if agent.conformance != "off" and host.kind != "local":
            self._wrong("[agent] conformance", f"[host.{host.name}] must be of kind local, not {host.kind}")
        elif agent.conformance == "guest" and getattr(host.options, "qmp_dir", None) is None:
            self._wrong("[agent] conformance", f'"guest" needs qmp_dir in [host.{host.name}]')

    def _check_keys(self, *shown: str) -> None:
        known = [each.strip("[]").partition(".")[0] for each in shown]
        for key in (key for key in self.document if key not in known):
            self._wrong(key, f"there is no such key or table; known: {', '.join(shown)}")

    def _backends(self) -> dict[str, BackendEntry]:
        entries = {}
        for name, table in self._named("backend").items():
            driver, options = self._plugin(f"backend.{name}", "driver", table)
            entries[name] = entry = BackendEntry(name, driver, options)
            self._make(f"backend.{name}", entry, make_driver)
        if not entries:
            self._wrong("[backend.NAME]", f"one is needed, with a driver: {', '.join(driver_names())}")
        return entries

    def _hosts(self) -> dict[str, HostEntry]:
        entries = {}
        for name, table in (self._named("host") or {"local": {"kind": "local"}}).items():
            kind, options = self._plugin(f"host.{name}", "kind", table)
            entries[name] = entry = HostEntry(name, kind, options)
            self._make(f"host.{name}", entry, make_host)
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

    def _plugin(self, table: str, key: str, given: Mapping[str, object]) -> tuple[str, object | None]:
        """Read a table whose `key` names the class that knows the other keys."""
        name = given.get(key)
        names = " | ".join(driver_names() if key == "driver" else host_names())
        help_ = OptionHelp(key, names, f"which {key} this is", "required")
        self.settings.append(Setting(table, help_, None if name is None else written(name), name is not None))
        others = {k: v for k, v in given.items() if k != key}
        if not isinstance(name, str):
            self._wrong(f"[{table}] {key}", f"must be given, one of: {names}")
            self._unexplained(table, key, others)
            return "", None
        try:
            kind = (driver_class if key == "driver" else host_class)(name).options_type
        except InvalidInput as error:
            self._wrong(f"[{table}] {key}", error.reason)
        except NotSupported as error:
            self.problems.append(NotSupported(f"{self.path}: [{table}] {error.subject}", error.reason))
        else:
            return name, self._options(table, kind, others)
        self._unexplained(table, key, others)
        return name, None

    def _unexplained(self, table: str, key: str, others: Mapping[str, object]) -> None:
        """Show keys whose meaning nobody knows, because the class that `key` names is not there."""
        for name, value in others.items():
            help_ = OptionHelp(name, "unknown", f"not known without a {key} that can be used", "unknown")
            self.settings.append(Setting(table, help_, written(value), given=True))

    def _make(self, table: str, entry: Entry, make: Callable[[Entry, Run], Driver | Host]) -> None:
        """Make a driver or a host to learn what it refuses."""
        if not self.makes or entry.options is None:
            return
        from voldrivers.process import run

        try:
            make(entry, run).check_configuration()
        except InvalidInput as error:
            self._wrong(f"[{table}]", str(error))
        except VolDriverError as error:
            self.problems.append(NotSupported(f"{self.path}: [{table}]", str(error)))
        except ModuleNotFoundError as error:
            self.problems.append(NotSupported(f"{self.path}: [{table}]", str(missing_library(error))))

    def _options(self, table: str, kind: type[Options], given: Mapping[str, object]) -> Options | None:
        for help_ in explain(kind):
            default = None if help_.default == "required" else help_.default
            value = written(given[help_.name]) if help_.name in given else default
            self.settings.append(Setting(table, help_, value, help_.name in given))
        where = f"{self.path}: [{table}]" if table else f"{self.path}:"
        checked = check_options(kind, given, where, self.path.parent)
        self.problems += checked.problems
        return checked.options

    def _table(self, name: str, value: object) -> Mapping[str, object]:
        if isinstance(value, dict):
            return value
        self._wrong(f"[{name}]", f"must be a table, not {written(value)}")
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
