"""The locks by which QEMU keeps others from an image, and whether they mean anything on a share.

QEMU takes shared open-file-description locks on single bytes (fcntl(2), F_OFD_SETLK): byte 100+N for
permission N that it uses, 200+N for one that it does not share (block/file-posix.c). They are advice: an
image opened with locking=off holds none, so an absent lock alone proves nothing.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voldrivers.errors import InvalidState
from voldrivers.mounts import Mount
from voldrivers.nfs import files

#: First byte and number of bytes of both groups: BLK_PERM has room for 64.
_QEMU_BYTES = ((100, 64), (200, 64))
#: struct flock: l_type, l_whence, l_start, l_len, l_pid, which must be 0 for these locks.
_FLOCK = "hhqqi4x"


def check_meaning(mount: Mount, path: Path) -> None:
    """Prove that of two openers of a scratch file beside `path` one sees the other's lock.

    The kind of the share counts too: two openers on this machine cannot show what another one sees. Over
    NFS 3 it sees nothing of QEMU's locks: Linux's lockd answers a test as if the other's read lock
    were none of its business, and `nolock` keeps all of them at home. Raises InvalidState.
    """
    share = f"share {path.parent}"
    if not (mount.is_local or mount.is_nfs4):
        needed = "a local file system or NFS 4, whose locks every host sees"
        raise InvalidState(share, f"mounted as {mount.kind}", needed)
    with files.scratch_file(path) as file, files.typed_errors(share), _descriptor(file) as one:
        fcntl.fcntl(one, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK, 100, 1))
        with _descriptor(file) as other:
            seen = _conflicts(other, 100, 1)
    if not seen:
        raise InvalidState(share, "ignoring locks", "one that keeps them")


def check_unheld(path: Path, file: Path) -> None:
    """Refuse an image (`file` as `files.opened` gives it) that a QEMU holds. Raises InvalidState."""
    with files.typed_errors(f"file {path}"), _descriptor(file) as fd:
        held = any(_conflicts(fd, start, length) for start, length in _QEMU_BYTES)
    if held:
        raise InvalidState(f"file {path}", "held by a QEMU", "closed by every QEMU")


@contextmanager
def _descriptor(file: Path) -> Iterator[int]:
    """Open a description of its own: that is what these locks belong to."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _conflicts(fd: int, start: int, length: int) -> bool:
    """Ask whether a write lock could not be had; nothing is locked by asking."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK, start, length))
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _lock(kind: int, start: int, length: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)
