"""The engine: every operation on a volume, recorded before it acts so that `resume` can end it.

An extend is the converging step plus the store. One process at a time works on a volume.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from voldrivers.abilities import Manages, Reverts, Snapshots
from voldrivers.base import able, round_size
from voldrivers.config import Config
from voldrivers.errors import InvalidState, NotSupported
from voldrivers.extend import admission, lifecycle, snapshots
from voldrivers.extend.carrying import admit, carry
from voldrivers.extend.converge import ledger
from voldrivers.extend.resuming import ORPHAN_S, Resumed, resumed, under_way
from voldrivers.extend.site import Loaded, Progress, Site, expect, no_progress
from voldrivers.extend.store import Store
from voldrivers.model import (
    Attachment,
    AttachmentState,
    Extend,
    Ledger,
    Message,
    Phase,
    Snapshot,
    Source,
    Volume,
    VolumeStatus,
    check_name,
)
from voldrivers.options import read_options
from voldrivers.process import end_orphans, run
from voldrivers.registry import make_driver, make_host


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

    def snapshot(self, name: str) -> Snapshot:
        """One snapshot. Raises NotFound."""
        return self.store.snapshot(name)

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

    def stopped(self, volume: Volume) -> tuple[Attachment, ...]:
        """The attachments of a volume whose instances are proved to have stopped."""
        return tuple(each for each in volume.attachments if self.site.has_stopped(each))

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
        volume = Volume(self.site.new_id(), name, driver.name, size_bytes, multi_attach=multi_attach)
        return self._make(volume, options or {}, Source())

    def delete_volume(self, name: str) -> None:
        """Remove a detached volume and every byte of it. Raises InvalidState, nothing removed."""
        with self.site.working_on(name) as volume:
            expect(volume, VolumeStatus.AVAILABLE, VolumeStatus.ERROR_EXTENDING)
            self.store.begin_removal(volume, VolumeStatus.DELETING)
            lifecycle.finish_delete(self.site, volume, volume.status)

    def clone_volume(
        self,
        name: str,
        source: str | None = None,
        snapshot: str | None = None,
        size_bytes: int | None = None,
        options: Mapping[str, object] | None = None,
        *,
        multi_attach: bool = False,
    ) -> Volume:
        """Make a volume that begins as a copy of another one as it is now, or of a snapshot.

        It is as large as its source, or larger: then the rest reads as zeros. Raises as `create_volume`,
        InvalidSize for a smaller one, InvalidState for a source that cannot be copied now.
        """
        check_name(name)
        kept = None if snapshot is None else self.store.snapshot(snapshot)
        with self.site.locked((source or "") if kept is None else kept.volume_id) as origin:
            expect(origin, VolumeStatus.AVAILABLE, VolumeStatus.IN_USE)
            volume = lifecycle.clone_of(self.site, name, origin, kept, size_bytes, multi_attach=multi_attach)
            return self._make(volume, options or {}, Source(origin.id, kept.id if kept else None))

    def manage_volume(
        self,
        name: str,
        reference: str,
        backend: str | None = None,
        options: Mapping[str, object] | None = None,
        *,
        multi_attach: bool = False,
    ) -> Volume:
        """Make something that is on a backend already a volume, with all its bytes.

        Raises InvalidInput, NotFound, NotSupported, InvalidState (in use, not what it is said to be),
        InvalidSize; nothing has changed then.
        """
        check_name(name)
        driver = self.site.backend(backend)
        wanted = Volume(self.site.new_id(), name, driver.name, 0, multi_attach=multi_attach)
        wanted = replace(wanted, status=VolumeStatus.MANAGING)
        size_bytes = lifecycle.existing_size(self.site, wanted, reference, options or {})
        return self._make(replace(wanted, size_bytes=size_bytes), options or {}, Source(reference=reference))

    def unmanage_volume(self, name: str) -> str:
        """Give a detached volume up and leave every byte of it; gives the reference that it has then.

        Raises InvalidState, NotSupported, nothing changed.
        """
        with self.site.working_on(name) as volume:
            expect(volume, VolumeStatus.AVAILABLE)
            able(self.site.driver(volume), Manages, volume.title)
            self.store.begin_removal(volume, VolumeStatus.UNMANAGING)
            return lifecycle.finish_unmanage(self.site, volume, volume.status)

    # --- snapshots

    def create_snapshot(self, volume_name: str, name: str) -> Snapshot:
        """Keep a volume as it is now, in use or not. Raises InvalidState, NotSupported, NoSpace."""
        check_name(name, "snapshot")
        with self.site.working_on(volume_name) as volume:
            expect(volume, VolumeStatus.AVAILABLE, VolumeStatus.IN_USE)
            able(self.site.driver(volume), Snapshots, volume.title)
            snapshot = Snapshot(self.site.new_id(), name, volume.id, volume.size_bytes)
            self.store.add_snapshot(snapshot)
            return snapshots.finish_snapshot(self.site, self.store.volume(volume.id), snapshot)

    def delete_snapshot(self, name: str) -> None:
        """Remove a snapshot, the volume in use or not; the volume keeps size and content.

        Raises InvalidState while something needs it or its volume's host cannot be reached.
        """
        with self.site.working_on(self.store.snapshot(name).volume_id) as volume:
            snapshot = self.store.snapshot(name)
            expect(volume, VolumeStatus.AVAILABLE, VolumeStatus.IN_USE)
            self.store.begin_snapshot_removal(snapshot)
            snapshots.finish_snapshot_removal(self.site, self.store.volume(volume.id), snapshot, fresh=True)

    def revert_to_snapshot(self, name: str) -> Volume:
        """Make a detached volume what its snapshot is, in content and size.

        Raises InvalidState, NotSupported, nothing changed.
        """
        with self.site.working_on(self.store.snapshot(name).volume_id) as volume:
            snapshot = self.store.snapshot(name)
            expect(volume, VolumeStatus.AVAILABLE)
            able(self.site.driver(volume), Reverts, volume.title)
            self.store.begin_revert(volume, snapshot)
            snapshots.finish_revert(self.site, volume, snapshot, fresh=True)
            return self.store.volume(volume.id)

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
            wanted = Attachment(self.site.new_id(), volume.id, where.name, instance, socket)
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
            lifecycle.check_ours(volume, attachment)
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
            extend = admit(self.site, volume, self._plan(volume, size_bytes))
            return carry(self.site, volume, extend) if wait else extend

    def retry(self, name: str) -> Extend:
        """Go on with a failed extend, with today's attachments; only what is behind is done again."""
        with self.site.working_on(name) as unsettled:
            expect(unsettled, VolumeStatus.ERROR_EXTENDING)
            end_orphans(unsettled.id, timeout_s=ORPHAN_S)
            volume = lifecycle.settle_attachments(self.site, unsettled)
            failed = self.store.last_extend(volume)
            if failed is None:
                raise InvalidState(volume.title, "without a recorded extend", "in error_extending by one")
            again = replace(failed, phase=Phase.GROWING, expires_at=self.site.expiry(), reason="")
            return carry(self.site, volume, self.store.admit(volume, again))

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

    def completion(self, name: str, extend_id: int, *, error: bool = False) -> None:
        """Take a host's word that it is done, or failed, as a hint to look; it is never evidence.

        Late, twice, of an earlier extend: it changes nothing. Never waits for the one at work.
        """
        self.store.add_hint(self.store.volume(name), extend_id, "failure" if error else "completion")

    def reset_status(self, name: str, status: str) -> Volume:
        """Give up a failed extend: the volume is what its attachments say, with the size it has published.

        Any other status than that is refused, and so is resetting what has not failed (InvalidState).
        """
        with self.site.working_on(name) as volume:
            expect(volume, VolumeStatus.ERROR_EXTENDING)
            self.store.reset_status(volume, status)
            return self.store.volume(volume.id)

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
        return tuple(resumed(self.site, volume) for volume in volumes if under_way(volume))

    # --- helpers

    def _make(self, volume: Volume, options: Mapping[str, object], source: Source) -> Volume:
        driver = self.site.driver(volume)
        if volume.multi_attach and not driver.capabilities.declares("multi_attach"):
            raise NotSupported(volume.title, f"backend {driver.name} cannot attach a volume twice")
        read_options(driver.volume_options_type, options, "volume option")
        with self.site.exclusively(volume):
            self.store.add_volume(volume, options, source)
            return lifecycle.finish_create(self.site, volume)

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
