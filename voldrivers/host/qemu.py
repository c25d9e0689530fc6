"""An instance behind a QMP socket of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from voldrivers import process
from voldrivers.abilities import Merge
from voldrivers.errors import BackendError, InvalidState, NotFound, OutcomeUnknown
from voldrivers.host import blocknode, guestagent, hotplug, layers, merging, qmp
from voldrivers.host.blocknode import BlockNode
from voldrivers.host.instance import Instance, ShownDisk, check_shown, check_time, wanted_bytes
from voldrivers.host.media import Medium
from voldrivers.host.qmp import Monitor
from voldrivers.model import Attachment, Extend, InstanceState, Volume


def find(attachment: Attachment, path: Path, timeout_s: float) -> Attachment:
    """Fill in monitor, process, and the name if there is none, from the QEMU at a socket.

    Raises InvalidState when it does not answer.
    """
    with Monitor(path, timeout_s) as monitor:
        identity = _qemu_identity(monitor.peer_pid)
        # Answered after the identity was taken: so it was taken of the living QEMU.
        name = attachment.instance or _name(monitor) or path.stem
    return replace(attachment, instance=name, monitor=str(path), instance_process=identity)


@dataclass(frozen=True)
class QEMU(Instance):
    """A QEMU with a QMP socket that is ours."""

    def state(self) -> InstanceState:
        """Give RUNNING if it answers; STOPPED if it is gone; else UNKNOWN, with a vanished socket too."""
        try:
            with self._monitor():
                return InstanceState.RUNNING
        except InvalidState:
            return InstanceState.STOPPED if self.is_gone() else InstanceState.UNKNOWN

    def is_gone(self) -> bool:
        """Tell whether its process has provably ended and no other took its place at the socket."""
        identity = self.attachment.instance_process
        return bool(identity) and process.is_gone(str(identity)) and not qmp.is_listening(self._path)

    def plug(self, volume: Volume, medium: Medium) -> None:
        """Add node and disk."""
        with self._asked() as monitor:
            hotplug.plug(monitor, volume, medium, self._pid())

    def unplug(self, volume: Volume, medium: Medium) -> None:
        """Take disk and nodes out."""
        with self._asked() as monitor:
            hotplug.unplug(monitor, volume, medium.path, self.limits.unplug_s)

    def check_extend(self, volume: Volume, medium: Medium) -> None:
        """Look at QEMU's state, its migration, and what uses the block node."""
        with self._asked() as monitor:
            for node in self._nodes(monitor, volume, medium):
                blocknode.check_resizable(monitor, node)

    def extend(self, volume: Volume, medium: Medium, extend: Extend) -> None:
        """Do all of it on one connection."""
        with self._asked() as monitor:
            for node in self._nodes(monitor, volume, medium):
                blocknode.check_resizable(monitor, node)
                self._resize(monitor, node, volume, medium, extend)

    def fence(self, extend: Extend) -> None:
        """Return when QEMU answers a new connection: no earlier request can then take effect any more.

        QEMU serves one client of a socket at a time, drops what a closed connection has queued, and runs
        the commands of all its monitors one after the other in a single coroutine, in which a
        block_resize that waits for its file waits too (monitor/qmp.c: CHR_EVENT_CLOSED in
        monitor_qmp_event, monitor_qmp_dispatcher_co). So the answer comes after the end of any
        request before it. One who has yet to connect is stopped by the expiry, checked once connected.
        """
        try:
            with self._monitor() as monitor:
                monitor.execute("query-status")
        except (InvalidState, BackendError) as error:
            if not self.is_gone():
                what = f"extend {extend.id} in instance {self.attachment.place}"
                raise OutcomeUnknown(what, str(error)) from error

    def disks(self, volume: Volume, medium: Medium) -> Sequence[ShownDisk]:
        """Give the nodes, each proved to be of its file and format."""
        with self._asked() as monitor:
            return [_shown(node) for node in self._nodes(monitor, volume, medium)]

    def guest_bytes(self, volume: Volume) -> int | None:
        """Ask the agent whose socket is beside the monitor's."""
        agent = self._path.with_suffix(".qga")
        return guestagent.disk_bytes(agent, hotplug.serial(volume.id)) if agent.exists() else None

    def switch(self, volume: Volume, now: Medium, then: Medium) -> None:
        """Have the running QEMU go on in the overlay that is there."""
        with self._asked() as monitor:
            layers.switch(monitor, volume, now, then, self._pid())

    def merge(self, volume: Volume, medium: Medium, merge: Merge) -> int:
        """Have QEMU stream into a layer; files are beside the one that the attachment has."""
        with self._asked() as monitor:
            return merging.merge(monitor, volume, medium, merge)

    @property
    def _path(self) -> Path:
        return Path(str(self.attachment.monitor))

    def _pid(self) -> int | None:
        return process_pid(self.attachment.instance_process)

    def _monitor(self) -> Monitor:
        return Monitor(self._path, self.limits.answer_s)

    @contextmanager
    def _asked(self) -> Iterator[Monitor]:
        try:
            with self._monitor() as monitor:
                yield monitor
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"gave an answer that makes no sense: {error!r}"
            raise BackendError(f"QEMU of {self.attachment.place}", reason) from error

    def _nodes(self, monitor: Monitor, volume: Volume, medium: Medium) -> list[BlockNode]:
        """Find the nodes with the volume, at least one, each proved to be of its file and format."""
        nodes = blocknode.find(monitor, volume.id, medium.path)
        if not nodes:
            subject = f"{volume.title} on {self.attachment.place}"
            raise InvalidState(subject, "not in the instance", "plugged in")
        for node in nodes:
            blocknode.check_identity(monitor, node, medium.path, medium.format, self._pid())
        return nodes

    def _resize(
        self, monitor: Monitor, node: BlockNode, volume: Volume, medium: Medium, extend: Extend
    ) -> None:
        """Resize one node. A file that is shorter than its node was cut: the same size again mends it."""
        medium_bytes = medium.size_bytes()
        asked_bytes = wanted_bytes(_shown(node), medium_bytes, extend)
        if node.size_bytes == medium_bytes == asked_bytes:
            return
        check_time(volume, extend)
        blocknode.resize(monitor, node, asked_bytes, self.limits.resize_s)
        again = next(n for n in self._nodes(monitor, volume, medium) if n.name == node.name)
        check_shown(_shown(again), medium, asked_bytes)


