"""What a guest at work (`voldrivers.guests.verified`) has written, read from the device under it."""

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import closing

from voldrivers.guests.device import SECTOR_BYTES
from voldrivers.guests.verified import BLOCK_BYTES

_PIECE_BYTES, _ZEROES = 1 << 20, bytes(BLOCK_BYTES)


def written_blocks(device: str, serial: str, writes: int) -> list[int]:
    """Give the blocks that are not zeroes; fails for one that the guest has not written in so many writes."""
    written = dict(_blocks(device))
    strange = [
        block for block, content in written.items() if not _is_of_guest(content, serial, block, writes)
    ]
    assert not strange, f"blocks of {device} hold what the guest never wrote: {strange}"
    return list(written)


def _blocks(device: str) -> Iterator[tuple[int, bytes]]:
    """Read past the page cache, which other machines do not know of (open(2), O_DIRECT)."""
    with closing(mmap.mmap(-1, _PIECE_BYTES)) as piece, open(device, "rb", 0, opener=_direct) as file:
        first = 0
        while count := file.readinto(piece):
            blocks = (piece[at : at + BLOCK_BYTES] for at in range(0, count, BLOCK_BYTES))
            if piece[:count] != bytes(count):  # most pieces: block by block they would take seconds
                yield from ((first + n, block) for n, block in enumerate(blocks) if block != _ZEROES)
            first += count // BLOCK_BYTES


def _direct(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_DIRECT)


def _is_of_guest(content: bytes, serial: str, block: int, writes: int) -> bool:
    """Tell whether each sector is of some write, the last ones first: two may have met in a block."""
    left = {content[at : at + SECTOR_BYTES] for at in range(0, BLOCK_BYTES, SECTOR_BYTES)}
    for generation in range(writes, 0, -1):
        if not left:
            break
        left.discard(_sector(serial, block, generation))
    return not left


def _sector(serial: str, block: int, generation: int) -> bytes:
    """What a `VerifiedDisk` writes."""
    digest = hashlib.blake2b(f"{serial} {block} {generation}".encode()).digest()
    return digest * (SECTOR_BYTES // len(digest))
