"""The volume service seen from a host's agent: which volume is attached to which instance, and how.

It may be ours or a Cinder: what is ours alone is used where it is there.
"""

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from voldrivers.api import tracing, wire
from voldrivers.config import VolumeServiceOptions
from voldrivers.errors import BackendError, HostUnreachable, InvalidInput, NotFound, OutcomeUnknown
from voldrivers.model import Attachment, AttachmentState, ConnectionInfo, Volume, VolumeStatus
from voldrivers.sizes import GiB

_VERSION = "volume 3.71"
_LONGEST_ANSWER = 2**22
_BROKEN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


@dataclass(frozen=True)
class Pending:
    """What a volume service waits for: a size, for an extend that has a number and an end if it is ours."""

    new_size_bytes: int
    extend_id: int | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True)
class Shown:
    """A volume as its service shows it now. `pending` is None for one that waits for nothing."""

    volume: Volume
    pending: Pending | None


class VolumeService:
    """The volume service of a host's agent."""

    def __init__(self, options: VolumeServiceOptions) -> None:
        """Ask at `options.url`, which has the project in it."""
        self._options = options

    def volume(self, volume_id: str) -> Shown:
        """Look a volume up. Raises NotFound, HostUnreachable, BackendError."""
        shown = self._ask("GET", f"volumes/{volume_id}")["volume"]
        size_bytes = int(shown.get("voldrivers:size_bytes") or shown["size"] * GiB)
        known = {each.value for each in VolumeStatus}
        status = VolumeStatus(shown["status"]) if shown["status"] in known else VolumeStatus.IN_USE
        name = str(shown.get("voldrivers:name") or shown["id"])
        volume = Volume(shown["id"], name, str(shown.get("volume_type") or ""), size_bytes, status=status)
        waits = shown["status"] == VolumeStatus.EXTENDING
        return Shown(volume, _pending(shown.get("metadata", {})) if waits else None)

    def attachment(self, volume_id: str, instance: str) -> Attachment:
        """Find how a volume is attached to an instance. Raises NotFound, and as `volume`."""
        found = self._ask(
            "GET", "attachments/detail", params={"volume_id": volume_id, "instance_id": instance}
        )
        for shown in found["attachments"]:
            if shown["volume_id"] == volume_id and shown["instance"] == instance:
                return _attachment(shown)
        raise NotFound("attachment", f"of volume {volume_id}", f" to instance {instance}")

    def complete_extend(self, volume_id: str, extend_id: int | None, *, error: bool) -> None:
        """Tell how an extend went: `os-extend_volume_completion`. Raises as `volume`, OutcomeUnknown."""
        body: dict[str, object] = {"error": error}
        if extend_id is not None:
            body["voldrivers:extend_id"] = extend_id
        self._ask("POST", f"volumes/{volume_id}/action", {"os-extend_volume_completion": body})

    def _ask(
        self, method: str, path: str, body: object = None, params: Mapping[str, str] | None = None
    ) -> Any:  # Any: what JSON holds
        what = f"{method} {path} at volume service {self._options.url}"
        headers = {tracing.HEADER: tracing.request_id.get()} if tracing.request_id.get() else {}
        try:
            try:
                answer = self._client.request(method, path, json=body, params=params, headers=headers)
            except _BROKEN:  # a connection that was kept too long
                if method != "GET":
                    raise
                answer = self._client.request(method, path, json=body, params=params, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            state = f"unreachable ({error or 'no answer'})"
            raise HostUnreachable(f"volume service {self._options.url}", state, "up") from error
        except httpx.HTTPError as error:
            raise OutcomeUnknown(what, f"no answer: {str(error) or type(error).__name__}") from error
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise NotFound("volume or attachment", path, f" at volume service {self._options.url}")
        if not answer.is_success:
            raise BackendError(what, f"status {answer.status_code}: {answer.text[:300]}")
        try:
            return json.loads(answer.content[:_LONGEST_ANSWER]) if answer.content else None
        except ValueError as error:
            raise BackendError(what, "its answer makes no sense") from error

    @cached_property
    def _client(self) -> httpx.Client:
        options = self._options
        headers = {"OpenStack-API-Version": _VERSION}
        if options.token_file is not None:
            headers["X-Auth-Token"] = wire.read_token(options.token_file)
        verify = context(options.ca_file, options.certificate, options.key)
        return httpx.Client(
            base_url=options.url, headers=headers, verify=verify, timeout=options.timeout_s, trust_env=False
        )


def context(ca_file: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Make what a client believes and shows. Raises InvalidInput for files that cannot be used."""
    if ca_file is not None and not ca_file.is_file():
        raise InvalidInput(f"certificates {ca_file}", "there is no such file")
    try:
        made = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an SSLError is one
        raise InvalidInput(f"certificates {ca_file}", f"cannot be used: {error}") from error
    if certificate is not None:
        try:
            made.load_cert_chain(certificate, key)
        except OSError as error:
            raise InvalidInput(f"certificate {certificate}", f"cannot be used: {error}") from error
    return made


def _pending(metadata: Mapping[str, str]) -> Pending | None:
    """Read `extend_new_size`, in GiB, and what ours says more exactly. None where it makes no sense."""
    try:
        size_bytes = int(metadata["extend_new_size"]) * GiB
        if "voldrivers:extend" not in metadata:
            return Pending(size_bytes)
        exact = json.loads(metadata["voldrivers:extend"])
        expires_at = datetime.fromisoformat(exact["expires_at"])
        return Pending(int(exact["new_size_bytes"]), int(exact["id"]), expires_at)
    except (KeyError, ValueError, TypeError):
        return None


def _attachment(shown: Mapping[str, Any]) -> Attachment:  # Any: what JSON holds
    given = dict(shown.get("connection_info") or {})
    ours = {
        name.removeprefix("voldrivers:"): given.pop(name)
        for name in list(given)
        if name.startswith("voldrivers:")
    }
    kind = str(given.pop("driver_volume_type", ""))
    properties = ours.get("properties") or {
        name: _text(name, value) for name, value in given.items() if value is not None
    }
    return Attachment(
        id=shown["id"],
        volume_id=shown["volume_id"],
        host=ours.get("host") or "",
        instance=shown["instance"],
        monitor=ours.get("monitor"),
        state=AttachmentState.ATTACHED,
        connection_info=ConnectionInfo(kind, properties) if kind else None,
        device_path=ours.get("device_path") or given.get("device_path"),
        instance_process=ours.get("instance_process"),
        by_client=bool(ours.get("by_client", True)),
    )


def _text(name: str, value: object) -> str:
    """Write a property as our hosts take it: lists with commas, portals as ADDRESS:PORT."""
    if name == "portals" and isinstance(value, list):
        return ",".join(f"{address}:{port}" for address, port, *_ in value)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
