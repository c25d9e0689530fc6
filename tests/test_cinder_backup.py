"""Backups by Cinder's own backup service, into a directory, of volumes that are files."""

from collections.abc import Callable, Iterator

import pytest
from cindersite import Backend, CinderSite, is_marked, mark, new_guest

from voldrivers.process import wait_until

pytestmark = [pytest.mark.full, pytest.mark.needs("qemu-system-x86_64", "qemu-img"), pytest.mark.timeout(900)]
_LONG_S = 120.0
_KEYS = """
backup_use_temp_snapshot = true
[DEFAULT]
backup_driver = cinder.backup.drivers.posix.PosixBackupDriver
backup_posix_path = {directory}
backup_compression_algorithm = none
backup_file_size = 67108864
backup_sha_block_size_bytes = 65536
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CinderSite]:
    directory = tmp_path_factory.mktemp("cinder")
    made = CinderSite(directory, {"files": Backend(section=_KEYS.format(directory=directory / "backups"))})
    made.client().volume_types.create("qcow2").set_keys({"voldrivers:format": "qcow2"})
    yield made
    made.end()


def test_a_backup_holds_what_the_volume_held(site: CinderSite) -> None:
    volume_id = site.create(1)
    mark(site.share() / f"volume-{volume_id}")
    assert is_restored(site, backed_up(site, volume_id))
    with new_guest(site.directory) as guest, site.attached(volume_id, guest):
        in_use = backed_up(site, volume_id)
        assert site.client().volumes.get(volume_id).status == "in-use"
    assert site.client().volume_snapshots.list() == []
    assert is_restored(site, in_use)
    # Since the snapshot for that copy, the volume goes on in a qcow2.
    site.wait(volume_id, "available")
    assert [path.suffix for path in site.share().iterdir()] == [".qcow2"]
    assert is_restored(site, backed_up(site, volume_id))
    site.delete(volume_id)
    assert list(site.share().iterdir()) == []


def test_what_holds_a_volume_as_qcow2_is_not_written_over(site: CinderSite) -> None:
    cinder, volume_id = site.client(), site.create(1)
    backup_id = backed_up(site, volume_id)
    site.delete(volume_id)
    volume_id = site.create(1, "qcow2")
    (path,) = site.share().iterdir()
    before = path.read_bytes()
    cinder.restores.restore(backup_id, volume_id)
    assert becomes_else(lambda: cinder.volumes.get(volume_id).status, "restoring-backup") == "error_restoring"
    assert path.read_bytes() == before
    cinder.volumes.delete(volume_id)
    assert site.becomes(lambda: not list(site.share().iterdir()))


def backed_up(site: CinderSite, volume_id: str) -> str:
    cinder = site.client()
    made = cinder.backups.create(volume_id, force=True)
    status = becomes_else(lambda: cinder.backups.get(made.id).status, "creating")
    assert status == "available", (cinder.backups.get(made.id).fail_reason, site.log[-3000:])
    assert becomes_else(lambda: cinder.volumes.get(volume_id).status, "backing-up") in ("available", "in-use")
    return str(made.id)


def is_restored(site: CinderSite, backup_id: str) -> bool:
    """Restore into a new volume, look at that, and remove it."""
    cinder, volume_id = site.client(), site.create(1)
    cinder.restores.restore(backup_id, volume_id)
    becomes_else(lambda: cinder.backups.get(backup_id).status, "restoring")
    assert cinder.volumes.get(volume_id).status == "available", site.log[-3000:]
    found = is_marked(site.share() / f"volume-{volume_id}")
    site.delete(volume_id)
    return found


def becomes_else(get: Callable[[], str], passing: str) -> str:
    """Wait until a status is another one; give that."""
    wait_until(lambda: get() != passing, _LONG_S, f"the end of {passing}")
    return get()
