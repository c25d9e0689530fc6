"""What Nova's specifications have an agent answer: `os-online_extend_volume`, events, completions."""

import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from servicesite import NEWEST, SOON_S, ServiceSite

from voldrivers.guests.device import DeviceGuest
from voldrivers.model import utc_now
from voldrivers.process import wait_until
from voldrivers.sizes import GiB

pytestmark = pytest.mark.needs("qemu-system-x86_64", "qemu-img")

ONLINE = "servers/guest/os-online_extend_volume"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ServiceSite]:
    made = ServiceSite(tmp_path)
    yield made
    made.end()


@pytest.fixture
def by_events(tmp_path: Path) -> Iterator[ServiceSite]:
    made = ServiceSite(tmp_path, by_events=True)
    yield made
    made.end()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[DeviceGuest]:
    with DeviceGuest(tmp_path) as made:
        yield made


def attached(site: ServiceSite, guest: DeviceGuest) -> str:
    volume_id = site.create()
    site.attach(volume_id, guest)
    return volume_id


# --- os-online_extend_volume


def test_the_three_calls_of_the_specification(site: ServiceSite, guest: DeviceGuest) -> None:
    volume_id = attached(site, guest)
    body = {"onlineExtendVolume": {"volume_id": volume_id}}
    answer = site.compute("PUT", ONLINE, body)
    assert (answer.status_code, answer.json()) == (202, None)
    answer = site.compute("GET", f"{ONLINE}/{volume_id}")
    assert answer.status_code == 200
    assert answer.json() == {"volume_blockdev": {"id": volume_id, "bytes": GiB}}
    answer = site.compute("POST", f"{ONLINE}/{volume_id}", {"onlineExtendVolume": {"bytes": GiB}})
    assert answer.status_code == 200, answer.text
    # Nobody is extending it: who holds the token grows no file that its records know nothing of.
    answer = site.compute("POST", f"{ONLINE}/{volume_id}", {"onlineExtendVolume": {"bytes": 2 * GiB}})
    assert answer.status_code == 409
    assert "in-use, to be 1 GiB, must be extending to 2 GiB" in answer.text
    assert guest.disk(volume_id).capacity_bytes() == GiB == site.file_bytes(volume_id)


def test_each_refusal_has_its_cause(site: ServiceSite, guest: DeviceGuest) -> None:
    volume_id, other = attached(site, guest), site.create()
    wanted = {"onlineExtendVolume": {"bytes": 2 * GiB}}
    past = (utc_now() - timedelta(seconds=1)).isoformat()
    for status, path, headers in [
        (404, f"servers/nobody/os-online_extend_volume/{volume_id}", {}),
        (404, f"{ONLINE}/{other}", {}),
        (404, f"{ONLINE}/00000000-0000-0000-0000-000000000000", {}),
        (400, f"servers/-guest/os-online_extend_volume/{volume_id}", {}),
        (409, f"{ONLINE}/{volume_id}", {"Voldrivers-Expires": past}),
        (501, f"{ONLINE}/{volume_id}", {"Voldrivers-Level": "2"}),
        (400, f"{ONLINE}/{volume_id}", {"Voldrivers-Extend": "-1"}),
        (400, f"{ONLINE}/{volume_id}", {"Voldrivers-Expires": "2026-01-01T00:00:00"}),
    ]:
        answer = site.compute("POST", path, wanted, **headers)
        assert (answer.status_code, path, headers) == (status, path, headers), answer.text
        ((_, fault),) = answer.json().items()
        assert fault["code"] == status
    for size in (0, -1, True, "2", 2**63, 1.5):
        answer = site.compute("POST", f"{ONLINE}/{volume_id}", {"onlineExtendVolume": {"bytes": size}})
        assert answer.status_code == 400, size
    assert guest.disk(volume_id).capacity_bytes() == GiB


def test_without_a_monitor_nothing_grows(tmp_path: Path) -> None:
    """501, for what the specification calls not supported by the hypervisor's driver."""
    site = ServiceSite(tmp_path)
    try:
        volume_id = site.create()
        site.agent.end()
        site.agent.config = site.agent.config.replace('qmp_dir = ".."\n', "")
        site.agent.start()
        for path in (f"{ONLINE}/{volume_id}", "servers/other/os-online_extend_volume/x"):
            answer = site.compute("POST", path, {"onlineExtendVolume": {"bytes": 2 * GiB}})
            assert answer.status_code == 501, answer.text
            assert "neither qmp_dir nor libvirt_uri" in answer.text
        assert site.file_bytes(volume_id) == GiB
    finally:
        site.end()


