"""Clients of the volume service in a lab machine, on another one than the service: unmodified, over TLS."""

import hashlib
import time
from pathlib import Path
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


def extend_by_openstacksdk(volume_id: str, size_gib: int) -> dict[str, Any]:  # Any: as above
    """Extend a volume as an operator's playbook does, and wait for it."""
    import openstack

    cloud = openstack.connect(
        auth_type="admin_token",
        auth={"endpoint": URL, "token": TOKEN},
        block_storage_endpoint_override=URL,
        block_storage_api_version="3",
        cacert=IDENTITY,
    )
    storage: Any = cloud.block_storage  # Any: of the version that was asked for
    storage.extend_volume(volume_id, size_gib)
    return wait(volume_id)


def extend_by_command_line(volume_id: str, size_gib: int) -> dict[str, Any]:  # Any: as above
    """Extend a volume with `voldrivers --url`, which comes back when it is done."""
    from voldrivers.cli import main

    service = ["--url", "https://storage:8776", "--token-file", "/etc/voldrivers/token"]
    assert main([*service, "--ca-file", IDENTITY, "extend", volume_id, f"{size_gib}G"]) == 0
    return wait(volume_id, 0)


def _client() -> httpx.Client:
    verify = context(Path(IDENTITY), None, None)
    return httpx.Client(base_url=URL, headers=_HEADERS, verify=verify, timeout=200, trust_env=False)


def add_image(mebibytes: int) -> list[Any]:  # Any: as above
    """Write an image of unknown size with glance_store's cinder store, which extends its volume in use.

    Gives what it says of it, the id of its volume, and the SHA-256 of what was given.
    """
    import types

    import glance_store
    from glance_store._drivers.cinder import store as cinder
    from oslo_concurrency import lockutils
    from oslo_config import cfg

    Path("/usr/local/bin").mkdir(parents=True, exist_ok=True)
    for name, script in _HELPERS.items():
        Path("/usr/local/bin", name).write_text(script)
        Path("/usr/local/bin", name).chmod(0o755)
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[])
    glance_store.register_opts(conf)
    for name, value in (
        ("cinder_do_extend_attached", True),
        ("cinder_endpoint_template", "https://storage:8776/v3/%(project_id)s"),
        ("cinder_ca_certificates_file", IDENTITY),
    ):
        conf.set_override(name, value, group="glance_store")
    lockutils.set_defaults(lock_path="/run/lab/locks")
    store = cinder.Store(conf)
    store.configure()
    # Not before: it would look for the type then, without anybody's token.
    conf.set_override("cinder_volume_type", "lvm", group="glance_store")
    context = types.SimpleNamespace(
        user_id="glance",
        project_id=PROJECT,
        auth_token=TOKEN,
        service_catalog=[],
        to_dict=lambda: {"project_id": PROJECT},
    )
    image = _Image(mebibytes)
    location, written, _md5, sha256, _metadata = store.add("an-image", image, 0, "sha256", context=context)
    return [written, sha256, location.rpartition("/")[2], image.digest.hexdigest()]


class _Image:
    """An image that is read once: every block is another one."""

    def __init__(self, mebibytes: int) -> None:
        self.left, self.digest, self.block = mebibytes * 2**20, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        size = min(size, self.left)
        self.block += 1
        content = (self.block.to_bytes(8, "big") * (size // 8 + 1))[:size]
        self.left -= size
        self.digest.update(content)
        return content


#: glance_store becomes root by these; who runs it here is root.
_HELPERS = {
    "sudo": '#!/bin/sh\nshift 2\nexec "$@"\n',
    "privsep-helper": "#!/bin/sh\nexec python3 -c 'import sys; from oslo_privsep import daemon;"
    ' sys.exit(daemon.helper_main())\' "$@"\n',
}
