"""Microversions of the Block Storage API: which one a request asks for, and what the service says of itself.

https://docs.openstack.org/cinder/latest/contributor/api_microversion_history.html
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from voldrivers.api.volume.faults import Refused

HEADER = "OpenStack-API-Version"
_SERVICE = "volume"
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})")


@dataclass(frozen=True, order=True)
class Microversion:
    """A version of the API."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


LEAST, NEWEST = Microversion(3, 0), Microversion(3, 71)
#: What came with which microversion.
MANAGE = Microversion(3, 8)
GROUPS = Microversion(3, 13)
PROVIDER_ID = Microversion(3, 21)
MESSAGES = Microversion(3, 3)
ATTACHMENTS = Microversion(3, 27)
REVERT = Microversion(3, 40)
EXTEND_IN_USE = Microversion(3, 42)
ATTACHMENT_COMPLETE = Microversion(3, 44)
SHARED_TARGETS = Microversion(3, 48)
ATTACHMENT_MODE = Microversion(3, 54)
CLUSTER_NAME = Microversion(3, 61)
TYPE_ID = Microversion(3, 63)
CONSUMES_QUOTA = Microversion(3, 65)
EXTEND_COMPLETION = Microversion(3, 71)


def asked(headers: Mapping[str, str]) -> Microversion:
    """Read the version that a request asks for, 3.0 without one. Raises Refused, 400 or 406."""
    text = headers.get(HEADER.lower(), "")
    for part in text.split(","):
        service, _, version = part.strip().partition(" ")
        if service.lower() != _SERVICE:
            continue
        if version.strip() == "latest":
            return NEWEST
        found = _VERSION.fullmatch(version.strip())
        if found is None:
            wrong = f"API Version String {version.strip()[:40]} is of invalid format. Must be of format"
            raise Refused(400, f"{wrong} MajorNum.MinorNum.")
        wanted = Microversion(int(found[1]), int(found[2]))
        if not LEAST <= wanted <= NEWEST:
            unknown = f"Version {wanted} is not supported by the API. Minimum is {LEAST} and maximum is"
            raise Refused(406, f"{unknown} {NEWEST}.")
        return wanted
    return LEAST


def answered(version: Microversion) -> Mapping[str, str]:
    """Give the headers that say in which version an answer is."""
    return {HEADER: f"{_SERVICE} {version}", "Vary": HEADER}


def document(base_url: str) -> Mapping[str, object]:
    """Describe the only version, for discovery (keystoneauth1.discover reads it)."""
    return {
        "id": "v3.0",
        "status": "CURRENT",
        "version": str(NEWEST),
        "min_version": str(LEAST),
        "updated": "2024-01-01T00:00:00Z",
        "links": [{"rel": "self", "href": f"{base_url}/v3/"}],
        "media-types": [
            {"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}
        ],
    }
