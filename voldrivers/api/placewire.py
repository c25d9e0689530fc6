"""What goes over HTTP between an `AgentPlace` and the agent of its machine: the methods of `Place`, as JSON.

    POST /v1/host/place/open    guest; answers who looks there: a lease, and the name of an instance
    POST /v1/host/place/CALL    lease and the call's own arguments; answers {"answer": ...}

Headers and failures are those of `wire`. A volume is named by its id and the attachment's, never by a path:
the agent knows where it connected it. Each call keeps the lease for `LEASE_S` more; without any the place is
closed.
"""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from voldrivers.api.wire import Call
from voldrivers.errors import NotSupported

PREFIX = "place"
LEASE_S = 900.0
#: Of one request; as base64 it is well below what an agent takes.
MOST_BYTES = 2**18

_Offset = Annotated[int, Field(ge=0, lt=2**63)]
_Length = Annotated[int, Field(ge=1, lt=2**63)]
_Size = Annotated[int, Field(ge=1, le=MOST_BYTES)]
_Text = Annotated[str, Field(max_length=64)]
_File = Annotated[str, Field(pattern=r"^[a-z]{1,16}$")]
_Content = Annotated[str, Field(max_length=MOST_BYTES // 3 * 4 + 4)]
_VOLUME = {"volume_id": _Text, "attachment_id": _Text}


@dataclass(frozen=True)
class Opened:
    """A place that was opened: what its calls must show, and the instance that is there."""

    lease: str
    instance: str | None


@dataclass(frozen=True)
class Outcome:
    """What a device said: bytes as base64, or why it did not."""

    content: str = ""
    refused: str | None = None


#: Arguments, but for the lease, and answer of each call.
_CALLS: dict[str, tuple[dict[str, Any], Any]] = {  # Any: annotations, of types and more
    "device_bytes": (_VOLUME, int),
    "guest_bytes": (_VOLUME, int | None),
    "read": ({**_VOLUME, "offset_bytes": _Offset, "size_bytes": _Size}, Outcome),
    "write": ({**_VOLUME, "offset_bytes": _Offset, "content": _Content}, Outcome),
    "discard": ({**_VOLUME, "offset_bytes": _Offset, "size_bytes": _Length}, None),
    #: None for a file, which has none.
    "sector_bytes": (_VOLUME, tuple[int, int] | None),
    "residue": ({}, list[str]),
    "kernel_log": ({}, list[str]),
    "paths": (_VOLUME, dict[str, int]),
    "begin": ({"what": Literal["letting_go", "stopped"]}, None),
    #: One of `paths`, of a volume that is attached there now.
    "lose": ({**_VOLUME, "path": _Text}, None),
    #: Of a volume that is attached there now; the next ones are of what is mounted.
    "mount": ({**_VOLUME, "fresh": bool}, None),
    "filesystem_bytes": ({}, int),
    "write_file": ({"file": _File, "size_bytes": _Length}, Outcome),
    "check_file": ({"file": _File}, Outcome),
    "grow": ({"online": bool}, Outcome),
    "end": ({"what": Literal["letting_go", "stopped", "lost", "filesystem"]}, None),
    "close": ({}, None),
}
#: Without an answer nothing has happened.
LOOKS = (
    *("device_bytes", "guest_bytes", "read", "sector_bytes", "residue", "kernel_log", "paths"),
    *("filesystem_bytes", "check_file"),
)


@cache
def call(name: str) -> Call:
    """Give the types of a call. Raises NotSupported for one that there is not."""
    if name == "open":
        return Call(name, {"guest": TypeAdapter(bool | None)}, TypeAdapter(Opened))
    if name not in _CALLS:
        raise NotSupported(f"call {name!r:.40} of a place", "there is no such call")
    arguments, answer = _CALLS[name]
    kinds = {"lease": _Text, **arguments}
    return Call(name, {each: TypeAdapter(kind) for each, kind in kinds.items()}, TypeAdapter(answer))
