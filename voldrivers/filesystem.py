"""Files and file systems: how large a volume's file is, and whether its share answers at all."""

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from voldrivers.base import Run
from voldrivers.errors import BackendError, CommandFailed, InvalidState, NotFound, OutcomeUnknown
from voldrivers.mounts import place_of

_ANSWER_S = 2.0
_QCOW2_MAGIC = b"QFI\xfb"


@dataclass(frozen=True)
class Room:
    """Bytes of a file system, of all and free for us."""

    total_bytes: int
    free_bytes: int


def room(run: Run, directory: Path) -> Room:
    """Give the room of the file system of `directory`, within two seconds also when its server is away.

    A hard mount whose server is away blocks whoever asks, so this comes before every other look, and
    a file system that needs a server is asked in a child that can be given up. Raises InvalidState
    when it does not answer or cannot be read, NotFound when the directory is gone.
    """
    subject = f"share {directory}"
    try:
        if place_of(directory).mount.is_local:
            seen = os.statvfs(directory)
            return Room(seen.f_frsize * seen.f_blocks, seen.f_frsize * seen.f_bavail)
        return _room_seen_by_a_child(run, directory)
    except FileNotFoundError as error:
        raise NotFound("directory", str(directory)) from error
    except OSError as error:
        raise InvalidState(subject, f"not readable ({error.strerror})", "readable") from error
    except OutcomeUnknown as error:
        raise InvalidState(subject, "not answering", "mounted, its server reachable") from error
    except CommandFailed as error:
        if "No such file" in error.reason:
            raise NotFound("directory", str(directory)) from error
        raise InvalidState(subject, f"not readable ({error.reason})", "readable") from error


def image_bytes(path: Path, image_format: str, *, called: Path | None = None) -> int:
    """Read the size of the volume in an image file: of raw its length, of qcow2 what its header says.

    By open and fstat, because a cached stat over NFS can be a minute old while an open asks the
    server (close-to-open, nfs(5)). The format is what the driver recorded, never probed. Errors name
    it as it is `called`. Raises NotFound, BackendError.
    """
    called = called or path
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as image:
            status = os.fstat(image.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BackendError(f"file {called}", "is not a regular file")
            return status.st_size if image_format == "raw" else _qcow2_bytes(called, image.read(32))
    except FileNotFoundError as error:
        raise NotFound("file", str(called)) from error
    except OSError as error:
        raise BackendError(f"file {called}", f"cannot be read: {error.strerror}") from error


def _room_seen_by_a_child(run: Run, directory: Path) -> Room:
    argv = ["stat", "--file-system", "--format=%S %b %a", "--", str(directory)]
    block_bytes, blocks, free_blocks = map(int, run(argv, timeout_s=_ANSWER_S).stdout.split())
    return Room(block_bytes * blocks, block_bytes * free_blocks)


def _open_at_once(path: str, flags: int) -> int:
    """Open; without O_NONBLOCK a named pipe in the image's place would block until somebody writes."""
    return os.open(path, flags | os.O_NONBLOCK)


def _qcow2_bytes(path: Path, header: bytes) -> int:
    """The virtual size: bytes 24 to 31 of the header, big endian (QEMU docs/interop/qcow2.txt)."""
    if len(header) < 32 or header[:4] != _QCOW2_MAGIC:
        raise BackendError(f"file {path}", "was recorded as qcow2 but has no qcow2 header")
    size_bytes: int = struct.unpack(">Q", header[24:32])[0]
    return size_bytes
