"""Instances: the QEMU behind a QMP socket, whether it runs, and keeping others of us away from it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from voldrivers import process
from voldrivers.errors import BackendError, InvalidState, NotFound
from voldrivers.host import qmp
from voldrivers.host.qmp import Monitor
from voldrivers.model import Attachment, InstanceState


def find(attachment: Attachment, qmp_dir: Path | None, timeout_s: float) -> Attachment:
    """Fill in the monitor from the instance's name or the name from the monitor, and the process.

    Raises NotFound, InvalidState when the QEMU does not answer.
    """
    path = _monitor_path(attachment, qmp_dir)
    if path is None:
        return attachment
    with Monitor(path, timeout_s) as monitor:
        identity = _qemu_identity(monitor.peer_pid)
        # Answered after the identity was taken: so it was taken of the living QEMU.
        name = attachment.instance or _name(monitor) or path.stem
    return replace(attachment, instance=name, monitor=str(path), instance_process=identity)


def state(attachment: Attachment, timeout_s: float) -> InstanceState:
    """RUNNING if its QEMU answers; STOPPED if it is gone; else UNKNOWN, a vanished socket too."""
    if attachment.monitor is None:
        return InstanceState.UNKNOWN
    try:
        with Monitor(Path(attachment.monitor), timeout_s):
            return InstanceState.RUNNING
    except InvalidState:
        return InstanceState.STOPPED if is_gone(attachment) else InstanceState.UNKNOWN


def is_gone(attachment: Attachment) -> bool:
    """Tell whether the instance's process has provably ended and no other took its place at the socket."""
    if not attachment.monitor or not attachment.instance_process:
        return False
    return process.is_gone(attachment.instance_process) and not qmp.is_listening(Path(attachment.monitor))


def qemu_pid(attachment: Attachment) -> int | None:
    """Give the number of the QEMU that the attachment was made to; None when it is not known or gone."""
    identity = attachment.instance_process
    return None if identity is None or process.is_gone(identity) else int(identity.split()[1])


@contextmanager
def held(attachment: Attachment, timeout_s: float) -> Iterator[None]:
    """Keep every other voldrivers process on this machine from plugging into the instance.

    By a name in the kernel's table of abstract sockets (unix(7)), which is free again when its
    process ends, however it ends. Raises InvalidState when another one holds it for `timeout_s`.
    """
    if attachment.monitor is None:
        yield
        return
    name = sha256(os.path.realpath(attachment.monitor).encode()).hexdigest()
    with socket.socket(socket.AF_UNIX) as holder:
        if not process.holds_within(lambda: _bound(holder, f"\0voldrivers/{name}"), timeout_s):
            subject = f"instance {attachment.place}"
            raise InvalidState(subject, "held by another voldrivers process", "free")
        yield


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


def _bound(holder: socket.socket, name: str) -> bool:
    try:
        holder.bind(name)
    except OSError:
        return False
    return True


def _monitor_path(attachment: Attachment, qmp_dir: Path | None) -> Path | None:
    if attachment.monitor:
        path = Path(attachment.monitor).absolute()
        if not path.exists():
            raise NotFound("monitor", str(path), f" on host {attachment.host}")
        return path
    if attachment.instance is None:
        return None
    if qmp_dir is None:
        raise NotFound("instance", attachment.instance, f": host {attachment.host} has no qmp_dir")
    path = qmp_dir.absolute() / f"{attachment.instance}.qmp"
    if "/" in attachment.instance or not path.exists():
        raise NotFound("instance", attachment.instance, f" in {qmp_dir} of host {attachment.host}")
    return path


def _qemu_identity(pid: int | None) -> str | None:
    """Name the process behind a socket if it is a QEMU.

    It is not when a manager (libvirt) opened the socket and handed it on: its end would say nothing
    about the QEMU's. Without an identity the instance is never taken for stopped.
    """
    try:
        name = Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return None
    return process.identity(pid) if pid and name.startswith(("qemu", "kvm")) else None
