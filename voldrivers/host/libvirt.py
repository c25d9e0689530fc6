"""libvirt: talk to the daemon that owns QEMUs, within time limits.

The only home of libvirt-python, whose calls wait for ever: each one is given up when its time is over.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from voldrivers import plugins
from voldrivers.errors import (
    BackendError,
    InvalidState,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.host.limited import within

Result = TypeVar("Result")

#: What libvirt says when a QEMU goes that was to answer (src/qemu/qemu_monitor.c).
_BROKEN = ("End of file from qemu monitor", "Unable to read from monitor", "Unable to write to monitor")
#: What a refusal of libvirt means, by the names of its codes (virErrorNumber in virterror.h). All else is
#: BackendError, and what the transport says (VIR_FROM_RPC) of an act is OutcomeUnknown.
_CODES = {
    NotFound: ("NO_DOMAIN",),
    NotSupported: (
        "NO_SUPPORT",
        "CONFIG_UNSUPPORTED",
        "ARGUMENT_UNSUPPORTED",
        "OPERATION_UNSUPPORTED",
        "NO_CONNECT",
    ),
    InvalidState: (
        "OPERATION_INVALID",  # "domain is not running"
        "OPERATION_TIMEOUT",  # "cannot acquire state change lock": nothing was begun
        "OPERATION_DENIED",
        "ACCESS_DENIED",
        "AUTH_FAILED",
        "AUTH_CANCELLED",
        "AUTH_UNAVAILABLE",
        "BLOCK_COPY_ACTIVE",
        "RESOURCE_BUSY",
        "DEVICE_MISSING",
        "AGENT_UNRESPONSIVE",
        "AGENT_UNSYNCED",
    ),
}


@dataclass(frozen=True)
class DomainState:
    """What libvirt knows of a domain: one word for its state, one for the reason, both libvirt's own."""

    state: str
    reason: str

    def __str__(self) -> str:
        """Say both."""
        return f"{self.state} ({self.reason})" if self.reason else self.state


class Connection:
    """One connection to a libvirt daemon, open inside a `with` block.

    Entering raises InvalidState when nobody answers at `uri` within `timeout_s`, NotSupported without the
    library.
    """

    def __init__(self, uri: str, timeout_s: float) -> None:
        """Take the connection's URI and the limit for connecting and for each look."""
        self.uri, self.timeout_s = uri, timeout_s
        self.module = _library()

    def __enter__(self) -> Self:
        """Connect."""
        try:
            self._handle = self._within(lambda: self.module.open(self.uri), self.timeout_s)
        except TimeoutError as error:
            raise self._silent() from error
        except self.module.libvirtError as error:
            state = f"unreachable ({error.get_error_message()})"
            raise InvalidState(f"libvirt at {self.uri}", state, "reachable") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect, whatever happened; where a call hangs, its thread does so in the end."""
        with suppress(TimeoutError, self.module.libvirtError):
            self._within(self._handle.close, self.timeout_s)

    def domain(self, name: str) -> "Domain":
        """Find a domain by its UUID or by its name. Raises NotFound, InvalidState."""
        find = partial(self._handle.lookupByName, name)
        with suppress(NotFound, ValueError):
            find_by_uuid = partial(self._handle.lookupByUUIDString, str(UUID(name)))
            return Domain(self, self.look(find_by_uuid, f"domain {name}"))
        return Domain(self, self.look(find, f"domain {name}"))

    def look(self, call: Callable[[], Result], subject: str) -> Result:
        """Run a call that changes nothing. Raises what libvirt's refusal means, InvalidState in silence."""
        try:
            return self._within(call, self.timeout_s)
        except TimeoutError as error:
            raise self._silent() from error
        except self.module.libvirtError as error:
            if self._is_lost(error):
                state = f"not answering ({error.get_error_message()})"
                raise InvalidState(f"libvirt at {self.uri}", state, "answering") from error
            raise self._refusal(error, subject) from error

    def act(self, call: Callable[[], Result], what: str, limit_s: float) -> Result:
        """Run a call that changes something. Raises what a refusal means, OutcomeUnknown in silence."""
        try:
            return self._within(call, limit_s)
        except TimeoutError as error:
            raise OutcomeUnknown(what, f"libvirt did not answer within {limit_s:g} seconds") from error
        except self.module.libvirtError as error:
            if self._is_lost(error):
                reason = f"the connection to libvirt broke: {error.get_error_message()}"
                raise OutcomeUnknown(what, reason) from error
            raise self._refusal(error, what) from error

    def _within(self, call: Callable[[], Result], limit_s: float) -> Result:
        return within(call, limit_s, self.module.libvirtError)

    def _is_lost(self, error: Any) -> bool:  # Any: libvirtError, which has no types
        """Tell whether the transport failed, so that the daemon's own answer is not known."""
        return bool(error.get_error_domain() == self.module.VIR_FROM_RPC or not self._handle.isAlive())

    def _silent(self) -> InvalidState:
        silent = f"silent for {self.timeout_s:g} seconds: frozen or overloaded"
        return InvalidState(f"libvirt at {self.uri}", silent, "answering")

    def _refusal(self, error: Any, subject: str) -> VolDriverError:  # Any: as above
        said, code = str(error.get_error_message()), error.get_error_code()
        kind = next((k for k, names in _CODES.items() if code in self._numbers(names)), BackendError)
        if kind is NotFound:
            return NotFound(*subject.partition(" ")[::2], f" at libvirt {self.uri}")
        if kind is NotSupported:
            return NotSupported(subject, said)
        if kind is InvalidState:
            return InvalidState(subject, f"refused by libvirt ({said})", "free for it")
        return BackendError(subject, said)

    def _numbers(self, names: Sequence[str]) -> list[int]:
        return [getattr(self.module, f"VIR_ERR_{name}") for name in names]


