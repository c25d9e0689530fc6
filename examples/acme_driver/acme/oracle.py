"""The side door to a box: what really lies in its directory, whatever the driver says."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from acme.driver import AcmeOptions
from voldrivers.model import Volume

_MARK = ".scratch"


class AcmeOracle:
    """Looks at the files; `voldrivers.conformance.Oracle` and `Marks` say what each method means."""

    tolerance_bytes = 0

    def __init__(self, options: AcmeOptions) -> None:
        """Take the driver's options, which name the box."""
        self.pool, self._capacity = str(options.directory), options.capacity

    def objects(self) -> Mapping[str, int]:
        """Every file with its size."""
        return {path.name: path.stat().st_size for path in Path(self.pool).iterdir() if path.name != _MARK}

    def size_bytes(self, volume: Volume) -> int | None:
        """The size of a volume's file."""
        return self.objects().get(f"{volume.id}.volume")

    def free_bytes(self) -> int:
        """What the files leave of the box."""
        return self._capacity - sum(self.objects().values())

    def mark(self) -> str:
        """Whether the box may be destroyed."""
        path = Path(self.pool) / _MARK
        return path.read_text() if path.exists() else ""

    def set_mark(self, mark: str) -> None:
        """Write it down."""
        (Path(self.pool) / _MARK).write_text(mark)

    def occupants(self) -> Sequence[str]:
        """What would be destroyed."""
        return sorted(self.objects())
