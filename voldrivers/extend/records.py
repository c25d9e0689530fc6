"""Rows of the state file and the values they stand for; the only place that knows both."""

import json
import sqlite3
from collections.abc import Mapping
from datetime import datetime

from voldrivers.model import (
    Attachment,
    AttachmentState,
    ConnectionInfo,
    Extend,
    Phase,
    Volume,
    VolumeStatus,
)

INSERT_VOLUME = (
    "INSERT INTO volumes (id, name, backend, size_bytes, status, multi_attach, options)"
    " VALUES (:id, :name, :backend, :size_bytes, :status, :multi_attach, :options)"
)
INSERT_ATTACHMENT = (
    "INSERT INTO attachments (id, volume_id, host, instance, monitor, state, instance_process)"
    " VALUES (:id, :volume_id, :host, :instance, :monitor, :state, :instance_process)"
)
UPDATE_ATTACHMENT = (
    "UPDATE attachments SET state = :state, protocol = :protocol, properties = :properties,"
    " device_path = :device_path WHERE id = :id"
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

Values = dict[str, str | int | None]


def of_volume(volume: Volume, options: Mapping[str, object]) -> Values:
    """Give the columns of a volume that is about to be created."""
    return {
        "id": volume.id,
        "name": volume.name,
        "backend": volume.backend,
        "size_bytes": volume.size_bytes,
        "status": volume.status,
        "multi_attach": volume.multi_attach,
        "options": json.dumps(dict(options)),
    }


def of_attachment(attachment: Attachment) -> Values:
    """Give the columns of an attachment."""
    connection = attachment.connection_info
    return {
        "id": attachment.id,
        "volume_id": attachment.volume_id,
        "host": attachment.host,
        "instance": attachment.instance,
        "monitor": attachment.monitor,
        "state": attachment.state,
        "protocol": None if connection is None else connection.driver_volume_type,
        "properties": None if connection is None else json.dumps(dict(connection.properties)),
        "device_path": attachment.device_path,
        "instance_process": attachment.instance_process,
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


def to_volume(row: sqlite3.Row, attachments: list[Attachment]) -> Volume:
    """Make a volume of its row and its attachments."""
    return Volume(
        id=row["id"],
        name=row["name"],
        backend=row["backend"],
        size_bytes=row["size_bytes"],
        backend_bytes=row["backend_bytes"],
        status=VolumeStatus(row["status"]),
        multi_attach=bool(row["multi_attach"]),
        provider_data=row["provider_data"],
        attachments=tuple(attachments),
        extend_new_size_bytes=row["extend_new_size_bytes"],
    )


def to_attachment(row: sqlite3.Row) -> Attachment:
    """Make an attachment of its row."""
    connection = row["protocol"] and ConnectionInfo(row["protocol"], json.loads(row["properties"]))
    return Attachment(
        id=row["id"],
        volume_id=row["volume_id"],
        host=row["host"],
        instance=row["instance"],
        monitor=row["monitor"],
        state=AttachmentState(row["state"]),
        connection_info=connection,
        device_path=row["device_path"],
        instance_process=row["instance_process"],
    )


def to_extend(row: sqlite3.Row) -> Extend:
    """Make an extend of its row."""
    return Extend(
        id=row["id"],
        volume_id=row["volume_id"],
        from_bytes=row["from_bytes"],
        requested_bytes=row["requested_bytes"],
        to_bytes=row["to_bytes"],
        phase=Phase(row["phase"]),
        expires_at=datetime.fromisoformat(row["expires_at"]),
        deferred=bool(row["deferred"]),
        reason=row["reason"],
    )
