"""Our drivers inside a real Cinder, driven by its own client, with a guest that looks at its disk."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cinderclient import exceptions
from cindersite import Backend, CinderSite, install, new_guest
from servicesite import SOON_S

from voldrivers.guests.device import DeviceGuest
from voldrivers.process import wait_until
from voldrivers.sizes import GiB

pytestmark = [pytest.mark.slow, pytest.mark.needs("qemu-system-x86_64", "qemu-img")]


BACKENDS = {
    "files": Backend(),
    "closed": Backend(policy="extend_attached = false"),
    "reported": Backend(policy="deadline_s = 10.0", section="voldrivers_assist = complete\n"),
    "odd": Backend(driver="odd", starts=False),
    "proved": Backend(section="voldrivers_report = {directory}/proved.json\n"),
    "foreign": Backend(section="voldrivers_report = {directory}/foreign.json\n", starts=False),
}
#: Volumes that a hypervisor grows, in sizes of which none is a GiB.
ODD = """
from voldrivers.nfs.driver import NFSDriver
from voldrivers.sizes import MiB, SizeRule

class Odd(NFSDriver):
    size_rule = SizeRule(granularity_bytes=3 * MiB)
"""
FAILURE = "voldrivers:extend_failure"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CinderSite]:
    directory = tmp_path_factory.mktemp("cinder")
    install(directory, "odd", "Odd", ODD)
    write_reports(directory)
    made = CinderSite(directory, BACKENDS)
    yield made
    made.end()


def write_reports(directory: Path) -> None:
    """Write what the suite says of the driver where all but extending in use is confirmed, and of another."""
    pool, config = directory / "box", directory / "run.toml"
    pool.mkdir()
    config.write_text(f'[driver]\nshare = "{pool}"\n[scratch]\npool = "{pool}"\n[[host]]\nname = "here"\n')
    begin = [str(Path(sys.executable).with_name("voldrivers"))]
    run_of = ["nfs", "--config", str(config)]
    subprocess.run([*begin, "scratch", "init", *run_of, "--pool", str(pool)], check=True, timeout=SOON_S)
    few = ["--only", "LIF-001", "--out", str(directory)]
    ended = subprocess.run(
        [*begin, "conform", *run_of, "--destroy", str(pool), *few], check=False, timeout=SOON_S
    )
    assert ended.returncode == 4  # partial
    report = json.loads((directory / "report.json").read_text())
    for capability in report["capabilities"]:
        capability["proof"] = "PARTIAL" if capability["name"] == "in_use_extend" else "CONFIRMED"
    (directory / "proved.json").write_text(json.dumps(report))
    report["driver"]["class"] = "acme.driver:AcmeDriver"
    (directory / "foreign.json").write_text(json.dumps(report))


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
    assert list(site.share().iterdir()) == []


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


def refusal(site: CinderSite, volume_id: str, status: str) -> str:
    """Wait until a volume has its status back and says why it was not extended."""

    def is_told() -> bool:
        shown = site.client().volumes.get(volume_id)
        return FAILURE in shown.metadata and shown.status == status

    wait_until(is_told, SOON_S, "the refusal")
    assert not site.record(volume_id)
    return str(site.client().volumes.get(volume_id).metadata[FAILURE])


def messages(site: CinderSite, volume_id: str) -> list[str]:
    told = site.client().messages.list()
    return [each.user_message for each in told if each.resource_uuid == volume_id]


def test_a_host_whose_agent_is_away_is_refused_before_anything_grows(
    site: CinderSite, guest: DeviceGuest
) -> None:
    volume_id = site.create(1)
    with site.attached(volume_id, guest):
        site.agent.end()
        site.extend(volume_id, 2)
        assert "host compute" in refusal(site, volume_id, "in-use")
        assert "is unreachable" in refusal(site, volume_id, "in-use")
        assert (site.client().volumes.get(volume_id).size, site.file_bytes(volume_id)) == (1, GiB)
        assert any("Compute service failed" in each for each in messages(site, volume_id))
        site.agent.start()
        site.extend(volume_id, 2)
        shown = site.wait(volume_id, "in-use")
        assert (shown.size, guest.disk(volume_id).capacity_bytes()) == (2, 2 * GiB)
        assert FAILURE not in shown.metadata
    site.wait(volume_id, "available")
    site.delete(volume_id)


def test_a_snapshot_that_cannot_be_removed_now_stays_available(site: CinderSite, guest: DeviceGuest) -> None:
    volume_id, snapshots = site.create(1), site.client().volume_snapshots
    with site.attached(volume_id, guest):
        snapshot = snapshots.create(volume_id, force=True)
        wait_until(lambda: snapshots.get(snapshot.id).status == "available", SOON_S, "the snapshot")
        site.agent.end()
        snapshots.delete(snapshot)
        wait_until(lambda: "Delete snapshot failed, due to snapshot busy" in site.log, SOON_S, "its end")
        wait_until(lambda: snapshots.get(snapshot.id).status == "available", SOON_S, "the snapshot again")
        site.agent.start()
        snapshots.delete(snapshot)
        wait_until(lambda: not snapshots.list(), SOON_S, "the snapshot to go")
    site.wait(volume_id, "available")
    site.delete(volume_id)


def test_with_its_database_away_for_a_while_an_extend_is_carried_on(site: CinderSite) -> None:
    volume_id = site.create(1)
    with site.losing_records():
        site.extend(volume_id, 2)
        again = f"Looking again how volume {volume_id} is being extended"
        wait_until(lambda: again in site.log, SOON_S, "a record to be refused")
        assert site.client().volumes.get(volume_id).status == "extending"
    shown = site.wait(volume_id, "available")
    assert (shown.size, site.file_bytes(volume_id), site.record(volume_id)) == (2, 2 * GiB, "")
    assert FAILURE not in shown.metadata
    site.delete(volume_id)


def test_a_backend_that_fails_leaves_the_volume_as_it_was(site: CinderSite) -> None:
    volume_id = site.create(1)
    away = site.share().rename(site.directory / "away")
    site.extend(volume_id, 2)
    assert "share ... is not there" in refusal(site, volume_id, "available")
    away.rename(site.share())
    assert (site.client().volumes.get(volume_id).size, site.file_bytes(volume_id)) == (1, GiB)
    site.extend(volume_id, 2)
    assert site.wait(volume_id, "available").size == 2
    site.delete(volume_id)


@pytest.mark.parametrize("backend", ["closed", "proved"])
def test_a_backend_that_does_not_offer_it_is_refused_by_the_scheduler(
    site: CinderSite, guest: DeviceGuest, backend: str
) -> None:
    """By the policy, or for want of proof."""
    volume_id = site.create(1, backend)
    with site.attached(volume_id, guest):
        site.extend(volume_id, 2)
        wait_until(lambda: bool(messages(site, volume_id)), SOON_S, "the refusal")
        assert messages(site, volume_id) == ["extend volume:Could not find any available weighted backend."]
        assert (site.wait(volume_id, "in-use").size, site.file_bytes(volume_id)) == (1, GiB)
    site.wait(volume_id, "available")
    site.delete(volume_id)


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("odd", "multiples of 3145728 bytes, which do not divide a GiB"),
        ("foreign", "is of acme.driver:AcmeDriver; the backend is voldrivers.nfs.driver:NFSDriver"),
    ],
)
def test_what_would_go_wrong_later_keeps_a_backend_from_starting(
    site: CinderSite, backend: str, reason: str
) -> None:
    """A rule that Nova would cut, a report of another driver."""
    assert f"storage@{backend}#{backend}" not in [
        each.name for each in site.client().pools.list(detailed=False)
    ]
    assert reason in site.log


def test_a_nova_that_is_too_old_to_be_told(site: CinderSite, guest: DeviceGuest) -> None:
    """The guest has the size already; Cinder says that Nova could not be told."""
    volume_id = site.create(1)
    with site.attached(volume_id, guest):
        site.nova.answers = 404
        site.extend(volume_id, 2)
        assert site.wait(volume_id, "in-use").size == 2
        wait_until(lambda: bool(messages(site, volume_id)), SOON_S, "the message")
        site.nova.answers = 200
        assert guest.disk(volume_id).capacity_bytes() == 2 * GiB
    site.wait(volume_id, "available")
    site.delete(volume_id)


def test_events_that_nova_handles_late_cut_nothing(site: CinderSite, guest: DeviceGuest) -> None:
    """Nova resizes to the size that Cinder shows when it comes to it, and QEMU would make it smaller, too."""
    volume_id = site.create(1)
    with site.attached(volume_id, guest):
        for size_gib in (2, 3):
            site.extend(volume_id, size_gib)
            site.wait(volume_id, "in-use")
        for _event in (1, 2):
            resize_as_nova(guest, volume_id, site.client().volumes.get(volume_id).size)
            assert guest.disk(volume_id).capacity_bytes() == 3 * GiB == site.file_bytes(volume_id)
    site.wait(volume_id, "available")
    site.delete(volume_id)


def resize_as_nova(guest: DeviceGuest, volume_id: str, size_gib: int) -> None:
    """Do what nova/virt/libvirt/driver.py, `_resize_attached_volume`, does."""
    nodes = guest.execute("query-named-block-nodes")
    (node,) = (
        each["node-name"] for each in nodes if each["drv"] == "raw" and volume_id in each["image"]["filename"]
    )
    guest.execute("block_resize", {"node-name": node, "size": size_gib * GiB})


@pytest.mark.parametrize("grown", ["by Nova", "by nobody"])
def test_a_completion_is_a_hint_to_look(site: CinderSite, guest: DeviceGuest, grown: str) -> None:
    """Where Nova is to grow a file: what it reports is looked at, and what it has not done is done."""
    volume_id = site.create(1, "reported")
    with site.attached(volume_id, guest):
        before = len(site.nova.events)
        site.extend(volume_id, 2)
        wait_until(lambda: len(site.nova.events) > before, SOON_S, "the event")
        assert site.client().volumes.get(volume_id).status == "extending"
        assert site.file_bytes(volume_id) == GiB
        if grown == "by Nova":
            resize_as_nova(guest, volume_id, 2)
        site.client().volumes.extend_volume_completion(volume_id)
        assert site.wait(volume_id, "in-use").size == 2
        # Cinder calls it in-use before we have looked, and tells Nova once more when we have.
        wait_until(lambda: len(site.nova.events) == before + 2, SOON_S, "the look")
        assert guest.disk(volume_id).capacity_bytes() == 2 * GiB == site.file_bytes(volume_id)
    site.wait(volume_id, "available")
    site.delete(volume_id)


@pytest.mark.parametrize("end", ["failed", "never"])
def test_a_completion_that_failed_or_never_comes(site: CinderSite, guest: DeviceGuest, end: str) -> None:
    volume_id = site.create(1, "reported")
    with site.attached(volume_id, guest):
        before = len(site.nova.events)
        site.extend(volume_id, 2)
        wait_until(lambda: len(site.nova.events) > before, SOON_S, "the event")
        if end == "failed":
            site.client().volumes.extend_volume_completion(volume_id, True)
        # One that was never reported may still happen: then nobody can say that nothing has changed.
        status, reason = {
            "failed": ("in-use", "not extended, says Nova"),
            "never": ("error_extending", "nobody reported its completion within 10 seconds"),
        }[end]
        assert reason in refusal(site, volume_id, status)
        assert (site.client().volumes.get(volume_id).size, site.file_bytes(volume_id)) == (1, GiB)
    site.wait(volume_id, "available")
    site.delete(volume_id)
