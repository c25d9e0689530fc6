"""What administrators do with volumes in a real Cinder: take over, give up, migrate, retype, group.

Cinder itself copies bytes here, as root and with os-brick: what it is told of a volume must do for that.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cinderclient import exceptions
from cindersite import Backend, CinderSite, install, is_marked, mark, new_guest
from servicesite import SOON_S

from voldrivers.process import wait_until
from voldrivers.sizes import GiB, MiB

pytestmark = [pytest.mark.full, pytest.mark.needs("qemu-system-x86_64", "qemu-img")]
#: Offers nothing beside volumes, and remembers more of them than one of Cinder's columns holds.
PLAIN = """
from voldrivers.capabilities import Capabilities, InUseExtend
from voldrivers.nfs.driver import NFSDriver

class Plain(NFSDriver):
    capabilities = Capabilities(in_use_extend=InUseExtend.BY_HYPERVISOR)

    def create_volume(self, volume, options):
        return super().create_volume(volume, options).rjust(300)
"""
HOSTS = {name: f"storage@{name}#{name}" for name in ("files", "plain")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CinderSite]:
    directory = tmp_path_factory.mktemp("cinder")
    install(directory, "plain", "Plain", PLAIN)
    made = CinderSite(directory, {"files": Backend(), "plain": Backend(driver="plain")})
    yield made
    made.end()


@pytest.fixture(autouse=True)
def nothing_stays(site: CinderSite) -> Iterator[None]:
    """What a test has made is gone at its end, and its quota given back."""
    yield
    assert site.becomes(lambda: (left(site), site.usage()) == ([], 0)), (left(site), site.usage())


def test_a_file_is_taken_over_and_given_up(site: CinderSite) -> None:
    cinder, path = site.client(), site.share() / "of-another"
    path.touch()
    os.truncate(path, 1536 * MiB)
    mark(path)
    made = cinder.volumes.manage(HOSTS["files"], {"source-name": path.name}, volume_type="files")
    assert site.wait(made.id, "available").size == 2
    assert (site.file_bytes(made.id), path.exists(), site.usage()) == (2 * GiB, False, 2)
    site.extend(made.id, 3)
    site.wait(made.id, "available")
    cinder.volumes.unmanage(made.id)
    wait_until(lambda: not cinder.volumes.list(), SOON_S, "the volume to be forgotten")
    given_up = site.share() / f"unmanaged-{made.id}"
    assert (given_up.stat().st_size, is_marked(given_up)) == (3 * GiB, True)
    given_up.unlink()


@pytest.mark.parametrize("reference", [{"source-name": "nothing"}, {"source-name": "../x"}, {"other": "x"}])
def test_what_cannot_be_taken_over_is_refused(site: CinderSite, reference: dict[str, str]) -> None:
    cinder = site.client()
    made = cinder.volumes.manage(HOSTS["files"], reference, volume_type="files")
    assert becomes_else(lambda: cinder.volumes.get(made.id).status, "creating") == "error"
    assert f"invalid backend reference {reference}" in site.log
    site.delete(made.id)


def test_a_volume_migrates_with_its_bytes_and_is_extended_there(site: CinderSite) -> None:
    cinder = site.client()
    cinder.volume_types.create("any")
    volume_id = site.create(1, "files")
    retype(site, volume_id, "any", "never")
    assert shown(site, volume_id) == ("any", HOSTS["files"])
    mark(site.share() / f"volume-{volume_id}")
    assert migrate(site, volume_id, "plain") == "success", site.log[-9000:]
    assert shown(site, volume_id) == ("any", HOSTS["plain"])
    (path,) = site.share("plain").iterdir()
    assert is_marked(path)
    assert site.becomes(lambda: not list(site.share().iterdir()))
    with new_guest(site.directory) as guest, site.attached(volume_id, guest):
        site.extend(volume_id, 2)
        assert site.wait(volume_id, "in-use").size == 2
        assert guest.disk(volume_id).capacity_bytes() == path.stat().st_size == 2 * GiB
    assert (is_marked(path), site.usage()) == (True, 2)
    site.wait(volume_id, "available")
    site.delete(volume_id)


def test_another_type_on_another_backend_is_a_migration(site: CinderSite) -> None:
    volume_id = site.create(1, "plain")
    retype(site, volume_id, "files", "never")
    assert shown(site, volume_id) == ("plain", HOSTS["plain"])
    mark(site.share("plain") / f"volume-{volume_id}")
    retype(site, volume_id, "files", "on-demand")
    assert shown(site, volume_id) == ("files", HOSTS["files"])
    (path,) = site.share().iterdir()
    assert is_marked(path)
    assert site.becomes(lambda: not list(site.share("plain").iterdir()))
    site.delete(volume_id)


def test_a_file_that_holds_a_volume_as_qcow2_is_not_copied_for_one(site: CinderSite) -> None:
    cinder = site.client()
    types = {"volume_backend_name": "files", "voldrivers:format": "qcow2"}
    cinder.volume_types.create("qcow2").set_keys(types)
    volume_id = site.create(1, "qcow2")
    before = left(site)
    retype(site, volume_id, "plain", "on-demand")
    assert shown(site, volume_id) == ("qcow2", HOSTS["files"])
    assert "its file is a qcow2" in site.log
    assert site.becomes(lambda: left(site) == before), left(site)
    site.wait(volume_id, "available")
    site.delete(volume_id)


def test_a_group_is_kept_and_made_again(site: CinderSite) -> None:
    cinder = site.client()
    group_type = cinder.group_types.create("together")
    (volume_type,) = [each for each in cinder.volume_types.list() if each.name == "files"]
    group = cinder.groups.create(group_type.id, volume_type.id)
    assert becomes_else(lambda: cinder.groups.get(group.id).status, "creating") == "available"
    volume_id = site.create(1, "files", group_id=group.id)
    mark(site.share() / f"volume-{volume_id}")
    kept = cinder.group_snapshots.create(group.id)
    assert becomes_else(lambda: cinder.group_snapshots.get(kept.id).status, "creating") == "available"
    copy_id = cinder.groups.create_from_src(kept.id, None)["id"]
    assert becomes_else(lambda: cinder.groups.get(copy_id).status, "creating") == "available"
    (copied,) = cinder.volumes.list(search_opts={"group_id": copy_id})
    assert is_marked(site.share() / f"volume-{copied.id}")
    cinder.group_snapshots.delete(kept.id)
    wait_until(lambda: not cinder.group_snapshots.list(), SOON_S, "the snapshot to go")
    for group_id in (group.id, copy_id):
        cinder.groups.delete(group_id, delete_volumes=True)
    wait_until(lambda: not cinder.groups.list(), SOON_S, "the groups to go")


def test_a_volume_that_a_guest_has_is_copied_as_it_is_now(site: CinderSite) -> None:
    volume_id = site.create(1, "files")
    mark(site.share() / f"volume-{volume_id}")
    with new_guest(site.directory) as guest, site.attached(volume_id, guest):
        copy_id = site.create(2, "files", source_volid=volume_id)
        assert site.client().volumes.get(volume_id).status == "in-use"
    assert is_marked(site.share() / f"volume-{copy_id}")
    assert (site.file_bytes(copy_id), site.client().volume_snapshots.list()) == (2 * GiB, [])
    site.wait(volume_id, "available")
    for each in (volume_id, copy_id):
        site.delete(each)


def test_what_a_driver_does_not_offer_is_refused_and_can_be_removed(site: CinderSite) -> None:
    cinder = site.client()
    volume_id = site.create(1, "plain")
    snapshot = cinder.volume_snapshots.create(volume_id)
    assert becomes_else(lambda: cinder.volume_snapshots.get(snapshot.id).status, "creating") == "error"
    clone = cinder.volumes.create(1, source_volid=volume_id)
    assert becomes_else(lambda: cinder.volumes.get(clone.id).status, "creating") == "error"
    managed = cinder.volumes.manage(HOSTS["plain"], {"source-name": "x"}, volume_type="plain")
    assert becomes_else(lambda: cinder.volumes.get(managed.id).status, "creating") == "error"
    for capability in ("snapshots", "clones", "manage"):
        assert f"NotImplementedError: backend plain does not offer {capability}" in site.log
    cinder.volume_snapshots.delete(snapshot.id)
    wait_until(lambda: not cinder.volume_snapshots.list(), SOON_S, "the snapshot to go")
    cinder.volumes.unmanage(volume_id)
    assert becomes_else(lambda: cinder.volumes.get(volume_id).status, "unmanaging") == "error_unmanaging"
    cinder.volumes.reset_state(volume_id, "available")
    for each in (clone.id, managed.id, volume_id):
        site.delete(each)


def test_a_snapshot_stays_with_its_volume(site: CinderSite) -> None:
    cinder = site.client()
    volume_id = site.create(1)
    snapshot = cinder.volume_snapshots.create(volume_id)
    taken = lambda: cinder.volume_snapshots.get(snapshot.id).status  # noqa: E731
    assert becomes_else(taken, "creating") == "available"
    with pytest.raises(exceptions.BadRequest, match="snapshots"):
        cinder.volumes.unmanage(volume_id)
    cinder.volume_snapshots.unmanage(snapshot.id)
    assert becomes_else(taken, "unmanaging") == "available"
    assert snapshot.id in [each.resource_uuid for each in cinder.messages.list()]
    foreign = cinder.volume_snapshots.manage(volume_id, {"source-name": "x"})
    assert becomes_else(lambda: cinder.volume_snapshots.get(foreign.id).status, "creating") == "error"
    for each in (foreign, snapshot):
        cinder.volume_snapshots.delete(each)
    wait_until(lambda: not cinder.volume_snapshots.list(), SOON_S, "the snapshots to go")
    site.delete(volume_id)


def test_a_host_must_say_who_it_is(site: CinderSite) -> None:
    cinder = site.client()
    volume_id = site.create(1)
    with pytest.raises(exceptions.ClientException, match="required information: host"):
        cinder.attachments.create(volume_id, {"ip": "127.0.0.1"}, "9b1a3c52-0f7b-4f6e-8d6f-2f3f0d1c5e77")
    (attachment,) = cinder.attachments.list()
    cinder.attachments.delete(attachment.id)
    site.wait(volume_id, "available")
    site.delete(volume_id)


# --- what is looked at past Cinder


def left(site: CinderSite) -> list[str]:
    return sorted(str(path.relative_to(site.directory)) for path in site.directory.glob("share-*/*"))


# --- what is asked of Cinder


def becomes_else(get: Callable[[], str], passing: str) -> str:
    """Wait until a status is another one; give that."""
    wait_until(lambda: get() != passing, SOON_S, f"the end of {passing}")
    return get()


def shown(site: CinderSite, volume_id: str) -> tuple[str, str]:
    """Give type and place of a volume."""
    volume: Any = site.client().volumes.get(volume_id)  # Any: cinderclient has no types
    return volume.volume_type, getattr(volume, "os-vol-host-attr:host")


def retype(site: CinderSite, volume_id: str, wanted: str, policy: str) -> None:
    cinder = site.client()
    cinder.volumes.retype(volume_id, wanted, policy)
    assert becomes_else(lambda: cinder.volumes.get(volume_id).status, "retyping") == "available"


def migrate(site: CinderSite, volume_id: str, backend: str) -> str:
    """Have Cinder copy a volume to another backend; give how that ended."""
    cinder = site.client()
    cinder.volumes.migrate_volume(volume_id, HOSTS[backend], True, False)

    def ended() -> bool:
        return cinder.volumes.get(volume_id).migration_status in ("success", "error")

    wait_until(ended, SOON_S, "the migration to end")
    return str(cinder.volumes.get(volume_id).migration_status)
