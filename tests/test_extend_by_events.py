"""The asynchronous way of an extend: events and completions lost, doubled, late, refused; restarts between.

However it goes, service, file, QEMU and guest agree in the end: on the new size, or that nothing changed.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from between import (
    Between,
    Meddle,
    answer_lost,
    forward,
    late,
    lost,
    per_event,
    refused,
    refused_after_all,
    standing,
    twice,
)
from servicesite import ServiceSite

from voldrivers.guests.device import DeviceGuest
from voldrivers.process import wait_until
from voldrivers.sizes import GiB

pytestmark = [pytest.mark.needs("qemu-system-x86_64", "qemu-img"), pytest.mark.slow]
DEADLINE_S = 6.0


@pytest.fixture
def events() -> Iterator[Between]:
    with standing("/os-server-external-events") as between:
        yield between


@pytest.fixture
def completions() -> Iterator[Between]:
    with standing("/action") as between:
        yield between


@pytest.fixture
def site(tmp_path: Path, events: Between, completions: Between) -> Iterator[ServiceSite]:
    made = ServiceSite(
        tmp_path,
        events_at=events.url,
        volume_service_at=completions.url,
        deadline_s=DEADLINE_S,
        host_keys="look_timeout_s = 2.0\nact_timeout_s = 5.0\n",
    )
    events.target, completions.target = made.agent.url, made.service.url
    yield made
    made.end()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[DeviceGuest]:
    with DeviceGuest(tmp_path) as made:
        yield made


@pytest.fixture
def volume_id(site: ServiceSite, guest: DeviceGuest) -> str:
    made = site.create()
    site.attach(made, guest)
    return made


def ended(site: ServiceSite, guest: DeviceGuest, volume_id: str) -> int:
    """Wait for the end; give the size that everybody agrees on, in GiB."""
    shown = site.wait(volume_id, "in-use")
    sizes = {shown["size"] * GiB, site.file_bytes(volume_id), guest.disk(volume_id).capacity_bytes()}
    assert len(sizes) == 1, sizes
    assert "extend_new_size" not in shown["metadata"]
    return int(shown["size"])


@pytest.mark.parametrize(
    ("meddle", "size"),
    [
        (forward, 2),
        (twice, 2),
        (answer_lost, 2),
        (refused_after_all(500), 2),
        pytest.param(refused_after_all(503), 2, marks=pytest.mark.full),
        (late(1.0), 2),
        pytest.param(late(DEADLINE_S + 2), 1, marks=pytest.mark.full),
        (lost, 1),
        (refused(403), 1),
        pytest.param(refused(404), 1, marks=pytest.mark.full),
        pytest.param(refused(422), 1, marks=pytest.mark.full),
        pytest.param(refused(500), 1, marks=pytest.mark.full),
        (per_event(404), 1),
        pytest.param(per_event(422), 1, marks=pytest.mark.full),
        pytest.param(per_event(500), 1, marks=pytest.mark.full),
    ],
    ids=[
        "arrives",
        "twice",
        "answer lost",
        "taken, answered 500",
        "taken, answered 503",
        "late",
        "too late",
        "lost",
        "403",
        "404",
        "422",
        "500",
        "404 of its own",
        "422 of its own",
        "500 of its own",
    ],
)
def test_an_event(
    site: ServiceSite,
    guest: DeviceGuest,
    volume_id: str,
    events: Between,
    meddle: Meddle,
    size: int,
) -> None:
    events.meddle = meddle
    site.extend(volume_id, 2)
    assert ended(site, guest, volume_id) == size
    if size == 1:
        (told,) = [each for each in messages(site) if each["resource_uuid"] == volume_id]
        assert "rolled back, nothing changed" in told["user_message"]
    events.meddle = forward
    site.extend(volume_id, 3)
    assert ended(site, guest, volume_id) == 3


@pytest.mark.parametrize(
    "meddle",
    [
        forward,
        pytest.param(twice, marks=pytest.mark.full),
        lost,
        pytest.param(answer_lost, marks=pytest.mark.full),
        pytest.param(refused(400), marks=pytest.mark.full),
        refused(403),
        pytest.param(refused(404), marks=pytest.mark.full),
        refused(500),
        pytest.param(late(2.0), marks=pytest.mark.full),
    ],
    ids=["arrives", "twice", "lost", "answer lost", "400", "403", "404", "500", "late"],
)
def test_a_completion(
    site: ServiceSite, guest: DeviceGuest, volume_id: str, completions: Between, meddle: Meddle
) -> None:
    """It is a hint: whatever becomes of it, who waits looks."""
    completions.meddle = meddle
    site.extend(volume_id, 2)
    assert ended(site, guest, volume_id) == 2
    completions.wait(1)
    completions.meddle = forward
    site.extend(volume_id, 3)
    assert ended(site, guest, volume_id) == 3


@pytest.mark.parametrize("error", [False, True])
def test_a_completion_of_an_earlier_extend_changes_nothing(
    site: ServiceSite, guest: DeviceGuest, volume_id: str, events: Between, error: bool
) -> None:
    site.extend(volume_id, 2)
    assert ended(site, guest, volume_id) == 2
    events.meddle = late(1.5)
    site.extend(volume_id, 3)
    body = {"os-extend_volume_completion": {"error": error, "voldrivers:extend_id": 1}}
    site.done("POST", f"volumes/{volume_id}/action", body)
    assert site.show(volume_id)["status"] == "extending"
    assert ended(site, guest, volume_id) == 3


def test_a_false_failure_has_the_service_look_and_go_back_behind_the_fence(
    site: ServiceSite, guest: DeviceGuest, volume_id: str, events: Between
) -> None:
    """What was said to have failed comes late: its agent refuses it then."""
    events.meddle = late(1.5)
    site.extend(volume_id, 2)
    site.done("POST", f"volumes/{volume_id}/action", {"os-extend_volume_completion": {"error": True}})
    assert ended(site, guest, volume_id) == 1
    events.wait(1)
    wait_until(lambda: site.agent.log.count("os-server-external-events") > 0, 10, "the event to arrive")
    assert ended(site, guest, volume_id) == 1


def test_a_false_completion_is_no_evidence(
    site: ServiceSite, guest: DeviceGuest, volume_id: str, events: Between
) -> None:
    events.meddle = lost
    site.extend(volume_id, 2)
    site.done("POST", f"volumes/{volume_id}/action", {"os-extend_volume_completion": {"error": False}})
    assert ended(site, guest, volume_id) == 1


def test_the_calls_of_the_specification_while_it_is_extending(
    site: ServiceSite, guest: DeviceGuest, volume_id: str, events: Between
) -> None:
    """As far as is waited for and no further, never smaller, and never for an older extend."""
    events.meddle = lost
    site.extend(volume_id, 3)

    def assist(size_gib: int, **headers: str) -> int:
        path = f"servers/guest/os-online_extend_volume/{volume_id}"
        body = {"onlineExtendVolume": {"bytes": size_gib * GiB}}
        return site.compute("POST", path, body, **headers).status_code

    assert assist(4) == 409
    assert assist(2, **{"Voldrivers-Extend": "7"}) == 200
    assert guest.disk(volume_id).capacity_bytes() == 2 * GiB
    assert assist(3, **{"Voldrivers-Extend": "6"}) == 409
    assert assist(1, **{"Voldrivers-Extend": "7"}) == 200
    assert guest.disk(volume_id).capacity_bytes() == 2 * GiB
    assert assist(3, **{"Voldrivers-Extend": "8"}) == 200
    assert ended(site, guest, volume_id) == 3


def test_an_event_that_fails_keeps_no_other_one_of_its_request_from_being_carried_out(
    site: ServiceSite, guest: DeviceGuest, volume_id: str, events: Between
) -> None:
    events.meddle = lost
    site.extend(volume_id, 2)
    unplugged = site.create()
    sent = [
        {"name": "volume-extended", "server_uuid": guest.name, "tag": tag} for tag in (unplugged, volume_id)
    ]
    answer = site.compute("POST", "os-server-external-events", {"events": sent})
    assert [each["code"] for each in answer.json()["events"]] == [200, 200]
    assert ended(site, guest, volume_id) == 2
    assert f"event volume-extended of volume {unplugged}" in site.agent.log


@pytest.mark.parametrize("who", ["service", pytest.param("agent", marks=pytest.mark.full)])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_one_is_killed_and_started_again(
    site: ServiceSite, guest: DeviceGuest, volume_id: str, events: Between, who: str, moment: str
) -> None:
    """Killed before the event arrives, or after it did; `resume` of the service brings it to its end."""
    running = getattr(site, who)
    events.meddle = answer_lost if moment == "after" else late(1.0)
    site.extend(volume_id, 2)
    events.wait(1)
    running.end()
    running.start()
    events.meddle = forward
    assert ended(site, guest, volume_id) in (1, 2)
    site.extend(volume_id, 3)
    assert ended(site, guest, volume_id) == 3


def test_an_agent_that_is_frozen_leaves_it_extending_until_the_fence_holds(
    site: ServiceSite, guest: DeviceGuest, volume_id: str, events: Between
) -> None:
    events.meddle = late(0.5)
    site.extend(volume_id, 2)
    os.kill(site.agent.process.pid, signal.SIGSTOP)
    wait_until(lambda: "unknown" in site.service.log, 60, "the service to give up waiting")
    assert site.show(volume_id)["status"] == "extending"
    os.kill(site.agent.process.pid, signal.SIGCONT)
    events.meddle = forward
    assert ended(site, guest, volume_id) == 2


def messages(site: ServiceSite) -> list[dict[str, str]]:
    return list(site.done("GET", "messages")["messages"])
