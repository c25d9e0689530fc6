"""The project that is worked on: its files as they are now, and the libraries of the Python that runs us."""

import hashlib
import io
import os
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from voldrivers import process
from voldrivers.errors import BackendError, CommandFailed, InvalidInput, NotFound, NotSupported
from voldrivers.sizes import MiB, format_size

#: The Python of the lab's machines (Debian 12): compiled libraries of another one do not fit.
PYTHON = (3, 11)
#: Where a command finds the project, its libraries, and its own tools.
ENVIRONMENT: Mapping[str, str] = {
    "PYTHONPATH": "/project:/project/src:/project/tests:/deps",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
}
#: Libraries that only a workplace needs; by the names of their files.
_WORKPLACE = ("mypy", "ruff", "pip", "setuptools", "_distutils_hack", "__editable__")
#: A home directory, say, is not taken for a project: it would be packed for minutes.
_MOST_FILES, _MOST_BYTES = 20_000, 64 * MiB
_SKIPPED = {".git", ".venv", "build", "__pycache__", "node_modules"}


@dataclass(frozen=True)
class Stamp:
    """What a file was like when it was last looked at."""

    size_bytes: int
    mtime_ns: int
    mode: int


Files = Mapping[str, Stamp]


def dependencies_key() -> str:
    """Name the libraries of this Python by what is installed. Raises NotSupported for another Python."""
    if sys.version_info[:2] != PYTHON:
        wanted, ours = (".".join(map(str, version)) for version in (PYTHON, sys.version_info[:2]))
        raise NotSupported("the lab", f"its machines have Python {wanted}, this is {ours}")
    digest = hashlib.sha256()
    for path in sorted(site_packages().iterdir()):
        digest.update(path.name.encode())
        # What is installed anew is listed anew; a library's directory changes with its first import, too.
        if (record := path / "RECORD").exists():
            digest.update(str(record.stat().st_mtime_ns).encode())
    return digest.hexdigest()[:16]


def site_packages() -> Path:
    """Give the directory with the libraries of this Python."""
    return Path(sysconfig.get_paths()["purelib"])


def left_out() -> list[str]:
    """Give patterns of the names in it that a machine does not need."""
    return [f"^{name}" for name in _WORKPLACE]


def look(directory: Path) -> Files:
    """Look at all files of a project: what git would keep, else all but results and caches.

    Raises NotFound without the directory; InvalidInput when it holds too much to be one project.
    """
    found: dict[str, Stamp] = {}
    size_bytes = 0
    for name in _names(directory):
        path = directory / name
        if path.is_file():
            status = path.stat()
            found[name] = Stamp(status.st_size, status.st_mtime_ns, status.st_mode & 0o777)
            size_bytes += status.st_size
            if size_bytes > _MOST_BYTES or len(found) > _MOST_FILES:
                limit = f"{_MOST_FILES} files or {format_size(_MOST_BYTES)}"
                raise InvalidInput(f"directory {directory}", f"it is no project: it holds more than {limit}")
    return found


def archive(directory: Path, names: Iterable[str]) -> bytes:
    """Give these files of a directory as a tar archive; one that is gone meanwhile is left out.

    Raises InvalidInput for one that cannot be read.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        for name in names:
            with suppress(FileNotFoundError):
                _add(tar, directory / name, name)
    return packed.getvalue()


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file as it is when it is read; it may change all the time."""
    member = tar.gettarinfo(path, arcname=name)
    try:
        content = path.read_bytes() if member.isreg() else b""
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InvalidInput(f"file {path}", f"cannot be brought to the lab: {error.strerror}") from error
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _names(directory: Path) -> Iterable[str]:
    if not directory.is_dir():
        raise NotFound("directory", str(directory))
    argv = ["git", "-C", str(directory), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        return [name for name in process.run(argv, timeout_s=20).stdout.split("\0") if name]
    except (CommandFailed, BackendError):  # no git, or no checkout
        return _walk(directory)


def _walk(directory: Path) -> Iterator[str]:
    for place, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if name not in _SKIPPED]
        yield from (str(Path(place, name).relative_to(directory)) for name in names)
