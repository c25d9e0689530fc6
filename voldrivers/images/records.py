"""What is recorded of the image in a volume: whether it is whole, how large it is, and its checksums."""

from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from voldrivers.extend.store import Store
from voldrivers.model import Volume, utc_now


class ImageState(StrEnum):
    """Where the image in a volume stands. One that is being written and whose writer is gone is not whole."""

    WRITING = "writing"
    BROKEN = "broken"
    WHOLE = "whole"


@dataclass(frozen=True)
class ImageRecord:
    """What was written to a volume last; size and checksums are of a whole image only."""

    state: ImageState
    size_bytes: int = 0
    sha256: str = ""
    md5: str = ""


class ImageRecords:
    """The records of images in the state file; every change is committed with its message."""

    def __init__(self, store: Store) -> None:
        """Use the file of a store."""
        self._store = store

    def get(self, volume: Volume) -> ImageRecord | None:
        """What was written to a volume last, if anything was."""
        row = self._store.database.one("SELECT * FROM images WHERE volume_id = ?", volume.id)
        if row is None:
            return None
        return ImageRecord(ImageState(row["state"]), row["size_bytes"], row["sha256"], row["md5"])

    def put(self, volume: Volume, record: ImageRecord, message: str) -> None:
        """Record what stands in a volume from now on, and tell its operator."""
        statement = (
            "INSERT OR REPLACE INTO images (volume_id, state, size_bytes, sha256, md5, at)"
            " VALUES (?, ?, ?, ?, ?, ?)"
        )
        image = (record.state, record.size_bytes, record.sha256, record.md5, utc_now().isoformat())
        change = partial(self._store.database.change, statement, (volume.id, *image))
        self._store.note(volume, message, change)
