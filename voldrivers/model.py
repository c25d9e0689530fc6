"""The nouns: volumes, attachments, extends, the size ledger. Frozen; a change is a new value."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType

from voldrivers.errors import InvalidInput

_NAME = re.compile(r"[^\W_][\w.+@:=-]{0,127}")
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")


class VolumeStatus(StrEnum):
    """The public status, in the words of the Block Storage API."""

    CREATING = "creating"
    AVAILABLE = "available"
    MANAGING = "managing"
    RESERVED = "reserved"
    ATTACHING = "attaching"
    IN_USE = "in-use"
    DETACHING = "detaching"
    EXTENDING = "extending"
    ERROR_EXTENDING = "error_extending"
    REVERTING = "reverting"
    UNMANAGING = "unmanaging"
    DELETING = "deleting"


class Phase(StrEnum):
    """Where an extend stands. The first four are under way, the last three are ends."""

    GROWING = "growing"
    RESCANNING = "rescanning"
    RESIZING = "resizing"
    SETTLING = "settling"
    COMPLETED = "completed"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"

    @property
    def under_way(self) -> bool:
        """Tell whether the extend has not ended."""
        return bool(NEXT[self])


#: The legal moves. GROWING may be entered again from every phase that is under way: `resume` looks
#: and takes every step anew, because each step looks before it acts. RESCANNING follows RESIZING where
#: a hypervisor grew a volume that is attached without an instance too.
NEXT: Mapping[Phase, frozenset[Phase]] = {
    phase: frozenset(Phase(name) for name in following.split())
    for phase, following in {
        Phase.GROWING: "growing rescanning resizing settling failed rolled-back",
        Phase.RESCANNING: "growing resizing settling failed rolled-back",
        Phase.RESIZING: "growing rescanning settling failed rolled-back",
        Phase.SETTLING: "growing completed failed rolled-back",
        Phase.COMPLETED: "",
        Phase.FAILED: "",
        Phase.ROLLED_BACK: "",
    }.items()
}


class AttachmentState(StrEnum):
    """Where an attachment stands. FORGETTING: its host is lost.

    RESERVED and CONNECTING belong to a client that connects by itself: only that one can end them.
    """

    RESERVED = "reserved"
    CONNECTING = "connecting"
    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"
    FORGETTING = "forgetting"


#: What `resume` brings to its end.
UNFINISHED = frozenset({AttachmentState.ATTACHING, AttachmentState.DETACHING, AttachmentState.FORGETTING})


class SnapshotStatus(StrEnum):
    """The public status of a snapshot; all but AVAILABLE are ended by `resume`. RESTORING: reverted to."""

    CREATING = "creating"
    AVAILABLE = "available"
    RESTORING = "restoring"
    DELETING = "deleting"


class InstanceState(StrEnum):
    """What a host knows of an instance. STOPPED is proved: no process is left; all else is UNKNOWN."""

    RUNNING = "running"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


class ExtendReply(StrEnum):
    """A driver's answer to `extend_volume`: it is large enough, or the hypervisor must grow it."""

    EXTENDED = "extended"
    DEFERRED = "deferred"


@dataclass(frozen=True)
class Connector:
    """What a host tells a driver about itself, as in os-brick and Cinder.

    Its name is `initiator` for iSCSI, `nqn` for NVMe.
    """

    host: str
    ip: str | None = None
    initiator: str | None = None
    multipath: bool = False
    nqn: str | None = None


@dataclass(frozen=True)
class ConnectionInfo:
    """How a host reaches a volume: a protocol name and its properties, secrets among them.

    The properties are never shown by `repr`.
    """

    driver_volume_type: str
    properties: Mapping[str, str] = field(repr=False)

    def __post_init__(self) -> None:
        """Freeze the properties."""
        object.__setattr__(self, "properties", MappingProxyType(dict(self.properties)))

    def __reduce__(self) -> tuple[type, tuple[str, Mapping[str, str]]]:
        """Let it be copied and pickled, which what is frozen cannot be."""
        return type(self), (self.driver_volume_type, dict(self.properties))

    @property
    def encrypted(self) -> bool:
        """Tell whether a host has to decrypt what it gets: `encrypted`, as Cinder and Nova say it."""
        return self.properties.get("encrypted", "").lower() in ("1", "t", "true", "y", "yes", "on")


