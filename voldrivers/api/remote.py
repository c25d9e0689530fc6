"""A host on another machine, reached through its agent over HTTP."""

import json
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from voldrivers.abilities import Layers, Merge
from voldrivers.api import events, tracing, wire
from voldrivers.api.client import context
from voldrivers.base import Host
from voldrivers.errors import (
    BackendError,
    HostUnreachable,
    InvalidInput,
    OutcomeUnknown,
    VolDriverError,
    from_document,
)
from voldrivers.model import (
    Attachment,
    ConnectionInfo,
    Connector,
    Extend,
    InstanceState,
    Ledger,
    Volume,
    utc_now,
)
from voldrivers.options import option

_LONGEST_ANSWER = 2**22
#: What a connection that was kept too long ends with.
_BROKEN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


@dataclass(frozen=True)
class RemoteOptions:
    """What an operator may say about a host that has an agent."""

    url: str = option("where its agent answers, https://NAME:PORT or http://NAME:PORT")
    token_file: Path = option("file with the token of its agent, readable by its owner only")
    ca_file: Path | None = option("certificates that vouch for the agent, if not the system's", None)
    certificate: Path | None = option("certificate that we show it, PEM, if it asks for one", None)
    key: Path | None = option("the certificate's key, PEM, if it is not in the same file", None)
    known_as: str | None = option("name by which Cinder and Nova know it, if it is not this one", None)
    connect_timeout_s: float = option("seconds to wait for a connection", 5.0, minimum=0.1, maximum=3600)
    look_timeout_s: float = option("seconds to wait for an answer to a look", 30.0, minimum=0.1, maximum=3600)
    act_timeout_s: float = option(
        "seconds to wait for the end of an act, such as connecting", 120.0, minimum=0.1, maximum=3600
    )
    events_url: str | None = option(
        "where server events are sent, https://NAME:PORT/v2.1/PROJECT, if extends are to go that way", None
    )
    hold_s: float = option(
        "seconds after which a host lets go of an instance that we had it hold",
        900.0,
        minimum=1,
        maximum=wire.LONGEST_LEASE_S,
    )

    def __post_init__(self) -> None:
        """Refuse what is no address of an agent."""
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ValueError(f"url {self.url}: {error}") from error
        plain = url.raw_path == b"/" and not url.userinfo and not url.fragment and (url.port or 0) < 2**16
        if url.scheme not in ("http", "https") or not url.host or not plain:
            raise ValueError(f"url {self.url} must be https://NAME:PORT or http://NAME:PORT")


