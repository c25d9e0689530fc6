"""What clients are shown, as Cinder's views have it (cinder/api/v3/views).

Sizes are whole GiB, rounded up; the exact one stands beside it. What is ours alone begins with `voldrivers:`.
"""

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter

from voldrivers.api.connections import to_data
from voldrivers.api.volume import versions
from voldrivers.api.volume.versions import Microversion
from voldrivers.extend.catalog import Description, Told
from voldrivers.model import Attachment, AttachmentState, Extend, LedgerRow, Phase, Snapshot, Volume
from voldrivers.sizes import GiB

View = dict[str, Any]  # Any: what JSON holds
_NAMESPACE = uuid.UUID("8b6f29e1-6b1c-4a58-a0f3-0a7e64a0a7c5")


def gib(size_bytes: int) -> int:
    """Give a size in whole GiB, rounded up."""
    return -(-size_bytes // GiB)


def volume(
    shown: Volume, said: Description | None, version: Microversion, extend: Extend | None, *, is_admin: bool
) -> View:
    """Show a volume whole, with its newest extend; an administrator sees what that waits for."""
    described = said or _undescribed(shown)
    view: View = {
        "id": shown.id,
        "name": described.name if said else shown.name,
        "description": described.description,
        "status": str(shown.status),
        "size": gib(shown.size_bytes or described.size_bytes),
        "attachments": [
            attached(each) for each in shown.attachments if each.state is AttachmentState.ATTACHED
        ],
        "availability_zone": "nova",
        "bootable": "false",
        "consistencygroup_id": None,
        "created_at": _time(described.created_at) if said else None,
        "updated_at": _time(described.updated_at),
        "encrypted": False,
        "links": [],
        "metadata": dict(described.metadata),
        "multiattach": shown.multi_attach,
        "replication_status": None,
        "snapshot_id": None,
        "source_volid": None,
        "user_id": described.user,
        "volume_type": shown.backend,
        "os-vol-tenant-attr:tenant_id": described.project,
        "voldrivers:name": shown.name,
        "voldrivers:size_bytes": shown.size_bytes,
        "voldrivers:backend_bytes": shown.backend_bytes,
        "voldrivers:last_extend": None if extend is None else _EXTEND.dump_python(extend, mode="json"),
    }
    if described.read_only:
        view["metadata"] |= {"readonly": "True"}
    if is_admin:
        view |= {
            "os-vol-host-attr:host": f"voldrivers@{shown.backend}#{shown.backend}",
            "os-vol-mig-status-attr:migstat": None,
            "os-vol-mig-status-attr:name_id": None,
        }
        view["metadata"] |= _pending(extend)
    return view | _younger(version, is_admin=is_admin)


def brief(shown: View) -> View:
    """Cut a volume's or snapshot's view down to what a list without detail has."""
    return {name: shown[name] for name in ("id", "name", "links") if name in shown}


def failed(said: Description, version: Microversion, *, is_admin: bool) -> View:
    """Show a volume that could not be made."""
    gone = Volume(said.id, said.name or said.id, "", said.size_bytes)
    view = volume(gone, said, version, None, is_admin=is_admin)
    return view | {"status": "error", "volume_type": None, "voldrivers:failure": said.failure}


def attached(attachment: Attachment) -> View:
    """Show an attachment inside its volume."""
    return {
        "id": attachment.volume_id,
        "attachment_id": attachment.id,
        "volume_id": attachment.volume_id,
        "server_id": attachment.instance,
        "host_name": attachment.host or None,
        "device": attachment.device_path,
        "attached_at": None,
    }


def snapshot(shown: Snapshot, said: Description | None) -> View:
    """Show a snapshot."""
    return {
        "id": shown.id,
        "name": said.name if said else shown.name,
        "description": said.description if said else None,
        "status": str(shown.status),
        "volume_id": shown.volume_id,
        "size": gib(shown.size_bytes),
        "created_at": _time(said.created_at) if said else None,
        "updated_at": _time(said.updated_at) if said else None,
        "metadata": dict(said.metadata) if said else {},
        "os-extended-snapshot-attributes:project_id": said.project if said else "",
        "os-extended-snapshot-attributes:progress": "100%" if shown.status == "available" else "0%",
        "user_id": said.user if said else None,
        "group_snapshot_id": None,
        "voldrivers:name": shown.name,
        "voldrivers:size_bytes": shown.size_bytes,
    }


def failed_snapshot(said: Description) -> View:
    """Show a snapshot that could not be taken."""
    gone = Snapshot(said.id, said.name or said.id, said.volume_id or "", said.size_bytes)
    return snapshot(gone, said) | {"status": "error", "voldrivers:failure": said.failure}


def attachment(shown: Attachment, *, in_full: bool) -> View:
    """Show an attachment; in full with what its host needs to connect, secrets among it."""
    view: View = {
        "id": shown.id,
        "volume_id": shown.volume_id,
        "instance": shown.instance,
        "status": _STATUS.get(shown.state, str(shown.state)),
    }
    if in_full:
        view |= {
            "attached_at": "",
            "detached_at": "",
            "attach_mode": "ro" if shown.read_only else "rw",
            "connection_info": connection(shown),
        }
    return view


def connection(shown: Attachment) -> View:
    """Give the connection as os-brick and Nova take it, flat; {} before there is one."""
    info = shown.connection_info
    if info is None:
        return {}
    return to_data(info) | {
        "driver_volume_type": info.driver_volume_type,
        "volume_id": shown.volume_id,
        "attachment_id": shown.id,
        "access_mode": "ro" if shown.read_only else "rw",
        "voldrivers:device_path": shown.device_path,
        "voldrivers:monitor": shown.monitor,
        "voldrivers:instance_process": shown.instance_process,
        "voldrivers:host": shown.host,
        "voldrivers:by_client": shown.by_client,
    }


def row(shown: LedgerRow) -> View:
    """Show a layer of a size ledger."""
    return dict(_ROW.dump_python(shown, mode="json"))


def message(told: Told) -> View:
    """Show a message."""
    return {
        "id": str(uuid.uuid5(_NAMESPACE, f"{told.volume_id}/{told.number}")),
        "event_id": "VOLUME_VOLDRIVERS_001",
        "message_level": "ERROR",
        "resource_type": "VOLUME",
        "resource_uuid": told.volume_id,
        "user_message": told.message.text,
        "created_at": _time(told.message.at),
        "guaranteed_until": _time(told.message.at),
        "request_id": "",
        "links": [],
    }


def _younger(version: Microversion, *, is_admin: bool) -> View:
    """Give what came with younger microversions."""
    fields: list[tuple[Microversion, bool, View]] = [
        (versions.GROUPS, True, {"group_id": None}),
        (versions.PROVIDER_ID, is_admin, {"provider_id": None}),
        (
            versions.SHARED_TARGETS,
            True,
            # One target for each volume, so nobody needs a lock around its login (os-brick).
            {"shared_targets": False, "service_uuid": str(_NAMESPACE)},
        ),
        (versions.CLUSTER_NAME, is_admin, {"cluster_name": None}),
        (versions.TYPE_ID, True, {"volume_type_id": None}),
        (versions.CONSUMES_QUOTA, True, {"consumes_quota": True}),
    ]
    return {
        name: value
        for since, shown, values in fields
        if version >= since and shown
        for name, value in values.items()
    }


def _pending(extend: Extend | None) -> Mapping[str, str]:
    """Give what a compute service reads while it must resize: `extend_new_size` of the specs."""
    if extend is None or extend.phase not in (Phase.RESIZING, Phase.SETTLING):
        return {}
    return {
        "extend_new_size": str(gib(extend.to_bytes)),
        "voldrivers:extend": json.dumps(
            {
                "id": extend.id,
                "new_size_bytes": extend.to_bytes,
                "expires_at": extend.expires_at.isoformat(),
            }
        ),
    }


def _undescribed(shown: Volume) -> Description:
    """Stand in for a volume that was made on the command line."""
    return Description(shown.id, "", "", shown.size_bytes, name=shown.name)


def _time(at: datetime | None) -> str | None:
    """Write a time as Cinder does: UTC, without a zone."""
    return None if at is None else at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")


_EXTEND, _ROW = TypeAdapter(Extend), TypeAdapter(LedgerRow)
_STATUS = {AttachmentState.CONNECTING: "attaching"}
