"""How a volume grows under an image whose size nobody knows."""

from collections.abc import Iterator
from dataclasses import dataclass

from voldrivers.errors import InvalidInput
from voldrivers.sizes import LARGEST_BYTES, GiB, MiB, format_size


@dataclass(frozen=True)
class Growth:
    """Each extend multiplies the size by `factor`, but adds at least `least_bytes` and at most `most_bytes`.

    So `most_bytes` is also how much too large a volume can end up. `limit_bytes` is how large an image may
    become at all: a stream that never ends would take all the room there is.
    """

    factor: float = 2.0
    least_bytes: int = 256 * MiB
    most_bytes: int = 8 * GiB
    limit_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse a policy by which nothing would grow. Raises InvalidInput."""
        if not 1 < self.factor < float("inf"):
            raise InvalidInput("growth factor", f"must be more than 1, not {self.factor:g}")
        for what, size_bytes in (("least", self.least_bytes), ("most", self.most_bytes)):
            if size_bytes < 1:
                raise InvalidInput(f"growth, at {what}", f"must be a size, not {format_size(size_bytes)}")
        if self.limit_bytes is not None and self.limit_bytes < 1:
            raise InvalidInput("limit of an image", f"must be a size, not {format_size(self.limit_bytes)}")

    def sizes(self, current_bytes: int, needed_bytes: int) -> Iterator[int]:
        """Give the sizes to try, each for when there is no room for the one before; the last is just enough.

        >>> [size // 2**20 for size in Growth().sizes(1024 * 2**20, 1025 * 2**20)]
        [2048, 1536, 1280, 1025]
        """
        step_bytes = min(max(int(current_bytes * (self.factor - 1)), self.least_bytes), self.most_bytes)
        limit_bytes = max(self.limit_bytes or LARGEST_BYTES, needed_bytes)
        while (wanted_bytes := min(current_bytes + step_bytes, limit_bytes)) > needed_bytes:
            yield wanted_bytes
            step_bytes //= 2
            if step_bytes < self.least_bytes:
                break
        yield needed_bytes
