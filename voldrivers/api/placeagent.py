"""The place of an agent's machine: what the conformance suite does there past the driver, one run at a time.

Whoever has opened it has a lease. When that ends, because it is closed or nothing was asked for long, the
guest ends too. Everything happens in one thread that lives as long as the place does: a QEMU dies with the
thread that started it, and one bus to a guest takes one request at a time.
"""

import base64
import binascii
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from voldrivers.api import placewire
from voldrivers.api.placebook import Book
from voldrivers.api.placewire import Opened, Outcome
from voldrivers.api.wire import Body
from voldrivers.base import Host
from voldrivers.conformance.places import GuestPlace, LocalPlace
from voldrivers.conformance.subject import Filesystem
from voldrivers.conformance.verdicts import NotApplicable, NotRun
from voldrivers.errors import InvalidInput, InvalidState, NotFound, NotSupported, OutcomeUnknown
from voldrivers.guests.device import DeviceGuest
from voldrivers.guests.machine import QEMU
from voldrivers.model import Attachment, Volume

_ANSWER_S = 60.0
T = TypeVar("T")


@dataclass
class _Place:
    """A place that is open."""

    lease: str
    threads: ThreadPoolExecutor
    until: float
    place: LocalPlace
    guest: DeviceGuest | None = None
    contexts: dict[str, ExitStack] = field(default_factory=dict)
    #: What is mounted.
    filesystem: Filesystem | None = None


