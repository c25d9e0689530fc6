"""What a guest at work (`voldrivers.guests.verified`) has written, read from the device under it."""

import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from io import FileIO

from voldrivers.guests.device import SECTOR_BYTES
from voldrivers.guests.verified import BLOCK_BYTES

_PIECE_BYTES, _ZEROES = 1 << 20, bytes(BLOCK_BYTES)
_DIGEST_BYTES = hashlib.blake2b().digest_size


def written_blocks(device: str, serial: str, writes: int) -> list[int]:
    """Give the blocks that are not zeroes; fails for one that the guest has not written in so many writes."""
    written = dict(_blocks(device))
    strange = [
        block for block, content in written.items() if not _is_of_guest(content, serial, block, writes)
    ]
    assert not strange, f"blocks of {device} hold what the guest never wrote: {strange}"
    return list(written)


def contents(path: str, *, direct: bool = True) -> dict[int, list[str]]:
    """Give the blocks that are not zeroes: what each of their sectors holds, in short, once if all are alike.

    What a guest wrote stands there as the digest that its sectors repeat, in hexadecimal digits.
    """
    return {block: _alike([*_told(content)]) for block, content in _blocks(path, direct=direct)}


def _told(content: bytes) -> Iterator[str]:
    for at in range(0, BLOCK_BYTES, SECTOR_BYTES):
        sector = content[at : at + SECTOR_BYTES]
        repeated = sector == sector[:_DIGEST_BYTES] * (SECTOR_BYTES // _DIGEST_BYTES)
        yield sector[:_DIGEST_BYTES].hex() if repeated else hashlib.sha256(sector).hexdigest()


def _alike(told: list[str]) -> list[str]:
    return told[:1] if len({*told}) == 1 else told


def _blocks(device: str, *, direct: bool = True) -> Iterator[tuple[int, bytes]]:
    """Read past the page cache, which other machines do not know of (open(2), O_DIRECT)."""
    with (
        closing(mmap.mmap(-1, _PIECE_BYTES)) as piece,
        open(device, "rb", 0, opener=_direct if direct else None) as file,
    ):
        while _seek_data(file) and (count := file.readinto(piece)):
            first = (file.tell() - count) // BLOCK_BYTES
            blocks = (piece[at : at + BLOCK_BYTES] for at in range(0, count, BLOCK_BYTES))
            if piece[:count] != bytes(count):  # most pieces: block by block they would take seconds
                yield from ((first + n, block) for n, block in enumerate(blocks) if block != _ZEROES)


def _seek_data(file: FileIO) -> bool:
    """Go on past a hole of a file, to the beginning of a block; tell whether there is more."""
    if stat.S_ISBLK(os.fstat(file.fileno()).st_mode):  # it knows of none
        return True
    try:
        found = file.seek(file.tell(), os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:  # lseek(2): no data from there on
            raise
        return False
    file.seek(found // BLOCK_BYTES * BLOCK_BYTES)
    return True


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
