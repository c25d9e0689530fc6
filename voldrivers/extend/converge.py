"""The converging step: look, act, look, until every layer of a volume shows the same size.

It keeps no records. The engine is this plus SQLite, the Cinder adapter this plus Cinder's records; `resume`,
`retry` and `doctor --repair` are the same call, because every step looks before it acts.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from voldrivers.abilities import GrownByHypervisor
from voldrivers.base import Driver, Host, Hosts, Sleep
from voldrivers.capabilities import InUseExtend
from voldrivers.errors import BackendError, InvalidState, NotFound, OutcomeUnknown, VolDriverError
from voldrivers.model import (
    Attachment,
    Extend,
    ExtendReply,
    Ledger,
    LedgerRow,
    Phase,
    Volume,
    utc_now,
)
from voldrivers.process import holds_within
from voldrivers.sizes import format_size


@dataclass(frozen=True)
class Outcome:
    """How an extend ended: completed with its ledger, or failed or rolled back with the reason."""

    extend: Extend
    backend_bytes: int
    ledger: Ledger = ()
    error: VolDriverError | None = None


#: Called before every act with the extend as it will be; it must be on disk when this returns.
Record = Callable[[Extend], None]


def converge(
    volume: Volume,
    extend: Extend,
    driver: Driver,
    hosts: Hosts,
    record: Record,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    refused: Callable[[], bool] = lambda: False,
    now: Callable[[], datetime] = utc_now,
    sleep: Sleep = time.sleep,
) -> Outcome:
    """Bring every layer of `volume` to `extend.to_bytes`; may be called again at any time.

    Raises OutcomeUnknown when an act's effect cannot be told; the extend then stays in its phase
    and the next call looks again. Every other failure comes back as an Outcome.
    """
    step = _Convergence(volume, extend, driver, hosts, record, cancelled, refused, now, sleep)
    try:
        return step.run()
    except OutcomeUnknown:
        raise
    except VolDriverError as error:
        return step.give_up(error)


def ledger(volume: Volume, driver: Driver, hosts: Hosts, expected_bytes: int) -> Ledger:
    """Look at every layer of a volume; one that cannot be read is a row that says so."""
    read = partial(driver.ledger_rows, volume, expected_bytes)
    rows = list(_rows("backend", driver.name, expected_bytes, read))
    for attachment in volume.attachments:
        read = partial(_host_rows, hosts, volume, attachment, expected_bytes)
        rows += _rows("host", attachment.place, expected_bytes, read)
    return tuple(rows)


def with_instance_states(volume: Volume, hosts: Hosts) -> Volume:
    """Ask every host what it knows of its instance, now; drivers decide by it who may grow a file."""
    seen = [
        replace(a, instance_state=_host(hosts, a).instance_state(a)) if a.instance else a
        for a in volume.attachments
    ]
    return replace(volume, attachments=tuple(seen))


@dataclass
class _Convergence:
    """One run over one extend; its state is the extend as last recorded."""

    volume: Volume
    extend: Extend
    driver: Driver
    hosts: Hosts
    record: Record
    cancelled: Callable[[], bool]
    refused: Callable[[], bool]
    now: Callable[[], datetime]
    sleep: Sleep
    seen: Ledger = ()
    failures: dict[str, VolDriverError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take the time that is left now: a clock that is set back later does not make it longer."""
        self.began = time.monotonic()
        self.limit_s = (self.extend.expires_at - self.now()).total_seconds()

    def run(self) -> Outcome:
        """Take the four steps."""
        self.enter(Phase.GROWING)
        self.volume = with_instance_states(self.volume, self.hosts)
        if self.grow() is ExtendReply.EXTENDED:
            self.adopt_backend_size()
            self.rescan(self.volume.attachments)
            self.resize(deferred=False)
        else:
            self.resize(deferred=True)
            self.raise_failures()
            self.rescan([a for a in self.volume.attachments if not a.may_run])
        self.raise_failures()
        return self.settle()

    def enter(self, phase: Phase, *, deferred: bool = False) -> None:
        """Have the phase on disk before the act that belongs to it.

        Deferred stays true once it was: a request of an earlier run may still be under way in a
        QEMU, so a roll-back needs the fence from then on.
        """
        self.extend = replace(self.extend, phase=phase, deferred=deferred or self.extend.deferred)
        self.record(self.extend)

    def grow(self) -> ExtendReply:
        """Let the driver make the volume larger, or learn that only the hypervisor may."""
        with ExitStack() as held:
            behind = self.driver.volume_size(self.volume) < self.extend.to_bytes
            if behind and self.cancelled():
                # Grows nothing: it ends what a killed one has left, a device that is suspended, say.
                self.driver.extend_volume(self.volume, self.extend.from_bytes)
            if behind:
                self.heed_cancel()
            if behind and self.volume.attachments and self.volume.nobody_runs:
                self.prove_free(held)
            reply = self.driver.extend_volume(self.volume, self.extend.to_bytes)
        may_defer = self.driver.capabilities.in_use_extend is InUseExtend.BY_HYPERVISOR
        if reply is ExtendReply.DEFERRED and (self.volume.nobody_runs or not may_defer):
            raise BackendError(
                self.volume.title, "its driver left growing it to a hypervisor, but none has it"
            )
        return reply

    def heed_cancel(self) -> None:
        """Stop, where nothing has grown yet, if the operator has asked to."""
        if self.cancelled():
            raise InvalidState(self.volume.title, "asked to cancel its extend", "left to go on")

    def prove_free(self, held: ExitStack) -> None:
        """Before a driver grows an attached file itself: no instance may start, nobody may hold it."""
        if isinstance(self.driver, GrownByHypervisor):
            for attachment in self.volume.attachments:
                held.enter_context(_host(self.hosts, attachment).hold(attachment))
            self.driver.probe_locks(self.volume)

    def adopt_backend_size(self) -> None:
        """Believe the backend's size, not its reply; one larger than its rule said counts for all."""
        observed_bytes = self.driver.volume_size(self.volume)
        seen, wanted = format_size(observed_bytes), format_size(self.extend.to_bytes)
        if observed_bytes < self.extend.to_bytes:
            raise BackendError(
                self.volume.title, f"the backend said it was extended to {wanted}, but it is {seen}"
            )
        if observed_bytes > self.extend.to_bytes:
            reason = _joined(self.extend.reason, f"the backend has {seen} instead of {wanted}: it is kept")
            self.extend = replace(self.extend, to_bytes=observed_bytes, reason=reason)

    def rescan(self, attachments: Sequence[Attachment]) -> None:
        """Let every host's kernel read the new size; the others go on when one fails."""
        if attachments:
            self.enter(Phase.RESCANNING)
            self.on_each(attachments, self.rescan_one)

    def rescan_one(self, host: Host, attachment: Attachment) -> None:
        """Rescan and wait until the host really sees it."""
        if host.get_blockdev(self.volume, attachment) == self.extend.to_bytes:
            return
        host.rescan(self.volume, attachment)
        if not self.becomes(lambda: host.get_blockdev(self.volume, attachment) >= self.extend.to_bytes):
            wanted = format_size(self.extend.to_bytes)
            raise BackendError(self.volume.title, f"waited in vain for {attachment.place} to see {wanted}")

    def resize(self, *, deferred: bool) -> None:
        """Let every QEMU show the new size; where the hypervisor grows, the first one does."""
        running = [a for a in self.volume.attachments if a.may_run]
        if running:
            if deferred:
                self.heed_cancel()
            self.enter(Phase.RESIZING, deferred=deferred)
            self.on_each(running, lambda host, a: host.assist_extend(self.volume, a, self.extend))
            self.await_assistance(running)

    def await_assistance(self, running: Iterable[Attachment]) -> None:
        """Where a host has only taken the wish, look until its QEMU shows the size or it says that it failed.

        Its word is a hint to look now: what it has shown by then, or not, decides.
        """
        later = [a for a in running if a.id not in self.failures and _host(self.hosts, a).assists_later]
        if later:
            self.becomes(lambda: self.refused() or all(map(self.is_shown, later)))

    def is_shown(self, attachment: Attachment) -> bool:
        """Tell whether every required layer of one attachment shows the size."""
        rows = _host_rows(self.hosts, self.volume, attachment, self.extend.to_bytes)
        return not any(row.stale for row in rows)

    def settle(self) -> Outcome:
        """Finish what the hypervisor grew, then wait until every required layer shows exactly the size."""
        self.enter(Phase.SETTLING)
        deferred, to_bytes = self.extend.deferred, self.extend.to_bytes
        if deferred and self.driver.extend_volume(self.volume, to_bytes) is not ExtendReply.EXTENDED:
            raise BackendError(self.volume.title, "no hypervisor has grown it")
        # Not only then: QEMU rounds a file that somebody grew to an odd size up to whole sectors.
        self.adopt_backend_size()
        self.becomes(lambda: self.agreed() or self.refused())
        if any(row.stale for row in self.seen):
            behind = [describe(row) for row in self.seen if row.stale]
            raise BackendError(self.volume.title, "; ".join(behind))
        ended = replace(self.extend, phase=Phase.COMPLETED)
        return Outcome(ended, self.extend.to_bytes, self.seen)

    def agreed(self) -> bool:
        """Read the size ledger; tell whether every required layer shows exactly the size."""
        self.seen = ledger(self.volume, self.driver, self.hosts, self.extend.to_bytes)
        return not any(row.stale for row in self.seen)

    def becomes(self, condition: Callable[[], bool]) -> bool:
        """Wait for it until the extend's time is over."""
        by_clock_s = (self.extend.expires_at - self.now()).total_seconds()
        left_s = min(by_clock_s, self.limit_s - (time.monotonic() - self.began))
        return holds_within(condition, max(left_s, 0.0), self.sleep)

    def on_each(self, attachments: Iterable[Attachment], act: Callable[[Host, Attachment], None]) -> None:
        """Act on every attachment that has not failed yet; what fails now is kept for `raise_failures`."""
        for attachment in attachments:
            if attachment.id not in self.failures:
                try:
                    act(_host(self.hosts, attachment), attachment)
                except VolDriverError as error:
                    self.failures[attachment.id] = error

    def raise_failures(self) -> None:
        """Raise what failed on single attachments, each place named."""
        failed = [(a.place, self.failures[a.id]) for a in self.volume.attachments if a.id in self.failures]
        if failed and len(self.volume.attachments) == 1:
            raise failed[0][1]
        if failed:
            reason = "; ".join(f"{place}: {error}" for place, error in failed)
            if any(isinstance(error, OutcomeUnknown) for _, error in failed):
                raise OutcomeUnknown(f"the extend of {self.volume.title}", reason) from failed[0][1]
            raise BackendError(self.volume.title, reason) from failed[0][1]

    def give_up(self, error: VolDriverError) -> Outcome:
        """Look, then end: rolled back if provably nothing grew, failed if something did."""
        try:
            grown = self.driver.volume_size(self.volume) != self.extend.from_bytes
            if not grown:
                self.fence()
            backend_bytes = self.driver.volume_size(self.volume)
        except VolDriverError as unseen:
            raise OutcomeUnknown(f"the extend of {self.volume.title}", f"{error}; then: {unseen}") from error
        if backend_bytes == self.extend.from_bytes and not self.shown_somewhere():
            reason = (
                f"the extend to {format_size(self.extend.to_bytes)} was rolled back, nothing changed: {error}"
            )
            phase = Phase.ROLLED_BACK
        else:
            reason = f"the extend to {format_size(self.extend.to_bytes)} is not complete: {error}"
            phase = Phase.FAILED
        ended = replace(self.extend, phase=phase, reason=_joined(self.extend.reason, reason))
        return Outcome(ended, backend_bytes, error=error)

    def shown_somewhere(self) -> bool:
        """Tell whether any layer shows the new size, whatever its backend says."""
        rows = ledger(self.volume, self.driver, self.hosts, self.extend.to_bytes)
        return self.extend.to_bytes != self.extend.from_bytes and any(row.agrees for row in rows)

    def fence(self) -> None:
        """Have every host confirm that this extend can no longer take effect there."""
        for attachment in self.volume.attachments:
            if attachment.instance and self.extend.deferred:
                _host(self.hosts, attachment).cancel(self.extend, attachment)


def describe(row: LedgerRow) -> str:
    """Say in words what one layer shows."""
    seen = "cannot be read" if row.observed_bytes is None else f"shows {format_size(row.observed_bytes)}"
    because = f" ({row.note})" if row.note else ""
    return f"{row.layer} {row.place} {seen}, must show {format_size(row.expected_bytes)}{because}"


def _joined(earlier: str, reason: str) -> str:
    return f"{earlier}; {reason}" if earlier else reason


def _host(hosts: Hosts, attachment: Attachment) -> Host:
    host = hosts.get(attachment.host)
    if host is None:
        raise NotFound("host", attachment.host)
    return host


def _host_rows(hosts: Hosts, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
    return _host(hosts, attachment).ledger_rows(volume, attachment, expected_bytes)


def _rows(layer: str, place: str, expected_bytes: int, read: Callable[[], Ledger]) -> Ledger:
    try:
        return read()
    except VolDriverError as error:
        return (LedgerRow(layer, place, None, expected_bytes, note=str(error)),)