class RemoteHost(Host, Layers):
    """Another machine. Without an answer an act has an unknown outcome; a look, or nothing sent, has none."""

    options_type = RemoteOptions
    options: RemoteOptions
    #: A socket on this machine that leads to the agent, in the place of the address in `url`.
    socket: Path | None = None
    #: Whether the token was refused: it may have been put right since.
    _is_refused = False

    def check_configuration(self) -> None:
        """Refuse a token or certificates that cannot be used."""
        _ = self._client

    @cached_property
    def version(self) -> int:  # type: ignore[override]  # it is the agent's, asked for once
        """Give the protocol level of the agent. Raises HostUnreachable."""
        return int(self._described["version"])

    def connector(self) -> Connector:
        """Ask the machine, and give it the name that it has here."""
        connector: Connector = self._ask("connector")
        return replace(connector, host=self.name)

    def find_instance(self, attachment: Attachment) -> Attachment:
        found: Attachment = self._ask("find_instance", attachment=attachment)
        return found

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        path: str = self._ask(
            "connect", volume=volume, attachment=attachment, connection_info=connection_info
        )
        return path

    def disconnect(self, volume: Volume, attachment: Attachment) -> None:
        self._ask("disconnect", volume=volume, attachment=attachment)

    def plug(self, volume: Volume, attachment: Attachment) -> None:
        self._ask("plug", volume=volume, attachment=attachment)

    def unplug(self, volume: Volume, attachment: Attachment) -> None:
        self._ask("unplug", volume=volume, attachment=attachment)

    def ledger_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        rows: Ledger = self._ask(
            "ledger_rows", volume=volume, attachment=attachment, expected_bytes=expected_bytes
        )
        return rows

    def instance_state(self, attachment: Attachment) -> InstanceState:
        """Ask the machine; one that does not answer leaves it UNKNOWN."""
        try:
            state: InstanceState = self._ask("instance_state", attachment=attachment)
        except VolDriverError:
            return InstanceState.UNKNOWN
        return state

    @contextmanager
    def hold(self, attachment: Attachment) -> Iterator[None]:
        """Hold the instance there, for `hold_s` at most: OutcomeUnknown at the end if that was too short."""
        lease: str = self._ask("hold", attachment=attachment, lease_s=self.options.hold_s)
        try:
            yield
        except BaseException:
            self._release(lease)
            raise
        if not self._release(lease):
            what = f"what was done while instance {attachment.place} was held"
            raise OutcomeUnknown(
                what, f"its host let go of it, after {self.options.hold_s:g} seconds perhaps"
            )

    def check_extend(self, volume: Volume, attachment: Attachment) -> None:
        self._ask("check_extend", volume=volume, attachment=attachment)

    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        self._ask("rescan", volume=volume, attachment=attachment)

    def get_blockdev(self, volume: Volume, attachment: Attachment) -> int:
        size_bytes: int = self._ask("get_blockdev", volume=volume, attachment=attachment)
        return size_bytes

    @property
    def assists_later(self) -> bool:  # type: ignore[override]  # it is as configured
        """Tell whether extends go by events."""
        return self.options.events_url is not None

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        """Ask its agent; or send the event `volume-extended`, which whoever gets it carries out by and by.

        Raises InvalidState, HostUnreachable for an event that was refused. One whose answer is lost may be
        taken: who waits looks.
        """
        if self.assists_later:
            self._send_event(volume, attachment, extend)
            return
        self._ask("assist_extend", volume=volume, attachment=attachment, extend=extend)

    def switch(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        path: str = self._ask("switch", volume=volume, attachment=attachment, connection_info=connection_info)
        return path

    def merge(self, volume: Volume, attachment: Attachment, merge: Merge) -> int:
        left_bytes: int = self._ask("merge", volume=volume, attachment=attachment, merge=merge)
        return left_bytes

    def cancel(self, extend: Extend, attachment: Attachment) -> None:
        self._ask("cancel", extend=extend, attachment=attachment)

    def _send_event(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        options = self.options
        limits = httpx.Timeout(options.look_timeout_s, connect=options.connect_timeout_s)
        sender = events.Sender(self._client, f"{options.events_url}/os-server-external-events", limits)
        try:
            sender.volume_extended(volume, attachment, _headers(extend.expires_at.isoformat()), extend)
        except HostUnreachable as error:
            raise HostUnreachable(self._title, error.state, "up, with its agent", host=self.name) from error

    def _release(self, lease: str) -> bool:
        try:
            return bool(self._ask("release", lease=lease))
        except VolDriverError:
            return False

    def _ask(self, name: str, **arguments: object) -> Any:  # Any: what the method promises, proved by `call`
        """Make one call. Raises what the host raises; HostUnreachable when nothing was sent."""
        _ = self._described
        call = wire.call(name)
        limit_s = self.options.act_timeout_s if name in wire.ACTS else self.options.look_timeout_s
        answered = self._exchange("POST", name, call.write(arguments), limit_s)
        try:
            return call.answer.validate_python(answered["answer"])
        except (KeyError, ValueError):
            # Not as its cause: that would show the answer, and there are secrets in it.
            raise self._nonsense(name, "it answered something else") from None

    @cached_property
    def _described(self) -> wire.Body:
        """What the agent says of itself; that of another machine is refused."""
        described = self._exchange("GET", "", None, self.options.look_timeout_s)
        name, version = described.get("name"), described.get("version")
        if not isinstance(name, str) or not isinstance(version, int):
            raise BackendError(self._title, "it is no agent of a host: it gave neither name nor version")
        if name != self.name:
            raise InvalidInput(self._title, f"the agent there is that of host {name}")
        return described

    def _exchange(self, method: str, name: str, body: wire.Body | None, limit_s: float) -> wire.Body:
        """Send and receive; an act on a connection of its own.

        One that is kept may have been closed by the agent meanwhile: then nobody can tell whether what was
        sent on it was done (RFC 9112, 9.3.1), though the agent is well. A look is sent once more then.
        """
        if name in wire.LOOKS:
            try:
                return self._exchange_on(self._kept, method, name, body, limit_s)
            except HostUnreachable as error:
                if not isinstance(error.__cause__, _BROKEN):
                    raise
        return self._exchange_on(self._client, method, name, body, limit_s)

    def _exchange_on(
        self, client: httpx.Client, method: str, name: str, body: wire.Body | None, limit_s: float
    ) -> wire.Body:
        if self._is_refused:
            for each in (self._client, self._kept):
                each.headers["Authorization"] = self._authorization
            self._is_refused = False
        began, expires_at = time.monotonic(), utc_now() + timedelta(seconds=limit_s)
        try:
            with client.stream(
                method,
                f"{wire.PATH}/{name}" if name else wire.PATH,
                content=None if body is None else json.dumps(body).encode(),
                headers=_headers(expires_at.isoformat()),
                timeout=httpx.Timeout(limit_s, connect=self.options.connect_timeout_s),
            ) as answer:
                content = _received(answer, began + limit_s)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            state = f"unreachable ({error or 'no answer'})"
            raise HostUnreachable(self._title, state, "up, with its agent", host=self.name) from error
        except httpx.HTTPError as error:
            reason = f"no answer: {str(error) or type(error).__name__}"
            if isinstance(error, _BROKEN) and self.options.url.startswith("https:"):
                reason += (
                    "; so ends, too, who shows an agent no certificate that its client_ca_file vouches for"
                )
            if name in wire.ACTS:
                raise OutcomeUnknown(f"{name} at {self._title}", reason) from error
            raise HostUnreachable(self._title, f"not answering ({reason})", "up", host=self.name) from error
        return self._read(name, answer, content)

    def _read(self, name: str, answer: httpx.Response, content: bytes) -> wire.Body:
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            self._is_refused = True
            raise InvalidInput(self._title, f"it refuses the token in {self.options.token_file}")
        try:
            document = json.loads(content)
            failure = None if answer.is_success else from_document(document["error"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._nonsense(name, f"status {answer.status_code} without a reason") from None
        if failure is not None:
            raise failure
        if not isinstance(document, dict):
            raise self._nonsense(name, "it answered something else")
        return document

    def _nonsense(self, name: str, reason: str) -> VolDriverError:
        """Say that an agent would not answer so: one behind whoever did may have got an act all the same."""
        if name in wire.ACTS:
            return OutcomeUnknown(f"{name} at {self._title}", f"no answer of an agent: {reason}")
        asked = f"asked for {name}" if name else "asked who it is"
        return BackendError(self._title, f"{asked}, gave no answer of an agent: {reason}")

    @property
    def _authorization(self) -> str:
        return f"Bearer {wire.read_token(self.options.token_file)}"

    @cached_property
    def _kept(self) -> httpx.Client:
        """Make the client whose connections are kept: a handshake costs more than a look."""
        kept = self._connecting()
        del kept.headers["Connection"]
        weakref.finalize(self, kept.close)
        return kept

    @cached_property
    def _client(self) -> httpx.Client:
        return self._connecting()

    def _connecting(self) -> httpx.Client:
        headers = {
            "Authorization": self._authorization,
            "Accept-Encoding": "identity",
            "Connection": "close",
            "Content-Type": "application/json",
        }
        ca_file = self.options.ca_file
        # No proxy of the environment: the token is for the agent alone.
        verify = context(ca_file, self.options.certificate, self.options.key)
        transport = None if self.socket is None else httpx.HTTPTransport(uds=str(self.socket))
        return httpx.Client(
            base_url=self.options.url, headers=headers, verify=verify, trust_env=False, transport=transport
        )

    @property
    def _title(self) -> str:
        return f"host {self.name} at {self.options.url}"


def _received(answer: httpx.Response, until: float) -> bytes:
    """Take an answer whole, but neither one without an end nor one that takes forever."""
    content = bytearray()
    for part in answer.iter_raw():
        content += part
        if len(content) > _LONGEST_ANSWER:
            raise httpx.ReadError("the answer does not end")
        if time.monotonic() > until:
            raise httpx.ReadTimeout("the answer does not end in time")
    return bytes(content)


def _headers(expires_at: str) -> dict[str, str]:
    headers = {wire.EXPIRES: expires_at, wire.LEVEL: str(Host.version)}
    if request_id := tracing.request_id.get():
        headers[tracing.HEADER] = request_id
    return headers
