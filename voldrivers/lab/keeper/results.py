"""What a command left in /results of its machine, on its way into a directory of ours.

It is the only thing that a machine writes to its host, and whoever is root in there may send any bytes. So
`tarfile` reads no more than one header at a time (in Python 3.11.2 it loops and recurses at an archive's
will), nothing is written before all headers were read, and no name leads out of the directory. Only files
and directories are made, with the rights of new ones: no link, no device, nothing executable.
"""

import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from voldrivers.errors import BackendError, InvalidInput
from voldrivers.sizes import MiB, format_size

MOST_BYTES, MOST_NAMES = 256 * MiB, 20_000

_SUBJECT = "what the command left in /results"
_BLOCK_BYTES, _COPY_BYTES = tarfile.BLOCKSIZE, MiB
_WITHOUT_CONTENT = {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE}
_WITHOUT_CONTENT |= {tarfile.FIFOTYPE}
_FILES = {tarfile.REGTYPE, tarfile.AREGTYPE}


@dataclass(frozen=True)
class _Member:
    """One name in the archive, and where its content is."""

    name: str
    kind: bytes
    offset: int
    size_bytes: int

    @property
    def parts(self) -> Sequence[str]:
        """The names on the way to it; none for the directory itself."""
        return [part for part in self.name.split("/") if part not in ("", ".")]

    @property
    def problem(self) -> str:
        """Why it is left out; "" when it is not."""
        if self.kind != tarfile.DIRTYPE and self.kind not in _FILES:
            return "it is neither a file nor a directory"
        if self.name.startswith("/") or ".." in self.parts:
            return "its name leads out of the directory"
        return "" if self.name.isprintable() else "its name cannot be printed"


class Results:
    """A directory for results, and the archive that comes for it, until the `with` block ends.

    One that is missing is made when something comes, if only an empty part: a command that is refused leaves
    no directory.
    """

    def __init__(self, directory: Path) -> None:
        """Take the directory. Raises InvalidInput when it is seen that nothing could be written to it."""
        self.directory = directory
        self._opened = ExitStack()
        self._size_bytes = 0
        full = directory.absolute()
        there = next(path for path in (full, *full.parents) if os.path.exists(path))
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            reason = f"nothing can be written to it: {there} is no directory that may be written to"
            raise InvalidInput(f"results directory {directory}", reason)

    def __enter__(self) -> Self:
        """Give it, empty."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget the archive; what was unpacked stays."""
        with suppress(OSError):  # it writes again what it could not write before
            self._opened.close()

    def add(self, content: bytes) -> None:
        """Take more of the archive. Raises BackendError when it is too much, or cannot be written."""
        if self._size_bytes + len(content) > MOST_BYTES:
            raise BackendError(_SUBJECT, f"it is more than {format_size(MOST_BYTES)}, nothing is brought")
        try:
            self._archive.write(content)
            self._archive.flush()
        except OSError as error:
            self._size_bytes = 0  # it is not whole, and to read what there is would write again
            raise self._failure("it", error) from error
        self._size_bytes += len(content)

    def unpack(self) -> list[str]:
        """Write what has come, over files of the same names; give a sentence for each that is left out.

        Raises BackendError: with nothing written for no archive, one that is cut off or has too many names;
        and for what cannot be written.
        """
        members = list(self._members()) if self._size_bytes else []
        for member in members:
            if not member.problem:
                try:
                    self._write(member)
                except OSError as error:
                    raise self._failure(ascii(member.name), error) from error
        return [f"{member.name!a} is left out: {member.problem}" for member in members if member.problem]

    @cached_property
    def _archive(self) -> IO[bytes]:
        """What has come, in a file without a name; the directory is there from now on."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return self._opened.enter_context(tempfile.TemporaryFile(dir=self.directory))

    @cached_property
    def _root(self) -> int:
        root = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        self._opened.callback(os.close, root)
        return root

    def _members(self) -> Iterator[_Member]:
        """Read the headers, each after the content before it (tar(5), the format of POSIX 1988)."""
        offset = 0
        for _ in range(MOST_NAMES):
            self._archive.seek(offset)
            try:
                header = tarfile.TarInfo.frombuf(self._archive.read(_BLOCK_BYTES), "utf-8", "surrogateescape")
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # typeshed lacks it
                return
            except tarfile.HeaderError as error:
                raise BackendError(_SUBJECT, f"no whole archive came: {error}") from error
            offset += _BLOCK_BYTES
            size_bytes = 0 if header.type in _WITHOUT_CONTENT else header.size
            if not 0 <= size_bytes <= self._size_bytes - offset:
                raise BackendError(_SUBJECT, "no whole archive came: a size is wrong")
            yield _Member(header.name, header.type, offset, size_bytes)
            offset += -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
        raise BackendError(_SUBJECT, f"it is more than {MOST_NAMES} names, nothing is brought")

    def _write(self, member: _Member) -> None:
        """Make a directory or a file. No link on the way is followed, and none in its place."""
        with ExitStack() as opened:
            directory = self._root
            *on_the_way, last = [*member.parts, ""]
            if member.kind in _FILES:
                *on_the_way, last = member.parts
            for part in on_the_way:
                directory = _enter(directory, part)
                opened.callback(os.close, directory)
            if last:
                self._write_file(directory, last, member)

    def _write_file(self, directory: int, name: str, member: _Member) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(name, flags, 0o666, dir_fd=directory), "wb") as file:
            self._archive.seek(member.offset)
            left_bytes = member.size_bytes
            while left_bytes:
                left_bytes -= file.write(self._archive.read(min(left_bytes, _COPY_BYTES)))

    def _failure(self, what: str, error: OSError) -> BackendError:
        return BackendError(
            f"results directory {self.directory}", f"{what} cannot be written: {error.strerror}"
        )


def _enter(directory: int, name: str) -> int:
    """Open a directory in another one; make it if it is missing. Raises OSError for a link too."""
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=directory)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
