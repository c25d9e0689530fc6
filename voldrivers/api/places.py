"""Places on this machine and on others: behind a host's agent, or one that is started there over ssh."""

import base64
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from voldrivers.api import placewire, sshagent
from voldrivers.api.placewire import MOST_BYTES, Opened, Outcome
from voldrivers.api.remote import RemoteHost, RemoteOptions
from voldrivers.conformance.places import GuestPlace, LocalPlace
from voldrivers.conformance.subject import Filesystem, Place
from voldrivers.conformance.verdicts import NotApplicable, NotRun
from voldrivers.errors import HostUnreachable, NotSupported, OutcomeUnknown, VolDriverError
from voldrivers.guests.device import DeviceGuest
from voldrivers.guests.machine import QEMU
from voldrivers.host.local import LocalHost, LocalOptions
from voldrivers.model import Attachment, Volume
from voldrivers.options import option
from voldrivers.process import run

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: A socket's path has at most 107 bytes, unix(7).
_LONGEST_DIRECTORY = 56
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True)
class HostTable:
    """A table of a file that names hosts where devices are looked at."""

    name: str = option("what reports call it; an agent's own name where `address` is one's")
    address: str = option(
        "local, ssh://USER@NAME:PORT, or where an agent answers: https://NAME:PORT or http://NAME:PORT",
        "local",
    )
    guest: bool | None = option(
        "whether volumes are seen through a QEMU without a CPU, too; none is where QEMU is installed", None
    )
    token_file: Path | None = option("file with the token of its agent, readable by its owner only", None)
    ca_file: Path | None = option("certificates that vouch for the agent, if not the system's", None)
    certificate: Path | None = option("certificate that we show it, PEM, if it asks for one", None)
    key: Path | None = option("the certificate's key, PEM, if it is not in the same file", None)
    program: str = option(
        "what voldrivers is called there, over ssh: /opt/venv/bin/voldrivers, say", "voldrivers"
    )
    ssh_config: Path | None = option("configuration of ssh, if not the user's own", None)
    connect_timeout_s: float = option("seconds to wait for a connection", 10.0, minimum=1, maximum=3600)
    act_timeout_s: float = option("seconds to wait for the end of an act", 120.0, minimum=1, maximum=3600)
    unplug_timeout_s: float = option(
        "seconds to wait for a guest on this machine to let go of a disk", 15.0, minimum=0.1, maximum=3600
    )

    def __post_init__(self) -> None:
        """Refuse a name or an address that is none, and keys that go with another one."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} must be letters, digits and . _ -, at most 64")
        kind = self.address.partition(":")[0]
        of_agent = {"token_file": self.token_file, "ca_file": self.ca_file}
        of_agent |= {"certificate": self.certificate, "key": self.key}
        if kind in ("http", "https"):
            if self.token_file is None:
                raise ValueError("token_file must be given for a host that has an agent")
            RemoteOptions(self.address, self.token_file)
        elif given := [name for name, value in of_agent.items() if value is not None]:
            raise ValueError(f"{given[0]} is for a host that has an agent, https://NAME:PORT")
        elif kind == "ssh":
            sshagent.Login.of(self.address)
        elif self.address != "local":
            raise ValueError(
                f"address {self.address} must be local, ssh://NAME, https://NAME:PORT or http://..."
            )


def open_place(table: HostTable, directory: Path) -> AbstractContextManager[Place]:
    """Open a place as a table has it; what it needs here is kept below `directory`, and ends with it.

    Raises HostUnreachable, InvalidInput (a token that is refused), NotFound (an agent that lets nobody look),
    InvalidState (another run is there), NotSupported (no QEMU, no voldrivers there), BackendError,
    OutcomeUnknown.
    """
    if table.address == "local":
        return _on_this_machine(table, directory)
    if table.address.startswith("ssh:"):
        return _over_ssh(table, directory)
    return _behind_agent(table)


class PlacedHost(RemoteHost):
    """A host whose agent lets us look past it as well."""

    def ask_place(self, name: str, **arguments: object) -> Any:  # Any: what the call promises, proved by it
        """Make one call of its place. Raises as the other calls do."""
        _ = self._described
        call, limit_s = placewire.call(name), self.options.act_timeout_s
        path = f"{placewire.PREFIX}/{name}"
        try:
            answered = self._exchange_on(self._client, "POST", path, call.write(arguments), limit_s)
        except HostUnreachable as error:
            if name in placewire.LOOKS or isinstance(error.__cause__, _NOT_SENT):
                raise
            raise OutcomeUnknown(f"{name} at {self._title}", error.state) from error
        try:
            return call.answer.validate_python(answered["answer"])
        except (KeyError, ValueError):
            raise self._nonsense(path, "it answered something else") from None


class AgentPlace(Place):
    """A machine behind its agent, which looks there for us."""

    def __init__(self, host: PlacedHost, opened: Opened) -> None:
        """Look through the agent of `host`, at which a place was `opened`."""
        self.host: PlacedHost = host
        self.instance, self._lease = opened.instance, opened.lease
        #: What each path that was seen belongs to.
        self._paths: dict[str, tuple[Volume, Attachment]] = {}

    def device_bytes(self, volume: Volume, attachment: Attachment) -> int:
        return int(self._of("device_bytes", volume, attachment))

    def guest_bytes(self, volume: Volume, attachment: Attachment) -> int | None:
        size_bytes: int | None = self._of("guest_bytes", volume, attachment)
        return size_bytes

    def read(self, volume: Volume, attachment: Attachment, offset_bytes: int, size_bytes: int) -> bytes:
        content = bytearray()
        while len(content) < size_bytes:
            at, some = offset_bytes + len(content), min(MOST_BYTES, size_bytes - len(content))
            read = self._of("read", volume, attachment, offset_bytes=at, size_bytes=some)
            if read.refused is not None:
                raise OSError(read.refused)
            part = base64.b64decode(read.content)
            content += part
            if len(part) < some:
                break
        return bytes(content)

    def write(self, volume: Volume, attachment: Attachment, offset_bytes: int, content: bytes) -> None:
        # The end first: what goes beyond the device's end is refused before anything was written.
        for begin in reversed(range(0, len(content), MOST_BYTES)):
            part = base64.b64encode(content[begin : begin + MOST_BYTES]).decode()
            at = offset_bytes + begin
            written = self._of("write", volume, attachment, offset_bytes=at, content=part)
            if written.refused is not None:
                raise OSError(written.refused)

    def letting_go(self) -> AbstractContextManager[None]:
        return self._context("letting_go")

    def stopped(self) -> AbstractContextManager[None]:
        return self._context("stopped")

    @contextmanager
    def filesystem(self, volume: Volume, attachment: Attachment, *, fresh: bool) -> Iterator[Filesystem]:
        with _not_run():
            self._of("mount", volume, attachment, fresh=fresh)
        try:
            yield _FarFilesystem(self._ask)
        finally:
            self._ask("end", what="filesystem")

    def discard(self, volume: Volume, attachment: Attachment, offset_bytes: int, size_bytes: int) -> None:
        with _not_run():
            self._of("discard", volume, attachment, offset_bytes=offset_bytes, size_bytes=size_bytes)

    def sector_bytes(self, volume: Volume, attachment: Attachment) -> tuple[int, int]:
        with _not_run():
            found: tuple[int, int] | None = self._of("sector_bytes", volume, attachment)
        if found is None:
            raise NotApplicable("a file has no sectors")
        return found

    def kernel_log(self) -> Sequence[str]:
        with _not_run():
            said: list[str] = self._ask("kernel_log")
        return said

    def paths(self, volume: Volume, attachment: Attachment) -> Mapping[str, int]:
        with _not_run():
            found: Mapping[str, int] = self._of("paths", volume, attachment)
        self._paths |= dict.fromkeys(found, (volume, attachment))
        return found

    @contextmanager
    def lost(self, path: str) -> Iterator[None]:
        self._of("lose", *self._paths[path], path=path)
        try:
            yield
        finally:
            self._ask("end", what="lost")

    def residue(self) -> frozenset[str]:
        return frozenset(self._ask("residue"))

    def close(self) -> None:
        """Have the agent end what it has for us. One that is away does so by itself, later."""
        with suppress(VolDriverError):
            self._ask("close")

    @contextmanager
    def _context(self, what: str) -> Iterator[None]:
        if self.instance is None and what == "letting_go":
            yield
            return
        with _not_run():
            self._ask("begin", what=what)
        try:
            yield
        finally:
            self._ask("end", what=what)

    def _of(
        self, name: str, volume: Volume, attachment: Attachment, **more: object
    ) -> Any:  # Any: as ask_place
        return self._ask(name, volume_id=volume.id, attachment_id=attachment.id, **more)

    def _ask(self, name: str, **arguments: object) -> Any:  # Any: as ask_place
        return self.host.ask_place(name, lease=self._lease, **arguments)


@dataclass(frozen=True)
class _FarFilesystem:
    """A file system that an agent has mounted for us."""

    ask: Callable[..., Any]  # Any: as ask_place

    def size_bytes(self) -> int:
        return int(self.ask("filesystem_bytes"))

    def write(self, name: str, size_bytes: int) -> None:
        self._act("write_file", file=name, size_bytes=size_bytes)

    def check(self, name: str) -> None:
        self._act("check_file", file=name)

    def grow(self, *, online: bool) -> None:
        with _not_run():
            self._act("grow", online=online)

    def _act(self, name: str, **arguments: object) -> None:
        outcome: Outcome = self.ask(name, **arguments)
        if outcome.refused is not None:
            raise OSError(outcome.refused)


@contextmanager
def _not_run() -> Iterator[None]:
    """Tell the suite what a place cannot do."""
    try:
        yield
    except NotSupported as error:
        raise NotRun(error.reason) from error


@contextmanager
def _on_this_machine(table: HostTable, directory: Path) -> Iterator[Place]:
    has_qemu = shutil.which(QEMU) is not None
    with _short(directory) as sockets, ExitStack() as ending:
        options = LocalOptions(qmp_dir=sockets, unplug_timeout_s=table.unplug_timeout_s)
        host = LocalHost(table.name, options, run)
        if table.guest is False or (table.guest is None and not has_qemu):
            yield LocalPlace(host)
            return
        guest = DeviceGuest(sockets, f"conformance-{secrets.token_hex(4)}")
        yield GuestPlace(host, ending.enter_context(guest))


@contextmanager
def _behind_agent(
    table: HostTable, options: RemoteOptions | None = None, socket: Path | None = None
) -> Iterator[Place]:
    if options is None:
        assert table.token_file is not None
        options = RemoteOptions(table.address, table.token_file, table.ca_file, table.certificate, table.key)
    limits = replace(options, connect_timeout_s=table.connect_timeout_s, act_timeout_s=table.act_timeout_s)
    host = PlacedHost(table.name, limits, run)
    host.socket = socket
    place = AgentPlace(host, host.ask_place("open", guest=table.guest))
    try:
        yield place
    finally:
        place.close()


@contextmanager
def _over_ssh(table: HostTable, directory: Path) -> Iterator[Place]:
    login = replace(
        sshagent.Login.of(table.address),
        program=table.program,
        config=table.ssh_config,
        connect_timeout_s=table.connect_timeout_s,
    )
    with (
        _short(directory) as own,
        sshagent.started(login, table.name, own, guests=table.guest is not False) as reached,
        _behind_agent(table, RemoteOptions(reached.url, reached.token_file), reached.socket) as place,
    ):
        yield place


@contextmanager
def _short(directory: Path) -> Iterator[Path]:
    """Make a directory of our own for sockets: below `directory` if that leaves room for their names."""
    below = directory if len(bytes(directory.absolute())) < _LONGEST_DIRECTORY else None
    with tempfile.TemporaryDirectory(prefix="voldrivers-", dir=below) as made:
        yield Path(made)
