"""What goes over HTTP between a `RemoteHost` and the agent of its machine: the calls of `Host`, as JSON.

    GET  /v1/host               name and protocol version
    POST /v1/host/CALL          its arguments by name; answers {"answer": ...}
    POST /v1/host/hold          attachment and lease_s; answers {"answer": LEASE}
    POST /v1/host/release       lease; answers {"answer": whether it was still held}

Each request bears `Authorization: Bearer TOKEN`, in `Voldrivers-Expires` the time after which it must not be
begun (a release may be), and in `Voldrivers-Level` the protocol level that it needs. A failure answers the
status of `STATUS` and {"error": ...} as `errors.to_document` writes it.
"""

import inspect
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter

from voldrivers.abilities import Layers
from voldrivers.base import Host
from voldrivers.errors import (
    BackendError,
    CommandFailed,
    HostUnreachable,
    InvalidInput,
    InvalidSize,
    InvalidState,
    NoSpace,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.model import Attachment

#: Those that change nothing: without an answer nothing has happened.
LOOKS = ("connector", "find_instance", "ledger_rows", "instance_state", "check_extend", "get_blockdev")
#: Those that change something, one at a time for a volume.
ACTS = (
    "connect",
    "disconnect",
    "plug",
    "unplug",
    "rescan",
    "assist_extend",
    "switch",
    "merge",
    "cancel",
)

#: `Host.hold` is a context; over HTTP it is a lease, of so many seconds at most.
LEASES, LONGEST_LEASE_S = ("hold", "release"), 3600.0
PATH, EXPIRES, LEVEL = "/v1/host", "Voldrivers-Expires", "Voldrivers-Level"
#: The number of the extend that a request of Nova's specifications belongs to.
EXTEND = "Voldrivers-Extend"

#: How an error is told over HTTP, as the specification of the host agent has it.
STATUS: Mapping[type[VolDriverError], int] = {
    InvalidInput: 400,
    InvalidSize: 400,
    NotFound: 404,
    InvalidState: 409,
    HostUnreachable: 409,
    NotSupported: 501,
    NoSpace: 500,
    BackendError: 500,
    CommandFailed: 500,
    OutcomeUnknown: 500,
}

#: Shorter ones can be guessed.
_LEAST_TOKEN = 16

Body = Mapping[str, Any]  # Any: what JSON holds


@dataclass(frozen=True)
class Call:
    """The types of one call."""

    name: str
    arguments: Mapping[str, TypeAdapter[Any]]  # Any: as the method has them
    answer: TypeAdapter[Any]  # Any: as the method has it

    def write(self, arguments: Body) -> Body:
        """Write the arguments."""
        return {name: _written(kind, arguments[name]) for name, kind in self.arguments.items()}

    def write_answer(self, answer: object) -> object:
        """Write what the method gave."""
        return _written(self.answer, answer)

    def read(self, body: Body) -> Body:
        """Read the arguments. Raises InvalidInput, which shows nothing of them: secrets are among them."""
        try:
            return {name: kind.validate_python(body[name]) for name, kind in self.arguments.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"request {self.name}", "its arguments make no sense") from (
                error if isinstance(error, KeyError) else None
            )


@cache
def call(name: str) -> Call:
    """Give the types of a call, out of the annotations of `Host`."""
    if name == "hold":
        lease_s = Annotated[float, Field(gt=0, le=LONGEST_LEASE_S)]
        return Call(name, _types(attachment=Attachment, lease_s=lease_s), TypeAdapter(str))
    if name == "release":
        return Call(name, _types(lease=str), TypeAdapter(bool))
    method = getattr(Host, name, None) or getattr(Layers, name)
    hints = get_type_hints(method)
    names = [parameter for parameter in inspect.signature(method).parameters if parameter != "self"]
    return Call(name, _types(**{each: hints[each] for each in names}), TypeAdapter(hints["return"]))


def status(error: VolDriverError) -> int:
    """Give the HTTP status of an error, of a class that a vendor derived as well."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def read_token(file: Path) -> str:
    """Read the secret that both ends have. Raises InvalidInput for one missing, short, or open to others."""
    subject = f"token file {file}"
    try:
        mode, token = file.stat().st_mode, file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            subject, f"cannot be read: {getattr(error, 'strerror', 'it is not UTF-8')}"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InvalidInput(subject, f"others may read it: chmod 600 {file}")
    if len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        make = f"umask 077; openssl rand -hex 32 >{file}"
        raise InvalidInput(subject, f"must hold one word of at least {_LEAST_TOKEN} characters: {make}")
    return token


def _written(kind: TypeAdapter[Any], value: object) -> object:  # Any: as its method has it
    # A MappingProxyType is unknown to pydantic.
    return kind.dump_python(value, mode="json", fallback=dict, warnings=False)


def _types(**kinds: Any) -> Mapping[str, TypeAdapter[Any]]:  # Any: annotations, of types and more
    return {name: TypeAdapter(kind) for name, kind in kinds.items()}
