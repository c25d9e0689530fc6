"""Open files under their own names, in a directory that nobody else can write to."""

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from voldrivers.errors import BackendError
from voldrivers.nfs import files


@contextmanager
def named(key: str, opened: Mapping[str, Path]) -> Iterator[Path]:
    """Give a directory in which open files have these names, for a program that follows names in headers.

    So each name leads to the very file that was checked, or nowhere. One at a time for each `key`; what a
    killed process left is removed first. Raises BackendError.
    """
    place = _place(key)
    clean(key)
    with files.typed_errors(f"directory {place}"):
        place.mkdir(mode=0o700)
    try:
        with files.typed_errors(f"directory {place}"):
            for name, file in opened.items():
                (place / name).symlink_to(file)
        yield place
    finally:
        clean(key)


def clean(key: str) -> None:
    """Remove what a killed `named` left. Raises BackendError where it is somebody else's."""
    place = _place(key)
    if not os.path.lexists(place):
        return
    status = os.lstat(place)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise BackendError(f"directory {place}", "is somebody else's")
    with files.typed_errors(f"directory {place}"):
        for link in place.iterdir():
            link.unlink()
        place.rmdir()


def _place(key: str) -> Path:
    return Path(tempfile.gettempdir()) / f"voldrivers-{os.geteuid()}-{key}"
