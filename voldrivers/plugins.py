"""The classes behind the names of drivers and hosts, found in the installed packages.

Through the entry-point groups `voldrivers.drivers` and `voldrivers.hosts`, so a vendor's package is used
by being installed.
"""

import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from voldrivers.base import Driver, Host
from voldrivers.errors import InvalidInput, NotSupported

_DRIVERS, _HOSTS = "voldrivers.drivers", "voldrivers.hosts"
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