def process_pid(identity: str | None) -> int | None:
    """Give the number of the process that an attachment was made to; None when it is not known or gone."""
    return None if identity is None or process.is_gone(identity) else int(identity.split()[1])


def monitor_path(attachment: Attachment, qmp_dir: Path | None) -> Path | None:
    """Find the socket that the attachment names, or that of its instance in `qmp_dir`; None for no instance.

    Raises NotFound.
    """
    if attachment.monitor:
        path = Path(attachment.monitor).absolute()
        if not path.exists():
            raise NotFound("monitor", str(path), f" on host {attachment.host}")
        return path
    if attachment.instance is None:
        return None
    if qmp_dir is None:
        raise NotFound("instance", attachment.instance, f" by a QMP socket of host {attachment.host}")
    path = qmp_dir.absolute() / f"{attachment.instance}.qmp"
    if "/" in attachment.instance or not path.exists():
        raise NotFound("instance", attachment.instance, f" in {qmp_dir} of host {attachment.host}")
    return path


def _shown(node: BlockNode) -> ShownDisk:
    return ShownDisk(node.name, node.size_bytes)


def _name(monitor: Monitor) -> str:
    """Ask QEMU for the guest's name; "" where it has none."""
    answer = monitor.execute("query-name")
    try:
        name: str = answer.get("name", "")
        name.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        reason = f"gave an answer that makes no sense: {answer!r:.80}"
        raise BackendError(f"QEMU at {monitor.path}", reason) from error
    return name


def _qemu_identity(pid: int | None) -> str | None:
    """Name the process behind a socket if it is a QEMU.

    It is not when a manager (libvirt) opened the socket and handed it on: its end would say nothing
    about the QEMU's. Without an identity the instance is never taken for stopped.
    """
    return process.identity(pid) if pid and is_qemu(pid) else None


def is_qemu(pid: int) -> bool:
    """Tell whether a process is a QEMU by its own name."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return False
    return name.startswith(("qemu", "kvm"))
