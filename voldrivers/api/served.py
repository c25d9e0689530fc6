"""The engine behind a volume service: the same operations, over HTTP, for the command line."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

import httpx
from pydantic import TypeAdapter

from voldrivers.api import reading, wire
from voldrivers.api.client import context
from voldrivers.api.reading import Shown
from voldrivers.base import Sleep
from voldrivers.errors import (
    BackendError,
    HostUnreachable,
    InvalidInput,
    InvalidState,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
    from_document,
)
from voldrivers.model import (
    Attachment,
    Extend,
    Ledger,
    LedgerRow,
    Message,
    Phase,
    Snapshot,
    Volume,
)
from voldrivers.process import holds_within
from voldrivers.sizes import GiB

_PROJECT = "voldrivers"
_ANSWER_S = 300.0
_POLL_S = 0.3
_EVERYBODY = {"all_tenants": "1"}
_EXTEND, _ROW = TypeAdapter(Extend), TypeAdapter(LedgerRow)


class Served:
    """What `Engine` does, done by a service. Every error is raised here as it was there."""

    def __init__(
        self, url: str, token_file: Path | None, ca_file: Path | None, sleep: Sleep = time.sleep
    ) -> None:
        """Use the service at `url`, with or without a project in it. Raises InvalidInput."""
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise InvalidInput(f"url {url}", str(error)) from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidInput(f"url {url}", "must be https://NAME:PORT or https://NAME:PORT/v3/PROJECT")
        self._title = f"volume service {parsed.scheme}://{parsed.netloc.decode()}"
        self._sleep = sleep
        headers = {"OpenStack-API-Version": "volume 3.71"}
        if token_file is not None:
            headers["X-Auth-Token"] = wire.read_token(token_file)
        path = url.rstrip("/") if "/v3/" in url else f"{url.rstrip('/')}/v3/{_PROJECT}"
        self._client = httpx.Client(
            base_url=path,
            headers=headers,
            verify=context(ca_file, None, None),
            timeout=_ANSWER_S,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._client.close()

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse what a service does not offer. Raises NotSupported."""
        if name.startswith("_"):
            raise AttributeError(name)
        raise NotSupported(self._title, "does not offer that: run it where the service runs")

    # --- looking

    def volumes(self) -> tuple[Volume, ...]:
        """Every volume that the caller may see, by name."""
        shown = self._ask("GET", "volumes/detail", params=_EVERYBODY)["volumes"]
        kept = self._ask("GET", "snapshots/detail", params=_EVERYBODY)["snapshots"]
        return tuple(sorted((reading.volume(each, kept) for each in shown), key=lambda volume: volume.name))

    def volume(self, name: str) -> Volume:
        """One volume, by its name or id. Raises NotFound."""
        return self._volume(self._shown(name))

    def snapshot(self, name: str) -> Snapshot:
        """One snapshot, by its name or id. Raises NotFound."""
        for shown in self._ask("GET", "snapshots/detail", params=_EVERYBODY)["snapshots"]:
            if name in (shown["voldrivers:name"], shown["id"]):
                return reading.snapshot(shown)
        raise NotFound("snapshot", name)

    def messages(self, volume: Volume) -> tuple[Message, ...]:
        """What happened to a volume, oldest first."""
        told = self._ask("GET", "messages", params={"resource_uuid": volume.id})["messages"]
        return tuple(map(reading.message, told))

    def last_extend(self, volume: Volume) -> Extend | None:
        """The newest extend of a volume."""
        known = self._shown(volume.id)["voldrivers:last_extend"]
        return None if known is None else _EXTEND.validate_python(known)

    def ledger(self, name: str) -> Ledger:
        """The size ledger of a volume, every layer read now."""
        rows = self._ask("GET", f"volumes/{self.volume(name).id}/ledger")["ledger"]
        return tuple(map(_ROW.validate_python, rows))

    def stopped(self, volume: Volume) -> tuple[Attachment, ...]:
        """The attachments of a volume whose instances are proved to have stopped."""
        ended = self._ask("GET", f"volumes/{volume.id}/ledger").get("stopped", ())
        return tuple(each for each in volume.attachments if each.id in ended)

    # --- acting

    def create_volume(
        self,
        name: str,
        size_bytes: int,
        backend: str | None = None,
        options: Mapping[str, object] | None = None,
        *,
        multi_attach: bool = False,
    ) -> Volume:
        """Make a volume."""
        wanted = {"voldrivers:size_bytes": size_bytes, "volume_type": backend, "multiattach": multi_attach}
        return self._made(name, {**wanted, "voldrivers:options": dict(options or {})})

    def clone_volume(
        self,
        name: str,
        source: str | None = None,
        snapshot: str | None = None,
        size_bytes: int | None = None,
        options: Mapping[str, object] | None = None,
        *,
        multi_attach: bool = False,
    ) -> Volume:
        """Make a volume that begins as a copy."""
        wanted = {
            "voldrivers:size_bytes": size_bytes,
            "source_volid": None if source is None else self.volume(source).id,
            "snapshot_id": None if snapshot is None else self.snapshot(snapshot).id,
            "multiattach": multi_attach,
        }
        return self._made(name, {**wanted, "voldrivers:options": dict(options or {})})

    def delete_volume(self, name: str) -> None:
        """Remove a volume."""
        volume = self.volume(name)
        self._ask("DELETE", f"volumes/{volume.id}")
        self._wait_gone("volume", volume.id, volume.title)

    def create_snapshot(self, volume_name: str, name: str) -> Snapshot:
        """Keep a volume as it is now."""
        wanted = {"volume_id": self.volume(volume_name).id, "name": name}
        made = self._ask("POST", "snapshots", {"snapshot": wanted})["snapshot"]
        return reading.snapshot(self._ended("snapshot", made["id"], f"snapshot {name}"))

    def delete_snapshot(self, name: str) -> None:
        """Remove a snapshot."""
        snapshot = self.snapshot(name)
        self._ask("DELETE", f"snapshots/{snapshot.id}")
        self._wait_gone("snapshot", snapshot.id, snapshot.title)

    def revert_to_snapshot(self, name: str) -> Volume:
        """Make a volume what its snapshot is."""
        snapshot = self.snapshot(name)
        self._act(snapshot.volume_id, "revert", {"snapshot_id": snapshot.id})
        return self._volume(self._ended("volume", snapshot.volume_id, f"volume {snapshot.volume_id}"))

    def attach(
        self, name: str, host: str | None = None, instance: str | None = None, monitor: Path | None = None
    ) -> Attachment:
        """Connect a volume to a host and hot-plug it into an instance."""
        if host is None or monitor is not None:
            raise NotSupported(self._title, "needs --host, and --instance rather than --qmp")
        volume = self.volume(name)
        wanted = {"volume_uuid": volume.id, "instance_uuid": instance, "voldrivers:host": host}
        made = self._ask("POST", "attachments", {"attachment": wanted})["attachment"]
        return next(each for each in self.volume(volume.id).attachments if each.id == made["id"])

    def detach(
        self, name: str, host: str | None = None, instance: str | None = None, *, force: bool = False
    ) -> None:
        """Take a volume off a host."""
        if force:
            raise NotSupported(self._title, "cannot forget a host: run it where the service runs")
        volume = self.volume(name)
        fitting = [
            a
            for a in volume.attachments
            if host in (None, a.host) and (instance is None or instance == (a.instance or ""))
        ]
        if len(fitting) != 1:
            places = ", ".join(a.place for a in volume.attachments) or "nowhere"
            raise InvalidInput(volume.title, f"is attached to {places}: name the host and the instance")
        self._ask("DELETE", f"attachments/{fitting[0].id}")

    def extend(self, name: str, size_bytes: int, *, wait: bool = True) -> Extend:
        """Make a volume at least `size_bytes` large, in use or not; see `Engine.extend`."""
        volume = self.volume(name)
        body = {"new_size": max(1, -(-size_bytes // GiB)), "voldrivers:new_size_bytes": size_bytes}
        return self._extended(volume, "os-extend", body, wait=wait)

    def retry(self, name: str) -> Extend:
        """Go on with a failed extend."""
        return self._extended(self.volume(name), "voldrivers:retry", None, wait=True)

    def repair(self, name: str) -> Ledger:
        """Bring every layer of a volume to its size."""
        volume = self.volume(name)
        self._act(volume.id, "voldrivers:repair", None)
        self._ended("volume", volume.id, volume.title)
        return self.ledger(volume.id)

    def cancel(self, name: str) -> Extend:
        """Ask for the extend under way to be rolled back."""
        volume = self.volume(name)
        self._act(volume.id, "voldrivers:cancel", None)
        extend = self.last_extend(volume)
        assert extend is not None
        return extend

    # --- helpers

    def _made(self, name: str, wanted: Shown) -> Volume:
        given = {key: value for key, value in wanted.items() if value is not None}
        made = self._ask("POST", "volumes", {"volume": {"name": name, **given}})["volume"]
        return self._volume(self._ended("volume", made["id"], f"volume {name}"))

    def _extended(self, volume: Volume, action: str, body: object, *, wait: bool) -> Extend:
        self._act(volume.id, action, body)
        shown = self._ended("volume", volume.id, volume.title) if wait else self._shown(volume.id)
        extend = _EXTEND.validate_python(shown["voldrivers:last_extend"])
        if wait and extend.phase is not Phase.COMPLETED:
            if extend.phase is Phase.ROLLED_BACK:
                raise InvalidState(volume.title, extend.reason, "asked for again")
            raise BackendError(volume.title, extend.reason)
        return extend

    def _act(self, volume_id: str, action: str, body: object) -> None:
        self._ask("POST", f"volumes/{volume_id}/action", {action: body})

    def _ended(self, kind: str, subject_id: str, title: str) -> Shown:
        """Wait for the end of what was begun. Raises BackendError for an end in error, OutcomeUnknown."""
        seen: list[Shown] = []

        def is_steady() -> bool:
            seen.append(self._ask("GET", f"{kind}s/{subject_id}")[kind])
            return seen[-1]["status"] in ("available", "in-use", "error", "error_extending")

        if not holds_within(is_steady, _ANSWER_S, lambda _s: self._sleep(_POLL_S)):
            raise OutcomeUnknown(title, f"it is {seen[-1]['status']} still: look at it later")
        if seen[-1]["status"] == "error":
            raise BackendError(title, seen[-1].get("voldrivers:failure") or "could not be made")
        return seen[-1]

    def _wait_gone(self, kind: str, subject_id: str, title: str) -> None:
        def is_gone() -> bool:
            try:
                return bool(self._ask("GET", f"{kind}s/{subject_id}")[kind]["status"] == "available")
            except NotFound:
                return True

        if not holds_within(is_gone, _ANSWER_S, lambda _s: self._sleep(_POLL_S)):
            raise OutcomeUnknown(f"deleting {title}", "it is there still: look at it later")

    def _shown(self, name: str) -> Shown:
        for shown in self._ask("GET", "volumes/detail", params=_EVERYBODY)["volumes"]:
            if name in (shown["voldrivers:name"], shown["id"]):
                return dict(self._ask("GET", f"volumes/{shown['id']}")["volume"])
        raise NotFound("volume", name)

    def _volume(self, shown: Shown) -> Volume:
        of_it = {"volume_id": shown["id"], **_EVERYBODY}
        return reading.volume(shown, self._ask("GET", "snapshots/detail", params=of_it)["snapshots"])

    def _ask(
        self, method: str, path: str, body: object = None, params: Mapping[str, str] | None = None
    ) -> Any:  # Any: what JSON holds
        try:
            answer = self._client.request(method, path, json=body, params=params)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise HostUnreachable(self._title, f"unreachable ({error or 'no answer'})", "up") from error
        except httpx.HTTPError as error:
            reason = f"no answer: {str(error) or type(error).__name__}"
            if method == "GET":
                raise HostUnreachable(self._title, f"not answering ({reason})", "up") from error
            raise OutcomeUnknown(f"{method} {path} at {self._title}", reason) from error
        try:
            document = answer.json() if answer.content else None
        except ValueError:
            raise BackendError(self._title, f"status {answer.status_code}: it is no volume service") from None
        if not answer.is_success:
            raise self._refusal(answer.status_code, document)
        return document

    def _refusal(self, status: int, document: Any) -> VolDriverError:  # Any: what JSON holds
        try:
            (fault,) = document.values()
            if "voldrivers:error" in fault:
                return from_document(fault["voldrivers:error"])
            reason = str(fault["message"])
        except (AttributeError, KeyError, TypeError, ValueError):
            return BackendError(self._title, f"status {status} without a reason")
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return BackendError(self._title, reason)
        return InvalidInput(self._title, reason)
