"""Serving an application over HTTP until a signal comes."""

import socket
from pathlib import Path

import uvicorn
from fastapi import FastAPI

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


def make_server(app: FastAPI, certificate: Path | None, key: Path | None) -> uvicorn.Server:
    """Make a server that speaks TLS if there is a certificate.

    Raises InvalidInput for a certificate or key that cannot be used.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except OSError as error:  # an SSLError is one
        with_key = f"with key {key}" if key else "as the only file, without `key`"
        raise InvalidInput(f"certificate {certificate}", f"cannot be used {with_key}: {error}") from error
    return uvicorn.Server(config)


def serve(server: uvicorn.Server, listening: socket.socket) -> None:
    """Answer until SIGTERM or SIGINT comes, and end what is under way."""
    server.run(sockets=[listening])
