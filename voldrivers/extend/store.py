"""The records: volumes, attachments, extends, hints and messages.

Each change is one transaction that compares what it expects to find, so two processes cannot both
win. Nothing here calls a driver or a host.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from voldrivers.errors import InvalidInput, InvalidState, NotFound
from voldrivers.extend import records
from voldrivers.extend.database import Database
from voldrivers.model import (
    NEXT,
    Attachment,
    AttachmentState,
    Extend,
    Message,
    Phase,
    Snapshot,
    SnapshotStatus,
    Source,
    Volume,
    VolumeStatus,
    utc_now,
)

_EXTEND_DECIDES = (VolumeStatus.EXTENDING, VolumeStatus.ERROR_EXTENDING)


class Store:
    """The records in one file. Every method that changes something commits before it returns."""

    def __init__(self, path: Path) -> None:
        """Open or make the file at `path`: see `Database`."""
        self.database = Database(path)

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    # --- volumes

    def volumes(self) -> tuple[Volume, ...]:
        """Every volume with its attachments and snapshots, by name; three queries however many there are."""
        attached: dict[str, list[Attachment]] = {}
        for row in self.database.all("SELECT * FROM attachments ORDER BY rowid"):
            attached.setdefault(row["volume_id"], []).append(records.to_attachment(row))
        kept: dict[str, list[Snapshot]] = {}
        for row in self.database.all("SELECT * FROM snapshots ORDER BY rowid"):
            kept.setdefault(row["volume_id"], []).append(records.to_snapshot(row))
        rows = self.database.all("SELECT * FROM volumes ORDER BY name")
        return tuple(
            records.to_volume(row, attached.get(row["id"], []), kept.get(row["id"], [])) for row in rows
        )

    def volume(self, name_or_id: str) -> Volume:
        """One volume by name, else by id. Raises NotFound."""
        by_name = "SELECT * FROM volumes WHERE name = ?1 OR id = ?1 ORDER BY name = ?1 DESC"
        row = self.database.one(by_name, name_or_id)
        if row is None:
            raise NotFound("volume", name_or_id)
        attached = self.database.all(
            "SELECT * FROM attachments WHERE volume_id = ? ORDER BY rowid", row["id"]
        )
        kept = self.database.all("SELECT * FROM snapshots WHERE volume_id = ? ORDER BY rowid", row["id"])
        return records.to_volume(
            row, [records.to_attachment(r) for r in attached], [records.to_snapshot(r) for r in kept]
        )

    def add_volume(self, volume: Volume, options: Mapping[str, object], source: Source | None = None) -> None:
        """Record a volume that is about to be there. Raises InvalidState when the name is taken."""
        with self.database.transaction():
            if self.database.one("SELECT 1 FROM volumes WHERE name = ?1 OR id = ?1", volume.name):
                raise InvalidState(volume.title, "there already", "a name that is not taken")
            values = records.of_volume(volume, options, source or Source())
            self.database.change(records.INSERT_VOLUME, values)

    def creation_options(self, volume: Volume) -> dict[str, object]:
        """The options that a volume was asked for with, to create it again after a crash."""
        row = self.database.one("SELECT options FROM volumes WHERE id = ?", volume.id)
        return {} if row is None else records.to_options(row)

    def source(self, volume: Volume) -> Source:
        """Where the content of a volume was said to come from."""
        row = self.database.one("SELECT * FROM volumes WHERE id = ?", volume.id)
        return Source() if row is None else records.to_source(row)

    def volume_created(self, volume: Volume, provider_data: str, backend_bytes: int) -> None:
        """Publish a volume as available; its size is the one that the backend really has."""
        with self.database.transaction():
            self.database.change(
                "UPDATE volumes SET status = ?, provider_data = ?, size_bytes = ?3, backend_bytes = ?3"
                " WHERE id = ?4",
                (VolumeStatus.AVAILABLE, provider_data, backend_bytes, volume.id),
            )

    def begin_removal(self, volume: Volume, status: VolumeStatus) -> None:
        """Mark a volume as being deleted or unmanaged.

        Raises InvalidState unless it is detached and idle, without snapshots, and nobody is made of it.
        """
        with self.database.transaction():
            self._expect(volume, VolumeStatus.AVAILABLE, VolumeStatus.ERROR_EXTENDING)
            if self.database.one("SELECT 1 FROM attachments WHERE volume_id = ?", volume.id):
                raise InvalidState(volume.title, "attached", "detached")
            rows = self.database.all("SELECT name FROM snapshots WHERE volume_id = ?", volume.id)
            if rows:
                having = f"with the snapshots {', '.join(str(row['name']) for row in rows)}"
                raise InvalidState(volume.title, having, "without snapshots")
            self._expect_no_clone(volume.title, volume.id)
            self._set_status(volume.id, status)

    def keep(self, volume: Volume, status: VolumeStatus) -> None:
        """Take a removal back that the backend refused."""
        with self.database.transaction():
            self._expect(volume, VolumeStatus.DELETING, VolumeStatus.UNMANAGING)
            self._set_status(volume.id, status)

    def remove_volume(self, volume: Volume) -> None:
        """Forget a volume and everything recorded about it."""
        with self.database.transaction():
            self.database.change("DELETE FROM volumes WHERE id = ?", (volume.id,))

    # --- snapshots

    def snapshot(self, name_or_id: str) -> Snapshot:
        """One snapshot by name, else by id. Raises NotFound."""
        by_name = "SELECT * FROM snapshots WHERE name = ?1 OR id = ?1 ORDER BY name = ?1 DESC"
        row = self.database.one(by_name, name_or_id)
        if row is None:
            raise NotFound("snapshot", name_or_id)
        return records.to_snapshot(row)

    def add_snapshot(self, snapshot: Snapshot) -> None:
        """Record a snapshot that is about to be taken. Raises InvalidState when the name is taken."""
        with self.database.transaction():
            if self.database.one("SELECT 1 FROM snapshots WHERE name = ?1 OR id = ?1", snapshot.name):
                raise InvalidState(snapshot.title, "there already", "a name that is not taken")
            self.database.change(records.INSERT_SNAPSHOT, records.of_snapshot(snapshot))

    def snapshot_taken(self, volume: Volume, snapshot: Snapshot) -> None:
        """Publish a snapshot, with what its driver remembers of the volume and where hosts have that now."""
        with self.database.transaction():
            self.database.change(records.UPDATE_SNAPSHOT, records.of_snapshot(snapshot))
            remembered = "UPDATE volumes SET provider_data = ? WHERE id = ?"
            self.database.change(remembered, (volume.provider_data, volume.id))
            for attachment in volume.attachments:
                self.database.change(records.UPDATE_ATTACHMENT, records.of_attachment(attachment))

    def begin_snapshot_removal(self, snapshot: Snapshot) -> None:
        """Mark a snapshot as being deleted. Raises InvalidState while a volume is being made of it."""
        with self.database.transaction():
            self._expect_no_clone(snapshot.title, snapshot.id)
            self._set_snapshot_status(snapshot, SnapshotStatus.DELETING)

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Take a removal back that the backend refused."""
        with self.database.transaction():
            self._set_snapshot_status(snapshot, SnapshotStatus.AVAILABLE)

    def remove_snapshot(self, snapshot: Snapshot) -> None:
        """Forget a snapshot."""
        with self.database.transaction():
            self.database.change("DELETE FROM snapshots WHERE id = ?", (snapshot.id,))

    def begin_revert(self, volume: Volume, snapshot: Snapshot) -> None:
        """Mark a volume as being reverted. Raises InvalidState unless it is available."""
        with self.database.transaction():
            self._expect(volume, VolumeStatus.AVAILABLE)
            self._set_status(volume.id, VolumeStatus.REVERTING)
            self._set_snapshot_status(snapshot, SnapshotStatus.RESTORING)

    def end_revert(self, volume: Volume, snapshot: Snapshot) -> None:
        """Publish a volume with its size as available, what it was before or what its snapshot is."""
        with self.database.transaction():
            self._set_status(volume.id, VolumeStatus.AVAILABLE)
            self.database.change(
                "UPDATE volumes SET provider_data = ?, size_bytes = ?2, backend_bytes = ?2 WHERE id = ?3",
                (volume.provider_data, volume.size_bytes, volume.id),
            )
            self._set_snapshot_status(snapshot, SnapshotStatus.AVAILABLE)

    # --- attachments

    def add_attachment(self, volume: Volume, attachment: Attachment) -> None:
        """Record an attachment that is about to be made. Raises InvalidState unless the volume is free."""
        with self.database.transaction():
            self._expect(volume, VolumeStatus.IN_USE if volume.attachments else VolumeStatus.AVAILABLE)
            self.database.change(records.INSERT_ATTACHMENT, records.of_attachment(attachment))
            self._recompute(volume.id)

    def update_attachment(self, attachment: Attachment) -> None:
        """Record what is now known of an attachment, and the status that follows from it."""
        with self.database.transaction():
            self.database.change(records.UPDATE_ATTACHMENT, records.of_attachment(attachment))
            self._recompute(attachment.volume_id)

    def remove_attachment(self, attachment: Attachment, message: str = "") -> None:
        """Forget an attachment; the volume's status follows from those that are left."""
        with self.database.transaction():
            self.database.change("DELETE FROM attachments WHERE id = ?", (attachment.id,))
            self._recompute(attachment.volume_id)
            self._note(attachment.volume_id, message)

    # --- extends

    def admit(self, volume: Volume, extend: Extend) -> Extend:
        """Record an admitted extend and set `extending`, if the volume still is as it was looked at.

        Gives the extend with its id. Raises InvalidState when somebody was faster.
        """
        with self.database.transaction():
            self._expect(volume, volume.status)
            found = self.database.all(
                "SELECT id FROM attachments WHERE volume_id = ? ORDER BY rowid", volume.id
            )
            if [row["id"] for row in found] != [a.id for a in volume.attachments]:
                raise InvalidState(volume.title, "being attached or detached", "left alone")
            cursor = self.database.change(records.INSERT_EXTEND, records.of_extend(extend))
            self._set_status(volume.id, VolumeStatus.EXTENDING)
        return replace(extend, id=int(cursor.lastrowid or 0))

    def move(self, old: Extend, new: Extend, *, backend_bytes: int | None = None) -> None:
        """Take an extend from one phase to the next, in one transaction that compares the old phase.

        An end also publishes: completed moves the size, and the status is recomputed from the
        attachment rows. Raises InvalidState for a move that is not legal or came too late.
        """
        if new.phase not in NEXT[old.phase]:
            raise InvalidState(f"extend {old.id}", old.phase, f"in a phase before {new.phase}")
        with self.database.transaction():
            values = {**records.of_extend(new), "id": old.id, "old_phase": old.phase}
            if not self.database.change(records.MOVE_EXTEND, values).rowcount:
                raise InvalidState(f"extend {old.id}", "moved by another process", old.phase)
            self._publish(new, backend_bytes)

    def last_extend(self, volume: Volume) -> Extend | None:
        """The newest extend of a volume, ended or not."""
        newest = "SELECT * FROM extends WHERE volume_id = ? ORDER BY id DESC LIMIT 1"
        row = self.database.one(newest, volume.id)
        return None if row is None else records.to_extend(row)

    def reset_status(self, volume: Volume, status: str) -> None:
        """Let the status follow from the attachments, if that is the one that was asked for."""
        with self.database.transaction():
            self._expect(volume, VolumeStatus.ERROR_EXTENDING)
            follows = self._attached_status(volume.id)
            if status != follows:
                raise InvalidState(volume.title, f"{follows} by its attachments", "reset to that")
            self._set_status(volume.id, follows)

    # --- hints and messages

    def add_hint(self, volume: Volume, extend_id: int, kind: str) -> None:
        """Insert a completion or a cancel: a hint to look now. Never waits for the volume's lock.

        Raises InvalidInput for a number that no extend can have.
        """
        if abs(extend_id) >= 2**63:  # SQLite's INTEGER cannot hold it
            raise InvalidInput(volume.title, "has no such extend")
        with self.database.transaction():
            self.database.change(
                "INSERT INTO hints (volume_id, extend_id, kind, at) VALUES (?, ?, ?, ?)",
                (volume.id, extend_id, kind, utc_now().isoformat()),
            )

    def hints(self, extend: Extend, kind: str) -> int:
        """Count the hints of a kind that were given for exactly this extend."""
        given = "SELECT rowid FROM hints WHERE extend_id = ? AND kind = ?"
        return len(self.database.all(given, extend.id, kind))

    def messages(self, volume: Volume) -> tuple[Message, ...]:
        """What an operator should know of a volume, oldest first."""
        rows = self.database.all(
            "SELECT at, text FROM messages WHERE volume_id = ? ORDER BY rowid", volume.id
        )
        return tuple(map(records.to_message, rows))

    def note(self, volume: Volume, text: str, change: Callable[[], object] = lambda: None) -> None:
        """Leave a message for the operator; what `change` changes is committed with it."""
        with self.database.transaction():
            change()
            self._note(volume.id, text)

    # --- inside a transaction

    def _expect_no_clone(self, title: str, source_id: str) -> None:
        found = self.database.one(
            "SELECT name FROM volumes"
            " WHERE (source_volume_id = ?1 OR source_snapshot_id = ?1) AND status = ?2",
            source_id,
            VolumeStatus.CREATING,
        )
        if found is not None:
            raise InvalidState(title, f"copied to volume {found['name']}", "left alone until that has ended")

    def _set_snapshot_status(self, snapshot: Snapshot, status: SnapshotStatus) -> None:
        self.database.change("UPDATE snapshots SET status = ? WHERE id = ?", (status, snapshot.id))

    def _expect(self, volume: Volume, *allowed: VolumeStatus) -> None:
        row = self.database.one("SELECT status FROM volumes WHERE id = ?", volume.id)
        if row is None:
            raise NotFound("volume", volume.name)
        if row["status"] not in allowed:
            raise InvalidState(volume.title, row["status"], " or ".join(allowed))

    def _set_status(self, volume_id: str, status: VolumeStatus) -> None:
        self.database.change("UPDATE volumes SET status = ? WHERE id = ?", (status, volume_id))

    def _recompute(self, volume_id: str) -> None:
        """Let the status follow from the attachments, unless an extend decides it."""
        row = self.database.one("SELECT status FROM volumes WHERE id = ?", volume_id)
        if row is not None and row["status"] not in _EXTEND_DECIDES:
            self._set_status(volume_id, self._attached_status(volume_id))

    def _attached_status(self, volume_id: str) -> VolumeStatus:
        rows = self.database.all("SELECT state FROM attachments WHERE volume_id = ?", volume_id)
        states = {row["state"] for row in rows}
        if states & {AttachmentState.ATTACHING, AttachmentState.CONNECTING}:
            return VolumeStatus.ATTACHING
        if states & {AttachmentState.DETACHING, AttachmentState.FORGETTING}:
            return VolumeStatus.DETACHING
        if AttachmentState.RESERVED in states:
            return VolumeStatus.RESERVED
        return VolumeStatus.IN_USE if states else VolumeStatus.AVAILABLE

    def _publish(self, extend: Extend, backend_bytes: int | None) -> None:
        target_bytes = extend.to_bytes if extend.deferred and extend.phase.under_way else None
        self.database.change(
            "UPDATE volumes SET extend_new_size_bytes = ?, backend_bytes = coalesce(?, backend_bytes)"
            " WHERE id = ?",
            (target_bytes, backend_bytes, extend.volume_id),
        )
        if extend.phase.under_way:
            return
        if extend.phase is Phase.COMPLETED:
            moved = "UPDATE volumes SET size_bytes = ? WHERE id = ?"
            self.database.change(moved, (extend.to_bytes, extend.volume_id))
        failed = extend.phase is Phase.FAILED
        status = VolumeStatus.ERROR_EXTENDING if failed else self._attached_status(extend.volume_id)
        self._set_status(extend.volume_id, status)
        self._note(extend.volume_id, extend.reason)

    def _note(self, volume_id: str, text: str) -> None:
        if text:
            values = (volume_id, utc_now().isoformat(), text)
            self.database.change("INSERT INTO messages (volume_id, at, text) VALUES (?, ?, ?)", values)
