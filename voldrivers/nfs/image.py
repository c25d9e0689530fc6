"""Image files by name and by record: which volume, which layer of it, which format, allocated or not.

The format stands in the driver's record and in the file's name, both out of a guest's reach; what a
file contains decides nothing. A volume is one file, `volume-ID` (raw) or `volume-ID.qcow2`, until its first
snapshot: that freezes the file, and the volume goes on in the overlay `volume-ID.SNAPSHOT.qcow2` over it. The
overlay of a deleted snapshot may stay, so each snapshot has an empty file `volume-ID.SNAPSHOT.snapshot` too.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from voldrivers import filesystem
from voldrivers.errors import BackendError, InvalidState, NotFound
from voldrivers.model import Snapshot, Volume, check_id
from voldrivers.nfs import files, qcow2

FORMATS = ("raw", "qcow2")
#: Ids hold no dot, so a name has one meaning.
_SUFFIXES = {"raw": "", "qcow2": ".qcow2"}
_ID = "[0-9A-Za-z][0-9A-Za-z_-]{0,63}"
_NAME = re.compile(rf"volume-(?P<id>{_ID})(?:(?:\.(?P<snapshot>{_ID}))?(?P<suffix>\.qcow2))?")
_MARK = re.compile(rf"volume-(?P<id>{_ID})\.(?P<snapshot>{_ID})\.snapshot")
_SPACER = re.compile(rf"volume-(?P<id>{_ID})\.(?P<snapshot>{_ID})\.merging")
_KINDS = (_NAME, _MARK, _SPACER)


@dataclass(frozen=True)
class Image:
    """What a driver remembers of a volume, and of a snapshot: its `provider_data`.

    `over` is the file that an overlay was laid over when it was made.
    """

    format: str
    preallocated: bool
    file: str
    over: str | None = None

    @property
    def recorded(self) -> str:
        """Write it as JSON."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})


def file_name(volume_id: str, image_format: str) -> str:
    """Name the file of a volume: one path component, whatever the id. Raises InvalidInput."""
    check_id(volume_id)
    return f"volume-{volume_id}{_SUFFIXES[image_format]}"


def overlay_over(frozen: Image, volume: Volume, snapshot: Snapshot) -> Image:
    """Give the file in which a volume goes on when a snapshot of it is taken. Raises InvalidInput."""
    check_id(volume.id)
    check_id(snapshot.id, "snapshot")
    return Image("qcow2", False, f"volume-{volume.id}.{snapshot.id}.qcow2", over=frozen.file)


def mark_name(volume: Volume, snapshot: Snapshot) -> str:
    """Name the empty file that says that a snapshot is there. Raises InvalidInput."""
    check_id(volume.id)
    check_id(snapshot.id, "snapshot")
    return f"volume-{volume.id}.{snapshot.id}.snapshot"


def spacer_name(volume: Volume, snapshot: Snapshot) -> str:
    """Name the empty layer that is needed to merge a snapshot: see `Merge`. Raises InvalidInput."""
    check_id(volume.id)
    check_id(snapshot.id, "snapshot")
    return f"volume-{volume.id}.{snapshot.id}.merging"


def is_ours(name: str) -> bool:
    """Tell whether a name is one that the driver gives."""
    return any(kind.fullmatch(name) for kind in _KINDS)


def recorded_image(volume: Volume) -> Image:
    """Read what was recorded at creation. Raises InvalidState before it, BackendError for damage."""
    return _read(volume.title, volume.id, volume.provider_data)


def frozen_image(volume: Volume, snapshot: Snapshot) -> Image:
    """Read what was recorded of a snapshot of a volume. Raises as `recorded_image`."""
    return _read(snapshot.title, volume.id, snapshot.provider_data)


def image_below(volume: Volume, active: Image) -> Image | None:
    """Give what an overlay was laid over, by name, while its snapshot is not recorded yet."""
    newest = volume.snapshots[-1] if volume.snapshots else None
    if newest is None or newest.provider_data or active.over is None:
        return None
    if active.file != overlay_over(active, volume, newest).file:
        return None
    image_format = "qcow2" if active.over.endswith(_SUFFIXES["qcow2"]) else "raw"
    return _checked(volume.title, volume.id, Image(image_format, False, active.over))


def list_images(directory: Path) -> set[str]:
    """Give the ids of our volumes; links and files with other names are not ours."""
    return {match["id"] for match, _entry in _ours(directory, _NAME)}


def list_marks(directory: Path) -> set[str]:
    """Give the ids of our snapshots."""
    return {match["snapshot"] for match, _entry in _ours(directory, _MARK)}


def names_of(directory: Path, volume_id: str) -> list[str]:
    """Name everything of a volume, in whichever format; what a killed process left by what it was for.

    Raises InvalidInput.
    """
    check_id(volume_id)
    with files.typed_errors(f"share {directory}"):
        names = {files.meant_by(name) for name in os.listdir(directory)}
    matches = filter(None, (kind.fullmatch(name) for name in names for kind in _KINDS))
    return sorted((match.string for match in matches if match["id"] == volume_id), reverse=True)


def promised_bytes(directory: Path) -> int:
    """Add up what our files may still take, from one listing: a stat for a raw file, an open for a qcow2.

    That is the virtual size of what can be written, and what they take now of frozen layers.
    """
    found = list(_ours(directory, _NAME))
    frozen = {_backing(match, entry) for match, entry in found}
    return sum(_promised(match, entry, frozen) for match, entry in found)


def _read(title: str, volume_id: str, record: str) -> Image:
    if not record:
        raise InvalidState(title, "without a file", "created")
    try:
        image = Image(**json.loads(record))
        sound = type(image.preallocated) is bool and image.format in _SUFFIXES
        match = _NAME.fullmatch(image.file)
    except (ValueError, TypeError, KeyError) as error:
        raise BackendError(title, f"its provider_data is damaged: {error}") from error
    if not sound or match is None:
        raise BackendError(title, f"its provider_data is not its own: {record}")
    return _checked(title, volume_id, image)


def _checked(title: str, volume_id: str, image: Image) -> Image:
    """Refuse a record that leads to a file of somebody else, or in another format than the name says."""
    match = _NAME.fullmatch(image.file)
    if match is None or match["id"] != volume_id or (match["suffix"] or "") != _SUFFIXES[image.format]:
        raise BackendError(title, f"its provider_data is not its own: {image.recorded}")
    return image


def _ours(directory: Path, names: re.Pattern[str]) -> Iterator[tuple[re.Match[str], os.DirEntry[str]]]:
    with files.typed_errors(f"share {directory}"), os.scandir(directory) as entries:
        for entry in entries:
            match = names.fullmatch(entry.name)
            if match and entry.is_file(follow_symlinks=False):
                yield match, entry


def _backing(match: re.Match[str], entry: os.DirEntry[str]) -> str | None:
    if not match["snapshot"]:  # only overlays lie on others
        return None
    try:
        return qcow2.read_header(Path(entry.path), Path(entry.path)).backing
    except (NotFound, BackendError):  # as below
        return None


def _promised(match: re.Match[str], entry: os.DirEntry[str], frozen: set[str | None]) -> int:
    try:
        if entry.name in frozen:
            return entry.stat(follow_symlinks=False).st_blocks * 512
        if match["suffix"]:
            return filesystem.image_bytes(Path(entry.path), "qcow2")
        return entry.stat(follow_symlinks=False).st_size
    except (NotFound, BackendError, FileNotFoundError):  # deleted or damaged: not what is asked about
        return 0
