"""Our drivers inside a real Cinder, driven by its own client, with a guest that looks at its disk."""

from collections.abc import Iterator

import pytest
from cinderclient import exceptions
from cindersite import CinderSite, new_guest
from servicesite import SOON_S

from voldrivers.guests.device import DeviceGuest
from voldrivers.process import wait_until
from voldrivers.sizes import GiB

pytestmark = [pytest.mark.slow, pytest.mark.needs("qemu-system-x86_64", "qemu-img")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CinderSite]:
    made = CinderSite(tmp_path_factory.mktemp("cinder"))
    yield made
    made.end()


@pytest.fixture
def guest(site: CinderSite) -> Iterator[DeviceGuest]:
    with new_guest(site.directory) as made:
        yield made


def test_the_life_of_a_volume(site: CinderSite) -> None:
    cinder = site.client()
    volume_id = site.create(1, name="v")
    site.extend(volume_id, 2)
    assert site.wait(volume_id, "available").size == 2
    assert site.file_bytes(volume_id) == 2 * GiB
    snapshot = cinder.volume_snapshots.create(volume_id, name="s")
    wait_until(lambda: cinder.volume_snapshots.get(snapshot.id).status == "available", SOON_S, "the snapshot")
    copy_id = site.create(3, snapshot_id=snapshot.id)
    assert site.file_bytes(copy_id) == 3 * GiB
    cloned_id = site.create(4, source_volid=volume_id)
    assert site.file_bytes(cloned_id) == 4 * GiB
    cinder.volumes.revert_to_snapshot(cinder.volumes.get(volume_id), snapshot)
    assert site.wait(volume_id, "available").size == 2
    cinder.volume_snapshots.delete(snapshot)
    wait_until(lambda: not cinder.volume_snapshots.list(), SOON_S, "the snapshot to go")
    for each in (volume_id, copy_id, cloned_id):
        site.delete(each)
    assert list(site.share.iterdir()) == []


def test_a_volume_in_use_is_extended_and_its_guest_sees_it(site: CinderSite, guest: DeviceGuest) -> None:
    volume_id = site.create(1)
    with site.attached(volume_id, guest):
        with pytest.raises(exceptions.BadRequest, match="status must be"):
            site.client("3.41").volumes.extend(volume_id, 2)
        for size_gib in (2, 3):
            site.extend(volume_id, size_gib)
            assert site.wait(volume_id, "in-use").size == size_gib
            assert guest.disk(volume_id).capacity_bytes() == size_gib * GiB == site.file_bytes(volume_id)
        told = [(each["name"], each["server_uuid"], each["tag"]) for each in site.nova.events]
        assert told == [("volume-extended", guest.name, volume_id)] * 2
    site.wait(volume_id, "available")
    site.delete(volume_id)


def test_a_host_whose_agent_is_away_is_refused_before_anything_grows(
    site: CinderSite, guest: DeviceGuest
) -> None:
    volume_id = site.create(1)
    with site.attached(volume_id, guest):
        site.agent.end()
        site.extend(volume_id, 2)
        failure = "voldrivers:extend_failure"

        def is_told() -> bool:
            shown = site.client().volumes.get(volume_id)
            return failure in shown.metadata and shown.status == "in-use"

        wait_until(is_told, SOON_S, "the refusal")
        shown = site.client().volumes.get(volume_id)
        assert (shown.size, site.file_bytes(volume_id)) == (1, GiB)
        assert "does not answer" in shown.metadata[failure] or "compute" in shown.metadata[failure]
        messages = [each.user_message for each in site.client().messages.list()]
        assert any("Compute service failed to extend volume" in each for each in messages), messages
        site.agent.start()
        site.extend(volume_id, 2)
        shown = site.wait(volume_id, "in-use")
        assert (shown.size, guest.disk(volume_id).capacity_bytes()) == (2, 2 * GiB)
        assert failure not in shown.metadata
    site.wait(volume_id, "available")
    site.delete(volume_id)
