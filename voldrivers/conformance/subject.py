"""What is tested, where, and who looks at it without asking the driver."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from voldrivers.base import Driver, Host, Run
from voldrivers.conformance.verdicts import NotRun
from voldrivers.extend.engine import Engine
from voldrivers.model import Attachment, Volume, utc_now
from voldrivers.process import run
from voldrivers.sizes import GiB


class Oracle(Protocol):
    """The side door: looks at the backend by another path than the driver (lvs, stat, an array's REST)."""

    #: By how much the room may differ though nothing has changed: others' writes, a file system's own blocks.
    tolerance_bytes: int

    def objects(self) -> Mapping[str, int]:
        """Give everything in the pool by its name there, ours or not, with its size in bytes."""

    def size_bytes(self, volume: Volume) -> int | None:
        """Give the size of a volume; None where the pool does not have it."""

    def free_bytes(self) -> int:
        """Give the room that is left."""


class Filesystem(Protocol):
    """A file system on a volume, mounted."""

    def size_bytes(self) -> int:
        """Give how large it is."""

    def write(self, name: str, size_bytes: int) -> None:
        """Write a file of so many bytes. Raises OSError where it does not fit."""

    def check(self, name: str) -> None:
        """Read a file back. Raises OSError where it is not what was written."""

    def grow(self, *, online: bool) -> None:
        """Make it as large as the device is by now, while it is mounted or not. Raises NotRun."""


@runtime_checkable
class Marks(Protocol):
    """An oracle that can write down, in the pool and past the driver, that the pool may be destroyed."""

    #: What an operator calls the pool.
    pool: str

    def mark(self) -> str:
        """Give the mark; nothing where there is none."""

    def set_mark(self, mark: str) -> None:
        """Set it."""

    def occupants(self) -> Sequence[str]:
        """Name what is in the pool, and would be destroyed with it."""


# The optional abilities of a place name arguments that only those who have them use.
# ruff: noqa: ARG002


class Place(ABC):
    """A host where devices are looked at, and perhaps an instance on it whose guest is asked."""

    host: Host
    #: The name of a running instance that volumes may be plugged into.
    instance: str | None = None

    @abstractmethod
    def device_bytes(self, volume: Volume, attachment: Attachment) -> int:
        """Give the size of the device or file that the host has."""

    @abstractmethod
    def guest_bytes(self, volume: Volume, attachment: Attachment) -> int | None:
        """Give the size that the guest sees; None where it cannot be asked."""

    @abstractmethod
    def read(self, volume: Volume, attachment: Attachment, offset_bytes: int, size_bytes: int) -> bytes:
        """Read what the host reads, from the medium."""

    @abstractmethod
    def write(self, volume: Volume, attachment: Attachment, offset_bytes: int, content: bytes) -> None:
        """Write to the medium. Raises OSError beyond its end."""

    def letting_go(self) -> AbstractContextManager[None]:
        """Have the guest let go of a device that it is asked for while the context is open."""
        return nullcontext()

    @abstractmethod
    def residue(self) -> frozenset[str]:
        """Name what volumes leave on a host: devices, sessions, mounts."""

    def stopped(self) -> AbstractContextManager[None]:
        """Have the instance stopped for a while, then started again with the volumes that it had.

        Raises NotRun.
        """
        raise NotRun("this place cannot stop its instance")

    # --- what few places offer; each raises NotRun where there is none

    def filesystem(
        self, volume: Volume, attachment: Attachment, *, fresh: bool
    ) -> AbstractContextManager[Filesystem]:
        """Mount the file system on a volume attached without an instance; make it if it is `fresh`."""
        raise NotRun("this place mounts no file systems")

    def discard(self, volume: Volume, attachment: Attachment, offset_bytes: int, size_bytes: int) -> None:
        """Have a range read as zeros, by a discard if that does it; attached without an instance."""
        raise NotRun("this place discards nothing")

    def sector_bytes(self, volume: Volume, attachment: Attachment) -> tuple[int, int]:
        """Give the logical and the physical sector size of the device."""
        raise NotRun("this place does not tell sector sizes")

    def paths(self, volume: Volume, attachment: Attachment) -> Mapping[str, int]:
        """Give every path of the multipath map of a volume, with its size."""
        raise NotRun("this place has no multipath")

    def lost(self, path: str) -> AbstractContextManager[None]:
        """Have one of the paths be lost for a while."""
        raise NotRun("this place cannot lose a path")

    def kernel_log(self) -> Sequence[str]:
        """Give what the kernel has said since it started, or as much of it as is still known."""
        raise NotRun("this place cannot read what the kernel says")


class Intend(Protocol):
    """Notes what is about to be made."""

    def __call__(self, call: str, things: Sequence[object]) -> None:
        """Take the name of the driver's method and its arguments."""


class Elsewhere(Protocol):
    """The driver in a process that has just been started, and knows nothing of this one."""

    def __call__(self, method: str, *things: object) -> Any:  # Any: each method has its own answer
        """Call a method of the driver there, and give its answer. Raises what it raises."""


def _nothing(call: str, things: Sequence[object]) -> None:
    """Note nothing."""


@dataclass(frozen=True)
class Subject:
    """A driver, and everything that its checks may use."""

    driver_class: type[Driver]
    #: Makes a new driver object, as a restarted process does, of this class or a subclass of it.
    make: Callable[[type[Driver], Run], Driver]
    places: Sequence[Place]
    oracle: Oracle | None = None
    #: The pool of the driver, in which everything may be destroyed.
    pool: str = ""
    #: What all volumes of one check may take together.
    max_bytes: int = 20 * GiB
    #: What the driver was configured with, secrets included.
    options: Mapping[str, object] = field(default_factory=dict)
    #: The options of every volume.
    volume_options: Mapping[str, object] = field(default_factory=dict)
    run: Run = run
    now: Callable[[], datetime] = utc_now
    sleep: Callable[[float], None] = time.sleep
    deadline_s: float = 60.0
    #: How long one operation may be disturbed at one boundary after the other.
    sweep_s: float = math.inf
    #: How the driver is set up, as far as what is proved depends on it: "thin, over iSCSI".
    mode: str = ""
    #: Told of every call that makes something, before it is made.
    intend: Intend = _nothing
    #: What carries extends out and keeps the records, if it is not the engine itself.
    engine_class: type[Engine] = Engine
    #: Makes the same subject with room for volumes of tens of TiB, where that costs nothing.
    vast: "Callable[[], Subject] | None" = None
    #: So many rounds are taken where it is about many.
    soak_rounds: int = 20
    #: Has the backend be out of reach for a while, as one that is started anew.
    outage: Callable[[], AbstractContextManager[None]] | None = None
    #: Asks the driver in another process.
    elsewhere: Elsewhere | None = None
