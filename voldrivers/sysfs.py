"""Attributes of the kernel below /sys: read at once, written in a child that can be given up."""

import os
from pathlib import Path

from voldrivers.base import Run


def read(attribute: Path) -> str:
    """Give what an attribute says, without its newline; "" for one that is not there or cannot be read."""
    try:
        return attribute.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def entries(directory: Path) -> list[Path]:
    """Give what is in a directory, by name; nothing for one that is not there."""
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def write(run: Run, attribute: Path, text: str, *, timeout_s: float) -> None:
    """Write an attribute within a time limit: a device that does not answer blocks whoever writes to it.

    Raises CommandFailed with the kernel's refusal; OutcomeUnknown when the time is up: the child may
    be stuck in the kernel then, and what it began goes on.
    """
    # A file in memory, because no shell means no redirection; it vanishes with us, however we end.
    source = os.memfd_create("voldrivers")
    try:
        os.write(source, text.encode())
        copied = [f"if=/proc/{os.getpid()}/fd/{source}", f"of={attribute}", "conv=notrunc,nocreat"]
        run(["dd", "status=none", *copied], timeout_s=timeout_s)
    finally:
        os.close(source)
