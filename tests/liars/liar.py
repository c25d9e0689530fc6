"""What a liar is."""

import inspect
from dataclasses import dataclass

from voldrivers.conformance import memory
from voldrivers.conformance.subject import Subject
from voldrivers.extend.engine import Engine
from voldrivers.memory import MemoryDriver, MemoryHost


@dataclass(frozen=True)
class Liar:
    """A subject of which one part lies, and the id of the check that must fail for it."""

    lie: type
    found_by: str
    driver: type[MemoryDriver] = MemoryDriver
    host: type[MemoryHost] = MemoryHost
    engine: type[Engine] = Engine

    @property
    def title(self) -> str:
        """The lie, for people."""
        return (inspect.getdoc(self.lie) or "").partition("\n")[0]

    def subject(self) -> Subject:
        """Make it, with an array of its own."""
        return memory.subject(self.driver, self.host, engine_class=self.engine)


def lying_driver(lie: type[MemoryDriver], found_by: str) -> Liar:
    """Make a liar of a driver."""
    return Liar(lie, found_by, driver=lie)


def lying_host(lie: type[MemoryHost], found_by: str, driver: type[MemoryDriver] = MemoryDriver) -> Liar:
    """Make a liar of a host."""
    return Liar(lie, found_by, driver=driver, host=lie)


def lying_engine(lie: type[Engine], found_by: str, driver: type[MemoryDriver] = MemoryDriver) -> Liar:
    """Make a liar of an engine."""
    return Liar(lie, found_by, driver=driver, engine=lie)
