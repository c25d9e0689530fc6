"""`image write` and `image read`: bytes between a file or pipe and a volume that is attached here."""

import os
import stat
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from io import FileIO
from pathlib import Path

from voldrivers.cli import failures
from voldrivers.cli.output import Document, ProgressLine, complain, write_document, write_lines
from voldrivers.cli.session import working
from voldrivers.errors import BackendError, InvalidInput, InvalidSize, NotFound, NotSupported
from voldrivers.images import (
    Growth,
    ImageProgress,
    ReadImage,
    WriteOptions,
    WrittenImage,
    read_image,
    write_image,
)
from voldrivers.images.flow import Limits
from voldrivers.sizes import format_room, format_size, parse_size

#: So often the line of progress changes.
_SHOWN_S = 0.2


def write(args: Namespace) -> int:
    """`image write`."""
    _check_local(args)
    growth = Growth(limit_bytes=_size(args, "limit"))
    if args.overshoot is not None:
        growth = replace(growth, most_bytes=_size(args, "overshoot") or 0)
    with _source(args) as source:
        options = WriteOptions(
            size_bytes=_known_size(args, source),
            extend_attached=args.extend_attached,
            growth=growth,
            md5=args.md5,
            limits=Limits() if args.stall is None else Limits(source_s=args.stall),
        )
        with working(args) as engine:
            began = time.monotonic()
            written = write_image(engine, args.volume, source, options, _shown(args, "written"))
            took_s = time.monotonic() - began
    if args.json:
        write_document(_document(written, took_s))
    else:
        write_lines(_lines(written, took_s))
    return failures.OK


def read(args: Namespace) -> int:
    """`image read`."""
    _check_local(args)
    with _sink(args) as sink, working(args) as engine:
        shown = _shown(args, "read")
        done = read_image(engine, args.volume, sink, _size(args, "size"), progress=shown)
    _say_read(args, done)
    return failures.OK


COMMANDS: Mapping[str, Callable[[Namespace], int]] = {"image_write": write, "image_read": read}


def _check_local(args: Namespace) -> None:
    if args.url is not None:
        reason = "images are written and read on the machine that has the records, without --url"
        raise NotSupported(f"volume {args.volume}", reason)


def _size(args: Namespace, name: str) -> int | None:
    text = getattr(args, name)
    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise InvalidInput(f"--{name} {text}", str(error)) from error


@contextmanager
def _source(args: Namespace) -> Iterator[FileIO]:
    """Open what is written; without a buffer of Python's, whose lock a reader that hangs would keep."""
    if args.source == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise InvalidInput("standard input", "is a terminal: give --from FILE, or a pipe")
        with FileIO(sys.stdin.fileno(), "rb", closefd=False) as pipe:
            yield pipe
        return
    try:
        file = FileIO(args.source, "rb")
    except FileNotFoundError as error:
        raise NotFound("file", args.source) from error
    except OSError as error:
        raise InvalidInput(f"file {args.source}", f"cannot be read: {error.strerror}") from error
    with file:
        yield file


def _known_size(args: Namespace, source: FileIO) -> int | None:
    """Give the announced size, or that of a file or device. Raises InvalidSize where they differ."""
    announced_bytes = _size(args, "size")
    found_bytes = _found_size(source)
    if announced_bytes is not None and found_bytes not in (None, announced_bytes):
        reason = f"{args.source} has {format_size(found_bytes or 0)}"
        raise InvalidSize(f"the image for volume {args.volume}", reason, format_size(announced_bytes))
    if found_bytes == 0:
        raise InvalidInput(f"file {args.source}", "is empty")
    return found_bytes if announced_bytes is None else announced_bytes


def _found_size(source: FileIO) -> int | None:
    """Give how much there is to read from here on; None for a pipe."""
    mode = os.fstat(source.fileno()).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        return None
    here = source.tell()
    end = source.seek(0, os.SEEK_END)
    source.seek(here)
    return max(end - here, 0)


@contextmanager
def _sink(args: Namespace) -> Iterator[FileIO]:
    """Open where it goes: a new file, which has its name only once it is whole, or standard output."""
    if args.to == "-":
        if sys.stdout.isatty():
            raise InvalidInput("standard output", "is a terminal: give --to FILE, or a pipe")
        with FileIO(sys.stdout.fileno(), "wb", closefd=False) as pipe:
            yield pipe
        return
    path = Path(args.to)
    unfinished = path.with_name(f".{path.name}.part")
    if os.path.lexists(path):
        raise InvalidInput(f"file {path}", "is there already: remove it or give another name")
    with ExitStack() as undone:
        try:
            undone.callback(unfinished.unlink, missing_ok=True)
            with FileIO(str(unfinished), "wb") as file:
                yield file
                os.fsync(file.fileno())
            unfinished.rename(path)
        except OSError as error:
            raise BackendError(f"file {path}", f"cannot be written: {error.strerror}") from error


def _shown(args: Namespace, done: str) -> Callable[[ImageProgress], None]:
    """Give what shows how far it is, in a terminal's line."""
    line, began, last = ProgressLine(sys.stderr, quiet=args.verbose > 0), time.monotonic(), [0.0]

    def show(progress: ImageProgress) -> None:
        now = time.monotonic()
        if now - last[0] < _SHOWN_S:
            return
        last[0] = now
        of = "" if progress.image_bytes is None else f" of {format_room(progress.image_bytes)}"
        rate = format_room(int(progress.done_bytes / max(now - began, 0.001)))
        text = f"volume {args.volume}: {format_room(progress.done_bytes)}{of} {done}, {rate}/s"
        line.show(f"{text}, {_extends(progress.extends)} ...")

    return show


def _extends(count: int) -> str:
    return "1 extend" if count == 1 else f"{count or 'no'} extends"


def _lines(written: WrittenImage, took_s: float) -> list[str]:
    size, volume = format_size(written.size_bytes), written.volume
    how = f"{took_s:.1f} s, {_extends(written.extends)}"
    if written.attaches:
        how += ", each detached and attached again"
    lines = [f"{volume.title}: image of {size} written, whole ({how})", f"sha256 {written.sha256}"]
    if written.md5:
        lines.append(f"md5 {written.md5}")
    if written.left_over_bytes:
        left = format_size(written.left_over_bytes)
        lines.append(f"left over: {left} of its {format_size(volume.size_bytes)}; a volume never shrinks")
    if written.why_not_direct:
        lines.append(f"note: through the page cache, as {written.why_not_direct}")
    return lines


def _document(written: WrittenImage, took_s: float) -> Document:
    return {
        "volume": written.volume.name,
        "size_bytes": written.size_bytes,
        "sha256": written.sha256,
        "md5": written.md5 or None,
        "volume_bytes": written.volume.size_bytes,
        "left_over_bytes": written.left_over_bytes,
        "left_out_bytes": written.left_out_bytes,
        "extends": written.extends,
        "attaches": written.attaches,
        "direct": not written.why_not_direct,
        "seconds": round(took_s, 3),
    }


def _say_read(args: Namespace, done: ReadImage) -> None:
    """Say what was read; on standard error where the image went to standard output."""
    verdict = "the image that was written" if done.is_verified else "not compared with anything"
    text = f"{done.volume.title}: {format_size(done.size_bytes)} read, {verdict}, sha256 {done.sha256}"
    if args.to == "-":
        complain(text)
    elif args.json:
        write_document(
            {
                "volume": done.volume.name,
                "size_bytes": done.size_bytes,
                "sha256": done.sha256,
                "verified": done.is_verified,
            }
        )
    else:
        write_lines([text])
