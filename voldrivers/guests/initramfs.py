"""An initramfs: kernel modules with what they need, and the archive that a kernel unpacks at boot."""

import lzma
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_DIRECTORIES = ("dev", "proc", "run", "sys", "tmp")


@dataclass(frozen=True)
class Module:
    """One kernel module: its file below the directory of modules, uncompressed content."""

    file: Path
    content: bytes


def module_closure(modules: Path, names: Sequence[str]) -> Iterator[Module]:
    """Give the modules of these names and what they need, in the order in which they must be inserted.

    What a module needs stands in itself (`depends=` in its section .modinfo), so depmod is not needed.
    One that is not in the directory is taken to be built into the kernel.
    """
    files = {_name(file): file for file in modules.glob("kernel/**/*.ko*")}
    inserted: set[str] = set()

    def with_needs(name: str) -> Iterator[Module]:
        if name in inserted or name not in files:
            return
        inserted.add(name)
        content = _read(files[name])
        for needed in _needs(content):
            yield from with_needs(needed)
        yield Module(files[name].relative_to(modules), content)

    for name in names:
        yield from with_needs(name.replace("-", "_"))


def archive(files: Mapping[str, bytes]) -> bytes:
    """Give the archive of these files: cpio in the new format, all of root's and executable.

    Source: Documentation/driver-api/early-userspace/buffer-format.rst of Linux.
    """
    return b"".join(_members(files))


def _name(file: Path) -> str:
    return file.name.partition(".")[0].replace("-", "_")


def _read(file: Path) -> bytes:
    content = file.read_bytes()
    return lzma.decompress(content) if file.suffix == ".xz" else content


def _needs(module: bytes) -> list[str]:
    depends = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in depends[1].decode().split(",") if name] if depends else []


def _members(files: Mapping[str, bytes]) -> Iterator[bytes]:
    parents = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    for name in sorted(parents | set(_DIRECTORIES)):
        yield _member(name, 0o040755)
    for name, content in files.items():
        yield _member(name, 0o100755, content)
    yield _member("TRAILER!!!", 0)


def _member(name: str, mode: int, content: bytes = b"") -> bytes:
    encoded = name.encode() + b"\0"
    #         inode, mode, uid, gid, links, mtime, size, 4 device numbers, name's size, checksum
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % number for number in numbers)
    return _padded(header + encoded) + _padded(content)


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)