@dataclass(frozen=True)
class Attachment:
    """One volume on one host, with or without an instance that uses it.

    `connector` is what the host said of itself when the volume was exported to it: by it a lost host is
    let in no more. `monitor` is the path of the instance's QMP socket, or
    `libvirt:` and the URI of the libvirt that has it. `instance_process` is what the host
    needs to prove later that the instance is gone; opaque to everybody else. `instance_state` is filled in
    by the converging step before it asks the driver, and is not stored. `by_client`: it was connected, and
    plugged into its instance, by who asked for it over the API; that one disconnects it too.
    """

    id: str
    volume_id: str
    host: str
    instance: str | None = None
    monitor: str | None = None
    state: AttachmentState = AttachmentState.ATTACHING
    connector: Connector | None = None
    connection_info: ConnectionInfo | None = None
    device_path: str | None = None
    instance_process: str | None = None
    by_client: bool = False
    read_only: bool = False
    instance_state: InstanceState = InstanceState.UNKNOWN

    @property
    def place(self) -> str:
        """Where it is, for people: `host` or `host/instance`."""
        return f"{self.host}/{self.instance}" if self.instance else self.host

    @property
    def may_run(self) -> bool:
        """Tell whether it has an instance that is not proved to have stopped."""
        return self.instance is not None and self.instance_state is not InstanceState.STOPPED


@dataclass(frozen=True)
class Snapshot:
    """A volume as it was at one moment, with its size then; `provider_data` is its driver's."""

    id: str
    name: str
    volume_id: str
    size_bytes: int
    status: SnapshotStatus = SnapshotStatus.CREATING
    provider_data: str = ""

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"snapshot {self.name}"


@dataclass(frozen=True)
class Source:
    """Where the content of a new volume comes from: another volume, its snapshot, or what is there already.

    `reference` is the driver's name for something on its backend that is to become a volume.
    """

    volume_id: str | None = None
    snapshot_id: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Volume:
    """A volume as everybody but the array sees it.

    `size_bytes` is the published size; it moves when an extend completes. `backend_bytes` is what
    was last observed on the backend; capacity and the next extend use it. `extend_new_size_bytes`
    is the target while the hypervisor must grow the volume, the `extend_new_size` of the
    specifications. `provider_data` belongs to the driver. `snapshots` are its own, oldest first.
    """

    id: str
    name: str
    backend: str
    size_bytes: int
    backend_bytes: int = 0
    status: VolumeStatus = VolumeStatus.CREATING
    multi_attach: bool = False
    provider_data: str = ""
    attachments: tuple[Attachment, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    extend_new_size_bytes: int | None = None

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"volume {self.name}"

    @property
    def nobody_runs(self) -> bool:
        """Tell whether no attachment has an instance that may be running: docs/architecture.md, rule 7."""
        return not any(attachment.may_run for attachment in self.attachments)


@dataclass(frozen=True)
class Extend:
    """One extend from its admission to its end.

    `id` grows with every admission; a host refuses an older one. `from_bytes` is the backend's
    size at admission: as long as that is still its size, nothing has grown.
    """

    id: int
    volume_id: str
    from_bytes: int
    requested_bytes: int
    to_bytes: int
    phase: Phase
    expires_at: datetime
    deferred: bool = False
    reason: str = ""

    def expired(self, now: datetime) -> bool:
        """Tell whether its time is over; a host refuses it then, right before the act."""
        return now >= self.expires_at


@dataclass(frozen=True)
class Message:
    """A line for the operator of one volume: what happened and why."""

    at: datetime
    text: str


@dataclass(frozen=True)
class LedgerRow:
    """One layer of one volume: what was seen there and what must be seen.

    `observed_bytes` is None where the layer could not be read; `note` says why. A row that is not
    required is shown and never waited for. `repair` is the command that mends a stale layer.
    """

    layer: str
    place: str
    observed_bytes: int | None
    expected_bytes: int
    required: bool = True
    note: str = ""
    repair: str = ""

    @property
    def agrees(self) -> bool:
        """Tell whether the layer shows exactly what it must."""
        return self.observed_bytes == self.expected_bytes

    @property
    def stale(self) -> bool:
        """Tell whether this layer keeps the volume from being settled."""
        return self.required and not self.agrees


Ledger = tuple[LedgerRow, ...]


@dataclass(frozen=True)
class Pool:
    """Room on a backend. `free_bytes` is what may still be promised to new volumes.

    `max_over_subscription_ratio` is how often the total may be promised; 1 where volumes take all their room.
    """

    total_bytes: int
    free_bytes: int
    allocated_bytes: int
    max_over_subscription_ratio: float = 1.0


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def check_name(name: str, kind: str = "volume") -> None:
    """Refuse a name that could be taken for an option, a path or another name.

    Raises InvalidInput. Letters and digits of any script, then also `. _ + @ : = -`, at most 128.
    """
    if not _NAME.fullmatch(name) or not unicodedata.is_normalized("NFC", name):
        raise InvalidInput(
            f"{kind} name {_shortened(name)}",
            "must start with a letter or digit and hold at most 128 letters, digits and . _ + @ : = -",
        )


def check_id(given: str, kind: str = "volume") -> None:
    """Refuse an id that could not stand in a file name. Raises InvalidInput."""
    if not _ID.fullmatch(given):
        needed = "must be at most 64 letters, digits, - and _"
        raise InvalidInput(f"{kind} id {_shortened(given)}", needed)


def _shortened(text: str) -> str:
    shown = ascii(text[:40])
    return shown if len(text) <= 40 else f"{shown} and {len(text) - 40} more characters"
