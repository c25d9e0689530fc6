"""This machine as a host: what is connected here, and the QEMUs that run here, each behind its QMP socket."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from voldrivers.abilities import Layers, Merge
from voldrivers.base import Host
from voldrivers.errors import (
    BackendError,
    InvalidState,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.host import blocknode, guestagent, hotplug, instance, layers, media, merging
from voldrivers.host.qmp import Monitor
from voldrivers.model import (
    Attachment,
    ConnectionInfo,
    Connector,
    Extend,
    InstanceState,
    Ledger,
    LedgerRow,
    Volume,
    utc_now,
)
from voldrivers.options import option
from voldrivers.sizes import format_size

_SECTOR_BYTES = 512


@dataclass(frozen=True)
class LocalOptions:
    """What an operator may say about this machine."""

    qmp_dir: Path | None = option("directory with the QMP socket of every instance, NAME.qmp", None)
    monitor_timeout_s: float = option(
        "seconds to wait for a QMP connection and for an answer", 5.0, minimum=0.1, maximum=3600
    )
    resize_timeout_s: float = option(
        "seconds to wait for QEMU to resize a volume", 30.0, minimum=0.1, maximum=3600
    )
    unplug_timeout_s: float = option(
        "seconds to wait for a guest to let go of a disk", 15.0, minimum=0.1, maximum=3600
    )


class LocalHost(Host, Layers):
    """The machine this runs on. Its instances are QEMUs with a QMP socket of their own.

    Before anything is asked of a QEMU its medium must have answered: on a dead hard mount a mere
    `query-block` would freeze the whole guest, because QEMU looks at its files from its main loop.
    """

    options_type = LocalOptions
    options: LocalOptions

    def connector(self) -> Connector:
        """Give the name, and those that iSCSI and NVMe know this host by, if there are."""
        return Connector(self.name, initiator=media.initiator(), multipath=True, nqn=media.nqn())

    def find_instance(self, attachment: Attachment) -> Attachment:
        """Fill in the monitor from the instance's name or the name from the monitor, and the process."""
        return instance.find(attachment, self.options.qmp_dir, self.options.monitor_timeout_s)

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
            medium = self._medium(attachment)
            with self.hold(attachment), self._asked(attachment) as monitor:
                hotplug.plug(monitor, volume, medium, instance.qemu_pid(attachment))

    def unplug(self, volume: Volume, attachment: Attachment) -> None:
        """Take the disk out of the instance and wait until its guest has let go of it."""
        if attachment.monitor and attachment.device_path and not instance.is_gone(attachment):
            with self.hold(attachment), self._asked(attachment) as monitor:
                hotplug.unplug(monitor, volume, self._medium(attachment).path, self.options.unplug_timeout_s)

    def instance_state(self, attachment: Attachment) -> InstanceState:
        """RUNNING if its QEMU answers; STOPPED if its process is gone and nobody listens on its socket."""
        return instance.state(attachment, self.options.monitor_timeout_s)

    def hold(self, attachment: Attachment) -> AbstractContextManager[None]:
        """Keep our own `plug` away from the instance, in every voldrivers process on this machine.

        That is advice among ourselves. A QEMU that somebody else starts is kept out by the lock of
        the image (QEMU 2.10 and later): it refuses a file that qemu-img is resizing, and qemu-img
        refuses a file that a QEMU has open.
        """
        return instance.held(attachment, self.options.monitor_timeout_s)

    def check_extend(self, volume: Volume, attachment: Attachment) -> None:
        """Look at the medium, QEMU's state, its migration, and what uses the block node."""
        self._medium(attachment).check_works()
        if attachment.instance is None or instance.is_gone(attachment):
            return
        with self._asked(attachment) as monitor:
            for node in self._nodes(monitor, volume, attachment):
                blocknode.check_resizable(monitor, node)

    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        """Let every path, then their map, be read anew; of a file, check that its share answers."""
        self._medium(attachment).rescan()

    def get_blockdev(self, volume: Volume, attachment: Attachment) -> int:
        """Give the size of the device, or of the volume in the file, by opening it."""
        return self._medium(attachment).size_bytes()

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        """Look, have QEMU resize the node, look again, all on one connection.

        QEMU shrinks a live disk without a word, and its own figure is a cache: so it is never asked
        for less than it shows or the file has, and not at all when both show just that.
        """
        if attachment.instance is None:
            return
        with self._asked(attachment) as monitor:
            for node in self._nodes(monitor, volume, attachment):
                blocknode.check_resizable(monitor, node)
                self._resize(monitor, node, volume, attachment, extend)

    def switch(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        """Connect; have a running QEMU go on in the overlay that is there."""
        path = self.connect(volume, attachment, connection_info)
        if attachment.monitor and not instance.is_gone(attachment):
            then = replace(attachment, connection_info=connection_info, device_path=path)
            with self.hold(attachment), self._asked(attachment) as monitor:
                now, pid = self._medium(attachment), instance.qemu_pid(attachment)
                layers.switch(monitor, volume, now, self._medium(then), pid)
        return path

    def merge(self, volume: Volume, attachment: Attachment, merge: Merge) -> int:
        """Have QEMU stream into a layer; files are beside the one that the attachment has."""
        with self._asked(attachment) as monitor:
            return merging.merge(monitor, volume, self._medium(attachment), merge)

    def cancel(self, extend: Extend, attachment: Attachment) -> None:
        """Return when QEMU answers a new connection: no earlier request can then take effect any more.

        QEMU serves one client of a socket at a time, drops what a closed connection has queued, and runs
        the commands of all its monitors one after the other in a single coroutine, in which a
        block_resize that waits for its file waits too (monitor/qmp.c: CHR_EVENT_CLOSED in
        monitor_qmp_event, monitor_qmp_dispatcher_co). So the answer comes after the end of any
        request before it. One who has yet to connect is stopped by the expiry, checked once connected.
        """
        if attachment.monitor is None:
            return
        try:
            with Monitor(Path(attachment.monitor), self.options.monitor_timeout_s) as monitor:
                monitor.execute("query-status")
        except (InvalidState, BackendError) as error:
            if not instance.is_gone(attachment):
                what = f"extend {extend.id} in instance {attachment.place}"
                raise OutcomeUnknown(what, str(error)) from error

    def ledger_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        """Give paths, map, QEMU node, and what the guest says if its agent's socket is beside the monitor's.

        A file is a row of its driver. An instance that is provably gone has no rows.
        """
        return (
            *self._medium(attachment).rows(self.name, expected_bytes),
            *self._instance_rows(volume, attachment, expected_bytes),
        )

    def _instance_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        if attachment.instance is None:
            return ()
        row = LedgerRow("QEMU node", attachment.place, None, expected_bytes, repair=_repair(volume))
        try:
            with self._asked(attachment) as monitor:
                nodes = self._nodes(monitor, volume, attachment)
        except VolDriverError as error:
            return () if instance.is_gone(attachment) else (replace(row, note=str(error), repair=""),)
        rows = [replace(row, observed_bytes=node.size_bytes, note=node.name) for node in nodes]
        return (*rows, *self._guest_rows(volume, attachment, expected_bytes))

    def _medium(self, attachment: Attachment) -> media.Medium:
        return media.medium_of(self.run, attachment)

    @contextmanager
    def _asked(self, attachment: Attachment) -> Iterator[Monitor]:
        """Open the monitor, the medium having answered first."""
        if attachment.monitor is None:
            raise NotSupported(f"instance {attachment.place}", "has no monitor that could be asked")
        self._medium(attachment).check_answers()
        try:
            with Monitor(Path(attachment.monitor), self.options.monitor_timeout_s) as monitor:
                yield monitor
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"gave an answer that makes no sense: {error!r}"
            raise BackendError(f"QEMU of {attachment.place}", reason) from error

    def _nodes(self, monitor: Monitor, volume: Volume, attachment: Attachment) -> list[blocknode.BlockNode]:
        """Find the nodes with the volume, at least one, each proved to be of its file and format."""
        medium = self._medium(attachment)
        nodes = blocknode.find(monitor, volume.id, medium.path)
        if not nodes:
            raise InvalidState(f"{volume.title} on {attachment.place}", "not in the instance", "plugged in")
        for node in nodes:
            blocknode.check_identity(monitor, node, medium.path, medium.format, instance.qemu_pid(attachment))
        return nodes

    def _resize(
        self,
        monitor: Monitor,
        node: blocknode.BlockNode,
        volume: Volume,
        attachment: Attachment,
        extend: Extend,
    ) -> None:
        """Resize one node, never below what QEMU or its medium shows; in whole sectors, as qcow2 counts.

        A file that is shorter than its node shows was cut by somebody; the same size again mends it.
        """
        medium = self._medium(attachment)
        medium_bytes = medium.size_bytes()
        wanted_bytes = max(extend.to_bytes, node.size_bytes, medium_bytes)
        wanted_bytes = -(-wanted_bytes // _SECTOR_BYTES) * _SECTOR_BYTES
        if node.size_bytes == medium_bytes == wanted_bytes:
            return
        if extend.expired(utc_now()):
            raise InvalidState(f"extend {extend.id} of {volume.title}", "expired", "asked for again")
        blocknode.resize(monitor, node, wanted_bytes, self.options.resize_timeout_s)
        again = next(n for n in self._nodes(monitor, volume, attachment) if n.name == node.name)
        self._check_shown(again, medium, wanted_bytes)

    def _check_shown(self, node: blocknode.BlockNode, medium: media.Medium, wanted_bytes: int) -> None:
        shown_bytes = min(node.size_bytes, medium.size_bytes())
        if shown_bytes < wanted_bytes:
            shown, wanted = format_size(shown_bytes), format_size(wanted_bytes)
            raise BackendError(f"block node {node.name}", f"QEMU said {wanted}, but it is {shown}")

    def _guest_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        agent = Path(str(attachment.monitor)).with_suffix(".qga")
        if not agent.exists():
            return ()
        row = LedgerRow("guest", attachment.place, None, expected_bytes, required=False)
        try:
            return (replace(row, observed_bytes=guestagent.disk_bytes(agent, hotplug.serial(volume.id))),)
        except VolDriverError as error:
            return (replace(row, note=str(error)),)


def _repair(volume: Volume) -> str:
    return f"voldrivers doctor {volume.name} --repair"
