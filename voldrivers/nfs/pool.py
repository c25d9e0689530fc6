"""Room on a share: what may be promised to sparse files, and what is really free."""

from pathlib import Path

from voldrivers import filesystem
from voldrivers.base import Run
from voldrivers.errors import NoSpace
from voldrivers.filesystem import Room
from voldrivers.model import Pool
from voldrivers.nfs.image import promised_bytes
from voldrivers.nfs.options import NFSOptions


def pool_of(run: Run, directory: Path, options: NFSOptions) -> Pool:
    """Look at the file system and at every file of ours. Raises InvalidState for a share that is away."""
    room, promised = filesystem.room(run, directory), promised_bytes(directory)
    ratio = options.max_over_subscription_ratio
    return Pool(room.total_bytes, _promisable(room, promised, options), promised, ratio)


def check_room(
    run: Run, directory: Path, options: NFSOptions, subject: str, growth_bytes: int, *, preallocated: bool
) -> None:
    """Refuse what may not be promised or, preallocated, what does not fit now. Raises NoSpace."""
    room = filesystem.room(run, directory)
    free_bytes = _promisable(room, promised_bytes(directory), options)
    if preallocated:
        free_bytes = min(free_bytes, room.free_bytes - _reserved(room, options))
    if growth_bytes > free_bytes:
        raise NoSpace(subject, growth_bytes, max(0, free_bytes))


def _promisable(room: Room, promised: int, options: NFSOptions) -> int:
    """The ratio times the room, less what is promised; never more than the ratio times what is free.

    The second bound is Cinder's too: on a full share nothing may be promised, whatever the ratio.
    """
    reserved_bytes, ratio = _reserved(room, options), options.max_over_subscription_ratio
    not_promised = (room.total_bytes - reserved_bytes) * ratio - promised
    return max(0, int(min(not_promised, (room.free_bytes - reserved_bytes) * ratio)))


def _reserved(room: Room, options: NFSOptions) -> int:
    return room.total_bytes * options.reserved_percentage // 100
