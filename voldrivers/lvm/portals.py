"""Portals: the addresses at which a target answers."""

import ipaddress
import re
from dataclasses import dataclass

from voldrivers.errors import InvalidInput

_FORM = re.compile(r"(\[(?P<six>[^][]+)\]|(?P<four>[^][:]+))(:(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True)
class Portal:
    """An address, an IPv6 one in brackets, and a TCP port."""

    address: str
    port: int

    def __str__(self) -> str:
        """As iSCSI writes it, and as we do for NVMe.

        >>> str(parse_portal("10.77.1.1")), str(parse_portal("[FD00:0::1]:3261"))
        ('10.77.1.1:3260', '[fd00::1]:3261')
        """
        return f"{self.address}:{self.port}"


def parse_portal(text: str, default_port: int = 3260) -> Portal:
    """Read IP or IP:PORT, the port iSCSI's when not said. Raises InvalidInput; a name is none."""
    form = _FORM.fullmatch(text)
    try:
        if form is None:
            raise ValueError
        address = f"[{ipaddress.IPv6Address(form['six'])}]" if form["six"] else None
        portal = Portal(
            address or str(ipaddress.IPv4Address(form["four"])), int(form["port"] or default_port)
        )
        if not 0 < portal.port < 2**16:
            raise ValueError
    except ValueError as error:
        raise InvalidInput(
            f"portal {text}", "it must be IP or IP:PORT, an IPv6 address in brackets"
        ) from error
    return portal
