"""`image write` and `image read`: bytes between a file or pipe and a volume that is attached here."""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import FileIO

from voldrivers.cli import failures
from voldrivers.cli.imagefiles import found_size, sink_to, source_from
from voldrivers.cli.output import Document, ProgressLine, complain, write_document, write_lines
from voldrivers.cli.session import working
from voldrivers.errors import InvalidInput, InvalidSize, NotSupported
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
    growth, overshoot_bytes = Growth(limit_bytes=_size(args, "limit")), _size(args, "overshoot")
    if overshoot_bytes is not None:
        growth = replace(growth, most_bytes=overshoot_bytes)
    with source_from(args.source) as source:
        options = WriteOptions(
            size_bytes=_known_size(args, source),
            sha256=args.sha256,
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
        write_lines([*_lines(written, took_s), *_doubts(options)])
    return failures.OK


def read(args: Namespace) -> int:
    """`image read`."""
    _check_local(args)
    if args.json and args.to == "-":
        raise InvalidInput("--json", "standard output gets the image: give --to FILE")
    with sink_to(args.to) as sink, working(args) as engine:
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
        size_bytes = None if text is None else parse_size(text)
    except ValueError as error:
        raise InvalidInput(f"--{name} {text}", str(error)) from error
    if size_bytes == 0:
        raise InvalidInput(f"--{name} {text}", "must be a size of at least one byte")
    return size_bytes


def _known_size(args: Namespace, source: FileIO) -> int | None:
    """Give the announced size, or that of a file or device. Raises InvalidSize where they differ."""
    announced_bytes = _size(args, "size")
    found_bytes = found_size(source)
    if announced_bytes is not None and found_bytes not in (None, announced_bytes):
        reason = f"{args.source} has {format_size(found_bytes or 0)}"
        raise InvalidSize(f"the image for volume {args.volume}", reason, format_size(announced_bytes))
    if found_bytes == 0:
        raise InvalidInput(f"file {args.source}", "is empty")
    return found_bytes if announced_bytes is None else announced_bytes


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


def _doubts(options: WriteOptions) -> list[str]:
    if options.size_bytes is not None or options.sha256 is not None:
        return []
    return ["note: that is all the pipe gave; only --size or --sha256 could tell that its writer had died"]


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
