"""Who calls: tokens and the roles they stand for. Compared in constant time, kept in files of their owner."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

#: Each role includes those after it.
ROLES = ("admin", "member", "reader")
#: What a project is called in a URL; Cinder's clients ask for hexadecimal ones, others for a name.
PROJECT = r"[0-9A-Za-z_-]{1,64}"


@dataclass(frozen=True)
class Caller:
    """Somebody who may call: a name for the log, a role, and the only project it reaches ("" is all)."""

    name: str
    role: str
    project: str = ""

    @property
    def roles(self) -> tuple[str, ...]:
        """The role and all that it includes."""
        return ROLES[ROLES.index(self.role) :]


class Door:
    """Tells callers by their tokens."""

    def __init__(self, tokens: Iterable[tuple[str, Caller]], *, is_open: bool = False) -> None:
        """Take the tokens. With `is_open` everybody is an admin: for one that only this machine reaches."""
        self._tokens = [(token.encode(), caller) for token, caller in tokens]
        self.is_open = is_open

    def caller(self, headers: Mapping[str, str]) -> Caller | None:
        """Tell who sent `X-Auth-Token`, as OpenStack's clients do, or `Authorization: Bearer`.

        None for nobody. An open door takes `USER:PROJECT`, as Cinder does without Keystone.
        """
        given = headers.get("x-auth-token") or headers.get("authorization", "").removeprefix("Bearer ")
        if self.is_open:
            return Caller(given.partition(":")[0][:64] or "anybody", "admin")
        found = None
        for token, caller in self._tokens:  # all of them: the time tells nothing of which one it is
            if secrets.compare_digest(given.encode(errors="surrogateescape"), token):
                found = caller
        return found


def is_loopback(address: str) -> bool:
    """Tell whether an address is reached from this machine only."""
    try:
        return ip_address(address).is_loopback
    except ValueError:  # a name
        return address == "localhost"
