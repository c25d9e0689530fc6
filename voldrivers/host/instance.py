"""An instance: one guest behind its monitor, whichever that is, and keeping others of us away from it."""

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from voldrivers import process
from voldrivers.abilities import Merge
from voldrivers.errors import BackendError, InvalidState, NotSupported
from voldrivers.host.media import Medium
from voldrivers.model import Attachment, Extend, InstanceState, Volume, utc_now
from voldrivers.sizes import format_size

_SECTOR_BYTES = 512


@dataclass(frozen=True)
class Limits:
    """How long to wait for an answer, for a resize, for a guest to let go of a disk."""

    answer_s: float
    resize_s: float
    unplug_s: float


@dataclass(frozen=True)
class ShownDisk:
    """One disk of an instance with a volume, by its hypervisor's name, and the size that QEMU has for it."""

    name: str
    size_bytes: int


@dataclass(frozen=True)
class Instance(ABC):
    """The instance of one attachment. Of a medium that it is given it is sure that it answers.

    Every method may be repeated; each but `state` raises InvalidState when the monitor does not answer.
    """

    attachment: Attachment
    limits: Limits

    @abstractmethod
    def state(self) -> InstanceState:
        """Give RUNNING if it answers, STOPPED if it is proved to have ended, else UNKNOWN."""

    @abstractmethod
    def is_gone(self) -> bool:
        """Tell whether it has provably ended."""

    @abstractmethod
    def plug(self, volume: Volume, medium: Medium) -> None:
        """Give it a volume as a virtio disk; nothing is left behind on failure."""

    @abstractmethod
    def unplug(self, volume: Volume, medium: Medium) -> None:
        """Take the disk out and wait until its guest has let go of it."""

    @abstractmethod
    def check_extend(self, volume: Volume, medium: Medium) -> None:
        """Refuse what could not be resized now. Changes nothing."""

    @abstractmethod
    def extend(self, volume: Volume, medium: Medium, extend: Extend) -> None:
        """Look, have QEMU resize every disk with the volume, look again.

        Never below what QEMU or the medium has.

        Raises InvalidState (nothing was sent), NoSpace, InvalidSize, BackendError, OutcomeUnknown.
        """

    @abstractmethod
    def fence(self, extend: Extend) -> None:
        """Return only when what was sent for an extend can no longer take effect. Raises OutcomeUnknown."""

    @abstractmethod
    def disks(self, volume: Volume, medium: Medium) -> Sequence[ShownDisk]:
        """Give the disks with the volume, at least one. Raises InvalidState."""

    @abstractmethod
    def guest_bytes(self, volume: Volume) -> int | None:
        """Ask the agent in the guest for the size; None where there is no agent."""

    @abstractmethod
    def switch(self, volume: Volume, now: Medium, then: Medium) -> None:
        """Have the disk written to `then`, an empty overlay over `now`; where it is already is no error.

        Raises InvalidState, BackendError (nothing was switched), OutcomeUnknown.
        """

    def merge(self, volume: Volume, medium: Medium, merge: Merge) -> int:  # noqa: ARG002 - for those who can
        """Have a layer take in the one below it; give what is left."""
        reason = "layers of a volume in use are merged over a QMP socket only"
        raise NotSupported(f"instance {self.attachment.place}", reason)

    @property
    def key(self) -> str:
        """What tells it from every other instance on this machine."""
        return os.path.realpath(str(self.attachment.monitor))


@contextmanager
def held(attachment: Attachment, key: str, timeout_s: float) -> Iterator[None]:
    """Keep every other voldrivers process on this machine from plugging into the instance.

    By a name in the kernel's table of abstract sockets (unix(7)), which is free again when its
    process ends, however it ends. Raises InvalidState when another one holds it for `timeout_s`.
    """
    name = sha256(key.encode()).hexdigest()
    with socket.socket(socket.AF_UNIX) as holder:
        if not process.holds_within(lambda: _bound(holder, f"\0voldrivers/{name}"), timeout_s):
            subject = f"instance {attachment.place}"
            raise InvalidState(subject, "held by another voldrivers process", "free")
        yield


def wanted_bytes(shown: ShownDisk, medium_bytes: int, extend: Extend) -> int:
    """Give the size to ask for: never below what QEMU or the medium has; whole sectors, as qcow2 counts."""
    floor_bytes = max(extend.to_bytes, shown.size_bytes, medium_bytes)
    return -(-floor_bytes // _SECTOR_BYTES) * _SECTOR_BYTES


def check_time(volume: Volume, extend: Extend) -> None:
    """Refuse an extend that is expired, right before the act. Raises InvalidState."""
    if extend.expired(utc_now()):
        raise InvalidState(f"extend {extend.id} of {volume.title}", "expired", "asked for again")


def check_one_size(volume: Volume, shown_bytes: int, overlay: Medium) -> None:
    """Refuse to go on in an overlay of another size than QEMU has. Raises InvalidState."""
    if shown_bytes != overlay.size_bytes():
        seen = f"{format_size(shown_bytes)} in QEMU, {format_size(overlay.size_bytes())} in {overlay.path}"
        raise InvalidState(volume.title, seen, "of one size")


def check_shown(shown: ShownDisk, medium: Medium, asked_bytes: int) -> None:
    """Look whether what was asked for has come. Raises BackendError."""
    shown_bytes = min(shown.size_bytes, medium.size_bytes())
    if shown_bytes < asked_bytes:
        seen, wanted = format_size(shown_bytes), format_size(asked_bytes)
        raise BackendError(f"block node {shown.name}", f"QEMU said {wanted}, but it is {seen}")


def _bound(holder: socket.socket, name: str) -> bool:
    try:
        holder.bind(name)
    except OSError:
        return False
    return True
