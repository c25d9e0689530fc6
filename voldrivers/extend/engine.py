"""The engine: every operation on a volume, recorded before it acts so that `resume` can end it.

An extend is the converging step plus the store. One process at a time works on a volume.
"""

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from voldrivers.base import round_size
from voldrivers.config import Config
from voldrivers.errors import InvalidState, NotSupported, VolDriverError
from voldrivers.extend import admission, lifecycle
from voldrivers.extend.converge import Outcome, converge, ledger
from voldrivers.extend.site import Loaded, Progress, Site, expect, no_progress
from voldrivers.extend.store import Store
from voldrivers.model import (
    Attachment,
    AttachmentState,
    Extend,
    Ledger,
    Message,
    Phase,
    Volume,
    VolumeStatus,
    check_name,
)
from voldrivers.options import read_options
from voldrivers.process import end_orphans, run
from voldrivers.registry import make_driver, make_host
from voldrivers.sizes import format_size

_log = logging.getLogger(__name__)
_ORPHAN_S = 30.0
_STEADY = (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE, VolumeStatus.ERROR_EXTENDING)


@dataclass(frozen=True)
class Resumed:
    """What `resume` found under way and how it ended; `error` when it did not end well."""

    volume: Volume
    what: str
    outcome: str
    error: VolDriverError | None = None


