"""What a platform has done with one backend and its hosts, while it keeps the records itself.

Each call looks before it acts and may be made again. What must be on disk before an act, an extend's phase,
is handed to the platform, which records it.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from voldrivers.abilities import Clones, Manages, Reverts, Taken
from voldrivers.base import able
from voldrivers.capabilities import NAMES, InUseExtend
from voldrivers.config import Config, HostEntry
from voldrivers.conformance.reports.packages import class_name, package
from voldrivers.errors import InvalidInput, InvalidState, NotSupported, VolDriverError
from voldrivers.extend import admission, taking
from voldrivers.extend.clients import found
from voldrivers.extend.converge import Record, converge
from voldrivers.extend.site import Loaded
from voldrivers.host.domain import uri_of
from voldrivers.host.local import LocalHost, LocalOptions
from voldrivers.integrations.answers import Described, Grown
from voldrivers.locks import in_turn
from voldrivers.model import (
    Attachment,
    ConnectionInfo,
    Connector,
    Extend,
    Phase,
    Pool,
    Snapshot,
    Volume,
    utc_now,
)
from voldrivers.options import read_options
from voldrivers.process import end_orphans, marked, run
from voldrivers.registry import make_driver, make_host
from voldrivers.sizes import GiB, format_size

#: A call for a volume that another one is for is waited for so long: a copy of a large volume, say.
_PATIENCE_S = 300.0
#: Programs of a process that was killed may take so long to end; then they are ended.
_ORPHAN_S = 30.0
#: What waits in this machine's memory may take so long to be written.
_FLUSH_S = 600.0

#: What Cinder's drivers call it in their statistics, cinder/common/constants.py.
_PROTOCOLS = {"iscsi": "iSCSI", "nvmet_tcp": "NVMe-oF_tcp"}

Options = Mapping[str, Any]  # Any: what JSON holds


class Duties:
    """One backend, the hosts, and all that is done with them."""

    def __init__(self, config: Config, backend: str) -> None:
        """Make the driver of a backend; hosts are made when they are used. Raises InvalidInput."""
        if backend not in config.backends:
            configured = ", ".join(config.backends) or "none"
            raise InvalidInput(f"backend {backend}", f"is not in {config.path}; there are: {configured}")
        self.config, self.driver = config, make_driver(config.backends[backend], run)
        self.hosts = Loaded(config.hosts, lambda entry: make_host(entry, run))
        self.here = LocalHost("here", LocalOptions(), run)

    @property
    def by_hypervisor(self) -> bool:
        """Tell whether the hypervisor makes attached volumes larger."""
        return self.driver.capabilities.in_use_extend is InUseExtend.BY_HYPERVISOR

    # --- looking

    def describe(self) -> Described:
        """Say what the backend can do, and look whether it can be reached (BackendError)."""
        self.driver.check_configuration()
        self.driver.pool()
        declared = self.driver.capabilities
        # A driver whose volumes can be reached in several ways has an option that says how.
        kind = self.config.backends[self.driver.name].driver
        protocol = getattr(self.driver.options, "target_protocol", kind)
        return Described(
            driver=class_name(type(self.driver)),
            package=package(type(self.driver)),
            protocol=_PROTOCOLS.get(protocol, protocol),
            granularity_bytes=self.driver.size_rule.granularity_bytes,
            capabilities=[name for name in NAMES if declared.declares(name)],
            by_hypervisor=self.by_hypervisor,
            extends_attached=(
                declared.declares("in_use_extend")
                and self.config.policy.extend_attached
                and bool(self.config.hosts)
            ),
            deadline_s=self.config.policy.deadline_s,
            troubles=list(self._troubles()),
        )

    def pool(self) -> Pool:
        """Give the room on the backend."""
        return self.driver.pool()

    def volume_size(self, volume: Volume) -> int:
        """Give the size that the backend has."""
        return self.driver.volume_size(volume)

    # --- volumes

    def create_volume(self, volume: Volume, options: Options) -> str:
        """Make an empty volume, rounded by the backend's rule; give its provider_data."""
        with self._working_on(volume):
            return self.driver.create_volume(self._rounded(volume), self._options(options))

    def clone_volume(self, volume: Volume, options: Options, source: Volume, snapshot: str | None) -> str:
        """Make a volume a copy of another one as it is now, or of its snapshot; give its provider_data."""
        kept = next((each for each in source.snapshots if each.id == snapshot), None)
        with self._working_on(source), self._working_on(volume):
            clones = able(self.driver, Clones, volume.title)
            return clones.clone_volume(self._rounded(volume), self._options(options), source, kept)

    def delete_volume(self, volume: Volume) -> None:
        """Remove a volume and every byte of it."""
        with self._working_on(volume):
            self.driver.delete_volume(volume)

    def existing_size(self, reference: str, options: Options) -> int:
        """Give the size of what could become a volume."""
        manages = able(self.driver, Manages, f"existing {reference}")
        return manages.existing_size(reference, self._options(options))

    def manage_volume(self, volume: Volume, reference: str, options: Options, multiple_of_bytes: int) -> str:
        """Make what is on the backend already a volume, so much larger that the platform can tell its size.

        Gives its provider_data. What cannot become larger is given up again.
        """
        with self._working_on(volume):
            manages, chosen = able(self.driver, Manages, volume.title), self._options(options)
            managed = replace(volume, size_bytes=manages.existing_size(reference, chosen))
            recorded = manages.manage_existing(managed, reference, chosen)
            wanted_bytes = -(-managed.size_bytes // multiple_of_bytes) * multiple_of_bytes
            if wanted_bytes > managed.size_bytes:
                self._grow_managed(replace(managed, provider_data=recorded), manages, wanted_bytes)
            return recorded

    def unmanage_volume(self, volume: Volume) -> str:
        """Give a volume up with all its bytes; give the reference that it has then."""
        with self._working_on(volume):
            return able(self.driver, Manages, volume.title).unmanage(volume)

    # --- snapshots

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        """Keep a volume as it is, in use or not; give what is to be remembered of both.

        One that has become larger since the snapshot was recorded is refused: InvalidState.
        """
        with self._working_on(volume):
            observed_bytes = self.driver.volume_size(volume)
            if observed_bytes // GiB > snapshot.size_bytes // GiB:
                needed = f"{format_size(snapshot.size_bytes)}, as recorded for {snapshot.title}"
                raise InvalidState(volume.title, f"{format_size(observed_bytes)} large", needed)
            after, kept = taking.take(self._reach(), self._found(volume), snapshot)
        return Taken(after.provider_data, kept.provider_data)

    def check_copy(self, volume: Volume) -> None:
        """Refuse a copy of a file in use where the snapshot that it goes by could not be removed."""
        with self._working_on(volume):
            if any(uri_of(each) for each in self._found(volume).attachments):
                reason = "its snapshot would stay: layers in use are merged over a QMP socket only"
                raise NotSupported(f"copy of {volume.title}", reason)

    def delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> None:
        """Remove a snapshot, the volume in use or not."""
        with self._working_on(volume):
            reach, seen = self._reach(), self._found(volume)
            taking.finish_removal(reach, seen, snapshot, taking.begin_removal(reach, seen, snapshot))

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        """Make a detached volume what its snapshot is; give its provider_data."""
        with self._working_on(volume):
            return able(self.driver, Reverts, volume.title).revert_to_snapshot(volume, snapshot)

    # --- connections

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        """Let a host reach a volume."""
        with self._working_on(volume):
            ours = self._known_connector(connector)
            return self.driver.initialize_connection(_others(self._known(volume), ours), ours)

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        """Take back what `initialize_connection` gave, where no other attachment of that host needs it."""
        with self._working_on(volume):
            ours = self._known_connector(connector)
            self.driver.terminate_connection(_others(self._known(volume), ours), ours)

    def connect_here(self, volume: Volume, connection_info: ConnectionInfo) -> str:
        """Make a volume appear on this machine, for a copy of an image say; give its path."""
        return self.here.connect(volume, self._here(volume, connection_info), connection_info)

    def disconnect_here(self, volume: Volume, connection_info: ConnectionInfo, path: str) -> None:
        """Take a volume off this machine, all that was written to it being on its backend then."""
        attachment = replace(self._here(volume, connection_info), device_path=path)
        try:
            # qemu-img convert does not flush a file: its server may still say that there is no room.
            if os.path.lexists(path):
                run(["sync", path], timeout_s=_FLUSH_S)
        finally:
            self.here.disconnect(volume, attachment)

    # --- extending

    def extend_volume(self, volume: Volume, new_size_bytes: int, extend_id: int, record: Record) -> Grown:
        """Make a volume so large, in use or not, in every layer or not at all.

        One that is as large already is checked and brought up in every layer. Where a hypervisor grows it
        the size must be one that the backend's rule gives (NotSupported): platforms show it to guests as
        asked, and a larger file would be cut. Raises what stands in the way; `record` was not called then.
        """
        with self._working_on(volume):
            seen = self._found(volume)
            allowed = self.config.policy.extend_attached
            plan = admission.plan(seen, self.driver, self.hosts, new_size_bytes, attached_allowed=allowed)
            extend = Extend(
                extend_id,
                volume.id,
                plan.from_bytes,
                new_size_bytes,
                plan.to_bytes,
                Phase.GROWING,
                self._expiry(),
            )
            if self.by_hypervisor and volume.attachments and plan.to_bytes != new_size_bytes:
                reason = f"would be {format_size(plan.to_bytes)} instead of {format_size(new_size_bytes)}"
                raise NotSupported(volume.title, f"{reason}, and be cut to that when its guest is told")
            return self._converge(plan.volume, extend, record)

    def resume_extend(self, volume: Volume, extend: Extend, record: Record) -> Grown:
        """Go on with an extend whose process has died: look, and take every step again."""
        with self._working_on(volume):
            end_orphans(volume.id, timeout_s=_ORPHAN_S)
            renewed = replace(extend, phase=Phase.GROWING, expires_at=self._expiry())
            return self._converge(self._found(volume), renewed, record)

    def _converge(self, volume: Volume, extend: Extend, record: Record) -> Grown:
        outcome = converge(volume, extend, self.driver, self.hosts, record)
        record(outcome.extend)
        if outcome.error is not None:
            outcome.error.add_note(outcome.extend.reason)
            raise outcome.error
        return Grown(outcome.backend_bytes, outcome.extend.reason)

    # --- helpers

    def _troubles(self) -> Iterator[str]:
        for name in self.config.hosts:
            try:
                self.hosts[name].check_configuration()
            except VolDriverError as error:
                yield f"host {name}: {error}"

    def _grow_managed(self, volume: Volume, manages: Manages, wanted_bytes: int) -> None:
        try:
            self.driver.extend_volume(volume, wanted_bytes)
        except VolDriverError as error:
            error.add_note(f"it was given up again, and is {manages.unmanage(volume)} on its backend")
            raise

    @contextmanager
    def _working_on(self, volume: Volume) -> Iterator[None]:
        directory = self.config.state_dir / "locks"
        with in_turn(directory, f"volume-{volume.id}", volume.title, _PATIENCE_S), marked(volume.id):
            yield

    def _rounded(self, volume: Volume) -> Volume:
        return replace(volume, size_bytes=self.driver.size_rule.round_up(volume.size_bytes))

    def _options(self, options: Options) -> Any:  # Any: an instance of volume_options_type
        return read_options(self.driver.volume_options_type, options, "volume option")

    def _expiry(self) -> datetime:
        return utc_now() + timedelta(seconds=self.config.policy.deadline_s)

    def _reach(self) -> taking.Reach:
        return taking.Reach(self.driver, self.hosts, self._expiry)

    def _found(self, volume: Volume) -> Volume:
        """Have the hosts say where what the platform has attached is; a lost export comes back."""
        known = self._known(volume)
        return replace(known, attachments=tuple(self._found_one(known, each) for each in known.attachments))

    def _found_one(self, volume: Volume, attachment: Attachment) -> Attachment:
        connector = attachment.connector or Connector(attachment.host)
        info = self.driver.initialize_connection(_others(volume, connector), connector)
        if attachment.connection_info is not None and attachment.connection_info.encrypted:
            info = replace(info, properties={**info.properties, "encrypted": "true"})
        return found(self.hosts, volume, replace(attachment, connection_info=info))

    def _known(self, volume: Volume) -> Volume:
        """Give a volume with our names of the hosts that have it."""
        renamed = (
            replace(
                each,
                host=self._our_name(each.host),
                connector=self._known_connector(each.connector) if each.connector else None,
            )
            for each in volume.attachments
        )
        return replace(volume, attachments=tuple(renamed))

    def _known_connector(self, connector: Connector) -> Connector:
        return replace(connector, host=self._our_name(connector.host))

    def _our_name(self, name: str) -> str:
        ours = (host for host, entry in self.config.hosts.items() if _platforms_name(entry) == name)
        return next(ours, name)

    def _here(self, volume: Volume, connection_info: ConnectionInfo) -> Attachment:
        return Attachment("here", volume.id, self.here.name, connection_info=connection_info)


def _platforms_name(entry: HostEntry) -> str:
    return getattr(entry.options, "known_as", None) or entry.name


def _others(volume: Volume, connector: Connector) -> Volume:
    """Give a volume without one attachment by that connector; a second one stays."""
    others = list(volume.attachments)
    for attachment in volume.attachments:
        if attachment.connector == connector:
            others.remove(attachment)
            break
    return replace(volume, attachments=tuple(others))
