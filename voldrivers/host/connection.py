"""The properties of an iSCSI connection, as Cinder and os-brick know them, read once."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from voldrivers.errors import InvalidInput, NotSupported
from voldrivers.host.blockdev import LUN, Portal

_SUBJECT = "connection properties"
_NAME = re.compile(r"(iqn|eui|naa)\.[\w.:-]+", re.ASCII)


@dataclass(frozen=True)
class Connection:
    """A volume by its ways, one LUN for each portal. The secret is never shown by `repr`."""

    luns: tuple[LUN, ...]
    user: str = ""
    secret: str = field(default="", repr=False)

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"iSCSI volume {self.luns[0].iqn} LUN {self.luns[0].number}"


def read_properties(properties: Mapping[str, object]) -> Connection:
    """Take target_portals, target_iqns and target_luns, or the singular ones, and CHAP's auth_*.

    The plural ones are sequences, or texts with commas. Raises InvalidInput, and NotSupported for another
    auth_method.
    """
    method = properties.get("auth_method") or "CHAP"
    if method != "CHAP":
        raise NotSupported(_SUBJECT, f"there is no auth_method {method}, only CHAP")
    user, secret = (str(properties.get(f"auth_{name}") or "") for name in ("username", "password"))
    if bool(user) != bool(secret):
        raise InvalidInput(_SUBJECT, "auth_username and auth_password go together")
    if not (user + secret).isprintable() or secret != secret.strip():
        # Not quoted: it may be the secret. open-iscsi keeps them as lines, without spaces at their ends.
        raise InvalidInput(
            _SUBJECT, "auth_username and auth_password must be printable, without outer spaces"
        )
    return Connection(tuple(_luns(properties)), user, secret)


def _luns(properties: Mapping[str, object]) -> Iterator[LUN]:
    portals, iqns, numbers = (_several(properties, f"target_{name}") for name in ("portal", "iqn", "lun"))
    iqns = iqns * len(portals) if len(iqns) == 1 else iqns
    numbers = numbers * len(portals) if len(numbers) == 1 else numbers
    if not len(portals) == len(iqns) == len(numbers):
        raise InvalidInput(_SUBJECT, "target_portals, target_iqns and target_luns must be equally many")
    for portal, iqn, number in zip(portals, iqns, numbers, strict=True):
        if not _NAME.fullmatch(iqn):
            raise InvalidInput(f"target {iqn!r}", "must be a name like iqn.2001-04.com.example:disk")
        try:
            yield LUN(Portal.of(portal), iqn, int(number))
        except ValueError as error:
            raise InvalidInput(
                f"portal {portal!r}, LUN {number!r}", "must be ADDRESS:PORT, NUMBER"
            ) from error


def _several(properties: Mapping[str, object], name: str) -> list[str]:
    given = properties.get(f"{name}s") or properties.get(name, "")
    return [str(one) for one in given] if isinstance(given, list | tuple) else str(given).split(",")
