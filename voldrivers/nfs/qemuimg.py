"""qemu-img and fallocate: the programs that make and extend image files, under limits.

A format is always given and never probed: a guest can write a qcow2 header into a raw disk
(CVE-2015-5163 and its kin). Long options where the programs have them.
"""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

from voldrivers.base import Run
from voldrivers.errors import CommandFailed, NotSupported

#: A crafted image can make qemu-img eat memory and time (CVE-2015-5162), so it runs inside limits; the
#: figures are those of Cinder and Nova. prlimit(1) costs 1 ms, oslo.concurrency's own way 22 ms.
_MEMORY, _CPU_S = "--as=1073741824", 30
#: QEMU has up to 64 threads, and glibc gives each a part of the address space for its own allocations, 64 MiB
#: and more: one merge in a hundred found no room for a thread and was aborted (QEMU 7.2.22, glibc 2.36). With
#: one part for all of them (mallopt(3)) each takes no more than its stack, 8 MiB.
_SHARED = ("env", "MALLOC_ARENA_MAX=1")
_ANSWER_S = 60.0
#: Allocation can be slow: the file system may have to write every block (tmpfs, some NFS servers).
_ALLOCATE_S = 600.0
#: A copy that is slower than this has hung.
_COPIED_BYTES_PER_S = 8 << 20

#: Files with their formats: the topmost first, each over the next one.
Layers = Sequence[tuple[Path, str]]


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


def create_overlay(run: Run, file: Path, size_bytes: int, backing: str, backing_format: str) -> None:
    """Make the existing empty `file` a qcow2 over a file of this name beside it, which is not opened."""
    over = ["-u", "-b", backing, "-F", backing_format]
    _qemu_img(run, ["create", "-q", "-f", "qcow2", *over, str(file), str(size_bytes)], _ANSWER_S)


def resize_overlay(run: Run, layers: Layers, size_bytes: int) -> None:
    """Make the topmost of `layers` larger, as `resize`; the others stay as they are."""
    _qemu_img(run, ["resize", "-q", _json(layers), str(size_bytes)], _ANSWER_S)


def take_in(run: Run, layer: Path, base: tuple[str, str] | None, copied_bytes: int) -> None:
    """Copy into a qcow2 what lies between it and `base`, a name beside it and a format, or all without one.

    No other file is written to, and the header changes last; may be repeated. The headers of all layers are
    followed, so let them be checked and their names lead nowhere else. At most `copied_bytes` are copied.
    """
    over = ["-b", ""] if base is None else ["-b", base[0], "-F", base[1]]
    # Written through: else the header could be on disk before what was copied.
    _copy(run, ["rebase", "-q", "-t", "writethrough", "-f", "qcow2", *over, str(layer)], copied_bytes)


def convert(run: Run, layers: Layers, file: Path, image_format: str, copied_bytes: int) -> None:
    """Copy what `layers` show into an image that exists, reads as zeros and is large enough."""
    target = ["-n", "--target-is-zero", "-O", image_format]
    _copy(run, ["convert", "-q", *target, _json(layers), str(file)], copied_bytes)


def _json(layers: Layers) -> str:
    """Name files with their formats for QEMU, each over the next one: no header is asked for either."""
    below: dict[str, object] | None = None
    for file, image_format in reversed(layers):
        node: dict[str, object] = {"driver": image_format, "file": {"driver": "file", "filename": str(file)}}
        below = node if image_format == "raw" else {**node, "backing": below}
    return f"json:{json.dumps(below)}"


def _copy(run: Run, arguments: Sequence[str], copied_bytes: int) -> None:
    slow_s = copied_bytes / _COPIED_BYTES_PER_S
    _qemu_img(run, arguments, _ALLOCATE_S + slow_s, _CPU_S + int(slow_s))


def _qemu_img(run: Run, arguments: Sequence[str], timeout_s: float, cpu_s: int = _CPU_S) -> None:
    limited = ("prlimit", _MEMORY, f"--cpu={cpu_s}", "--", *_SHARED)
    run([*limited, "qemu-img", *arguments], timeout_s=timeout_s)
