"""What a guest at work (`voldrivers.guests.verified`) had on its disk after each write, found out again.

Its places follow from the serial of the disk, so as long as no request failed there is one content after each
number of writes; only when it noticed that the disk grew is not known beforehand.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

from voldrivers.guests.device import SECTOR_BYTES, Disk
from voldrivers.guests.verified import BLOCK_BYTES, VerifiedDisk

#: Of each block that is not zeroes, what its sectors hold: see `inside.written.contents`.
Contents = Mapping[int, Sequence[str]]

_SECTORS, _DIGEST_BYTES = BLOCK_BYTES // SECTOR_BYTES, 64
_ZEROES = bytes(_DIGEST_BYTES).hex()


@dataclass(frozen=True)
class Growth:
    """A larger size, noticed after some number of writes between these."""

    size_bytes: int
    least: int
    most: int


class Replay:
    """What a guest does to one disk from the moment on at which it gets it, all zeroes."""

    def __init__(self, serial: str, size_bytes: int) -> None:
        self._serial, self._size_bytes = serial, size_bytes
        self._growths: list[Growth] = []

    def grow(self, size_bytes: int, least: int, most: int) -> None:
        """Note that the guest has seen it grow."""
        self._growths.append(Growth(size_bytes, least, most))

    def moment(self, contents: Contents, least: int, most: int) -> int:
        """Give after how many writes the disk held just that, one more being half done perhaps.

        Fails where that is after no number of writes between these.
        """
        for at in self._moments(_Life(self._serial, self._size_bytes), [], contents, least, most):
            return at
        raise AssertionError(f"it is not what the guest had after {least} to {most} writes")

    def _moments(
        self, life: "_Life", known: list[Growth], contents: Contents, least: int, most: int
    ) -> Sequence[int]:
        """Try each number of writes at which it may have noticed what it has yet to notice."""
        left = self._growths[len(known) :]
        if not left:
            life.work(least)
            return [at for at in range(least, most + 1) if life.work(at).holds(contents)][-1:]
        for at in range(left[0].least, left[0].most + 1):
            branch = deepcopy(life.work(at))
            branch.disk.size_bytes = left[0].size_bytes
            noticed = [*known, Growth(left[0].size_bytes, at, at)]
            if found := self._moments(branch, noticed, contents, least, most):
                self._growths[: len(noticed)] = noticed
                return found
        return []


class _RememberedDisk(Disk):
    """A disk in RAM: of each block what its sectors repeat."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes, self.blocks = size_bytes, dict[int, bytes]()

    def capacity_bytes(self) -> int:
        return self.size_bytes

    def read(self, first_sector: int, sectors: int = 1) -> bytes:
        repeated = self.blocks.get(first_sector // _SECTORS, bytes(_DIGEST_BYTES))
        return repeated * (sectors * SECTOR_BYTES // _DIGEST_BYTES)

    def write(self, first_sector: int, content: bytes) -> None:
        self.blocks[first_sector // _SECTORS] = content[:_DIGEST_BYTES]


class _Life:
    """The guest's own code, at work on a disk in RAM."""

    def __init__(self, serial: str, size_bytes: int) -> None:
        self.disk = _RememberedDisk(size_bytes)
        self._worker = VerifiedDisk(self.disk, serial)

    def work(self, writes: int) -> "_Life":
        """Go on until it has written so often."""
        while self._worker.report.writes < writes:
            self._worker.work()
        return self

    def holds(self, contents: Contents) -> bool:
        """Tell whether the disk holds just that, or has no more than the next write half done."""
        differing = self._differing(contents)
        if len(differing) != 1:
            return not differing
        (block,), after = differing, deepcopy(self)
        after.work(self._worker.report.writes + 1)
        allowed = {self._told(block), after._told(block)}
        return len(allowed) == 2 and {*contents.get(block, [_ZEROES])} <= allowed

    def _differing(self, contents: Contents) -> set[int]:
        blocks = {*contents, *self.disk.blocks}
        return {block for block in blocks if [*contents.get(block, [_ZEROES])] != [self._told(block)]}

    def _told(self, block: int) -> str:
        return self.disk.blocks.get(block, bytes(_DIGEST_BYTES)).hex()
