"""Image files by name and by record: which volume, which format, allocated or not.

The format stands in the driver's record and in the file's name, both out of a guest's reach; what a
file contains decides nothing.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from voldrivers import filesystem
from voldrivers.errors import BackendError, InvalidState, NotFound
from voldrivers.model import Volume, check_id
from voldrivers.nfs import files

FORMATS = ("raw", "qcow2")
#: Ids hold no dot, so a name has one meaning.
_SUFFIXES = {"raw": "", "qcow2": ".qcow2"}
_NAME = re.compile(r"volume-(?P<id>[0-9A-Za-z][0-9A-Za-z_-]{0,63})(?P<suffix>|\.qcow2)")


@dataclass(frozen=True)
class Image:
    """What a driver remembers of a volume: its `provider_data`."""

    format: str
    preallocated: bool
    file: str

    @property
    def recorded(self) -> str:
        """Write it as JSON."""
        return json.dumps(asdict(self))


def file_name(volume_id: str, image_format: str) -> str:
    """Name the file of a volume: one path component, whatever the id. Raises InvalidInput."""
    check_id(volume_id)
    return f"volume-{volume_id}{_SUFFIXES[image_format]}"


def recorded_image(volume: Volume) -> Image:
    """Read what was recorded at creation. Raises InvalidState before it, BackendError for damage."""
    if not volume.provider_data:
        raise InvalidState(volume.title, "without a file", "created")
    try:
        image = Image(**json.loads(volume.provider_data))
        sound = type(image.preallocated) is bool and image.file == file_name(volume.id, image.format)
    except (ValueError, TypeError, KeyError) as error:
        raise BackendError(volume.title, f"its provider_data is damaged: {error}") from error
    if not sound:
        raise BackendError(volume.title, f"its provider_data is not its own: {volume.provider_data}")
    return image


def list_images(directory: Path) -> Iterator[str]:
    """Give the ids of our files; links and files with other names are not ours."""
    return (match["id"] for match, _entry in _ours(directory))


def promised_bytes(directory: Path) -> int:
    """Add up the virtual sizes of our files, from one listing: a stat for a raw file, an open for a qcow2."""
    return sum(_virtual_bytes(match, entry) for match, entry in _ours(directory))


def _ours(directory: Path) -> Iterator[tuple[re.Match[str], os.DirEntry[str]]]:
    with files.typed_errors(f"share {directory}"), os.scandir(directory) as entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match and entry.is_file(follow_symlinks=False):
                yield match, entry


def _virtual_bytes(match: re.Match[str], entry: os.DirEntry[str]) -> int:
    try:
        if match["suffix"]:
            return filesystem.image_bytes(Path(entry.path), "qcow2")
        return entry.stat(follow_symlinks=False).st_size
    except (NotFound, BackendError, FileNotFoundError):  # deleted or damaged: not what is asked about
        return 0
