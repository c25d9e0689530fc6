"""What a qcow2 file says of itself, compared with what is recorded (QEMU docs/interop/qcow2.txt)."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voldrivers.errors import BackendError, NotSupported
from voldrivers.nfs import files

_MAGIC = b"QFI\xfb"
#: Version, backing file (offset, length), cluster bits, size, encryption, L1 table (entries, offset),
#: refcounts (offset, clusters), internal snapshots, their offset; of version 3 also incompatible features.
_FIELDS, _FEATURES, _LENGTH = ">IQIIQIIQQIIQ", (">Q", 72), (">I", 100)
_IS_CORRUPT = 2
_SHORT_HEADER, _LONGEST_CLUSTER, _LONGEST_NAME = 72, 1 << 21, 1023
_BACKING_FORMAT = 0xE2792ACA
_LONGEST_TABLE = 32 << 20


@dataclass(frozen=True)
class Header:
    """What a qcow2 says: its size, the file it lies on and that one's format, what makes it unfit for us."""

    size_bytes: int
    backing: str | None
    backing_format: str | None
    encrypted: bool
    internal_snapshots: int
    corrupt: bool
    table_offset: int
    table_bytes: int


def read_header(path: Path, file: Path) -> Header:
    """Read the header of `file`, called `path`. Raises NotFound, BackendError for what is no sound qcow2."""
    with files.typed_errors(f"file {path}"):
        content = _read(file, 0, 1 << 16)
    try:
        return _parsed(content)
    except (struct.error, ValueError) as error:
        raise BackendError(f"file {path}", "was recorded as qcow2 but has no qcow2 header") from error


def is_written(path: Path, file: Path) -> bool:
    """Tell whether anything was ever written to an overlay: its L1 table refers to something then."""
    header = read_header(path, file)
    with files.typed_errors(f"file {path}"):
        return any(_read(file, header.table_offset, min(header.table_bytes, _LONGEST_TABLE)))


def check_header(path: Path, file: Path, allowed: Sequence[tuple[str, str] | None] = (None,)) -> Header:
    """Refuse a qcow2 that refers to other files than the one recorded: it could show a host's files.

    `allowed` are names and formats of what it may lie on; None is nothing at all. Raises BackendError.
    """
    try:
        from oslo_utils.imageutils import format_inspector
    except ImportError as error:
        raise NotSupported("format qcow2", "needs the extra: pip install 'voldrivers[nfs]'") from error
    try:
        inspector: Any = format_inspector.QcowInspector.from_file(str(file))  # Any: typed as any format
        # Not safety_check(): that refuses, and logs, every file that lies on another one.
        inspector.check_data_file()
        inspector.check_unknown_features()
    except (format_inspector.ImageFormatError, struct.error) as error:
        raise BackendError(f"file {path}", "was recorded as qcow2 but has no qcow2 header") from error
    except format_inspector.SafetyViolation as error:
        raise BackendError(f"file {path}", f"is not a qcow2 that can be used: {error}") from error
    header = read_header(path, file)
    if header.encrypted:
        raise BackendError(f"file {path}", "is an encrypted qcow2")
    if not any(_lies_on(header, each) for each in allowed):
        wanted = " or ".join("none" if each is None else f"{each[0]} ({each[1]})" for each in allowed)
        found = "none" if header.backing is None else f"{header.backing} ({header.backing_format})"
        raise BackendError(f"file {path}", f"its backing file is {found}, must be {wanted}")
    return header


def _lies_on(header: Header, backing: tuple[str, str] | None) -> bool:
    return header.backing is None if backing is None else (header.backing, header.backing_format) == backing


def _parsed(content: bytes) -> Header:
    if content[:4] != _MAGIC:
        raise ValueError("another magic")
    version, name_at, name_length, bits, size, crypt, entries, table, _, _, snapshots, _ = struct.unpack_from(
        _FIELDS, content, 4
    )
    features, length = 0, _SHORT_HEADER
    if version >= 3:
        (features,), (length,) = (
            struct.unpack_from(form, content, offset) for form, offset in (_FEATURES, _LENGTH)
        )
    if 1 << bits > _LONGEST_CLUSTER or name_length > _LONGEST_NAME or name_at + name_length > len(content):
        raise ValueError("a field out of its range")
    name = content[name_at : name_at + name_length].decode() if name_at else None
    image_format = _backing_format(content, length) if name_at else None
    corrupt = bool(features & _IS_CORRUPT)
    return Header(size, name, image_format, bool(crypt), snapshots, corrupt, table, entries * 8)


def _backing_format(content: bytes, at: int) -> str | None:
    """Walk the header's extensions."""
    while True:
        kind, length = struct.unpack_from(">II", content, at)
        if kind == _BACKING_FORMAT:
            return content[at + 8 : at + 8 + length].decode()
        if kind == 0:
            return None
        at += 8 + -(-length // 8) * 8


def _read(file: Path, offset: int, length: int) -> bytes:
    with open(file, "rb", buffering=0) as image:
        image.seek(offset)
        return image.read(length)
