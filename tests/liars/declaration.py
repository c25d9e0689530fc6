"""Lies about what a driver is."""

from dataclasses import dataclass, replace
from typing import Any

from liars.liar import Liar, lying_driver
from voldrivers.base import Driver, Run
from voldrivers.capabilities import Capabilities, InUseExtend
from voldrivers.memory import MemoryArray, MemoryDriver
from voldrivers.model import ConnectionInfo, Connector, ExtendReply, Volume
from voldrivers.options import option
from voldrivers.sizes import MiB, SizeRule

_SECRET = "k7Q-not-for-your-eyes"


class Texts(MemoryDriver):
    """Declares snapshots with the text "no" of a configuration file, which counts as yes."""

    capabilities = Capabilities(
        in_use_extend=InUseExtend.BY_BACKEND,
        snapshots="no",  # type: ignore[arg-type]  # the lie
    )


class Boundless(SizeRule):
    """A rule that rounds beyond its maximum."""

    def round_up(self, asked_bytes: int) -> int:
        return max(super().round_up(min(asked_bytes, self.maximum_bytes)), self._up(asked_bytes))


class BoundlessDriver(MemoryDriver):
    """Has a maximum of which its own rule knows nothing."""

    size_rule = Boundless(4 * MiB, maximum_bytes=2**40)


class Moody(MemoryDriver):
    """Declares when it is started what the array can do just then."""

    def __init__(self, name: str, options: Any, run: Run, array: MemoryArray | None = None) -> None:
        super().__init__(name, options, run, array)
        if self.array.sizes:
            type(self).capabilities = replace(type(self).capabilities, snapshots=False)


@dataclass(frozen=True)
class BareOptions:
    """Options that only their author understands."""

    mode: int = option("", 0)


class Bare(MemoryDriver):
    """Does not say what its options mean."""

    volume_options_type = BareOptions


class Mute(MemoryDriver):
    """Has no docstring."""


class Talkative(MemoryDriver):
    """Shows the secret that hosts log in with in its repr."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        info = super().initialize_connection(volume, connector)
        return replace(info, properties={**info.properties, "auth_password": _SECRET})

    def __repr__(self) -> str:
        return f"<{self.name}, login with {_SECRET}>"


@dataclass(frozen=True)
class ShownInfo(ConnectionInfo):
    """A connection_info that shows all it has."""

    def __repr__(self) -> str:
        return f"{self.driver_volume_type} {dict(self.properties)}"


class Open(Talkative):
    """Shows the secret in the connection_info that it gives."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        info = super().initialize_connection(volume, connector)
        return ShownInfo(info.driver_volume_type, info.properties)

    __repr__ = object.__repr__


class OtherArguments(MemoryDriver):
    """Wants to be told by how much a volume grows, and has one more parameter for that."""

    def extend_volume(  # type: ignore[override]  # the lie
        self, volume: Volume, new_size_bytes: int, more_bytes: int
    ) -> ExtendReply:
        return super().extend_volume(volume, more_bytes or new_size_bytes)


class LacksAMethod(MemoryDriver):
    """Has no pool()."""

    pool = Driver.pool


@dataclass(frozen=True)
class PasswordOptions:
    """Options with a password that everybody may see."""

    password: str = option("what the array asks for", "")


class ShowsItsPassword(MemoryDriver):
    """Does not say that one of its options is a secret."""

    volume_options_type = PasswordOptions


@dataclass(frozen=True)
class HomemadeOptions:
    """Options of which nothing is known."""

    mode: int = 0


class Homemade(MemoryDriver):
    """Has a plain dataclass for its options, which cannot be read or explained."""

    volume_options_type = HomemadeOptions


LIARS = [
    lying_driver(Texts, "DEC-002"),
    lying_driver(BoundlessDriver, "DEC-003"),
    lying_driver(Moody, "DEC-004"),
    lying_driver(Bare, "DEC-007"),
    Liar(Mute, "DEC-007", driver=type("Undocumented", (MemoryDriver,), {})),
    lying_driver(Talkative, "DEC-008"),
    lying_driver(Open, "DEC-008"),
    lying_driver(LacksAMethod, "DEC-001"),
    lying_driver(OtherArguments, "DEC-001"),
    lying_driver(ShowsItsPassword, "DEC-005"),
    lying_driver(Homemade, "DEC-005"),
]
