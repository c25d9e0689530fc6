"""Cinder's volumes, attachments and snapshots as ours, and what is written into Cinder's records.

Cinder's objects are taken as they come (cinder/objects/volume.py): this module does not import Cinder.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from voldrivers.errors import (
    BackendError,
    CommandFailed,
    HostUnreachable,
    InvalidInput,
    InvalidSize,
    InvalidState,
    NoSpace,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.model import (
    Attachment,
    AttachmentState,
    ConnectionInfo,
    Connector,
    Extend,
    Phase,
    Pool,
    Snapshot,
    SnapshotStatus,
    Volume,
)
from voldrivers.registry import read_value
from voldrivers.sizes import GiB

#: The class of cinder.exception that tells an error, unless an operation has one of its own.
EXCEPTIONS: Mapping[type[VolDriverError], str] = {
    InvalidInput: "InvalidInput",
    InvalidSize: "InvalidInput",
    NotFound: "VolumeBackendAPIException",
    InvalidState: "InvalidVolume",
    HostUnreachable: "InvalidVolume",
    NotSupported: "VolumeDriverException",
    NoSpace: "VolumeBackendAPIException",
    BackendError: "VolumeBackendAPIException",
    CommandFailed: "VolumeBackendAPIException",
    OutcomeUnknown: "VolumeBackendAPIException",
}
#: The columns that hold what a driver remembers, and what each takes (cinder/db/sqlalchemy/models.py).
COLUMNS, _COLUMN = ("provider_location", "provider_id"), 255
#: Admin metadata of a volume whose extend is under way.
EXTEND_KEY = "voldrivers:extend"
#: Extra specs of a volume type that are a driver's options begin so.
_OPTION = "voldrivers:"
_ENCRYPTED = ConnectionInfo("", {"encrypted": "true"})
#: A URL, or an absolute path.
_OF_THE_SITE = re.compile(r"https?://[^\s;,()]*[^\s;,():]|(?<![\w/.])/[^\s:;,()]+")
#: What os-brick and Nova call a file by its path, in a directory that each host has mounted by itself.
_TYPES = {"file": "gpfs"}
#: Statuses in which Cinder itself reads or writes a volume; it takes all of them for raw.
_COPIED = ("backing-up", "restoring-backup", "reverting")

Theirs = Any  # Any: an object of Cinder's


def volume(
    theirs: Theirs, backend: str, attachments: Iterable[Theirs], snapshots: Iterable[Theirs]
) -> Volume:
    """Give a volume with its attachments and snapshots. It is called by its id on the backend, `name_id`."""
    ours = Volume(
        theirs.name_id,
        theirs.name,
        backend,
        (theirs.size or 0) * GiB,
        multi_attach=bool(theirs.multiattach),
        provider_data=remembered(theirs),
    )
    encrypted = bool(theirs.encryption_key_id)
    by_age = sorted(snapshots, key=lambda each: (each.created_at, each.id))
    there = (each for each in attachments if _is_there(each))
    return replace(
        ours,
        attachments=tuple(_attachment(ours, each, encrypted=encrypted) for each in there),
        snapshots=tuple(snapshot(ours, each) for each in by_age),
    )


def snapshot(of: Volume, theirs: Theirs) -> Snapshot:
    """Give a snapshot of a volume."""
    status = SnapshotStatus.AVAILABLE if theirs.status == "available" else SnapshotStatus.CREATING
    status = SnapshotStatus.DELETING if theirs.status == "deleting" else status
    size_bytes = theirs.volume_size * GiB
    return Snapshot(theirs.id, theirs.name, of.id, size_bytes, status, remembered(theirs))


def connector(theirs: Mapping[str, Any]) -> Connector:  # Any: what JSON holds
    """Give the connector of a host: a dictionary of os-brick."""
    return Connector(
        theirs.get("host") or "",
        theirs.get("ip"),
        theirs.get("initiator"),
        bool(theirs.get("multipath")),
        theirs.get("nqn"),
    )


def connection(info: ConnectionInfo, data: Mapping[str, Any]) -> dict[str, Any]:  # Any: what JSON holds
    """Give a connection, `data` of it already as os-brick takes it, in Cinder's words."""
    told = {"driver_volume_type": _TYPES.get(info.driver_volume_type, info.driver_volume_type), "data": data}
    if info.driver_volume_type == "file":
        return told | {"data": {**data, "device_path": info.properties["path"]}}
    if info.driver_volume_type == "nfs":
        return told | {"mount_point_base": info.properties["mount_point_base"]}
    return told