class PlaceAgent:
    """The calls of the place of one machine. Threads may call it at once."""

    def __init__(
        self,
        host: Host,
        book: Book,
        guests: Path | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at what `host` has connected; `guests` is where its instances have their sockets, or None."""
        self.host, self.book, self._guests, self._now = host, book, guests, now
        self._place: _Place | None = None
        self._books = threading.Lock()
        self._opening = threading.Lock()

    def answer(self, name: str, body: Body) -> object:
        """Do what a request asks and give what JSON can hold. Raises VolDriverError."""
        call = placewire.call(name)
        arguments = dict(call.read(body))
        if name == "open":
            return call.write_answer(self._open(**arguments))
        place = self._leased(arguments.pop("lease"))
        if name == "close":
            self._close(place)
            return None
        return call.write_answer(_within(place.threads.submit(self._do, place, name, arguments), name))

    def close(self) -> None:
        """End what is open; for the end of the agent."""
        if self._place is not None:
            self._close(self._place)

    def end_if_forgotten(self) -> bool:
        """Close a place that nothing was asked of for long; tell whether none is open now."""
        place = self._place
        if place is not None and self._now() >= place.until:
            self._close(place)
        return self._place is None

    def _open(self, guest: bool | None) -> Opened:
        with self._opening:
            if not self.end_if_forgotten():
                subject = f"place of host {self.host.name}"
                raise InvalidState(
                    subject, "used by another run", f"closed, or left for {placewire.LEASE_S:g} s"
                )
            threads = ThreadPoolExecutor(1)
            try:
                made = _within(threads.submit(self._begin, threads, guest), "open")
            except BaseException:
                threads.shutdown(wait=False)
                raise
            with self._books:
                self._place = made
        self._watch(made)
        return Opened(made.lease, made.place.instance)

    def _begin(self, threads: ThreadPoolExecutor, wanted: bool | None) -> _Place:
        lease, until = secrets.token_hex(16), self._now() + placewire.LEASE_S
        has_guest = self._guests is not None and shutil.which(QEMU) is not None
        if not has_guest or wanted is False:
            if wanted:
                reason = "has no QEMU" if self._guests else 'its agent\'s table has no conformance = "guest"'
                raise NotSupported(f"host {self.host.name}", f"{reason}, so there can be no guest")
            return _Place(lease, threads, until, LocalPlace(self.host))
        assert self._guests is not None
        guest = DeviceGuest(self._guests, f"conformance-{secrets.token_hex(4)}")
        return _Place(lease, threads, until, GuestPlace(self.host, guest), guest)

    def _watch(self, place: _Place) -> None:
        def look() -> None:
            self.end_if_forgotten()
            if self._place is place:
                self._watch(place)

        timer = threading.Timer(placewire.LEASE_S / 10, look)
        timer.daemon = True
        timer.start()

    def _leased(self, lease: str) -> _Place:
        with self._books:
            place = self._place
            if place is None or not secrets.compare_digest(place.lease.encode(), lease.encode()):
                raise InvalidState(
                    f"place of host {self.host.name}", "no longer open for this run", "opened again"
                )
            place.until = self._now() + placewire.LEASE_S
            return place

    def _close(self, place: _Place) -> None:
        with self._books:
            if self._place is not place:
                return
            self._place = None
        for what in ("filesystem", "lost"):
            place.threads.submit(_turn, place, "end", what)
        if place.guest is not None:
            place.guest.kill()
            for file in place.guest.files:
                file.unlink(missing_ok=True)
        place.threads.shutdown(wait=False)

    # --- in the thread of the place

    def _do(self, place: _Place, name: str, arguments: dict[str, Any]) -> object:  # Any: as the call has them
        if name in ("residue", "kernel_log"):
            with _offered(name):
                return sorted(place.place.residue()) if name == "residue" else place.place.kernel_log()
        if name in ("begin", "end"):
            _turn(place, name, arguments["what"])
            return None
        if name == "mount":
            _begin(place, "filesystem", partial(self._mounted, place, **arguments))
            return None
        if "volume_id" not in arguments:
            return _of_filesystem(place, name, arguments)
        volume_id = arguments.pop("volume_id")
        with self.book.pinned(volume_id, arguments.pop("attachment_id")) as attachment:
            self._check_instance(place, attachment)
            if name == "lose":
                _lose(place, _named(volume_id), attachment, arguments["path"])
                return None
            return _asked(place.place, name, _named(volume_id), attachment, arguments)

    @contextmanager
    def _mounted(self, place: _Place, volume_id: str, attachment_id: str, *, fresh: bool) -> Iterator[None]:
        """Have the file system of a volume be mounted, and the volume stay what was checked."""
        with (
            self.book.pinned(volume_id, attachment_id) as attachment,
            place.place.filesystem(_named(volume_id), attachment, fresh=fresh) as filesystem,
        ):
            place.filesystem = filesystem
            try:
                yield
            finally:
                place.filesystem = None

    def _check_instance(self, place: _Place, attachment: Attachment) -> None:
        if attachment.instance is None:
            return
        if attachment.instance != place.place.instance or place.guest is None:
            subject = f"attachment {attachment.id} on {attachment.place}"
            raise InvalidState(subject, "in another instance", "in the guest of this place, or in none")
        self.book.check_guest(place.guest)


def _within(asked: "Future[T]", name: str) -> T:
    """Wait for what the thread of a place does. Raises OutcomeUnknown when it takes too long.

    What was not begun by then is not begun any more.
    """
    try:
        return asked.result(_ANSWER_S)
    except TimeoutError as error:
        asked.cancel()
        raise OutcomeUnknown(f"{name} of a place", f"it did not end within {_ANSWER_S:g} seconds") from error


def _turn(place: _Place, name: str, what: str) -> None:
    """Begin or end a context of the place; ending one that is not there is no error."""
    if name == "end":
        if (context := place.contexts.pop(what, None)) is not None:
            context.close()
        return
    _begin(place, what, place.place.letting_go if what == "letting_go" else place.place.stopped)


def _lose(place: _Place, volume: Volume, attachment: Attachment, path: str) -> None:
    """Lose a path of a volume for a while; no other disk, whoever asks."""
    with _offered(path):
        if path not in place.place.paths(volume, attachment):
            raise NotFound(f"path of {volume.title}", path)
    _begin(place, "lost", partial(place.place.lost, path))


def _begin(place: _Place, what: str, begun: Callable[[], AbstractContextManager[None]]) -> None:
    if what in place.contexts:
        raise InvalidState(f"{what} of a place", "begun already", "ended first")
    with _offered(what), ExitStack() as entered:
        entered.enter_context(begun())
        place.contexts[what] = entered.pop_all()


@contextmanager
def _offered(what: str) -> Iterator[None]:
    """Say as an error of ours what this machine does not offer."""
    try:
        yield
    except NotRun as error:
        raise NotSupported(what, str(error)) from error


def _asked(
    place: LocalPlace, name: str, volume: Volume, attachment: Attachment, arguments: dict[str, Any]
) -> object:  # Any: as the call has them
    """Ask a device; what it refuses is an answer, not a failure of the agent."""
    asks: dict[str, Callable[..., object]] = {
        "device_bytes": place.device_bytes,
        "guest_bytes": place.guest_bytes,
        "sector_bytes": partial(_sector_bytes, place),
        "paths": place.paths,
        "discard": place.discard,
    }
    if name in asks:
        with _offered(name):
            return asks[name](volume, attachment, **arguments)
    return _io(place, name, volume, attachment, arguments)


def _sector_bytes(place: LocalPlace, volume: Volume, attachment: Attachment) -> tuple[int, int] | None:
    try:
        return place.sector_bytes(volume, attachment)
    except NotApplicable:
        return None


def _io(
    place: LocalPlace, name: str, volume: Volume, attachment: Attachment, arguments: dict[str, Any]
) -> Outcome:  # Any: as the call has them
    offset_bytes: int = arguments["offset_bytes"]
    try:
        if name == "read":
            read = place.read(volume, attachment, offset_bytes, arguments["size_bytes"])
            return Outcome(base64.b64encode(read).decode())
        content = base64.b64decode(arguments["content"], validate=True)
        place.write(volume, attachment, offset_bytes, content)
    except binascii.Error as error:
        raise InvalidInput("content to be written", "must be base64") from error
    except OSError as error:
        return Outcome(refused=str(error))
    return Outcome()


def _of_filesystem(place: _Place, name: str, arguments: dict[str, Any]) -> object:  # Any: as above
    mounted = place.filesystem
    if mounted is None:
        raise InvalidState("file system of a place", "not mounted", "mounted first")
    if name == "filesystem_bytes":
        return mounted.size_bytes()
    try:
        with _offered(name):
            if name == "grow":
                mounted.grow(**arguments)
            elif name == "check_file":
                mounted.check(arguments["file"])
            else:
                mounted.write(arguments["file"], arguments["size_bytes"])
    except OSError as error:
        return Outcome(refused=str(error))
    return Outcome()


def _named(volume_id: str) -> Volume:
    """A place tells volumes by their ids only."""
    return Volume(volume_id, volume_id, "", 0)
