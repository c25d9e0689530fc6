"""qemu-img and fallocate: the programs that make and extend image files, under limits.

A format is always given and never probed: a guest can write a qcow2 header into a raw disk
(CVE-2015-5163 and its kin). Long options where the programs have them.
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from voldrivers.base import Run
from voldrivers.errors import BackendError, CommandFailed, NotSupported

#: A crafted image can make qemu-img eat memory and time (CVE-2015-5162), so it runs inside limits; the
#: figures are those of Cinder and Nova. prlimit(1) costs 1 ms, oslo.concurrency's own way 22 ms.
_LIMITED = ("prlimit", "--as=1073741824", "--cpu=30", "--")
_ANSWER_S = 60.0
#: Allocation can be slow: the file system may have to write every block (tmpfs, some NFS servers).
_ALLOCATE_S = 600.0


def create(run: Run, file: Path, image_format: str, size_bytes: int, *, preallocated: bool) -> None:
    """Make the existing empty `file` an image of `size_bytes` that reads as zeros.

    A preallocated qcow2 needs a file system with fallocate: probe it, qemu-img would write instead.
    """
    preallocation = ["-o", "preallocation=falloc"] if preallocated and image_format == "qcow2" else []
    arguments = ["create", "-q", "-f", image_format, *preallocation, str(file), str(size_bytes)]
    _qemu_img(run, arguments, _ALLOCATE_S if preallocated else _ANSWER_S)
    if preallocated and image_format == "raw":
        allocate(run, file, size_bytes)


def resize(run: Run, file: Path, image_format: str, size_bytes: int, *, preallocated: bool) -> None:
    """Make an image larger that no QEMU holds; qemu-img itself refuses to make it smaller.

    The same size again changes nothing. The same need of fallocate as in `create`.
    """
    preallocation = ["--preallocation=falloc"] if preallocated and image_format == "qcow2" else []
    arguments = ["resize", "-q", "-f", image_format, *preallocation, str(file), str(size_bytes)]
    _qemu_img(run, arguments, _ALLOCATE_S if preallocated else _ANSWER_S)
    if preallocated and image_format == "raw":
        allocate(run, file, size_bytes)


def allocate(run: Run, file: Path, length_bytes: int) -> None:
    """Give every byte of `file` its place on disk, leaving what is written untouched; may be repeated.

    `fallocate` of util-linux: fallocate(2) in mode 0 and nothing else, while posix_fallocate(3) writes
    where the file system cannot, over what a guest wrote a moment ago. A program, unlike a call
    through ctypes, can be ended when a mount does not answer. Raises CommandFailed.
    """
    run(["fallocate", "--length", str(length_bytes), str(file)], timeout_s=_ALLOCATE_S)


def probe_allocation(run: Run, subject: str, scratch: Path) -> None:
    """Refuse a file system without fallocate, tried on an empty file. Raises NotSupported."""
    try:
        allocate(run, scratch, 4096)
    except CommandFailed as error:
        if os.strerror(errno.EOPNOTSUPP) not in error.reason:
            raise
        reason = "it cannot allocate without writing (fallocate); NFS 4.2 can, and sparse volumes need not"
        raise NotSupported(subject, reason) from error


def check_header(path: Path, file: Path) -> None:
    """Refuse a qcow2 that refers to other files or is none: opening it could show a host's files.

    Raises BackendError.
    """
    try:
        from oslo_utils.imageutils import format_inspector
    except ImportError as error:
        raise NotSupported("format qcow2", "needs the extra: pip install 'voldrivers[nfs]'") from error
    try:
        format_inspector.QcowInspector.from_file(str(file)).safety_check()
    except format_inspector.ImageFormatError as error:
        raise BackendError(f"file {path}", "was recorded as qcow2 but has no qcow2 header") from error
    except format_inspector.SafetyCheckFailed as error:
        reasons = ", ".join(sorted(str(cause) for cause in error.failures.values()))
        raise BackendError(f"file {path}", f"is not a qcow2 that stands alone: {reasons}") from error


def _qemu_img(run: Run, arguments: Sequence[str], timeout_s: float) -> None:
    run([*_LIMITED, "qemu-img", *arguments], timeout_s=timeout_s)
