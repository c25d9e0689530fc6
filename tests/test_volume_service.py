"""The volume service over HTTP: unmodified clients, the API's shape, in-use extends over two processes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servicesite import PROJECT, SOON_S, ServiceSite

from voldrivers.cli import main
from voldrivers.guests.device import DeviceGuest
from voldrivers.process import wait_until
from voldrivers.sizes import GiB, MiB

REAL = pytest.mark.needs("qemu-system-x86_64", "qemu-img")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ServiceSite]:
    made = ServiceSite(tmp_path)
    yield made
    made.end()


@pytest.fixture
def guest(site: ServiceSite) -> Iterator[DeviceGuest]:
    with DeviceGuest(site.directory) as made:
        yield made


# --- unmodified clients


@REAL
def test_cinderclient_extends_a_volume_that_a_guest_uses(site: ServiceSite, guest: DeviceGuest) -> None:
    from cinderclient import api_versions, exceptions
    from cinderclient.contrib.noauth import CinderNoAuthPlugin
    from cinderclient.v3.client import Client
    from keystoneauth1.session import Session

    def client(version: str) -> Any:  # Any: cinderclient has no types
        auth = CinderNoAuthPlugin("somebody", PROJECT, endpoint=f"{site.service.url}/v3")
        return Client(session=Session(auth=auth), api_version=api_versions.APIVersion(version))

    cinder = client("3.71")
    volume = cinder.volumes.create(1, name="of-cinderclient", metadata={"a": "b"})
    site.wait(volume.id, "available")
    site.attach(volume.id, guest)
    with pytest.raises(exceptions.BadRequest, match="status must be available to extend, currently in-use"):
        client("3.41").volumes.extend(volume, 2)
    cinder.volumes.extend(volume, 2)
    site.wait(volume.id, "in-use")
    shown = cinder.volumes.get(volume.id)
    assert (shown.size, shown.status, shown.metadata) == (2, "in-use", {"a": "b"})
    assert guest.disk(volume.id).capacity_bytes() == 2 * GiB
    with pytest.raises(exceptions.BadRequest, match="must be greater than current size"):
        cinder.volumes.extend(volume, 2)
    assert [each.id for each in cinder.volumes.list(search_opts={"name": "of-cinderclient"})] == [volume.id]
    assert cinder.volumes.find(name="of-cinderclient").id == volume.id
    snapshot = cinder.volume_snapshots.create(volume.id, force=True, name="kept")
    (seen,) = cinder.volume_snapshots.list()
    assert (seen.id, seen.name, seen.size) == (snapshot.id, "kept", 2)
    (attachment,) = cinder.attachments.list()
    assert cinder.attachments.show(attachment.id).connection_info["driver_volume_type"] == "file"
    (pool,) = cinder.pools.list(detailed=True)
    assert pool.online_extend_support is True
    wait_until(lambda: cinder.volume_snapshots.get(snapshot.id).status == "available", SOON_S, "the snapshot")
    cinder.volume_snapshots.delete(snapshot)
    wait_until(lambda: not cinder.volume_snapshots.list(), SOON_S, "the snapshot to go")
    site.detach(attachment.id, guest)
    cinder.volumes.delete(volume)
    wait_until(lambda: not cinder.volumes.list(), SOON_S, "the volume to go")


@REAL
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_openstacksdk_extends_a_volume_that_a_guest_uses(site: ServiceSite, guest: DeviceGuest) -> None:
    import openstack

    cloud = openstack.connect(
        auth_type="admin_token",
        auth={"endpoint": site.endpoint, "token": f"somebody:{PROJECT}"},
        block_storage_endpoint_override=site.endpoint,
        block_storage_api_version="3",
    )
    storage: Any = cloud.block_storage  # Any: of the version that was asked for
    volume = storage.create_volume(size=1, name="of-openstacksdk")
    storage.wait_for_status(volume, "available", interval=0.2, wait=30)
    site.attach(volume.id, guest)
    storage.extend_volume(volume, 2)
    storage.wait_for_status(volume, "in-use", interval=0.2, wait=30)
    assert storage.get_volume(volume.id).size == 2
    assert guest.disk(volume.id).capacity_bytes() == 2 * GiB
    with pytest.raises(openstack.exceptions.BadRequestException, match="must be greater than"):
        storage.extend_volume(volume, 1)
    assert storage.find_volume("of-openstacksdk").id == volume.id
    assert [each.id for each in storage.volumes()] == [volume.id]
    snapshot = storage.create_snapshot(volume_id=volume.id, name="kept", is_forced=True)
    storage.wait_for_status(snapshot, "available", interval=0.2, wait=30)
    storage.delete_snapshot(snapshot)
    storage.wait_for_delete(snapshot, interval=0.2, wait=30)
    (attachment,) = storage.attachments()
    site.detach(attachment.id, guest)
    storage.delete_volume(volume)
    storage.wait_for_delete(volume, interval=0.2, wait=30)


def test_a_detached_volume_is_extended_at_every_version_that_is_told(site: ServiceSite) -> None:
    """The microversion of in-use extends is for those; one that the service does not know is named."""
    volume_id = site.create()
    least, newest = (site.done("GET", "/v3/")["versions"][0][each] for each in ("min_version", "version"))
    for size, version in enumerate((least, "3.41", newest), 2):
        body = {"os-extend": {"new_size": size}}
        site.done("POST", f"volumes/{volume_id}/action", body, version=version)
        assert site.wait(volume_id, "available")["size"] == size
    later = {"os-extend": {"new_size": 9}}
    said = site.refused(406, "POST", f"volumes/{volume_id}/action", later, version="3.999")
    assert newest in said
    assert site.show(volume_id)["size"] == 4


# --- our own command line


@REAL
def test_the_command_line_works_through_a_service(
    site: ServiceSite, guest: DeviceGuest, capsys: pytest.CaptureFixture[str]
) -> None:
    def voldrivers(*argv: str, code: int = 0) -> str:
        assert main(["--url", site.service.url, *argv]) == code, capsys.readouterr()
        seen = capsys.readouterr()
        return seen.err if code else seen.out

    assert "volume data: 64 MiB on backend files" in voldrivers("volume", "create", "data", "64M")
    assert "attached to compute/guest" in voldrivers(
        "attach", "data", "--host", "compute", "--instance", "guest"
    )
    assert "extended from 64 MiB to 96 MiB" in voldrivers("extend", "data", "96M")
    shown = json.loads(voldrivers("volume", "show", "data", "--json"))
    assert (shown["size_bytes"], shown["status"]) == (96 * MiB, "in-use")
    assert guest.disk(shown["id"]).capacity_bytes() == 96 * MiB
    assert re.search(r"QEMU node +compute/guest +96 MiB", voldrivers("doctor", "data"))
    assert "cannot be 32 MiB, it is 96 MiB" in voldrivers("extend", "data", "32M", code=3)
    voldrivers("snapshot", "create", "data", "kept")
    assert re.search("kept +data +96 MiB +available", voldrivers("snapshot", "list"))
    voldrivers("volume", "create", "copy", "--from-snapshot", "kept")
    voldrivers("snapshot", "delete", "kept")
    assert re.search("copy +96 MiB", voldrivers("volume", "list"))
    assert "does not offer that" in voldrivers("resume", code=6)
    assert "volume nobody does not exist" in voldrivers("volume", "show", "nobody", code=4)
    voldrivers("volume", "delete", "copy")
    assert "copy" not in voldrivers("volume", "list")
    site.end()
    assert "unreachable" in voldrivers("volume", "list", code=5)
