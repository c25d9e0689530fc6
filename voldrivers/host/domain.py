"""An instance that libvirt runs: a domain, whose QEMU takes no other client than libvirt on its monitor."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from voldrivers import process
from voldrivers.errors import BackendError, InvalidState, NotFound, OutcomeUnknown, VolDriverError
from voldrivers.host import blocknode, domaindisk, guestagent, hotplug, qemu
from voldrivers.host.domaindisk import DomainDisk
from voldrivers.host.instance import (
    Instance,
    ShownDisk,
    check_one_size,
    check_shown,
    check_time,
    wanted_bytes,
)
from voldrivers.host.libvirt import Connection, Domain, DomainState
from voldrivers.host.media import Medium
from voldrivers.model import Attachment, Extend, InstanceState, Volume

_MONITOR = "libvirt:"
#: libvirt's words for why QEMU is `paused`, as in `blocknode`: a guest that is stopped by an I/O error, a
#: watchdog or a migration is not among them.
_PAUSED = [("paused", reason) for reason in ("user", "unknown", "from snapshot")]
#: A request waits at most 30 s for the requests before it on a domain, and then fails (VIR_JOB_WAIT_TIME in
#: src/conf/virdomainjob.c of libvirt 10, src/hypervisor/domain_job.c of 9.0); a second for the threads.
_JOB_WAIT_S = 31.0
_ANSWER_S = 2.0


def find(attachment: Attachment, uri: str, timeout_s: float) -> Attachment:
    """Fill in monitor and process from the domain that has the instance's UUID or name.

    Raises NotFound, InvalidState when libvirt does not answer or the domain does not run.
    """
    with Connection(uri, timeout_s) as connection:
        domain = connection.domain(str(attachment.instance))
        identity = _qemu_identity(domain.uuid)
        # Active after the identity was taken: so it was taken of the living QEMU.
        if not domain.is_active():
            raise InvalidState(domain.title, str(domain.state()), "running")
    known = f"{domain.uuid} {identity or ''}".strip()
    return replace(attachment, monitor=f"{_MONITOR}{uri}", instance_process=known)


def uri_of(attachment: Attachment) -> str | None:
    """Give the connection through which an attachment's instance was found; None for a QMP socket."""
    monitor = attachment.monitor or ""
    return monitor.removeprefix(_MONITOR) if monitor.startswith(_MONITOR) else None


