"""What the commands print: aligned tables for people, one JSON document for programs."""

import io
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TextIO

from voldrivers.errors import BackendError

#: What JSON holds; the keys are stable, sizes are bytes.
Document = dict[str, object] | list[dict[str, object]]


def prepare() -> None:
    """Let no character stop the output: one that the terminal cannot show is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write_lines(lines: Sequence[str]) -> None:
    """Print lines for people: what would move a cursor or end a line is escaped. Raises as `write`."""
    write("\n".join(map(escaped, lines)))


def write(text: str) -> None:
    """Print to standard output. A reader that went away is no error: the work was done.

    Raises BackendError when the output cannot be written (a full disk).
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _discard(sys.stdout)
    except OSError as error:
        _discard(sys.stdout)
        failure = BackendError("standard output", f"cannot be written: {error.strerror}")
        failure.add_note("what was asked for was done")
        raise failure from error


def write_document(document: Document) -> None:
    """Print one JSON document."""
    write(json.dumps(document, indent=2))


def complain(text: str) -> None:
    """Print one sentence to standard error, on one line and with nothing that moves a cursor."""
    try:
        print(f"voldrivers: {printable(text)}", file=sys.stderr, flush=True)
    except OSError:  # nobody listens; the exit code tells it
        _discard(sys.stderr)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Align columns, by the width that a terminal gives each character."""
    lines = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]


def printable(text: str) -> str:
    """Give one line: white space becomes a blank, what cannot be printed is escaped."""
    return escaped(" ".join(text.split()))


def escaped(text: str) -> str:
    """Give one line: what cannot be printed is escaped, blanks stay as they are."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class ProgressLine:
    """The step at work, in one line of a terminal that is overwritten; nothing elsewhere."""

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        self._stream = stream
        self._shown = stream.isatty() and not quiet

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._shown:
            # Erase in line, ECMA-48 8.3.41.
            self._stream.write(f"\r\x1b[K{printable(text)}")
            self._stream.flush()

    def clear(self) -> None:
        """Take the line away."""
        self.show("")


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def _discard(stream: TextIO) -> None:
    """Send what is still buffered nowhere, so that Python's exit does not fail on it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
