"""Serving an application over HTTP until a signal comes."""

import asyncio
import errno
import os
import resource
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from voldrivers.api.access import is_loopback
from voldrivers.api.guard import App
from voldrivers.errors import InvalidInput

#: What is under way when a signal comes may take so long to end.
_GRACE_S = 120
_QUEUED = 128
#: A request's header, and the TLS handshake before it, must have come by then.
_HEADER_S = 20.0
#: A client may think for so long between two requests. A limit that is near to what one waits (glance_store:
#: 4 to 15 s) has its next request meet the end of the connection.
_KEPT_S = 75
#: Connections may take so many files, so that programs, records and locks find some.
_MOST_FILES = 800


class _Listener(socket.socket):
    """Turns newcomers away while connections take so many files that work would find none."""

    def accept(self) -> tuple[socket.socket, object]:
        """Take a connection. Raises ConnectionAbortedError, which a server takes as one that has gone."""
        connected, address = super().accept()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(os.listdir("/proc/self/fd")) > min(_MOST_FILES, soft * 3 // 4):
            connected.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "too many connections")
        return connected, address


class _Connection(H11Protocol):
    """Closes a connection whose request does not begin in time; its body is the guard's."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(_HEADER_S, self.transport.close)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def parse_address(text: str) -> tuple[str, int]:
    """Read ADDRESS:PORT, an IPv6 address in brackets. Raises ValueError."""
    address, colon, port = text.rpartition(":")
    is_v6 = address.startswith("[") and address.endswith("]")
    if not colon or not address or not port.isdecimal() or int(port) >= 2**16 or (":" in address) != is_v6:
        raise ValueError(f"{text} must be ADDRESS:PORT, such as 192.0.2.1:9871 or [2001:db8::1]:9871")
    return address.strip("[]"), int(port)


def listen(address: str, port: int) -> socket.socket:
    """Take an address, so that whoever asks after this is answered. Raises InvalidInput."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # With its protocol: without it asyncio leaves Nagle's algorithm on, and each answer waits for 40 ms.
    listening = _Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((address, port))
        listening.listen(_QUEUED)
        return listening
    except (OSError, ValueError) as error:  # ValueError: no name of a host (encodings.idna), a NUL in it
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(f"address {address}, port {port}", f"cannot be listened on: {reason}") from error


@dataclass(frozen=True)
class Identity:
    """What a server shows its clients, and by what it tells them: certificates, PEM."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca_file: Path | None = None


def check_exposed(address: str, identity: Identity, *, has_tokens: bool) -> None:
    """Refuse an address that others reach without a token and TLS. Raises InvalidInput."""
    if is_loopback(address):
        return
    subject = f"address {address}"
    if not has_tokens:
        raise InvalidInput(subject, "is reached by others, so callers with tokens are needed")
    if identity.certificate is None:
        raise InvalidInput(
            subject, "is reached by others, so a certificate is needed: tokens and secrets pass"
        )


def make_server(app: App, identity: Identity) -> uvicorn.Server:
    """Make a server that speaks TLS if there is a certificate, to clients who show one if there is their CA.

    Raises InvalidInput for a certificate or key that cannot be used.
    """
    certificate, key, client_ca = identity.certificate, identity.key, identity.client_ca_file
    if client_ca is not None and certificate is None:
        raise InvalidInput(f"client_ca_file {client_ca}", "needs a certificate of our own")
    config = uvicorn.Config(
        app,
        http=_Connection,
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=_KEPT_S,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        ssl_ca_certs=None if client_ca is None else str(client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if client_ca is None else ssl.CERT_REQUIRED,
    )
    try:
        config.load()
    except OSError as error:  # an SSLError is one
        with_key = f"with key {key}" if key else "as the only file, without `key`"
        with_ca = f" and client_ca_file {client_ca}" if client_ca else ""
        reason = f"cannot be used {with_key}{with_ca}: {error}"
        raise InvalidInput(f"certificate {certificate}", reason) from error
    return uvicorn.Server(config)


def serve(server: uvicorn.Server, listening: socket.socket) -> None:
    """Answer until SIGTERM or SIGINT comes, and end what is under way."""
    server.run(sockets=[listening])