@dataclass(frozen=True)
class DomainInstance(Instance):
    """A domain, asked over a connection of its own for each act.

    What was sent to libvirt may still take effect when who sent it is gone: requests wait for one another in
    no order (virDomainObjBeginJobInternal wakes all that wait). So the domain is marked before a resize is
    sent and the mark is taken off once it is answered; who finds one waits until nobody can wait any more.
    """

    def state(self) -> InstanceState:
        """Give RUNNING or STOPPED by libvirt's word, the latter only if the QEMU that was known is gone."""
        try:
            with self._connection() as connection:
                state = connection.domain(self._uuid).state()
        except NotFound:  # a domain that is not kept vanishes with its QEMU, a renamed one has its UUID still
            known_gone = self._identity is not None and process.is_gone(self._identity)
            return InstanceState.STOPPED if known_gone else InstanceState.UNKNOWN
        except VolDriverError:
            return InstanceState.UNKNOWN
        if state.state not in ("shutoff", "crashed"):
            return InstanceState.RUNNING
        return InstanceState.STOPPED if self._has_ended(state) else InstanceState.UNKNOWN

    def is_gone(self) -> bool:
        """Tell whether it is proved to have stopped."""
        return self.state() is InstanceState.STOPPED

    def plug(self, volume: Volume, medium: Medium) -> None:
        """Attach a disk to the running domain; its kept description stays as it is."""
        with self._domain() as domain:
            xml = domain.xml()
            if disks := domaindisk.with_volume(domaindisk.read(xml), volume, medium.path):
                for disk in disks:
                    self._check_identity(disk, medium)
                return
            try:
                domain.attach(domaindisk.write(xml, volume, medium), self.limits.resize_s)
            except BackendError as error:
                raise _refused_attach(error, medium) from error

    def unplug(self, volume: Volume, medium: Medium) -> None:
        """Detach our disk; one that somebody else attached is InvalidState, and one that the guest keeps."""
        with self._domain() as domain:
            if ours := self._ours(domain, volume):
                self._detach(domain, ours[0], volume)
            # A job of its own: returns after the end of the one in which libvirt closes the file.
            self._set_mark(domain, volume.id, present=False)
            if foreign := domaindisk.with_volume(domaindisk.read(domain.xml()), volume, medium.path):
                used = f"used through {foreign[0].title} of {domain.title}"
                raise InvalidState(f"file {medium.path}", used, "unplugged by who plugged it")

    def check_extend(self, volume: Volume, medium: Medium) -> None:
        """Look at the domain's state, its jobs, and what uses the disk."""
        with self._domain() as domain:
            for disk in self._found(domain, volume, medium):
                self._check_resizable(domain, disk)

    def extend(self, volume: Volume, medium: Medium, extend: Extend) -> None:
        """Do all of it on one connection."""
        with self._domain() as domain:
            for disk in self._found(domain, volume, medium):
                self._check_resizable(domain, disk)
                self._resize(domain, disk, volume, medium, extend)

    def fence(self, extend: Extend) -> None:
        """Return when the domain bears no mark of a resize, or those who wait in libvirt have given up."""
        try:
            with self._domain() as domain:
                self._end_earlier(domain, extend.volume_id)
        except (InvalidState, BackendError, NotFound) as error:
            if not self.is_gone():
                what = f"extend {extend.id} in instance {self.attachment.place}"
                raise OutcomeUnknown(what, str(error)) from error

    def disks(self, volume: Volume, medium: Medium) -> Sequence[ShownDisk]:
        """Give the disks, each proved to be of its file and format."""
        with self._domain() as domain:
            return [_shown(domain, disk) for disk in self._found(domain, volume, medium)]

    def switch(self, volume: Volume, now: Medium, then: Medium) -> None:
        """Have libvirt do it, as an external snapshot of one disk that keeps nothing else."""
        with self._domain() as domain:
            self._end_earlier(domain, volume.id)
            if not self._is_stored_in(domain, volume, then):
                self._lay_over(domain, volume, now, then)
            self._found(domain, volume, then)

    def guest_bytes(self, volume: Volume) -> int | None:
        """Ask the agent over the domain's channel for it."""
        with self._domain() as domain:
            if not domaindisk.has_agent(domain.xml()):
                return None
            deadline = time.monotonic() + _ANSWER_S

            def ask(command: str, arguments: dict[str, object]) -> Any:  # Any: each command has its own reply
                return domain.ask_agent(command, arguments, max(deadline - time.monotonic(), 0.001))

            return guestagent.disk_bytes_by(ask, domain.title, hotplug.serial(volume.id))

    @property
    def key(self) -> str:
        """Give connection and UUID."""
        return f"{self.attachment.monitor} {self._uuid}"

    @property
    def _uuid(self) -> str:
        return str(self.attachment.instance_process).partition(" ")[0]

    @property
    def _identity(self) -> str | None:
        return str(self.attachment.instance_process).partition(" ")[2] or None

    def _connection(self) -> Connection:
        return Connection(str(uri_of(self.attachment)), self.limits.answer_s)

    @contextmanager
    def _domain(self) -> Iterator[Domain]:
        with self._connection() as connection:
            yield connection.domain(self._uuid)

    def _has_ended(self, state: DomainState) -> bool:
        """Tell whether a domain without a QEMU has stopped: one that was moved runs elsewhere."""
        return state.reason != "migrated" and (self._identity is None or process.is_gone(self._identity))

    def _found(self, domain: Domain, volume: Volume, medium: Medium) -> list[DomainDisk]:
        """Find the disks with the volume, at least one, each proved to be of its file and format."""
        disks = domaindisk.with_volume(domaindisk.read(domain.xml()), volume, medium.path)
        if not domain.is_active():  # the description of a domain that is shut off has disks too
            raise InvalidState(domain.title, str(domain.state()), "running")
        if not disks:
            subject = f"{volume.title} on {self.attachment.place}"
            raise InvalidState(subject, "not in the instance", "plugged in")
        for disk in disks:
            self._check_identity(disk, medium)
        return disks

    def _check_identity(self, disk: DomainDisk, medium: Medium) -> None:
        """Refuse a disk in another format than recorded, or of a file since replaced, as for a block node."""
        if disk.format != medium.format:
            raise InvalidState(disk.title, f"opened as {disk.format}", f"opened as {medium.format}")
        pid = qemu.process_pid(self._identity)
        if pid is not None and blocknode.has_other_file(pid, medium.path):
            raise InvalidState(disk.title, f"of a file that is no longer {medium.path}", "of that file")

    def _check_resizable(self, domain: Domain, disk: DomainDisk) -> None:
        """Refuse where QEMU would refuse, stop or lose data. Raises InvalidState; changes nothing."""
        state = domain.state()
        if state.state != "running" and (state.state, state.reason) not in _PAUSED:
            raise InvalidState(domain.title, str(state), "running or paused (user)")
        if busy := domain.job():
            raise InvalidState(domain.title, f"busy with a {busy}", "free of jobs")
        if disk.read_only:
            raise InvalidState(disk.title, "read-only", "writable")
        if busy := disk.job or domain.block_job(disk.target):
            raise InvalidState(disk.title, f"in use by a {busy}", "free of block jobs")

    def _resize(
        self, domain: Domain, disk: DomainDisk, volume: Volume, medium: Medium, extend: Extend
    ) -> None:
        """Resize one disk. A file that is shorter than its disk was cut: the same size again mends it."""
        self._end_earlier(domain, volume.id)
        with self._marked(domain, volume.id):
            shown, medium_bytes = _shown(domain, disk), medium.size_bytes()
            asked_bytes = wanted_bytes(shown, medium_bytes, extend)
            if shown.size_bytes == medium_bytes == asked_bytes:
                return
            check_time(volume, extend)
            try:
                domain.resize(disk.target, asked_bytes, self.limits.resize_s)
            except BackendError as error:
                raise _refused_resize(error, disk, shown, asked_bytes) from error
        self._found(domain, volume, medium)
        check_shown(_shown(domain, disk), medium, asked_bytes)

    def _lay_over(self, domain: Domain, volume: Volume, now: Medium, then: Medium) -> None:
        disk, *others = self._found(domain, volume, now)
        if others:
            raise InvalidState(
                f"{volume.title} in {domain.title}", "used through several disks", "used through one"
            )
        self._check_resizable(domain, disk)
        check_one_size(volume, _shown(domain, disk).size_bytes, then)
        snapshot = domaindisk.write_overlay(domaindisk.read(domain.xml()), disk, then)
        with self._marked(domain, volume.id):
            try:
                domain.lay_over(snapshot, self.limits.resize_s)
            except BackendError as error:
                raise _refused_attach(error, then) from error
        if not self._is_stored_in(domain, volume, then):
            what = f"having {volume.title} written to {then.path}"
            raise OutcomeUnknown(
                what, f"libvirt said so, but {disk.title} of {domain.title} has another file"
            )

    def _is_stored_in(self, domain: Domain, volume: Volume, medium: Medium) -> bool:
        disks = self._ours(domain, volume) or domaindisk.read(domain.xml())
        return any(blocknode.is_same_file(disk.source, medium.path) for disk in disks)

    @contextmanager
    def _marked(self, domain: Domain, volume_id: str) -> Iterator[None]:
        """Have the domain marked until what was sent is known to be answered."""
        self._set_mark(domain, volume_id, present=True)
        try:
            yield
        except OutcomeUnknown:
            raise
        except VolDriverError:
            with suppress(VolDriverError):  # one that stays costs time, no more
                self._set_mark(domain, volume_id, present=False)
            raise
        self._set_mark(domain, volume_id, present=False)

    def _end_earlier(self, domain: Domain, volume_id: str) -> None:
        """Return when no resize of this volume that was sent before can take effect any more.

        Without a mark there is none. With one: setting it anew is a request too, which the daemon takes from
        its queue after the resize (virNetServerDispatchNewMessage, virThreadPoolSendJob: first come, first
        served). So the resize waits since then at the latest, and 30 s later it has given up or is at work.
        Taking the mark off waits for whoever is at work.
        """
        if domain.is_marked(_mark(volume_id)):
            self._set_mark(domain, volume_id, present=True)
            time.sleep(_JOB_WAIT_S)
            self._set_mark(domain, volume_id, present=False)

    def _set_mark(self, domain: Domain, volume_id: str, *, present: bool) -> None:
        domain.set_mark(_mark(volume_id), present=present, limit_s=self.limits.resize_s)

    def _ours(self, domain: Domain, volume: Volume) -> list[DomainDisk]:
        serial = hotplug.serial(volume.id)
        return [disk for disk in domaindisk.read(domain.xml()) if disk.serial == serial]

    def _detach(self, domain: Domain, disk: DomainDisk, volume: Volume) -> None:
        try:
            domain.detach(disk.xml, self.limits.resize_s)
        except (BackendError, InvalidState):
            # Refused because it was asked for before, say: what counts is whether it goes.
            if not self._ours(domain, volume):
                return
        if not process.holds_within(lambda: not self._ours(domain, volume), self.limits.unplug_s):
            kept = f"kept by the guest, which was asked {self.limits.unplug_s:g} seconds ago"
            raise InvalidState(f"{disk.title} of {domain.title}", kept, "unmounted and released there")


