"""The catalog: what clients of the API say of volumes and snapshots, and those that could not be made.

A description is about a volume or a snapshot with the same id. It outlives one that could not be made: its
`failure` says why, until its client deletes it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from voldrivers.errors import BackendError, NotFound
from voldrivers.extend.database import Database, Row
from voldrivers.model import Attachment, Message, Volume, utc_now

_COLUMNS = (
    "id, volume_id, project, user, name, description, metadata, size_bytes, created_at, updated_at, failure,"
    " read_only"
)


@dataclass(frozen=True)
class Description:
    """What a client said. `volume_id` is that of a snapshot's volume; `size_bytes` what was asked for.

    Where `read_only` is set the volume is not attached for writing again.
    """

    id: str
    project: str
    user: str
    size_bytes: int
    volume_id: str | None = None
    name: str | None = None
    description: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime = field(default_factory=utc_now)
    updated_at: datetime | None = None
    failure: str = ""
    read_only: bool = False


@dataclass(frozen=True)
class Told:
    """A message with the number that it has for good, and the volume that it is about."""

    number: int
    volume_id: str
    message: Message


class Catalog:
    """The descriptions in the state file. Every method that changes something commits before it returns."""

    def __init__(self, database: Database) -> None:
        """Use the file of a `Store`."""
        self.database = database

    def all(self) -> dict[str, Description]:
        """Every description, by the id of what it is about."""
        rows = self.database.all(f"SELECT {_COLUMNS} FROM descriptions")  # noqa: S608 - our own columns
        return {row["id"]: _description(row) for row in rows}

    def get(self, subject_id: str) -> Description | None:
        """What was said of one volume or snapshot."""
        query = f"SELECT {_COLUMNS} FROM descriptions WHERE id = ?"  # noqa: S608 - our own columns
        row = self.database.one(query, subject_id)
        return None if row is None else _description(row)

    def put(self, description: Description) -> None:
        """Say something of a volume or snapshot, instead of what was said before."""
        values = (
            description.id,
            description.volume_id,
            description.project,
            description.user,
            description.name,
            description.description,
            json.dumps(dict(description.metadata)),
            description.size_bytes,
            description.created_at.isoformat(),
            None if description.updated_at is None else description.updated_at.isoformat(),
            description.failure,
            int(description.read_only),
        )
        with self.database.transaction():
            marks = ", ".join("?" * len(values))
            self.database.change(
                f"INSERT OR REPLACE INTO descriptions ({_COLUMNS}) VALUES ({marks})",  # noqa: S608 - as above
                values,
            )

    def remove(self, subject_id: str) -> None:
        """Forget what was said; nothing said is no error."""
        with self.database.transaction():
            self.database.change("DELETE FROM descriptions WHERE id = ?", (subject_id,))

    def volume_of(self, attachment_id: str) -> str:
        """Give the id of the volume of an attachment. Raises NotFound."""
        row = self.database.one("SELECT volume_id FROM attachments WHERE id = ?", attachment_id)
        if row is None:
            raise NotFound("attachment", attachment_id)
        return str(row["volume_id"])

    def messages(self) -> tuple[Told, ...]:
        """Every message of every volume, oldest first."""
        rows = self.database.all("SELECT rowid AS number, volume_id, at, text FROM messages ORDER BY rowid")
        return tuple(
            Told(row["number"], row["volume_id"], Message(datetime.fromisoformat(row["at"]), row["text"]))
            for row in rows
        )


def attachment_of(volume: Volume, attachment_id: str) -> Attachment:
    """Find an attachment of a volume. Raises NotFound."""
    for attachment in volume.attachments:
        if attachment.id == attachment_id:
            return attachment
    raise NotFound("attachment", attachment_id, f" of {volume.title}")


def _description(row: Row) -> Description:
    try:
        changed = row["updated_at"]
        return Description(
            id=row["id"],
            volume_id=row["volume_id"],
            project=row["project"],
            user=row["user"],
            name=row["name"],
            description=row["description"],
            metadata=json.loads(row["metadata"]),
            size_bytes=row["size_bytes"],
            created_at=datetime.fromisoformat(row["created_at"]),
            updated_at=None if changed is None else datetime.fromisoformat(changed),
            failure=row["failure"],
            read_only=bool(row["read_only"]),
        )
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        what = f"holds a description that makes no sense: {error}"
        raise BackendError(f"state file {row.path}", what) from error