class Domain:
    """One domain, by libvirt's own handle; its name and its UUID do not change."""

    def __init__(self, connection: Connection, handle: Any) -> None:  # Any: virDomain, which has no types
        """Take the handle, which holds name and UUID without asking anybody."""
        self.connection, self._handle = connection, handle
        self._module = connection.module
        self.name, self.uuid = str(handle.name()), str(handle.UUIDString())
        self.title = f"domain {self.name}"

    def state(self) -> DomainState:
        """Give its state. Raises as every look: InvalidState, BackendError."""
        state, reason = self._look(self._handle.state)
        word = self._word("VIR_DOMAIN_", state, _STATES)
        return DomainState(word, self._word(f"VIR_DOMAIN_{word.upper()}_", reason))

    def is_active(self) -> bool:
        """Tell whether it has a QEMU now."""
        return bool(self._look(self._handle.isActive))

    def job(self) -> str:
        """Name what is under way with the whole domain (migration, save, dump, backup); "" for nothing."""
        stats = self._look(self._handle.jobStats)
        kind = stats.get("type", self._module.VIR_DOMAIN_JOB_NONE)
        if kind == self._module.VIR_DOMAIN_JOB_NONE:
            return ""
        return self._word("VIR_DOMAIN_JOB_OPERATION_", stats.get("operation", 0)) + " job"

    def block_job(self, target: str) -> str:
        """Name what is under way with a disk (copy, commit, pull); "" for nothing."""
        found = self._look(lambda: self._handle.blockJobInfo(target))
        return self._word("VIR_DOMAIN_BLOCK_JOB_TYPE_", found["type"]) + " job" if found else ""

    def xml(self) -> str:
        """Give its description as it is now."""
        return str(self._look(self._handle.XMLDesc))

    def size_bytes(self, target: str) -> int:
        """Give the size that QEMU has for a disk. Raises InvalidState when there is no QEMU.

        Of the three figures of virDomainGetBlockInfo the first, the capacity, is QEMU's `virtual-size` of
        query-named-block-nodes (libvirt 9.0, qemuDomainGetBlockInfo and qemuDomainBlocksStatsGather in
        qemu_driver.c), but only while there is a QEMU: else it is libvirt's own reading of the file, as the
        physical size is always. So the domain is looked at once more, afterwards.
        """
        size_bytes = int(self._look(lambda: self._handle.blockInfo(target))[0])
        if not self.is_active():
            raise InvalidState(self.title, "shut off", "running")
        return size_bytes

    def resize(self, target: str, size_bytes: int, limit_s: float) -> None:
        """Have QEMU resize a disk; in bytes, as libvirt counts in KiB without the flag.

        Raises BackendError with QEMU's words and the other errors of `Connection.act`.
        """
        flags = self._module.VIR_DOMAIN_BLOCK_RESIZE_BYTES
        what = f"resize of {target} in {self.title}"
        self._act_in_qemu(lambda: self._handle.blockResize(target, size_bytes, flags), what, limit_s)

    def lay_over(self, snapshot: str, limit_s: float) -> None:
        """Have disks go on in overlays that are there, all or none. Raises as `resize`.

        libvirt then knows what to give the next QEMU; it keeps no snapshot of its own.
        """
        names = ("DISK_ONLY", "REUSE_EXT", "NO_METADATA", "ATOMIC")
        flags = sum(getattr(self._module, f"VIR_DOMAIN_SNAPSHOT_CREATE_{name}") for name in names)
        what = f"laying an overlay over a disk of {self.title}"
        self._act_in_qemu(lambda: self._handle.snapshotCreateXML(snapshot, flags), what, limit_s)

    def attach(self, disk: str, limit_s: float) -> None:
        """Give the running domain a disk. Raises as `Connection.act`."""
        live = self._module.VIR_DOMAIN_AFFECT_LIVE
        self._act(lambda: self._handle.attachDeviceFlags(disk, live), f"attaching to {self.title}", limit_s)

    def detach(self, disk: str, limit_s: float) -> None:
        """Ask the guest for a disk; libvirt waits some seconds and then says no more than that it asked.

        Raises as `Connection.act`.
        """
        live = self._module.VIR_DOMAIN_AFFECT_LIVE
        self._act(lambda: self._handle.detachDeviceFlags(disk, live), f"detaching from {self.title}", limit_s)

    def is_marked(self, mark: str) -> bool:
        """Tell whether the running domain bears a mark of ours."""
        element, live = self._module.VIR_DOMAIN_METADATA_ELEMENT, self._module.VIR_DOMAIN_AFFECT_LIVE
        none = self._module.VIR_ERR_NO_DOMAIN_METADATA

        def find() -> bool:
            try:
                return bool(self._handle.metadata(element, mark, live))
            except self._module.libvirtError as error:
                if error.get_error_code() == none:
                    return False
                raise

        return self._look(find)

    def set_mark(self, mark: str, *, present: bool, limit_s: float) -> None:
        """Put a mark on the running domain or take it off; it outlives the daemon, not the QEMU.

        A modifying job, so it returns after the end of those that were begun before. Raises as a look:
        a mark that may be there or not does no harm.
        """
        element, live = self._module.VIR_DOMAIN_METADATA_ELEMENT, self._module.VIR_DOMAIN_AFFECT_LIVE
        text = "<mark/>" if present else None
        what = f"marking {self.title}"
        try:
            set_it = partial(self._handle.setMetadata, element, text, "voldrivers", mark, live)
            self._act(set_it, what, limit_s)
        except OutcomeUnknown as error:
            raise InvalidState(self.title, f"not answering ({error.reason})", "answering") from error

    def ask_agent(
        self, command: str, arguments: dict[str, object], timeout_s: float
    ) -> Any:  # Any: each command has its own reply
        """Run a command of the agent in the guest and give its reply. Raises as a look."""
        import libvirt_qemu

        request = json.dumps({"execute": command, "arguments": arguments})
        limit_s = max(1, round(timeout_s))
        answer = self._look(lambda: libvirt_qemu.qemuAgentCommand(self._handle, request, limit_s, 0))
        return json.loads(answer)["return"]

    def _act_in_qemu(self, call: Callable[[], object], what: str, limit_s: float) -> None:
        try:
            self._act(call, what, limit_s)
        except (BackendError, InvalidState) as error:
            # A QEMU that died of it may have done it; libvirt may not know yet why its monitor is silent.
            if any(each in str(error) for each in _BROKEN) or self._has_ended():
                raise OutcomeUnknown(what, f"its QEMU ended: {error}") from error
            raise

    def _has_ended(self) -> bool:
        try:
            return not self.is_active()
        except InvalidState:
            return True

    def _look(self, call: Callable[[], Result]) -> Result:
        try:
            return self.connection.look(call, self.title)
        except NotFound as error:
            raise self._gone() from error

    def _act(self, call: Callable[[], object], what: str, limit_s: float) -> None:
        try:
            self.connection.act(call, what, limit_s)
        except NotFound as error:
            raise self._gone() from error

    def _gone(self) -> InvalidState:
        return InvalidState(self.title, "gone", "running")

    def _word(self, prefix: str, number: int, among: tuple[str, ...] = ()) -> str:
        """Give libvirt's name of a number, from its constants of one kind."""
        names: dict[str, object] = vars(self._module)
        for name, value in names.items():
            word = name.removeprefix(prefix).lower()
            if value == number and name.startswith(prefix) and (not among or word in among):
                return word.replace("_", " ")
        return str(number)


_STATES = ("nostate", "running", "blocked", "paused", "shutdown", "shutoff", "crashed", "pmsuspended")


def _library() -> Any:  # Any: the library has no types
    """Import libvirt, and keep it from printing to stderr what it raises as well."""
    try:
        import libvirt
    except ModuleNotFoundError as error:
        raise plugins.missing_library(error) from error
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt
