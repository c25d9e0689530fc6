"""Names as operators give them: nothing in a name tells a driver that the volume is the suite's."""

import random
import uuid
from collections.abc import Callable

_USES = ("archive", "backup", "billing", "gitlab", "mail", "oradata", "postgres", "registry", "web")


def _of_cinder(draw: random.Random) -> str:
    return f"volume-{_uuid(draw)}"


def _of_kubernetes(draw: random.Random) -> str:
    return f"pvc-{_uuid(draw)}"


def _of_machine(draw: random.Random) -> str:
    return f"vm-{draw.randrange(100, 100_000)}-disk-{draw.randrange(10)}"


def _by_hand(draw: random.Random) -> str:
    use = draw.choice(_USES)
    return f"{draw.choice((use, use.title()))}{draw.choice('-_.')}{draw.randrange(1000, 1_000_000)}"


_KINDS: tuple[Callable[[random.Random], str], ...] = (_of_cinder, _of_kubernetes, _of_machine, _by_hand)


class Names:
    """Draws names, no two the same; of one seed they are the same each time.

    What was made is never found again by its name: that is what ids and records are for.
    """

    def __init__(self, seed: str) -> None:
        """Begin anew."""
        self._draw = random.Random(seed)  # noqa: S311 - a name is no secret
        self._given: dict[str, int] = {}

    def next(self) -> str:
        """Give the next name."""
        while True:
            name = self._draw.choice(_KINDS)(self._draw)
            if name not in self._given:
                self._given[name] = len(self._given)
                return name

    def number(self, name: str) -> int:
        """Tell how many were drawn before a name; one that was not drawn comes after all of them."""
        return self._given.get(name, len(self._given))


def _uuid(draw: random.Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))
