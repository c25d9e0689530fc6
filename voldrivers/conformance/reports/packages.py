"""Where a driver comes from: the class, and the package with its version, by which evidence names it."""

from importlib import metadata

from voldrivers.base import Driver


def class_name(kind: type[Driver]) -> str:
    """Name a driver's class as MODULE:NAME."""
    return f"{kind.__module__}:{kind.__qualname__}"


def package(kind: type[Driver]) -> str:
    """Name the package that a driver comes from, with its version."""
    module = kind.__module__.partition(".")[0]
    found = metadata.packages_distributions().get(module, ())
    return ", ".join(f"{name} {metadata.version(name)}" for name in dict.fromkeys(found)) or module
