"""How volumes are shown to other machines: the small interface that every kind of target implements.

The driver knows volumes and devices; names of targets, numbers of disks, who may log in and with which
secret are known below this interface alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from voldrivers.model import Attachment, AttachmentState, ConnectionInfo, Connector, Volume


class Exports(ABC):
    """The exports of a backend's volumes. Every method may be repeated, also after a kill.

    Exports of others are left alone. All raise InvalidInput for a volume's id that cannot be in a name,
    NotSupported where this machine lacks what they need, BackendError when the kernel refuses.
    """

    #: What the size ledger calls the layer that `shown_bytes` reads.
    layer: ClassVar[str]

    @abstractmethod
    def check_id(self, volume_id: str) -> None:
        """Refuse a volume whose id cannot be in a name, before there is such a volume."""

    @abstractmethod
    def open(
        self, volume_id: str, device: Path, connector: Connector, known: Iterable[ConnectionInfo]
    ) -> ConnectionInfo:
        """Export the device, let the connector's machine in, and say how it connects.

        `known` was given for this volume earlier: a secret in it stays the secret, also when the target's
        configuration was lost. Raises NotSupported for a connector without the name that is needed;
        InvalidState when the device is exported otherwise, or another one as this volume.
        """

    @abstractmethod
    def close_to(self, volume_id: str, connector: Connector) -> None:
        """Let the connector's machine in no more; what it has under way ends now: a fence."""

    @abstractmethod
    def remove(self, volume_id: str) -> None:
        """End the export; the device is free then. Raises InvalidState while it is used, or not ours."""

    @abstractmethod
    def shown_bytes(self, volume_id: str) -> int:
        """Give the size that the export answers now. Raises NotFound when there is none."""

    @abstractmethod
    def check_open(self, volume: Volume) -> None:
        """Refuse an export that an attached volume's hosts could not come back to, as they know it.

        Raises InvalidState, which says what keeps them out; NotFound when there is none.
        """

    @abstractmethod
    def restore(self, volume: Volume, device: Path) -> None:
        """Give an attached volume back the export that was lost, for all its attachments, as they know it.

        Where all is there nothing is changed, saved or run; hosts that listen are told to look at its size.
        Raises as `open`.
        """


def attached(volume: Volume) -> Sequence[Attachment]:
    """Give the attachments that must be let in; one that is leaving, or forced out, is not."""
    let_in = (AttachmentState.ATTACHED, AttachmentState.CONNECTING)
    return [a for a in volume.attachments if a.state in let_in and a.connector]


def known(volume: Volume) -> Sequence[ConnectionInfo]:
    """Give what the volume's attachments were told."""
    return [a.connection_info for a in volume.attachments if a.connection_info]
