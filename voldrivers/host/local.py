"""This machine as a host: what is connected here, and the instances here, each behind its monitor."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from voldrivers.abilities import Layers, Merge
from voldrivers.base import Host
from voldrivers.errors import NotFound, NotSupported, VolDriverError
from voldrivers.host import domain, instance, media, qemu
from voldrivers.host.instance import Instance, Limits
from voldrivers.model import (
    Attachment,
    ConnectionInfo,
    Connector,
    Extend,
    InstanceState,
    Ledger,
    LedgerRow,
    Volume,
)
from voldrivers.options import option


@dataclass(frozen=True)
class LocalOptions:
    """What an operator may say about this machine."""

    qmp_dir: Path | None = option("directory with the QMP socket of every instance, NAME.qmp", None)
    libvirt_uri: str | None = option(
        "libvirt connection of this machine, qemu:///system say, for instances without a QMP socket", None
    )
    known_as: str | None = option("name by which Cinder and Nova know it, if it is not this one", None)
    monitor_timeout_s: float = option(
        "seconds to wait for a connection to a monitor and for an answer", 5.0, minimum=0.1, maximum=3600
    )
    resize_timeout_s: float = option(
        "seconds to wait for QEMU to resize a volume", 30.0, minimum=0.1, maximum=3600
    )
    unplug_timeout_s: float = option(
        "seconds to wait for a guest to let go of a disk", 15.0, minimum=0.1, maximum=3600
    )


class LocalHost(Host, Layers):
    """The machine this runs on. Its instances are QEMUs with a QMP socket, or domains of libvirt.

    Before anything is asked of a QEMU its medium must have answered: on a dead hard mount a mere
    `query-block` would freeze the whole guest, because QEMU looks at its files from its main loop.
    """

    options_type = LocalOptions
    options: LocalOptions

    def connector(self) -> Connector:
        """Give the name, and those that iSCSI and NVMe know this host by, if there are."""
        return Connector(self.name, initiator=media.initiator(), multipath=True, nqn=media.nqn())

    def find_instance(self, attachment: Attachment) -> Attachment:
        """Fill in the monitor from the instance's name or the name from the monitor, and the process.

        A QMP socket comes first; an instance that has none may be a domain of libvirt. Where there could be
        neither it is NotSupported.
        """
        timeout_s, uri = self.options.monitor_timeout_s, self.options.libvirt_uri
        if attachment.instance and not attachment.monitor and uri is None and self.options.qmp_dir is None:
            reason = "has neither qmp_dir nor libvirt_uri, so no instance's monitor can be found"
            raise NotSupported(f"host {attachment.host or self.name}", reason)
        try:
            path = qemu.monitor_path(attachment, self.options.qmp_dir)
        except NotFound:
            if attachment.monitor or uri is None:
                raise
            return domain.find(attachment, uri, timeout_s)
        return attachment if path is None else qemu.find(attachment, path, timeout_s)

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        """Mount the share or log in to the target; the volume must be there then.

        Takes `file` (path, format), `nfs` (export, name, format, options, mount_point_base), `iscsi`
        (target_portals, target_iqns, target_luns, auth_username, auth_password, as os-brick does) and
        `nvmeof` (target_nqn, vol_uuid, portals).
        """
        return str(media.connect(self.run, self.name, connection_info))

    def disconnect(self, volume: Volume, attachment: Attachment) -> None:
        """Let go of the volume; a share stays mounted, others use it too."""
        media.disconnect(self.run, attachment)

    def plug(self, volume: Volume, attachment: Attachment) -> None:
        """Give the instance the volume as a virtio disk with the volume's id as its serial."""
        if attachment.monitor:
            with self.hold(attachment):
                found, medium = self._asked(attachment)
                found.plug(volume, medium)

    def unplug(self, volume: Volume, attachment: Attachment) -> None:
        """Take the disk out of the instance and wait until its guest has let go of it."""
        if attachment.monitor and attachment.device_path and not self._is_gone(attachment):
            with self.hold(attachment):
                found, medium = self._asked(attachment)
                found.unplug(volume, medium)

    def instance_state(self, attachment: Attachment) -> InstanceState:
        """RUNNING if its monitor answers; STOPPED if its process is gone and nobody took its place."""
        return self._instance(attachment).state() if attachment.monitor else InstanceState.UNKNOWN

    def hold(self, attachment: Attachment) -> AbstractContextManager[None]:
        """Keep our own `plug` away from the instance, in every voldrivers process on this machine.

        That is advice among ourselves. A QEMU that somebody else starts is kept out by the lock of
        the image (QEMU 2.10 and later): it refuses a file that qemu-img is resizing, and qemu-img
        refuses a file that a QEMU has open.
        """
        if attachment.monitor is None:
            return nullcontext()
        return instance.held(attachment, self._instance(attachment).key, self.options.monitor_timeout_s)

    def check_extend(self, volume: Volume, attachment: Attachment) -> None:
        """Look at the medium, at the instance, and at what uses the disk there."""
        media.medium_of(self.run, attachment).check_works()
        if attachment.instance is not None and not self._is_gone(attachment):
            found, medium = self._asked(attachment)
            found.check_extend(volume, medium)

    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        """Let every path, then their map, be read anew; of a file, check that its share answers."""
        media.medium_of(self.run, attachment).rescan()

    def get_blockdev(self, volume: Volume, attachment: Attachment) -> int:
        """Give the size of the device, or of the volume in the file, by opening it."""
        return media.medium_of(self.run, attachment).size_bytes()

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        """Look, have QEMU resize the disk, look again, all on one connection.

        QEMU shrinks a live disk without a word, and its own figure is a cache: so it is never asked
        for less than it shows or the file has, and not at all when both show just that.
        """
        if attachment.instance is not None:
            found, medium = self._asked(attachment)
            found.extend(volume, medium, extend)

    def switch(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        """Connect; have a running QEMU go on in the overlay that is there."""
        path = self.connect(volume, attachment, connection_info)
        if attachment.monitor and not self._is_gone(attachment):
            then = replace(attachment, connection_info=connection_info, device_path=path)
            with self.hold(attachment):
                found, now = self._asked(attachment)
                found.switch(volume, now, media.medium_of(self.run, then))
        return path

    def merge(self, volume: Volume, attachment: Attachment, merge: Merge) -> int:
        """Have QEMU stream into a layer; files are beside the one that the attachment has."""
        found, medium = self._asked(attachment)
        return found.merge(volume, medium, merge)

    def cancel(self, extend: Extend, attachment: Attachment) -> None:
        """Return when no earlier request can take effect any more: each kind of instance has its fence."""
        if attachment.monitor is not None:
            self._instance(attachment).fence(extend)

    def ledger_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        """Give paths, map, QEMU node, and what the guest says if its agent can be reached.

        A file is a row of its driver. An instance that is provably gone has no rows.
        """
        return (
            *media.medium_of(self.run, attachment).rows(self.name, expected_bytes),
            *self._instance_rows(volume, attachment, expected_bytes),
        )

    def _instance(self, attachment: Attachment) -> Instance:
        """Choose who has the instance, by its monitor. Raises NotSupported.

        libvirt is asked only where this host's options say: a URI can have a program run.
        """
        limits = Limits(
            self.options.monitor_timeout_s, self.options.resize_timeout_s, self.options.unplug_timeout_s
        )
        if attachment.monitor is None:
            raise NotSupported(
                f"instance {attachment.place}",
                "has no monitor that could be asked: it does not run there, or not under that name",
            )
        uri = domain.uri_of(attachment)
        if uri is None:
            return qemu.QEMU(attachment, limits)
        if uri != self.options.libvirt_uri:
            reason = f"its monitor is libvirt at {uri}, which is not the libvirt_uri of host {self.name}"
            raise NotSupported(f"instance {attachment.place}", reason)
        return domain.DomainInstance(attachment, limits)

    def _is_gone(self, attachment: Attachment) -> bool:
        return attachment.monitor is not None and self._instance(attachment).is_gone()

    def _asked(self, attachment: Attachment) -> tuple[Instance, media.Medium]:
        """Give the instance and its medium, the medium having answered first."""
        found, medium = self._instance(attachment), media.medium_of(self.run, attachment)
        medium.check_answers()
        return found, medium

    def _instance_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        if attachment.instance is None:
            return ()
        row = LedgerRow("QEMU node", attachment.place, None, expected_bytes, repair=_repair(volume))
        try:
            found, medium = self._asked(attachment)
            disks = found.disks(volume, medium)
        except VolDriverError as error:
            return () if self._is_gone(attachment) else (replace(row, note=str(error), repair=""),)
        rows = [replace(row, observed_bytes=disk.size_bytes, note=disk.name) for disk in disks]
        return (*rows, *_guest_rows(found, volume, expected_bytes))


def _guest_rows(found: Instance, volume: Volume, expected_bytes: int) -> Ledger:
    row = LedgerRow("guest", found.attachment.place, None, expected_bytes, required=False)
    try:
        observed_bytes = found.guest_bytes(volume)
    except VolDriverError as error:
        return (replace(row, note=str(error)),)
    return () if observed_bytes is None else (replace(row, observed_bytes=observed_bytes),)


def _repair(volume: Volume) -> str:
    return f"voldrivers doctor {volume.name} --repair"
