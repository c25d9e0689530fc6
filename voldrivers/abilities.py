"""Small interfaces beside `Driver` and `Host`, each for one further ability.

A driver that declares a capability implements all of its interface. Every method may be called again with
the same arguments, after a crash too: look first, then act. A `volume` holds all its snapshots, oldest
first, one that is being made or deleted included.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from voldrivers.capabilities import InUseExtend
from voldrivers.model import Attachment, ConnectionInfo, Snapshot, Volume


class GrownByHypervisor(ABC):
    """What `InUseExtend.BY_HYPERVISOR` needs."""

    @abstractmethod
    def probe_locks(self, volume: Volume) -> None:
        """Prove that nobody holds the volume's file and that locks on its share mean something.

        Called before `extend_volume` for an attached volume whose instances are proved to have
        stopped. Raises InvalidState when the proof fails; then nothing may grow.
        """


@dataclass(frozen=True)
class Taken:
    """What a driver wants to remember of a volume and of its new snapshot: their `provider_data`."""

    of_volume: str
    of_snapshot: str


@dataclass(frozen=True)
class Merge:
    """Layers of a file that only the hypervisor who has it open may merge, by their names beside it.

    `layer` must take in all that is in `merged`, which lies right below it, and lie on `base` then;
    without a base `layer` must hold everything itself. `base_format` is how the base is to be read.
    Where `merged` is smaller than `layer` there is a `spacer`: an empty qcow2 over `merged`, as large as
    `layer`, which QEMU needs between the two.
    """

    layer: str
    merged: str
    base: str | None
    base_format: str | None
    spacer: str | None = None


class Snapshots(ABC):
    """What `snapshots` needs: a volume as it is at one moment, kept while the volume goes on."""

    @abstractmethod
    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        """Keep the volume as it is now; its later writes and extends leave the snapshot as it is.

        One that is there already is left alone and its answer given again. Where `Taken.of_volume` is
        not what the volume's provider_data was, what is attached must go on elsewhere: the hosts are then
        told by a new connection_info (`Layers.switch`), and whatever they use until then stays in its place.
        Nothing is left behind on failure.
        Raises InvalidState, NotSupported (a declared condition), NoSpace, BackendError, OutcomeUnknown.
        """

    @abstractmethod
    def delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> Merge | None:
        """Remove a snapshot, any of a volume's, and all that is its alone; one that is gone is no error.

        A `Merge` says: nothing was done yet, the hypervisor that has the volume open must merge these first
        (`Layers.merge`); this is called again then, and looks. A snapshot without provider_data is one whose
        creation failed: what that left is removed, unless the volume is in use through it (InvalidState).
        Raises InvalidState while something needs it, NoSpace, BackendError, OutcomeUnknown.
        """

    @abstractmethod
    def list_snapshots(self) -> Sequence[str]:
        """Give the ids of the snapshots on the backend that are ours."""

    @abstractmethod
    def snapshot_size(self, volume: Volume, snapshot: Snapshot) -> int:
        """Give the size in bytes that the snapshot really has. Raises NotFound as `Driver.volume_size`."""


class Reverts(ABC):
    """What `revert` needs: a volume made again what it was."""

    @abstractmethod
    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        """Make a detached volume what its snapshot is, in content and size; return its provider_data.

        Every snapshot stays as it is. The volume may be smaller afterwards: that is what was asked for.
        Raises InvalidState, NotSupported (a declared condition), NoSpace, BackendError, OutcomeUnknown.
        """


class Clones(ABC):
    """What `clones` needs: new volumes that begin as copies."""

    @abstractmethod
    def clone_volume(
        self,
        volume: Volume,
        options: Any,  # Any: an instance of volume_options_type
        source: Volume,
        snapshot: Snapshot | None = None,
    ) -> str:
        """Make `volume` a copy of `source` as it is now, or of its snapshot; return its provider_data.

        It has exactly `volume.size_bytes`, never less than the source; what is beyond the source reads as
        zeros. Neither depends on the other afterwards. A volume that is there already is left alone; nothing
        is left behind on failure. Raises as `Driver.create_volume`, and InvalidState for a source that
        cannot be copied now.
        """


class Manages(ABC):
    """What `manage` needs: taking over what is on the backend already, and giving it up, byte for byte."""

    @abstractmethod
    def existing_size(self, reference: str, options: Any) -> int:  # Any: as above
        """Give the size in bytes of what `reference` names, if it could become a volume.

        Raises NotFound, InvalidInput (no such name can be), InvalidState (in use, a volume already, or not
        what it is said to be), InvalidSize (no size that a volume can have). Changes nothing.
        """

    @abstractmethod
    def manage_existing(self, volume: Volume, reference: str, options: Any) -> str:  # Any: as above
        """Make what `reference` names the volume, with all its bytes; return its provider_data.

        At once or not at all; one that is the volume already is left alone. Raises as `existing_size`.
        """

    @abstractmethod
    def unmanage(self, volume: Volume) -> str:
        """Give the volume up and every byte left in place; return the reference that it has then.

        Afterwards it is none of ours. One that was given up already is no error.
        """


class Layers(ABC):
    """Beside `Host`: instances whose volumes are files that may lie in layers."""

    @abstractmethod
    def switch(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        """Have the volume written where `connection_info` leads from now on; return its path there.

        What is there lies over what the attachment has now (a snapshot was taken), or under other names is
        the same. A running instance is switched without losing a write, one proved gone is not asked. Raises
        InvalidState, BackendError (nothing was switched), OutcomeUnknown.
        """

    @abstractmethod
    def merge(self, volume: Volume, attachment: Attachment, merge: Merge) -> int:
        """Have the running instance merge layers of the volume, or go on with it; give what is left in bytes.

        0 when it is done. Answers soon, while QEMU copies. Raises InvalidState, NoSpace, BackendError,
        OutcomeUnknown.
        """


#: Capability, value, and the interface that a class declaring it must implement.
INTERFACES: tuple[tuple[str, object, type], ...] = (
    ("in_use_extend", InUseExtend.BY_HYPERVISOR, GrownByHypervisor),
    ("snapshots", True, Snapshots),
    ("revert", True, Reverts),
    ("clones", True, Clones),
    ("manage", True, Manages),
)
