"""A volume where it is attached, past the driver: what is written there, and read again."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from voldrivers.conformance.subject import Place
from voldrivers.conformance.verdicts import Broken, expect
from voldrivers.model import Attachment, Volume
from voldrivers.sizes import MiB

#: A stamp is as long as the smallest block.
STAMP_BYTES = 512
#: A volume that is filled is written in pieces of so many bytes.
_PIECE_BYTES = MiB


@dataclass
class Stamps:
    """What was written to a volume, by its offset."""

    written: dict[int, bytes] = field(default_factory=dict)
    generation: int = 0


@dataclass(frozen=True)
class Disk:
    """A volume where it is attached, past the driver."""

    place: Place
    volume: Volume
    attachment: Attachment
    stamps: Stamps

    @property
    def size_bytes(self) -> int:
        """What there is for who reads and writes here: the guest, or else the host.

        In the middle of an extend the host's device may be larger than its guest knows.
        """
        if self.attachment.instance is not None:
            seen = self.place.guest_bytes(self.volume, self.attachment)
            if seen is not None:
                return seen
        return self.place.device_bytes(self.volume, self.attachment)

    def read(self, offset_bytes: int, size_bytes: int = STAMP_BYTES) -> bytes:
        """Read from the medium."""
        try:
            return self.place.read(self.volume, self.attachment, offset_bytes, size_bytes)
        except OSError as error:
            raise Broken("I4", f"the block at {offset_bytes} cannot be read: {error}") from error

    def write(self, offset_bytes: int, content: bytes) -> None:
        """Write to the medium, and remember it."""
        try:
            self.place.write(self.volume, self.attachment, offset_bytes, content)
        except OSError as error:
            raise Broken("I4", f"the block at {offset_bytes} cannot be written: {error}") from error
        self.stamps.written[offset_bytes] = content

    def stamp(self, count: int = 3) -> None:
        """Write to the first and the last block of what is there now, and to some in between."""
        self._stamp(probes(self.size_bytes, count))

    def stamp_at(self, where: str) -> None:
        """Write to the `first`, `middle` or `last` block of what is there now."""
        offsets = probes(self.size_bytes)
        self._stamp([offsets[{"first": 0, "middle": len(offsets) // 2, "last": -1}[where]]])

    def fill(self) -> None:
        """Write to every block of what is there now."""
        self.stamps.generation += 1
        self.stamps.written.clear()
        for begin in range(0, self.size_bytes, _PIECE_BYTES):
            offsets = range(begin, min(begin + _PIECE_BYTES, self.size_bytes), STAMP_BYTES)
            self.write(begin, b"".join(map(self._text, offsets)))

    def _stamp(self, offsets: Sequence[int]) -> None:
        self.stamps.generation += 1
        for offset in offsets:
            self.write(offset, self._text(offset))

    def _text(self, offset: int) -> bytes:
        text = f"{self.volume.id} {offset} {self.stamps.generation} ".encode()
        return (text * STAMP_BYTES)[:STAMP_BYTES]

    def check(self) -> None:
        """Read back every stamp, and zeros in some other places."""
        for offset, content in self.stamps.written.items():
            found = self.read(offset, len(content))
            if found != content:
                blocks = range(0, len(content), STAMP_BYTES)
                at = next(i for i in blocks if found[i:][:STAMP_BYTES] != content[i:][:STAMP_BYTES])
                text = f"the block at {offset + at} is not what was written"
                raise Broken("I4", text, found=found[at : at + 40])
        self.check_zeros(0, self.size_bytes)

    def check_zeros(self, first_bytes: int, end_bytes: int) -> None:
        """Read zeros where nothing was written, at both ends and in between."""
        for offset in probes(end_bytes - first_bytes):
            at = first_bytes + offset
            written = self.stamps.written.items()
            if all(at + STAMP_BYTES <= each or each + len(content) <= at for each, content in written):
                found = self.read(at)
                expect(not any(found), "I4", f"there are no zeros at {at}", found=found[:40])


def probes(size_bytes: int, count: int = 3) -> tuple[int, ...]:
    """Give offsets of so many blocks in a range: both ends, and those between at equal distances."""
    last = size_bytes - STAMP_BYTES
    between = (last * part // (count - 1) // STAMP_BYTES * STAMP_BYTES for part in range(count - 1))
    return tuple(sorted({*between, last})) if last >= 0 else ()
