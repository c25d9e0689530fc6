"""The site: what every operation needs - records, drivers, hosts, locks, a clock - and who may work."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from voldrivers.base import Driver, Drivers, Host, Hosts, Sleep
from voldrivers.config import Policy
from voldrivers.errors import InvalidInput, InvalidState, NotFound, VolDriverError
from voldrivers.extend.store import Store
from voldrivers.locks import exclusive, in_turn
from voldrivers.model import (
    UNFINISHED,
    Attachment,
    InstanceState,
    SnapshotStatus,
    Volume,
    VolumeStatus,
    utc_now,
)
from voldrivers.process import marked

Thing = TypeVar("Thing")
#: Volumes that this thread keeps for itself over several operations, each with its site's directory of locks.
_reserved: ContextVar[frozenset[tuple[Path, str]]] = ContextVar("reserved", default=frozenset())
#: Those that follow from the attachments have nothing under way by themselves.
_STEADY = (
    VolumeStatus.AVAILABLE,
    VolumeStatus.IN_USE,
    VolumeStatus.ERROR_EXTENDING,
    VolumeStatus.RESERVED,
    VolumeStatus.ATTACHING,
    VolumeStatus.DETACHING,
)


@dataclass(frozen=True)
class Progress:
    """A step that begins: of which volume, its name, and what it is about."""

    volume: Volume
    step: str
    text: str


def no_progress(_progress: Progress) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Site:
    """One controller: its records and everything it reaches."""

    store: Store
    drivers: Drivers
    hosts: Hosts
    lock_dir: Path
    policy: Policy = field(default_factory=Policy)
    progress: Callable[[Progress], None] = no_progress
    now: Callable[[], datetime] = utc_now
    sleep: Sleep = time.sleep
    #: So long a lock is waited for that should be free.
    patience_s: float = 0.0
    #: Draws the ids of volumes, snapshots and attachments.
    new_id: Callable[[], str] = lambda: str(uuid.uuid4())

    def driver(self, volume: Volume) -> Driver:
        """The driver of a volume's backend. Raises NotFound."""
        return self.backend(volume.backend)

    def backend(self, name: str | None) -> Driver:
        """The driver of a backend by name, or of the only one. Raises NotFound, InvalidInput."""
        return _named(self.drivers, name, "backend")

    def host(self, name: str | None) -> Host:
        """A host by name, or the only one. Raises NotFound, InvalidInput."""
        return _named(self.hosts, name, "host")

    def has_stopped(self, attachment: Attachment) -> bool:
        """Tell whether an attachment's instance is proved to have stopped."""
        host = self.hosts.get(attachment.host)
        if attachment.instance is None or host is None:
            return False
        try:
            return host.instance_state(attachment) is InstanceState.STOPPED
        except VolDriverError:
            return False

    def expiry(self) -> datetime:
        """When an extend that is admitted or resumed now is over."""
        return self.now() + timedelta(seconds=self.policy.deadline_s)

    @contextmanager
    def working_on(self, name: str) -> Iterator[Volume]:
        """Hold a volume's lock and give it as it is then. Raises NotFound, InvalidState."""
        volume = self.store.volume(name)
        with self.exclusively(volume):
            yield self.store.volume(volume.id)

    @contextmanager
    def reserved(self, name: str) -> Iterator[Volume]:
        """As `working_on`, over several operations of this thread: they take the lock as theirs."""
        with self.working_on(name) as volume:
            token = _reserved.set(_reserved.get() | {(self.lock_dir, volume.id)})
            try:
                yield volume
            finally:
                _reserved.reset(token)

    @contextmanager
    def locked(self, name: str) -> Iterator[Volume]:
        """Hold a volume's lock while a copy of it is made, and give it as it is then, as `working_on`."""
        volume = self.store.volume(name)
        with exclusive(self.lock_dir, f"volume-{volume.id}", volume.title):
            yield self.store.volume(volume.id)

    @contextmanager
    def exclusively(self, volume: Volume) -> Iterator[None]:
        """Hold a volume's lock; programs started meanwhile are marked as working on it.

        Whoever holds it while nothing is under way is about to let go of it, or only looks: that is worth
        `patience_s`.
        """
        if (self.lock_dir, volume.id) in _reserved.get():
            yield
            return
        wait_s = self.patience_s if is_settled(volume) else 0.0
        with in_turn(self.lock_dir, f"volume-{volume.id}", volume.title, wait_s), marked(volume.id):
            yield


class Loaded(Mapping[str, Thing]):
    """A mapping whose values are made when they are first used."""

    def __init__(self, entries: Mapping[str, object], make: Callable[..., Thing]) -> None:
        self._entries, self._make = entries, make
        self._made: dict[str, Thing] = {}

    def __getitem__(self, name: str) -> Thing:
        if name not in self._made:
            self._made[name] = self._make(self._entries[name])
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def is_settled(volume: Volume) -> bool:
    """Tell whether nothing that was begun with a volume is left to be ended."""
    unsettled = any(a.state in UNFINISHED for a in volume.attachments)
    unfinished = any(each.status is not SnapshotStatus.AVAILABLE for each in volume.snapshots)
    return volume.status in _STEADY and not unsettled and not unfinished


def expect(volume: Volume, *allowed: VolumeStatus) -> None:
    """Refuse a volume in another status, or with a snapshot that is not finished. Raises InvalidState."""
    if volume.status not in allowed:
        raise InvalidState(volume.title, volume.status, " or ".join(allowed))
    for snapshot in volume.snapshots:
        if snapshot.status is not SnapshotStatus.AVAILABLE:
            state = f"with {snapshot.title}, which is {snapshot.status}"
            raise InvalidState(volume.title, state, "finished with it (`resume`)")


def _named(things: Mapping[str, Thing], name: str | None, kind: str) -> Thing:
    names = ", ".join(things) or "none"
    if name is None and len(things) != 1:
        raise InvalidInput(kind, f"name one of those that are configured: {names}")
    name = next(iter(things)) if name is None else name
    if name not in things:
        raise NotFound(kind, name, f"; configured: {names}")
    return things[name]
