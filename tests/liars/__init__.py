"""Drivers, hosts and engines that lie, one lie each; a check of the suite is named that finds it out.

What each lie is, its docstring says: it is printed in the kill table.
"""

import importlib
import pkgutil

from liars.liar import Liar


def liars() -> list[Liar]:
    """Give all of them."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "liar"]
    return [each for name in names for each in importlib.import_module(f"liars.{name}").LIARS]