# --- server events


def event(server: str, tag: str | None, name: str = "volume-extended") -> dict[str, str]:
    return {"name": name, "server_uuid": server} | ({"tag": tag} if tag else {})


def test_events_are_taken_one_by_one(site: ServiceSite, guest: DeviceGuest) -> None:
    volume_id = attached(site, guest)
    sent = [event("guest", volume_id), event("nobody", volume_id), event("guest", None)]
    answer = site.compute("POST", "os-server-external-events", {"events": sent})
    assert answer.status_code == 207
    assert [each["code"] for each in answer.json()["events"]] == [200, 404, 400]
    answer = site.compute("POST", "os-server-external-events", {"events": sent[:1]})
    assert (answer.status_code, answer.json()["events"][0]["status"]) == (200, "completed")
    assert site.compute("POST", "os-server-external-events", {"events": sent[1:2]}).status_code == 404
    unknown: list[dict[str, object]] = [{"events": []}, {}]
    for wrong in (*unknown, {"events": [event("guest", volume_id, "network-changed")]}):
        assert site.compute("POST", "os-server-external-events", wrong).status_code == 400


def test_an_extend_by_event_and_completion(by_events: ServiceSite, guest: DeviceGuest) -> None:
    site = by_events
    volume_id = attached(site, guest)
    site.extend(volume_id, 2)
    shown = site.wait(volume_id, "in-use")
    assert (shown["size"], shown["metadata"]) == (2, {})
    assert guest.disk(volume_id).capacity_bytes() == 2 * GiB
    assert site.file_bytes(volume_id) == 2 * GiB
    assert "os-server-external-events" in site.agent.log
    assert "/action" in site.service.log


def test_a_classic_event_brings_the_guest_to_the_volume_s_size(site: ServiceSite, guest: DeviceGuest) -> None:
    """Any other status than `extending`: as for a volume that its service has extended."""
    volume_id = attached(site, guest)
    guest_disk = guest.disk(volume_id)
    answer = site.compute("POST", "os-server-external-events", {"events": [event("guest", volume_id)]})
    assert answer.status_code == 200
    time.sleep(1)
    assert guest_disk.capacity_bytes() == GiB
    assert "os-extend_volume_completion" not in site.service.log


def test_a_late_completion_changes_nothing(site: ServiceSite, guest: DeviceGuest) -> None:
    volume_id = attached(site, guest)
    for error in (False, True):
        said = site.refused(
            400, "POST", f"volumes/{volume_id}/action", {"os-extend_volume_completion": {"error": error}}
        )
        assert "must be extending" in said
    for wrong in ("false", 0, 1, None, "true"):
        said = site.refused(
            400, "POST", f"volumes/{volume_id}/action", {"os-extend_volume_completion": {"error": wrong}}
        )
        assert "must be extending" not in said, "it was taken for an answer"
    early = {"os-extend_volume_completion": {"error": False}}
    assert "3.71" in site.refused(404, "POST", f"volumes/{volume_id}/action", early, version="3.70")
    assert site.show(volume_id)["status"] == "in-use"


def test_a_guest_that_cannot_be_asked_has_nothing_changed(by_events: ServiceSite, guest: DeviceGuest) -> None:
    """The agent says that it failed; the service looks, and is where it was."""
    site = by_events
    volume_id = attached(site, guest)
    os.kill(guest.pid, signal.SIGSTOP)
    try:
        said = site.refused(400, "POST", f"volumes/{volume_id}/action", {"os-extend": {"new_size": 2}})
    finally:
        os.kill(guest.pid, signal.SIGCONT)
    assert "silent" in said
    assert site.show(volume_id)["status"] == "in-use"
    assert (NEWEST, site.file_bytes(volume_id)) == ("3.71", GiB)
    wait_until(lambda: site.show(volume_id)["status"] == "in-use", SOON_S, "it to be in use")
