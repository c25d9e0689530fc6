"""Clients of the volume service in a lab machine, on another one than the service: unmodified, over TLS."""

import time
from typing import Any

import httpx

from voldrivers.api.client import context

TOKEN = "the-token-of-this-lab"
PROJECT = "a" * 32
URL = f"https://storage:8776/v3/{PROJECT}"
IDENTITY = "/etc/voldrivers/identity.pem"
_HEADERS = {"X-Auth-Token": TOKEN, "OpenStack-API-Version": "volume 3.71"}
_STEADY = ("available", "in-use", "error", "error_extending")


def ask(method: str, path: str, body: object = None) -> list[Any]:  # Any: what JSON holds
    """Send one request; give status and body of the answer."""
    with _client() as client:
        answer = client.request(method, path, json=body)
    return [answer.status_code, answer.json() if answer.content else None]


def wait(volume_id: str, limit_s: float = 100.0) -> dict[str, Any]:  # Any: as above
    """Wait until nothing is under way with a volume; give it as it is then."""
    until = time.monotonic() + limit_s
    with _client() as client:
        while True:
            shown: dict[str, Any] = client.get(f"volumes/{volume_id}").json()["volume"]
            if shown["status"] in _STEADY or time.monotonic() > until:
                return shown
            time.sleep(0.3)


def create(body: dict[str, object], instance: dict[str, object]) -> str:
    """Make a volume and attach it; give its id."""
    with _client() as client:
        made = client.post("volumes", json={"volume": body}).json()
    volume_id: str = made["volume"]["id"]
    assert wait(volume_id)["status"] == "available"
    attach(volume_id, instance)
    return volume_id


def attach(volume_id: str, instance: dict[str, object]) -> None:
    """Have the service attach a volume."""
    status, said = ask("POST", "attachments", {"attachment": {"volume_uuid": volume_id, **instance}})
    assert status == 200, said


def extend_by_cinderclient(volume_id: str, size_gib: int) -> dict[str, Any]:  # Any: as above
    """Extend a volume as an operator's script does, and wait for it."""
    from cinderclient import api_versions
    from cinderclient.v3.client import Client
    from keystoneauth1.session import Session
    from keystoneauth1.token_endpoint import Token

    session = Session(auth=Token(URL, TOKEN), verify=IDENTITY)
    cinder = Client(session=session, api_version=api_versions.APIVersion("3.42"))
    cinder.volumes.extend(cinder.volumes.get(volume_id), size_gib)
    return wait(volume_id)


def _client() -> httpx.Client:
    from pathlib import Path

    verify = context(Path(IDENTITY), None, None)
    return httpx.Client(base_url=URL, headers=_HEADERS, verify=verify, timeout=200, trust_env=False)
