"""voldrivers: block-storage drivers that extend a volume while it is in use.

The public names. Importing this is light; what a driver needs is imported when it is used.
"""

from voldrivers.abilities import Clones, GrownByHypervisor, Manages, Merge, Reverts, Snapshots, Taken
from voldrivers.base import Driver, Host
from voldrivers.capabilities import Capabilities, Condition, InUseExtend
from voldrivers.errors import (
    BackendError,
    CommandFailed,
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
    ConnectionInfo,
    Connector,
    Extend,
    ExtendReply,
    LedgerRow,
    Phase,
    Pool,
    Snapshot,
    SnapshotStatus,
    Volume,
    VolumeStatus,
)
from voldrivers.options import option
from voldrivers.sizes import SizeRule, format_size, parse_size

__all__ = [
    "Attachment",
    "BackendError",
    "Capabilities",
    "Clones",
    "CommandFailed",
    "Condition",
    "ConnectionInfo",
    "Connector",
    "Driver",
    "Extend",
    "ExtendReply",
    "GrownByHypervisor",
    "Host",
    "InUseExtend",
    "InvalidInput",
    "InvalidSize",
    "InvalidState",
    "LedgerRow",
    "Manages",
    "Merge",
    "NoSpace",
    "NotFound",
    "NotSupported",
    "OutcomeUnknown",
    "Phase",
    "Pool",
    "Reverts",
    "SizeRule",
    "Snapshot",
    "SnapshotStatus",
    "Snapshots",
    "Taken",
    "VolDriverError",
    "Volume",
    "VolumeStatus",
    "format_size",
    "option",
    "parse_size",
]
