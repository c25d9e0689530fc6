"""The agent of a host: its calls over HTTP (`wire`), one at a time for a volume and none too late.

A request may reach us long after its sender has stopped waiting: kept in a buffer, or in line behind another
one. So right before it acts it is refused when its time is over or when its extend is older than one that was
seen, or was cancelled. What was seen is kept in memory: a request to an agent that has ended ends with it.
"""

import logging
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from voldrivers.api import wire
from voldrivers.base import Host
from voldrivers.errors import (
    InvalidState,
    NotSupported,
)
from voldrivers.model import Attachment, Extend, utc_now
from voldrivers.process import end_orphans, marked

_log = logging.getLogger(__name__)
#: Programs of an agent that was killed may take so long to end; then they are ended.
_ORPHAN_S = 30.0
#: Takes the name of a call, its arguments and what it gave.
Done = Callable[[str, wire.Body, object], None]


@dataclass
class _Known:
    """What an agent knows of one volume, and who works on it."""

    working: threading.Lock = field(default_factory=threading.Lock)
    newest: int = 0
    cancelled: int = 0
    has_orphans: bool = True


class Agent:
    """The calls of one host, guarded. Threads may call it at once."""

    def __init__(self, host: Host, now: Callable[[], datetime] = utc_now, done: Done | None = None) -> None:
        """Serve `host`; `done` is told of every call of it that has succeeded."""
        self.host, self._now, self._done = host, now, done
        self._volumes = defaultdict[str, _Known](_Known)
        self._holds: dict[str, ExitStack] = {}
        self._books = threading.Lock()  # of the two above, and `cancelled`

    def answer(self, name: str, body: wire.Body, expires_at: datetime) -> object:
        """Do what a request asks and give what JSON can hold. Raises VolDriverError."""
        if name not in (*wire.LOOKS, *wire.ACTS, *wire.LEASES):
            raise NotSupported(f"host {self.host.name}", f"its agent does not know the call {name!r:.40}")
        call = wire.call(name)
        arguments = call.read(body)
        if name == "release":
            return self._release(**arguments)
        self.refuse_late(name, expires_at)  # it may have waited for a thread
        if name == "hold":
            return self._hold(**arguments, expires_at=expires_at)
        return call.write_answer(self.perform(name, arguments, expires_at))

    def perform(self, name: str, arguments: wire.Body, expires_at: datetime) -> object:
        """Make one call of the host in its turn, if it is not too late then. Raises VolDriverError."""
        with self._in_turn(name, arguments, expires_at):
            answer: object = getattr(self.host, name)(**arguments)
            if self._done is not None:
                self._done(name, arguments, answer)
            return answer

    def number(self, volume_id: str) -> int:
        """Give the number for a request that belongs to no extend: of the newest that is not cancelled."""
        with self._books:
            known = self._volumes[volume_id]
            return max(known.newest, known.cancelled + 1)

    @contextmanager
    def _in_turn(self, name: str, arguments: wire.Body, expires_at: datetime) -> Iterator[None]:
        """Let one who acts wait for its turn; who looks need not, because a look must be answered always."""
        if name in wire.LOOKS:
            yield
            return
        attachment: Attachment = arguments["attachment"]
        extend: Extend | None = arguments.get("extend")
        with self._books:
            known = self._volumes[attachment.volume_id]
            if name == "cancel" and extend is not None:  # before its turn: who is in line is refused
                known.cancelled = max(known.cancelled, extend.id)
        left_s = (expires_at - self._now()).total_seconds()
        if not known.working.acquire(timeout=max(0.0, min(left_s, threading.TIMEOUT_MAX))):
            raise self._too_late(name, expires_at)
        try:
            if known.has_orphans:
                end_orphans(attachment.volume_id, timeout_s=_ORPHAN_S)
                known.has_orphans = False
            self._check(name, known, extend, expires_at)
            _log.info("%s of volume %s at %s", name, attachment.volume_id, attachment.place)
            with marked(attachment.volume_id):
                yield
        finally:
            known.working.release()

    def _check(self, name: str, known: _Known, extend: Extend | None, expires_at: datetime) -> None:
        self.refuse_late(name, expires_at)
        if extend is None or name == "cancel":
            return
        subject = f"extend {extend.id} of volume {extend.volume_id}"
        if extend.id <= known.cancelled:
            raise InvalidState(subject, f"cancelled at host {self.host.name}", "asked for again")
        if extend.id < known.newest:
            raise InvalidState(subject, f"older than extend {known.newest}, which is known", "the newest one")
        if extend.expired(self._now()):
            raise InvalidState(subject, f"expired at host {self.host.name}", "asked for again")
        known.newest = extend.id

    def refuse_late(self, name: str, expires_at: datetime) -> None:
        """Refuse what its sender no longer waits for. Raises InvalidState."""
        if self._now() >= expires_at:
            raise self._too_late(name, expires_at)

    def _too_late(self, name: str, expires_at: datetime) -> InvalidState:
        state = f"expired since {expires_at:%H:%M:%S}, here it is {self._now():%H:%M:%S} (UTC)"
        return InvalidState(
            f"request {name} to host {self.host.name}", state, "in time: do the clocks agree?"
        )

    def _hold(self, attachment: Attachment, lease_s: float, expires_at: datetime) -> str:
        """Hold an instance until it is released, or for as long as the lease says."""
        lease = secrets.token_hex(16)
        timer = threading.Timer(lease_s, self._release, [lease])
        timer.daemon = True
        with ExitStack() as held:
            held.enter_context(self.host.hold(attachment))
            self.refuse_late("hold", expires_at)  # whoever asked has gone: nobody would release it
            held.callback(timer.cancel)
            timer.start()
            with self._books:
                self._holds[lease] = held.pop_all()
        return lease

    def _release(self, lease: str) -> bool:
        """End a hold; tell whether it was there still."""
        with self._books:
            held = self._holds.pop(lease, None)
        if held is not None:
            held.close()
        return held is not None
