"""The side door of the conformance suite: the files of a share, looked at by stat and by their headers."""

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from voldrivers.model import Volume
from voldrivers.nfs import share
from voldrivers.nfs.options import NFSOptions
from voldrivers.process import run
from voldrivers.sizes import MiB

#: docs/interop/qcow2.txt of QEMU: magic, and the virtual size at byte 24, both big-endian.
_MAGIC, _SIZE_AT = b"QFI\xfb", 24
_MARK = ".voldrivers-scratch"
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system has (stat(2))


class ShareOracle:
    """Looks into the directory of a share. `voldrivers.conformance.Oracle` says what each method means."""

    #: A file system may free blocks late, and give a file blocks beyond its end.
    tolerance_bytes = MiB

    def __init__(self, options: NFSOptions) -> None:
        """Look at the share of a backend's options; an export is mounted as soon as it is looked at."""
        self.pool, self._options = options.share, options

    def objects(self) -> Mapping[str, int]:
        """Give every file with its virtual size."""
        files = (path for path in self._directory().iterdir() if path.name != _MARK and path.is_file())
        return {path.name: _size_bytes(path) for path in files}

    def size_bytes(self, volume: Volume) -> int | None:
        """Give the virtual size of the file that is named after a volume."""
        name = f"volume-{volume.id}"  # ids hold no dot, and one may begin with another
        found = [size for file, size in self.objects().items() if file.partition(".")[0] == name]
        return max(found, default=None)

    def free_bytes(self) -> int:
        """Give what the files of the share leave of its file system, where others may take room as well."""
        directory = self._directory()
        status = os.statvfs(directory)
        taken = sum(path.stat().st_blocks for path in directory.iterdir() if path.is_file())
        return status.f_blocks * status.f_frsize - taken * _BLOCK_BYTES

    def mark(self) -> str:
        """Give what the file says that tells whose the share is; nothing without one."""
        try:
            return (self._directory() / _MARK).read_text().strip()
        except FileNotFoundError:
            return ""

    def set_mark(self, mark: str) -> None:
        """Put the file there."""
        (self._directory() / _MARK).write_text(f"{mark}\n")

    def occupants(self) -> Sequence[str]:
        """Name every file and directory but the one that mkfs makes."""
        return [path.name for path in self._directory().iterdir() if path.name not in (_MARK, "lost+found")]

    def _directory(self) -> Path:
        options = self._options
        if not share.is_export(options.share):
            return Path(options.share)
        return share.mount(run, options.share, options.mount_options, options.mount_point_base)


def _size_bytes(path: Path) -> int:
    with path.open("rb") as file:
        header = file.read(_SIZE_AT + 8)
    if header.startswith(_MAGIC) and len(header) == _SIZE_AT + 8:
        (size_bytes,) = struct.unpack_from(">Q", header, _SIZE_AT)
        return int(size_bytes)
    return path.stat().st_size
