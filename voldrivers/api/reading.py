"""What a volume service shows, read back (`volume.views` writes it)."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from voldrivers.model import (
    Attachment,
    AttachmentState,
    Message,
    Snapshot,
    SnapshotStatus,
    Volume,
    VolumeStatus,
)

Shown = Mapping[str, Any]  # Any: what JSON holds


def snapshot(shown: Shown) -> Snapshot:
    """Read a snapshot."""
    status = SnapshotStatus.DELETING if shown["status"] == "error" else SnapshotStatus(shown["status"])
    return Snapshot(
        shown["id"], shown["voldrivers:name"], shown["volume_id"], shown["voldrivers:size_bytes"], status
    )


def volume(shown: Shown, kept: Sequence[Shown]) -> Volume:
    """Read a volume, with those of the snapshots `kept` that are its own."""
    status = VolumeStatus.DELETING if shown["status"] == "error" else VolumeStatus(shown["status"])
    return Volume(
        id=shown["id"],
        name=shown["voldrivers:name"],
        backend=shown["volume_type"] or "",
        size_bytes=shown["voldrivers:size_bytes"],
        backend_bytes=shown["voldrivers:backend_bytes"],
        status=status,
        multi_attach=shown["multiattach"],
        attachments=tuple(map(attachment, shown["attachments"])),
        snapshots=tuple(snapshot(each) for each in kept if each["volume_id"] == shown["id"]),
    )


def attachment(shown: Shown) -> Attachment:
    """Read an attachment, as it stands in its volume."""
    return Attachment(
        shown["attachment_id"],
        shown["volume_id"],
        shown["host_name"] or "",
        shown["server_id"],
        state=AttachmentState.ATTACHED,
        device_path=shown["device"],
    )


def message(told: Shown) -> Message:
    """Read a message."""
    return Message(datetime.fromisoformat(f"{told['created_at']}+00:00"), told["user_message"])
