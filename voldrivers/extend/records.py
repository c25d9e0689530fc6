"""Rows of the state file and the values they stand for; the only place that knows both."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TypeVar, get_type_hints

from voldrivers.errors import BackendError
from voldrivers.extend.database import Row
from voldrivers.model import (
    Attachment,
    AttachmentState,
    ConnectionInfo,
    Connector,
    Extend,
    Message,
    Phase,
    Snapshot,
    SnapshotStatus,
    Source,
    Volume,
    VolumeStatus,
)

INSERT_VOLUME = (
    "INSERT INTO volumes (id, name, backend, size_bytes, status, multi_attach, options,"
    " source_volume_id, source_snapshot_id, reference) VALUES (:id, :name, :backend, :size_bytes,"
    " :status, :multi_attach, :options, :source_volume_id, :source_snapshot_id, :reference)"
)
INSERT_SNAPSHOT = (
    "INSERT INTO snapshots (id, name, volume_id, size_bytes, status)"
    " VALUES (:id, :name, :volume_id, :size_bytes, :status)"
)
UPDATE_SNAPSHOT = (
    "UPDATE snapshots SET size_bytes = :size_bytes, status = :status, provider_data = :provider_data"
    " WHERE id = :id"
)
INSERT_ATTACHMENT = (
    "INSERT INTO attachments (id, volume_id, host, instance, monitor, state, instance_process, by_client,"
    " read_only) VALUES (:id, :volume_id, :host, :instance, :monitor, :state, :instance_process, :by_client,"
    " :read_only)"
)
UPDATE_ATTACHMENT = (
    "UPDATE attachments SET host = :host, instance = :instance, monitor = :monitor, state = :state,"
    " connector = :connector, protocol = :protocol, properties = :properties, device_path = :device_path,"
    " instance_process = :instance_process WHERE id = :id"
)
INSERT_EXTEND = (
    "INSERT INTO extends"
    " (volume_id, from_bytes, requested_bytes, to_bytes, deferred, phase, expires_at, reason) VALUES"
    " (:volume_id, :from_bytes, :requested_bytes, :to_bytes, :deferred, :phase, :expires_at, :reason)"
)
MOVE_EXTEND = (
    "UPDATE extends SET phase = :phase, to_bytes = :to_bytes, deferred = :deferred,"
    " expires_at = :expires_at, reason = :reason WHERE id = :id AND phase = :old_phase"
)

Value = TypeVar("Value")
Values = dict[str, str | int | None]
_CONNECTOR = get_type_hints(Connector)


def of_volume(volume: Volume, options: Mapping[str, object], source: Source) -> Values:
    """Give the columns of a volume that is about to be created."""
    return {
        "id": volume.id,
        "name": volume.name,
        "backend": volume.backend,
        "size_bytes": volume.size_bytes,
        "status": volume.status,
        "multi_attach": volume.multi_attach,
        "options": json.dumps(dict(options)),
        "source_volume_id": source.volume_id,
        "source_snapshot_id": source.snapshot_id,
        "reference": source.reference,
    }


def of_snapshot(snapshot: Snapshot) -> Values:
    """Give the columns of a snapshot."""
    return {
        "id": snapshot.id,
        "name": snapshot.name,
        "volume_id": snapshot.volume_id,
        "size_bytes": snapshot.size_bytes,
        "status": snapshot.status,
        "provider_data": snapshot.provider_data,
    }


def of_attachment(attachment: Attachment) -> Values:
    """Give the columns of an attachment."""
    connector, connection = attachment.connector, attachment.connection_info
    return {
        "id": attachment.id,
        "volume_id": attachment.volume_id,
        "host": attachment.host,
        "instance": attachment.instance,
        "monitor": attachment.monitor,
        "state": attachment.state,
        "connector": None if connector is None else json.dumps(asdict(connector)),
        "protocol": None if connection is None else connection.driver_volume_type,
        "properties": None if connection is None else json.dumps(dict(connection.properties)),
        "device_path": attachment.device_path,
        "instance_process": attachment.instance_process,
        "by_client": attachment.by_client,
        "read_only": attachment.read_only,
    }


def of_extend(extend: Extend) -> Values:
    """Give the columns of an extend."""
    return {
        "id": extend.id,
        "volume_id": extend.volume_id,
        "from_bytes": extend.from_bytes,
        "requested_bytes": extend.requested_bytes,
        "to_bytes": extend.to_bytes,
        "deferred": extend.deferred,
        "phase": extend.phase,
        "expires_at": extend.expires_at.isoformat(),
        "reason": extend.reason,
    }


def to_volume(row: Row, attachments: list[Attachment], snapshots: list[Snapshot]) -> Volume:
    """Make a volume of its rows. Raises BackendError for a row that makes no sense."""
    with _sense(row, "a volume"):
        return Volume(
            id=_text(row, "id"),
            name=_text(row, "name"),
            backend=_text(row, "backend"),
            size_bytes=_count(row, "size_bytes"),
            backend_bytes=_count(row, "backend_bytes"),
            status=VolumeStatus(row["status"]),
            multi_attach=bool(_count(row, "multi_attach")),
            provider_data=_text(row, "provider_data"),
            attachments=tuple(attachments),
            snapshots=tuple(snapshots),
            extend_new_size_bytes=_given(row, "extend_new_size_bytes", _count),
        )


def to_options(row: Row) -> dict[str, object]:
    """Read the options that a volume was asked for with. Raises BackendError as `to_volume`."""
    with _sense(row, "the options of a volume"):
        options = json.loads(_text(row, "options"))
        if not isinstance(options, dict):
            raise ValueError(f"options is {options!r}")
        return options


def to_source(row: Row) -> Source:
    """Read where the content of a volume comes from. Raises BackendError as `to_volume`."""
    with _sense(row, "the source of a volume"):
        return Source(
            volume_id=_given(row, "source_volume_id", _text),
            snapshot_id=_given(row, "source_snapshot_id", _text),
            reference=_given(row, "reference", _text),
        )


def to_snapshot(row: Row) -> Snapshot:
    """Make a snapshot of its row. Raises BackendError as `to_volume`."""
    with _sense(row, "a snapshot"):
        return Snapshot(
            id=_text(row, "id"),
            name=_text(row, "name"),
            volume_id=_text(row, "volume_id"),
            size_bytes=_count(row, "size_bytes"),
            status=SnapshotStatus(row["status"]),
            provider_data=_text(row, "provider_data"),
        )


def to_attachment(row: Row) -> Attachment:
    """Make an attachment of its row. Raises BackendError as `to_volume`."""
    with _sense(row, "an attachment"):
        return Attachment(
            id=_text(row, "id"),
            volume_id=_text(row, "volume_id"),
            host=_text(row, "host"),
            instance=_given(row, "instance", _text),
            monitor=_given(row, "monitor", _text),
            state=AttachmentState(row["state"]),
            connector=_given(row, "connector", _connector),
            connection_info=_given(row, "protocol", _connection_info),
            device_path=_given(row, "device_path", _text),
            instance_process=_given(row, "instance_process", _text),
            by_client=bool(_count(row, "by_client")),
            read_only=bool(_count(row, "read_only")),
        )


def to_extend(row: Row) -> Extend:
    """Make an extend of its row. Raises BackendError as `to_volume`."""
    with _sense(row, "an extend"):
        return Extend(
            id=_count(row, "id"),
            volume_id=_text(row, "volume_id"),
            from_bytes=_count(row, "from_bytes"),
            requested_bytes=_count(row, "requested_bytes"),
            to_bytes=_count(row, "to_bytes"),
            phase=Phase(row["phase"]),
            expires_at=_time(row, "expires_at"),
            deferred=bool(_count(row, "deferred")),
            reason=_text(row, "reason"),
        )


def to_message(row: Row) -> Message:
    """Make a message of its row. Raises BackendError as `to_volume`."""
    with _sense(row, "a message"):
        return Message(_time(row, "at"), _text(row, "text"))


@contextmanager
def _sense(row: Row, what: str) -> Iterator[None]:
    """Name the file when a value is none that we wrote: SQLite does not notice a bit that was flipped."""
    try:
        yield
    except (ValueError, LookupError, RecursionError) as error:  # LookupError: there is no such column
        raise BackendError(f"state file {row.path}", f"holds {what} that makes no sense: {error}") from error


def _given(row: Row, column: str, read: Callable[[Row, str], Value]) -> Value | None:
    return None if row[column] is None else read(row, column)


def _text(row: Row, column: str) -> str:
    value = row[column]
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{column} is {value!r}")
    return value


def _count(row: Row, column: str) -> int:
    value = row[column]
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{column} is {value!r}")
    return value


def _time(row: Row, column: str) -> datetime:
    time = datetime.fromisoformat(_text(row, column))
    if time.tzinfo is None:
        raise ValueError(f"{column} has no zone")
    return time


def _connector(row: Row, column: str) -> Connector:
    known = json.loads(_text(row, column))
    kinds = _CONNECTOR  # a record of an older voldrivers may lack the younger ones
    if not isinstance(known, dict) or "host" not in known or not known.keys() <= kinds.keys():
        raise ValueError(f"{column} is {known!r:.80}")
    if not all(isinstance(value, kinds[key]) for key, value in known.items()):
        raise ValueError(f"{column} is {known!r:.80}")
    return Connector(**known)


def _connection_info(row: Row, column: str) -> ConnectionInfo:
    properties = json.loads(_text(row, "properties"))
    if not isinstance(properties, dict) or not all(isinstance(value, str) for value in properties.values()):
        raise ValueError("properties hold something else than text")  # not shown: secrets are among them
    return ConnectionInfo(_text(row, column), properties)
