"""Server events: how a volume service tells a compute service that a volume was extended, as Nova has it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from voldrivers.api import wire
from voldrivers.errors import HostUnreachable, InvalidState
from voldrivers.model import Attachment, Extend, Volume

_log = logging.getLogger(__name__)
#: The microversion of Nova's API in which the event `volume-extended` came.
_VERSION = "compute 2.51"


@dataclass(frozen=True)
class Sender:
    """Sends events to one compute service: a Nova, or the agent of a host."""

    client: httpx.Client
    url: str
    timeout: httpx.Timeout

    def volume_extended(
        self, volume: Volume, attachment: Attachment, headers: Mapping[str, str], extend: Extend
    ) -> None:
        """Send `volume-extended`. One whose answer is lost or no sense may be taken: who waits looks.

        Raises HostUnreachable where nothing was sent, InvalidState where it was refused.
        """
        event = {"name": "volume-extended", "server_uuid": attachment.instance, "tag": volume.id}
        token = self.client.headers["Authorization"].removeprefix("Bearer ")
        own = {wire.EXTEND: str(extend.id), "OpenStack-API-Version": _VERSION, "X-Auth-Token": token}
        try:
            answer = self.client.post(
                self.url, json={"events": [event]}, headers={**headers, **own}, timeout=self.timeout
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise HostUnreachable(self.url, f"unreachable ({error or 'no answer'})", "up") from error
        except httpx.HTTPError as error:
            _log.warning("event for %s: no answer: %s", volume.title, str(error) or type(error).__name__)
            return
        code = _code(answer)
        if code >= httpx.codes.INTERNAL_SERVER_ERROR:
            _log.warning("event for %s: status %s", volume.title, code)
        elif code != httpx.codes.OK:
            subject = f"event volume-extended for instance {attachment.place}"
            raise InvalidState(subject, f"refused with {code}", "taken by its compute service")


def _code(answer: httpx.Response) -> int:
    """Give what became of the only event: its own code where the answer has one."""
    if not answer.is_success:
        return answer.status_code
    try:
        return int(answer.json()["events"][0]["code"])
    except (ValueError, KeyError, TypeError, IndexError):
        return int(httpx.codes.BAD_GATEWAY)
