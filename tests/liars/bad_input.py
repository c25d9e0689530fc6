"""Lies about what makes no sense."""

from dataclasses import dataclass

from liars.liar import lying_driver, lying_engine
from voldrivers.errors import BackendError, NoSpace, NotFound
from voldrivers.extend.engine import Engine
from voldrivers.memory import MemoryDriver
from voldrivers.model import Extend, ExtendReply, Snapshot, Volume
from voldrivers.options import option
from voldrivers.sizes import MiB, SizeRule


class LenientRule(SizeRule):
    """A rule that takes whatever int() takes."""

    def round_up(self, asked_bytes: int) -> int:
        try:
            return super().round_up(int(asked_bytes))
        except TypeError as error:
            raise ValueError("a size is a number") from error


class Lenient(MemoryDriver):
    """Takes a text or a fraction for a size."""

    size_rule = LenientRule(4 * MiB)


class Resurrects(MemoryDriver):
    """Extends a volume that is gone, and so makes it again."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if self.array.sizes.get(volume.id, 0) < new_size_bytes:
            self.array.resize(volume.id, new_size_bytes)
        return ExtendReply.EXTENDED


class Untyped(MemoryDriver):
    """Raises Python's own errors: ValueError for a volume that is gone."""

    def volume_size(self, volume: Volume) -> int:
        if volume.id not in self.array.sizes:
            raise ValueError(f"list.remove(x): {volume.id} not in list")
        return super().volume_size(volume)


class Strict(MemoryDriver):
    """Answers NotFound when a volume is deleted that is gone already."""

    def delete_volume(self, volume: Volume) -> None:
        self.volume_size(volume)
        super().delete_volume(volume)


class Shrinks(MemoryDriver):
    """Makes a volume exactly as large as it is told, a smaller one too."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if self.volume_size(volume) != new_size_bytes:
            self.array.resize(volume.id, new_size_bytes)
        return ExtendReply.EXTENDED


class Shell(MemoryDriver):
    """Gives names to a shell, which runs what follows a semicolon."""

    def create_volume(self, volume: Volume, options: object) -> str:
        _, semicolon, command = volume.name.partition(";")
        if semicolon:
            self.array.sizes[command] = 0
        return super().create_volume(volume, options)


class OptionTaker(MemoryDriver):
    """Takes a name that begins with dashes for an option, and then makes nothing."""

    def create_volume(self, volume: Volume, options: object) -> str:
        return "" if volume.name.startswith("--") else super().create_volume(volume, options)


class EmptyClone(MemoryDriver):
    """Makes an empty volume where the source of a copy is gone."""

    def clone_volume(
        self, volume: Volume, options: object, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        if (source.id if snapshot is None else snapshot.id) in self.array.sizes | self.array.snapshots:
            return super().clone_volume(volume, options, source, snapshot)
        return self.create_volume(volume, options)


class Vague(MemoryDriver):
    """Does not say in its errors which volume they are about."""

    def volume_size(self, volume: Volume) -> int:
        try:
            return super().volume_size(volume)
        except NotFound as error:
            raise NotFound("the object", "given by its handle") from error


class OneError(MemoryDriver):
    """Has one error for everything, a full array too."""

    def create_volume(self, volume: Volume, options: object) -> str:
        try:
            return super().create_volume(volume, options)
        except NoSpace as error:
            raise BackendError(volume.title, "operation failed, see the log") from error


class TheOnlyOne(Engine):
    """Takes the only volume there is where none is named."""

    def extend(self, name: str, size_bytes: int, *, wait: bool = True) -> Extend:
        return super().extend(name or self.volumes()[0].id, size_bytes, wait=wait)


@dataclass(frozen=True)
class ModeOptions:
    """Options that are looked up in a table."""

    mode: str = option("how volumes are made", "fast")

    def __post_init__(self) -> None:
        {"fast": 1, "slow": 2}[self.mode]


class LooksUpItsOptions(MemoryDriver):
    """Looks its options up in a table of those that there are, and nothing catches the KeyError."""

    volume_options_type = ModeOptions


LIARS = [
    lying_driver(Lenient, "BAD-001"),
    lying_driver(Resurrects, "BAD-002"),
    lying_driver(Untyped, "BAD-002"),
    lying_driver(Strict, "BAD-002"),
    lying_driver(Shrinks, "BAD-004"),
    lying_driver(Shell, "BAD-005"),
    lying_driver(OptionTaker, "BAD-005"),
    lying_driver(EmptyClone, "BAD-006"),
    lying_driver(Vague, "BAD-008"),
    lying_driver(OneError, "BAD-008"),
    lying_engine(TheOnlyOne, "BAD-003"),
    lying_driver(LooksUpItsOptions, "BAD-007"),
]
