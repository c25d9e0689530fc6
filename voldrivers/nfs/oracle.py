"""The side door of the conformance suite: the files of a share, looked at by stat and by their headers."""

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from voldrivers.model import Volume
from voldrivers.sizes import MiB

#: docs/interop/qcow2.txt of QEMU: magic, and the virtual size at byte 24, both big-endian.
_MAGIC, _SIZE_AT = b"QFI\xfb", 24


class ShareOracle:
    """Looks into the directory of a share. `voldrivers.conformance.Oracle` says what each method means."""

    #: Directories and journals take blocks of their own.
    tolerance_bytes = MiB

    def __init__(self, directory: Path) -> None:
        """Look at the share that is there, mounted or not."""
        self.directory = directory

    def objects(self) -> Mapping[str, int]:
        """Give every file with its virtual size."""
        return {path.name: _size_bytes(path) for path in self.directory.iterdir() if path.is_file()}

    def size_bytes(self, volume: Volume) -> int | None:
        """Give the virtual size of the file that is named after a volume."""
        found = [size for name, size in self.objects().items() if volume.id in name]
        return max(found, default=None)

    def free_bytes(self) -> int:
        """Give what statvfs(3) says."""
        status = os.statvfs(self.directory)
        return status.f_bavail * status.f_frsize


def _size_bytes(path: Path) -> int:
    with path.open("rb") as file:
        header = file.read(_SIZE_AT + 8)
    if header.startswith(_MAGIC) and len(header) == _SIZE_AT + 8:
        (size_bytes,) = struct.unpack_from(">Q", header, _SIZE_AT)
        return int(size_bytes)
    return path.stat().st_size