def room(pool: Pool) -> dict[str, object]:
    """Give what Cinder's scheduler is told of the room, with what no backend of ours can do.

    It promises the total as often as the ratio says only where thin provisioning is supported
    (cinder/scheduler/sched_utils.py, `calculate_capacity_factors`).
    """
    ratio = pool.max_over_subscription_ratio
    return {
        "total_capacity_gb": pool.total_bytes / GiB,
        "free_capacity_gb": pool.free_bytes / ratio / GiB,
        "provisioned_capacity_gb": pool.allocated_bytes / GiB,
        "max_over_subscription_ratio": ratio,
        "thick_provisioning_support": True,
        "thin_provisioning_support": ratio > 1,
        "QoS_support": False,
        "consistencygroup_support": False,
        "consistent_group_snapshot_enabled": False,
        "replication_enabled": False,
        "clone_across_pools": False,
    }


def our_type(driver_volume_type: str) -> str:
    """Give our word for a way to connect that `connection` has told."""
    return next((ours for ours, told in _TYPES.items() if told == driver_volume_type), driver_volume_type)


def is_raw(info: ConnectionInfo) -> bool:
    """Tell whether what a host finds there is the volume byte for byte."""
    return info.properties.get("format", "raw") == "raw"


def is_copied(theirs: Theirs) -> bool:
    """Tell whether it is Cinder that wants to connect a volume: for a migration, a backup or a revert."""
    migrates = (theirs.migration_status or "").partition(":")[0] in ("migrating", "target")
    return (migrates or theirs.status in _COPIED) and not theirs.volume_attachment


def options(extra_specs: Mapping[str, str]) -> dict[str, object]:
    """Give the options of a new volume: the extra specs of its type that are ours, without their prefix."""
    ours = {name: value for name, value in extra_specs.items() if name.startswith(_OPTION)}
    return {name.removeprefix(_OPTION): _read(value) for name, value in ours.items()}


def remember(provider_data: str) -> dict[str, str]:
    """Write what a driver remembers into columns that are Cinder's drivers'. Raises BackendError."""
    if len(provider_data) > _COLUMN * len(COLUMNS):
        raise BackendError("provider_data", f"has {len(provider_data)} characters, more than Cinder can keep")
    parts = [provider_data[:_COLUMN], provider_data[_COLUMN:]]
    return dict(zip(COLUMNS, parts, strict=True))


def remembered(theirs: Theirs) -> str:
    """Read it again."""
    return "".join(getattr(theirs, column, None) or "" for column in COLUMNS)


def write_extend(extend: Extend) -> str:
    """Write an extend for the admin metadata, which holds 255 characters."""
    facts = asdict(extend) | {"expires_at": extend.expires_at.isoformat(timespec="seconds")}
    kept = {name: facts[name] for name in ("id", "from_bytes", "requested_bytes", "to_bytes", "phase")}
    kept |= {"expires_at": facts["expires_at"], "deferred": int(extend.deferred)}
    return json.dumps(kept, separators=(",", ":"))


def read_extend(volume_id: str, text: str) -> Extend:
    """Read it again. Raises ValueError, KeyError, TypeError."""
    facts = json.loads(text)
    return Extend(
        facts["id"],
        volume_id,
        facts["from_bytes"],
        facts["requested_bytes"],
        facts["to_bytes"],
        Phase(facts["phase"]),
        datetime.fromisoformat(facts["expires_at"]),
        deferred=bool(facts["deferred"]),
    )


def told(error: VolDriverError) -> str:
    """Say an error with what was noted on it, each once."""
    said = dict.fromkeys([str(error), *getattr(error, "__notes__", [])])
    return "; ".join(each for each in said if not any(each != more and each in more for more in said))


def for_owner(text: str) -> str:
    """Say it to the owner of a volume, who is shown no addresses and no paths of the site."""
    return _OF_THE_SITE.sub("...", text)


def exception_name(error: VolDriverError) -> str:
    """Name the exception of Cinder's that tells an error, of a class that a vendor derived as well."""
    return next(EXCEPTIONS[kind] for kind in type(error).__mro__ if kind in EXCEPTIONS)


def _read(value: str) -> object:
    """Read an extra spec, which is a text whatever it means; Cinder writes `<is> True` as well."""
    word = value.removeprefix("<is> ").lower()
    return read_value(word if word in ("true", "false") else value)


def _is_there(theirs: Theirs) -> bool:
    """Tell whether an attachment's host may have the volume."""
    return theirs.attach_status in ("attached", "attaching", "detaching") and bool(theirs.connector)


def _attachment(of: Volume, theirs: Theirs, *, encrypted: bool) -> Attachment:
    by = connector(theirs.connector)
    return Attachment(
        theirs.id,
        of.id,
        by.host,
        theirs.instance_uuid,
        state=AttachmentState.ATTACHED,
        connector=by,
        connection_info=_ENCRYPTED if encrypted else None,
        by_client=True,
        read_only=theirs.attach_mode == "ro",
    )
