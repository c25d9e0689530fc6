"""Serving an application over HTTP until a signal comes."""

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from voldrivers.api.access import is_loopback
from voldrivers.api.guard import App
from voldrivers.errors import InvalidInput

#: What is under way when a signal comes may take so long to end.
_GRACE_S = 120
_QUEUED = 128


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
    try:
        return socket.create_server((address, port), family=family, backlog=_QUEUED)
    except (OSError, ValueError) as error:  # ValueError: no name of a host (encodings.idna), a NUL in it
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
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
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
