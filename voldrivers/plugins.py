"""The classes behind the names of drivers and hosts, found in the installed packages.

Through the entry-point groups `voldrivers.drivers` and `voldrivers.hosts`, so a vendor's package is used
by being installed.
"""

import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from typing import Any

from voldrivers.base import Driver, Host
from voldrivers.errors import InvalidInput, NotSupported

_DRIVERS, _HOSTS = "voldrivers.drivers", "voldrivers.hosts"
_ORACLES = "voldrivers.oracles"
_EXTRA = re.compile(r"(?P<name>[A-Za-z0-9._-]+).*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"]")


def driver_names() -> tuple[str, ...]:
    """List the installed drivers."""
    return tuple(sorted(_entry_points(_DRIVERS)))


def host_names() -> tuple[str, ...]:
    """List the installed kinds of hosts."""
    return tuple(sorted(_entry_points(_HOSTS)))


def driver_class(name: str) -> type[Driver]:
    """Find an installed driver. Raises InvalidInput for an unknown one, NotSupported for a broken one."""
    found: type[Driver] = _load(_DRIVERS, name, Driver)
    return found


def host_class(name: str) -> type[Host]:
    """Find an installed kind of host. Raises as `driver_class`."""
    found: type[Host] = _load(_HOSTS, name, Host)
    return found


def driver_at(text: str) -> type[Driver]:
    """Find a driver by its name, or one that need not be installed by its `module:Class`. Raises as above."""
    if ":" not in text:
        return driver_class(text)
    found: type[Driver] = _checked(f"driver {text}", _point(_DRIVERS, text), Driver)
    return found


def oracle_maker(text: str) -> Callable[[Any], Any]:  # Any: options of a driver in, an oracle out
    """Find what makes an oracle of a driver's options, by its `module:Class`. Raises NotSupported."""
    found: Callable[[Any], Any] = _loaded(f"oracle {text}", _point(_ORACLES, text))  # Any: as above
    return found


def oracle_of(driver: type[Driver]) -> Callable[[Any], Any] | None:  # Any: as above
    """Find what makes the oracle of an installed driver; None where nothing is offered."""
    for name, points in _entry_points(_DRIVERS).items():
        offered = _entry_points(_ORACLES).get(name)
        if offered and any(point.value == f"{driver.__module__}:{driver.__qualname__}" for point in points):
            return oracle_maker(offered[0].value)
    return None


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
    return _checked(subject, points[0], base)


def _checked(subject: str, point: metadata.EntryPoint, base: type) -> Any:  # Any: as _load
    loaded = _loaded(subject, point)
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise NotSupported(subject, f"{point.value} is no {base.__name__}")
    if lacking := sorted(getattr(loaded, "__abstractmethods__", ())):
        raise NotSupported(subject, f"{point.value} lacks {', '.join(lacking)}")
    return loaded


def _loaded(subject: str, point: metadata.EntryPoint) -> Any:  # Any: whatever stands there
    try:
        return point.load()
    except ModuleNotFoundError as error:
        raise NotSupported(subject, str(missing_library(error, _package(point)))) from error
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise NotSupported(subject, f"cannot be loaded from {point.value}: {error}") from error


def _point(group: str, text: str) -> metadata.EntryPoint:
    return metadata.EntryPoint(text, text, group)


def _package(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "voldrivers"


def _plain(name: str) -> str:
    """One spelling for a distribution and its module: `os-brick`, `os_brick`."""
    return re.sub(r"[-_.]+", "_", name).lower()
