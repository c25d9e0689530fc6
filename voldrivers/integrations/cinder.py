"""Every voldrivers driver inside Cinder: `volume_driver = voldrivers.integrations.cinder.CinderDriver`.

Cinder keeps the records; the work is done by a worker, a process of its own (see `dialog`). What is called
when, and what may be answered: cinder/volume/driver.py and cinder/volume/manager.py of Cinder 29.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cinder import context as cinder_context
from cinder import exception, objects
from oslo_log import log as logging

from voldrivers.api.connections import from_data, to_data
from voldrivers.errors import InvalidState, NotSupported
from voldrivers.integrations import translation
from voldrivers.integrations.answers import Described
from voldrivers.integrations.asking import Worker
from voldrivers.integrations.cinderbackups import Backups
from voldrivers.integrations.cinderextend import Extends
from voldrivers.integrations.cinderfaults import raising, refused, translated, which
from voldrivers.integrations.cinderimages import Images
from voldrivers.integrations.cinderoptions import OPTIONS, offered
from voldrivers.integrations.localpath import LocalPath
from voldrivers.model import Connector, Snapshot, Volume
from voldrivers.sizes import GiB

LOG = logging.getLogger(__name__)
Theirs = Any  # Any: Cinder's own objects, which have no types
Update = dict[str, Any]  # Any: what Cinder is to record
Properties = Mapping[str, Any]  # Any: what os-brick says of a host, and is told of a connection
#: What a host must say of itself, beside its name.
_SAID = {"iSCSI": ("initiator",), "NVMe-oF_tcp": ("nqn",)}


class CinderDriver(Images, Backups):
    """One backend of voldrivers' as Cinder has it."""

    VERSION = "1.0"
    VENDOR = "voldrivers"

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Take Cinder's arguments."""
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(OPTIONS)
        config = self.configuration
        self._backend: str = config.voldrivers_backend or config.volume_backend_name or ""
        command = tuple(config.voldrivers_worker)
        path = Path(config.voldrivers_config)
        self._worker = Worker(path, self._backend, command) if command else Worker(path, self._backend)
        self._described: Described | None = None
        self._offered: frozenset[str] = frozenset()

    @staticmethod
    def get_driver_options() -> Sequence[Theirs]:
        """Give the options for cinder.conf."""
        return OPTIONS

    # --- setting up

    def do_setup(self, context: Theirs) -> None:
        """Start the worker, which makes the driver of the backend."""
        with translated():
            described: Described = self._worker.ask("describe")
            self._offered = offered(described, self.configuration.voldrivers_report)
        for trouble in described.troubles:
            LOG.warning("No volume that it has will be extended in use: %s", trouble)
        waits = self.configuration.voldrivers_assist == "complete" and described.by_hypervisor
        self._described = described
        self.extends = Extends(self._worker, self.ours, self.host, described.deadline_s if waits else None)

    def check_for_setup_error(self) -> None:
        """Refuse what would go wrong later; give back the exports of volumes that were being extended.

        Nova resizes to whole GiB, and would cut a file that came out larger.
        """
        described = self.described
        if described.by_hypervisor and GiB % described.granularity_bytes:
            reason = f"sizes are multiples of {described.granularity_bytes} bytes, which do not divide a GiB"
            raise exception.VolumeDriverException(f"backend {self._backend} cannot be Cinder's: {reason}")
        for volume in self.extends.interrupted():
            self.ensure_export(cinder_context.get_admin_context(), volume)

    def set_initialized(self) -> None:
        """Carry on with what was being extended when the process before this one ended."""
        super().set_initialized()
        self.extends.resume_all()

    @property
    def described(self) -> Described:
        """What the backend has said of itself."""
        if self._described is None:
            raise exception.DriverNotInitialized()
        return self._described

    def offers(self, capability: str) -> bool:
        """Tell whether a capability is declared, and verified where a report is configured."""
        return capability in self._offered

    def need(self, capability: str) -> None:
        """Raise NotImplementedError, by which Cinder knows what a driver does not have."""
        if not self.offers(capability):
            raise NotImplementedError(f"backend {self._backend} does not offer {capability}")

    def _update_volume_stats(self) -> None:
        with translated():
            room = self._worker.ask("pool")
        config = self.configuration
        pool = translation.room(room) | {
            "pool_name": self._backend,
            "reserved_percentage": config.safe_get("reserved_percentage"),
            "multiattach": self.offers("multi_attach"),
            "online_extend_support": self.offers("in_use_extend") and self.described.extends_attached,
            "filter_function": self.get_filter_function(),
            "goodness_function": self.get_goodness_function(),
        }
        self._stats = {
            "volume_backend_name": config.safe_get("volume_backend_name") or self._backend,
            "vendor_name": self.VENDOR,
            "driver_version": self.VERSION,
            "storage_protocol": self.described.protocol,
            "sparse_copy_volume": True,
            "pools": [pool],
        }

    # --- volumes

    def create_volume(self, volume: Theirs) -> Update:
        """Make an empty volume; the extra specs `voldrivers:OPTION` of its type are its options."""
        with translated():
            made = self._worker.ask("create_volume", volume=self.ours(volume), options=_options(volume))
            return translation.remember(made)

    def create_volume_from_snapshot(self, volume: Theirs, snapshot: Theirs) -> Update:
        """Make a copy of a snapshot, as large as the volume is to be."""
        return self._clone(volume, snapshot.volume, snapshot.id)

    def create_cloned_volume(self, volume: Theirs, src_vref: Theirs) -> Update:
        """Make a copy of a volume as it is now, as large as the new one is to be.

        A file that a guest has open is copied by way of a snapshot, which Cinder knows meanwhile.
        """
        if not (self.described.by_hypervisor and src_vref.volume_attachment):
            return self._clone(volume, src_vref, None)
        with translated():
            self._worker.ask("check_copy", volume=self.ours(src_vref))
        kept = self._create_temp_snapshot(src_vref._context, src_vref)
        try:
            src_vref.refresh()
            return self._clone(volume, src_vref, kept.id)
        finally:
            self.delete_snapshot(kept)
            kept.destroy()

    def delete_volume(self, volume: Theirs) -> None:
        """Remove a volume and every byte of it."""
        with translated(raising(exception.VolumeIsBusy(volume_name=volume.name), InvalidState)):
            self._worker.ask("delete_volume", volume=self.ours(volume))

    def extend_volume(self, volume: Theirs, new_size: int) -> None:
        """Make a volume so many GiB large in every layer, its guests' QEMUs included, before this returns."""
        self.extends.extend(volume, new_size)

    def retype(
        self, context: Theirs, volume: Theirs, new_type: Theirs, diff: Theirs, host: Theirs
    ) -> tuple[bool, None]:
        """Tell whether a volume is of another type as it is: the driver's options are the same in both."""
        return _options(volume) == translation.options(new_type.extra_specs or {}), None

    def manage_existing_get_size(self, volume: Theirs, existing_ref: Mapping[str, str]) -> int:
        """Give the size in GiB, rounded up, of what could become a volume."""
        self.need("manage")
        with translated(refused(existing_ref)):
            size_bytes = self._worker.ask(
                "existing_size", reference=which(existing_ref), options=_options(volume)
            )
        return int(-(-size_bytes // GiB))

    def manage_existing(self, volume: Theirs, existing_ref: Mapping[str, str]) -> Update:
        """Make what is on the backend already the volume, with all its bytes, at whole GiB."""
        self.need("manage")
        with translated(refused(existing_ref)):
            managed = self._worker.ask(
                "manage_volume",
                volume=self.ours(volume),
                reference=which(existing_ref),
                options=_options(volume),
                multiple_of_bytes=GiB,
            )
            return translation.remember(managed)

    def unmanage(self, volume: Theirs) -> None:
        """Give a volume up with all its bytes."""
        self.need("manage")
        with translated(raising(exception.VolumeIsBusy(volume_name=volume.name), InvalidState)):
            reference = self._worker.ask("unmanage_volume", volume=self.ours(volume))
        LOG.info("Volume %s was given up; on its backend it is %s", volume.id, reference)

    # --- snapshots

    def create_snapshot(self, snapshot: Theirs) -> Update:
        """Keep a volume as it is, in use or not."""
        self.need("snapshots")
        volume = snapshot.volume
        with translated():
            ours, kept = self._ours_of(snapshot)
            taken = self._worker.ask("create_snapshot", volume=ours, snapshot=kept)
            self._remember(volume, taken.of_volume)
            return translation.remember(taken.of_snapshot)

    def delete_snapshot(self, snapshot: Theirs) -> None:
        """Remove a snapshot, its volume in use or not; of a driver that takes none there is none.

        One that cannot be removed now, as layers that no monitor here can merge, stays available.
        """
        if "snapshots" not in self.described.capabilities:
            return
        busy = exception.SnapshotIsBusy(snapshot_name=snapshot.name)
        with translated(raising(busy, InvalidState, NotSupported)):
            ours, kept = self._ours_of(snapshot)
            self._worker.ask("delete_snapshot", volume=ours, snapshot=kept)

    def revert_to_snapshot(self, context: Theirs, volume: Theirs, snapshot: Theirs) -> None:
        """Make a volume what its snapshot is; Cinder asks for one that has the snapshot's size only."""
        self.need("revert")
        with translated():
            ours, kept = self._ours_of(snapshot)
            self._remember(volume, self._worker.ask("revert_to_snapshot", volume=ours, snapshot=kept))

    def snapshot_revert_use_temp_snapshot(self) -> bool:
        """Have one taken only before Cinder reverts by a copy; the driver reverts whole or not at all."""
        return not self.offers("revert")

    def unmanage_snapshot(self, snapshot: Theirs) -> None:
        """Refuse: one that Cinder forgets would stay below its volume, where nobody could delete it.

        It stays available that way; whoever asked finds a message.
        """
        raise exception.SnapshotIsBusy(snapshot_name=snapshot.name)

    # --- connections

    def ensure_export(self, context: Theirs, volume: Theirs) -> None:
        """Give hosts again what they were given."""
        with translated():
            ours = self.ours(volume)
            for attachment in ours.attachments:
                self._worker.ask("initialize_connection", volume=ours, connector=attachment.connector)

    def validate_connector(self, connector: Properties) -> None:
        """Refuse a host that does not say who it is, before anything is done for it."""
        for name in ("host", *_SAID.get(self.described.protocol, ())):
            if not connector.get(name):
                raise exception.InvalidConnectorException(missing=name)

    def create_export(self, context: Theirs, volume: Theirs, connector: Properties) -> None:
        """Nothing: `initialize_connection` does it, for one host."""

    def remove_export(self, context: Theirs, volume: Theirs) -> None:
        """Nothing: `terminate_connection` does it, with the last host."""

    def initialize_connection(self, volume: Theirs, connector: Properties, **_more: object) -> Update:
        """Let a host reach a volume; give what os-brick and Nova need."""
        with translated():
            info = self._worker.ask(
                "initialize_connection",
                volume=self.ours(volume),
                connector=translation.connector(connector),
            )
        if translation.is_copied(volume) and not translation.is_raw(info):
            reason = "its file is a qcow2 and Cinder would copy that, not what it holds: copy a clone of it"
            raise exception.InvalidVolume(reason=f"volume {volume.name} cannot be copied: {reason}")
        data = to_data(info) | {"volume_id": volume.id, "encrypted": bool(volume.encryption_key_id)}
        return translation.connection(info, data)

    def is_raw(self, volume: Theirs) -> bool:
        """Tell whether what a host finds is the volume byte for byte; a file may be a qcow2."""
        if not self.described.by_hypervisor:
            return True
        ours, here = self.ours(volume), Connector(self.host)
        with translated():
            info = self._worker.ask("initialize_connection", volume=ours, connector=here)
            self._worker.ask("terminate_connection", volume=ours, connector=here)
        return translation.is_raw(info)

    def terminate_connection(self, volume: Theirs, connector: Properties | None, **_more: object) -> bool:
        """Let a host reach a volume no more, or every host; tell whether the host has it otherwise."""
        ours = self.ours(volume)
        leaving = [each.connector for each in ours.attachments if each.connector]
        if connector is not None:
            leaving = [translation.connector(connector)]
        with translated():
            for each in leaving:
                self._worker.ask("terminate_connection", volume=ours, connector=each)
        return connector is not None and sum(each.connector in leaving for each in ours.attachments) > 1

    # --- images: Cinder's own code, with the volume connected as our hosts do it

    def _connect_device(self, conn: Properties) -> Update:
        kind = translation.our_type(conn["driver_volume_type"])
        if from_data(conn["data"] | {"driver_volume_type": kind}) is None:
            # A volume of another backend's driver, while one migrates.
            theirs: Update = super()._connect_device(conn)
            return theirs
        local = LocalPath(self._worker, kind)
        with translated():
            return {"conn": conn, "device": local.connect_volume(conn["data"]), "connector": local}

    # --- helpers

    def ours(self, volume: Theirs) -> Volume:
        """Give a volume with its attachments and snapshots as they are recorded now."""
        context = cinder_context.get_admin_context()
        attachments = objects.VolumeAttachmentList.get_all_by_volume_id(context, volume.id)
        snapshots = objects.SnapshotList.get_all_for_volume(context, volume.id)
        # What came with a request may be old. Last, because what a snapshot makes of its volume is recorded
        # before what is remembered of the snapshot.
        stored = objects.Volume.get_by_id(context, volume.id)
        return translation.volume(stored, self._backend, attachments, snapshots)

    def _ours_of(self, snapshot: Theirs) -> tuple[Volume, Snapshot]:
        ours = self.ours(snapshot.volume)
        kept = next((each for each in ours.snapshots if each.id == snapshot.id), None)
        return ours, kept or translation.snapshot(ours, snapshot)

    def _clone(self, volume: Theirs, source: Theirs, snapshot: str | None) -> Update:
        self.need("clones")
        with translated():
            cloned = self._worker.ask(
                "clone_volume",
                volume=self.ours(volume),
                options=_options(volume),
                source=self.ours(source),
                snapshot=snapshot,
            )
            return translation.remember(cloned)

    def _remember(self, volume: Theirs, provider_data: str) -> None:
        if translation.remembered(volume) != provider_data:
            volume.update(translation.remember(provider_data))
            volume.save()


def _options(volume: Theirs) -> Mapping[str, object]:
    volume_type = volume.volume_type
    return translation.options((volume_type and volume_type.extra_specs) or {})