def _mark(volume_id: str) -> str:
    """Name the mark of a volume: the namespace of an element in the domain's metadata."""
    return f"urn:voldrivers:resize:{blocknode.disk_id(volume_id)}"


def _shown(domain: Domain, disk: DomainDisk) -> ShownDisk:
    return ShownDisk(disk.target, domain.size_bytes(disk.target))


def _refused_resize(
    error: BackendError, disk: DomainDisk, shown: ShownDisk, size_bytes: int
) -> VolDriverError:
    if "is in use" in error.reason:
        return InvalidState(disk.title, f"in use by something else ({error.reason})", "free of block jobs")
    found = blocknode.refusal(disk.title, disk.source, shown.size_bytes, size_bytes, error.reason)
    return found or error


def _refused_attach(error: BackendError, medium: Medium) -> VolDriverError:
    if "lock" in error.reason:
        return InvalidState(f"file {medium.path}", f"held by another process ({error.reason})", "free")
    return error


def _qemu_identity(uuid: str) -> str | None:
    """Name the one QEMU of this machine that was started with a UUID, which libvirt gives each of its own."""
    found = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _has_uuid(int(entry), uuid)]
    try:
        return process.identity(found[0]) if len(found) == 1 else None
    except NotFound:
        return None


def _has_uuid(pid: int, uuid: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return (b"-uuid", uuid.encode()) in pairwise(words) and qemu.is_qemu(pid)