class Engine:
    """All operations. A volume is named by its name or id; every error is one of voldrivers' own."""

    def __init__(self, site: Site) -> None:
        """Work on what `site` reaches."""
        self.site, self.store = site, site.store

    @classmethod
    def open(cls, config: Config, progress: Callable[[Progress], None] = no_progress) -> "Engine":
        """Make an engine of a configuration; drivers and hosts are loaded when they are used."""
        drivers = Loaded(config.backends, lambda entry: make_driver(entry, run))
        hosts = Loaded(config.hosts, lambda entry: make_host(entry, run))
        store = Store(config.state_dir / "voldrivers.db")
        return cls(Site(store, drivers, hosts, config.state_dir / "locks", config.policy, progress))

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.store.close()

    # --- looking

    def volumes(self) -> tuple[Volume, ...]:
        """Every volume, by name."""
        return self.store.volumes()

    def volume(self, name: str) -> Volume:
        """One volume. Raises NotFound."""
        return self.store.volume(name)

    def messages(self, volume: Volume) -> tuple[Message, ...]:
        """What happened to a volume that its operator should know, oldest first."""
        return self.store.messages(volume)

    def last_extend(self, volume: Volume) -> Extend | None:
        """The newest extend of a volume."""
        return self.store.last_extend(volume)

    def ledger(self, name: str) -> Ledger:
        """The size ledger of a volume, every layer read now."""
        volume = self.store.volume(name)
        extend = self.store.last_extend(volume)
        behind = volume.status in (VolumeStatus.EXTENDING, VolumeStatus.ERROR_EXTENDING)
        expected_bytes = extend.to_bytes if extend and behind else volume.size_bytes
        return ledger(volume, self.site.driver(volume), self.site.hosts, expected_bytes)

    def plan(self, name: str, size_bytes: int) -> admission.Plan:
        """What an extend would do; raises what it would raise at admission. Changes nothing."""
        return self._plan(self.store.volume(name), size_bytes)

    # --- creating, deleting, attaching, detaching

    def create_volume(
        self,
        name: str,
        size_bytes: int,
        backend: str | None = None,
        options: Mapping[str, object] | None = None,
        *,
        multi_attach: bool = False,
    ) -> Volume:
        """Make a volume of at least `size_bytes`, rounded by its backend's rule.

        Raises InvalidInput, InvalidSize, InvalidState (the name is taken), NotSupported, NoSpace.
        """
        check_name(name)
        driver = self.site.backend(backend)
        size_bytes = round_size(driver, f"volume {name}", size_bytes)
        if multi_attach and not driver.capabilities.declares("multi_attach"):
            raise NotSupported(f"volume {name}", f"backend {driver.name} cannot attach a volume twice")
        read_options(driver.volume_options_type, options or {}, "volume option")
        volume = Volume(str(uuid.uuid4()), name, driver.name, size_bytes, multi_attach=multi_attach)
        with self.site.exclusively(volume):
            self.store.add_volume(volume, options or {})
            return lifecycle.finish_create(self.site, volume)

    def delete_volume(self, name: str) -> None:
        """Remove a detached volume and every byte of it. Raises InvalidState, nothing removed."""
        with self.site.working_on(name) as volume:
            self.store.begin_delete(volume)
            lifecycle.finish_delete(self.site, volume, volume.status)

    def attach(
        self, name: str, host: str | None = None, instance: str | None = None, monitor: Path | None = None
    ) -> Attachment:
        """Connect a volume to a host and hot-plug it into an instance, if one is named.

        Raises InvalidState, NotFound, NotSupported. Undone on failure.
        """
        with self.site.working_on(name) as volume:
            expect(volume, VolumeStatus.AVAILABLE, *([VolumeStatus.IN_USE] if volume.multi_attach else []))
            where = self.site.host(host)
            socket = None if monitor is None else str(monitor.absolute())
            wanted = Attachment(str(uuid.uuid4()), volume.id, where.name, instance, socket)
            attachment = where.find_instance(wanted)
            if any(a.place == attachment.place for a in volume.attachments):
                raise InvalidState(
                    volume.title, f"attached to {attachment.place} already", "attached elsewhere"
                )
            self.store.add_attachment(volume, attachment)
            return lifecycle.finish_attach(self.site, volume, attachment)

    def detach(
        self, name: str, host: str | None = None, instance: str | None = None, *, force: bool = False
    ) -> None:
        """Take a volume off a host; `force` forgets a host that is lost, without asking it.

        `host` and `instance` are needed where there are several attachments; instance "" means the
        one without. Raises NotFound, InvalidState (the guest keeps the device, the host cannot be reached).
        """
        with self.site.working_on(name) as volume:
            attachment = lifecycle.choose_attachment(volume, host, instance)
            if force:
                lost = lifecycle.begin_detach(self.site, attachment, AttachmentState.FORGETTING)
                return lifecycle.forget_attachment(self.site, volume, lost)
            expect(volume, VolumeStatus.IN_USE, VolumeStatus.ERROR_EXTENDING)
            self.site.host(attachment.host)
            leaving = lifecycle.begin_detach(self.site, attachment, AttachmentState.DETACHING)
            return lifecycle.finish_detach(self.site, volume, leaving, attachment)

    # --- extending

    def extend(self, name: str, size_bytes: int, *, wait: bool = True) -> Extend:
        """Make a volume at least `size_bytes` large, in use or not, in every layer or not at all.

        The size it has already is no error: every layer is checked and brought up. Gives the ended
        extend, or the admitted one when `wait` is false; `resume` carries that on. Raises
        InvalidSize, InvalidState, NotSupported, NoSpace with nothing changed; any error with the
        volume in error_extending when something grew (then `retry`); OutcomeUnknown (`resume`).
        """
        with self.site.working_on(name) as volume:
            extend = self._admit(volume, self._plan(volume, size_bytes))
            return self._carry(volume, extend) if wait else extend

    def retry(self, name: str) -> Extend:
        """Go on with a failed extend, with today's attachments; only what is behind is done again."""
        with self.site.working_on(name) as unsettled:
            expect(unsettled, VolumeStatus.ERROR_EXTENDING)
            end_orphans(unsettled.id, timeout_s=_ORPHAN_S)
            volume = lifecycle.settle_attachments(self.site, unsettled)
            failed = self.store.last_extend(volume)
            if failed is None:
                raise InvalidState(volume.title, "without a recorded extend", "in error_extending by one")
            again = replace(failed, phase=Phase.GROWING, expires_at=self.site.expiry(), reason="")
            return self._carry(volume, self.store.admit(volume, again))

    def repair(self, name: str) -> Ledger:
        """Bring every layer of a volume to its size; a failed extend is retried. Gives the ledger."""
        volume = self.store.volume(name)
        if volume.status is VolumeStatus.ERROR_EXTENDING:
            self.retry(name)
        elif any(row.stale for row in self.ledger(name)):
            with self.site.working_on(name) as stale:
                lifecycle.export_again(self.site, stale)
            self.extend(name, volume.size_bytes)
        return self.ledger(name)

    def completion(self, name: str, extend_id: int) -> None:
        """Take a host's word that it is done, or failed, as a hint to look; it is never evidence.

        Late, twice, of an earlier extend: it changes nothing. Never waits for the one at work.
        """
        self.store.add_hint(self.store.volume(name), extend_id, "completion")

    def cancel(self, name: str) -> Extend:
        """Ask for the extend under way to be rolled back, if nothing has grown yet.

        The process at work sees it before its next act; `resume` does where there is none.
        """
        volume = self.store.volume(name)
        extend = self.store.last_extend(volume)
        if extend is None or not extend.phase.under_way:
            raise InvalidState(volume.title, volume.status, VolumeStatus.EXTENDING)
        self.store.add_hint(volume, extend.id, "cancel")
        return extend

    # --- resuming

    def resume(self, name: str | None = None) -> tuple[Resumed, ...]:
        """End what a killed or timed-out process left under way, of one volume or of all.

        Looks first and takes each step again. What cannot be ended is in the result with its error.
        """
        volumes = self.store.volumes() if name is None else (self.store.volume(name),)
        return tuple(self._resume(volume) for volume in volumes if _under_way(volume))

    def _resume(self, seen: Volume) -> Resumed:
        what = str(seen.status)
        try:
            with self.site.working_on(seen.id) as volume:
                end_orphans(volume.id, timeout_s=_ORPHAN_S)
                return Resumed(seen, what, self._carry_on(volume))
        except VolDriverError as error:
            return Resumed(seen, what, "left as it is", error)

    def _carry_on(self, volume: Volume) -> str:
        if volume.status is VolumeStatus.CREATING:
            return f"created, {format_size(lifecycle.finish_create(self.site, volume).size_bytes)}"
        if volume.status is VolumeStatus.DELETING:
            lifecycle.finish_delete(self.site, volume)
            return "deleted"
        volume = lifecycle.settle_attachments(self.site, volume)
        extend = self.store.last_extend(volume)
        if extend is None or not extend.phase.under_way:
            return str(volume.status)
        renewed = replace(extend, phase=Phase.GROWING, expires_at=self.site.expiry())
        self.store.move(extend, renewed)
        try:
            return f"extended, {format_size(self._carry(volume, renewed).to_bytes)}"
        except InvalidState:
            if self._was_cancelled(volume, extend):
                return "cancelled, nothing has grown"
            raise

    def _was_cancelled(self, volume: Volume, extend: Extend) -> bool:
        ended = self.store.last_extend(volume)
        rolled_back = ended is not None and ended.phase is Phase.ROLLED_BACK
        return rolled_back and self.store.hinted(extend, "cancel")

    # --- the extend

    def _plan(self, volume: Volume, size_bytes: int) -> admission.Plan:
        expect(volume, VolumeStatus.AVAILABLE, VolumeStatus.IN_USE)
        site = self.site
        return admission.plan(
            volume,
            site.driver(volume),
            site.hosts,
            size_bytes,
            attached_allowed=site.policy.extend_attached,
        )

    def _admit(self, volume: Volume, plan: admission.Plan) -> Extend:
        reason, seen, known = "", format_size(plan.from_bytes), format_size(volume.size_bytes)
        if plan.from_bytes > volume.size_bytes:
            reason = f"the backend had {seen} instead of {known}: it is kept"
        elif plan.from_bytes < volume.size_bytes:
            reason = f"the backend had only {seen} of {known}: what was beyond is lost"
        extend = Extend(
            id=0,
            volume_id=volume.id,
            from_bytes=plan.from_bytes,
            requested_bytes=plan.requested_bytes,
            to_bytes=plan.to_bytes,
            phase=Phase.GROWING,
            expires_at=self.site.expiry(),
            reason=reason,
        )
        return self.store.admit(volume, extend)

    def _carry(self, volume: Volume, extend: Extend) -> Extend:
        driver, hosts = self.site.driver(volume), self.site.hosts
        journal = _Journal(self.site, volume, extend)
        outcome = converge(
            volume,
            extend,
            driver,
            hosts,
            journal.record,
            cancelled=journal.cancelled,
            now=self.site.now,
            sleep=self.site.sleep,
        )
        journal.end(outcome)
        if outcome.error is not None:
            raise outcome.error
        return outcome.extend


class _Journal:
    """Writes each phase of one extend before its act, and shows it."""

    def __init__(self, site: Site, volume: Volume, extend: Extend) -> None:
        self.site, self.volume, self.extend = site, volume, extend

    def record(self, new: Extend) -> None:
        """Commit the move before the act."""
        self._move(new)
        self.site.progress(Progress(self.volume, new.phase, format_size(new.to_bytes)))

    def cancelled(self) -> bool:
        """Tell whether the operator has asked to cancel this extend."""
        return self.site.store.hinted(self.extend, "cancel")

    def end(self, outcome: Outcome) -> None:
        """Commit the end and publish what follows from it."""
        self._move(outcome.extend, outcome.backend_bytes)

    def _move(self, new: Extend, backend_bytes: int | None = None) -> None:
        self.site.store.move(self.extend, new, backend_bytes=backend_bytes)
        _log.info("extend %s %s -> %s", self.volume.name, self.extend.phase, new.phase)
        self.extend = new


def _under_way(volume: Volume) -> bool:
    unsettled = any(a.state is not AttachmentState.ATTACHED for a in volume.attachments)
    return volume.status not in _STEADY or unsettled
