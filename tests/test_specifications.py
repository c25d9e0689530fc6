"""What the specifications ask to be tested, scenario by scenario, over HTTP with a real guest.

Enable extend of attached volumes (Cinder): the three scenarios of its section Testing, statuses and policy.
Use extend volume completion action (Nova): a compute that is too old. Of its section Testing are, in
test_extend_by_events.py, the completion in every success and error (test_an_event) and completions that fail
(test_a_completion); in test_compute_face.py, volumes that are not extending (test_a_classic_event...).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import offline
import pytest
from between import Passing, refused, standing
from servicesite import ServiceSite, secret_file

from voldrivers.guests.device import DeviceGuest
from voldrivers.sizes import GiB

pytestmark = [pytest.mark.needs("qemu-system-x86_64", "qemu-img"), pytest.mark.slow]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[DeviceGuest]:
    with DeviceGuest(tmp_path) as made:
        yield made


def extend(size_gib: int) -> dict[str, object]:
    return {"os-extend": {"new_size": size_gib}}


def test_1_a_driver_without_the_capability(
    tmp_path: Path, guest: DeviceGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request fails with a message that says so, and not after a 202; nothing has changed."""
    offline.install(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{Path(__file__).parent}")
    site = ServiceSite(tmp_path, driver="offline")
    try:
        volume_id = site.create()
        attachment = site.attach(volume_id, guest)
        said = site.refused(400, "POST", f"volumes/{volume_id}/action", extend(2))
        assert "does not support extending a volume that is in-use" in said
        assert (site.show(volume_id)["status"], site.file_bytes(volume_id)) == ("in-use", GiB)
        (pool,) = site.done("GET", "scheduler-stats/get_pools?detail=true")["pools"]
        assert pool["capabilities"]["online_extend_support"] is False
        site.detach(attachment, guest)
        site.extend(volume_id, 2)
        assert site.wait(volume_id, "available")["size"] == 2
    finally:
        site.end()


def test_2_a_compute_service_without_the_event(tmp_path: Path, guest: DeviceGuest) -> None:
    """It refuses what it does not know; then nothing has grown, and a message says why."""
    with standing("/os-server-external-events") as events:
        site = ServiceSite(tmp_path, events_at=events.url)
        try:
            events.target, events.meddle = site.agent.url, refused(400)
            volume_id = site.create()
            site.attach(volume_id, guest)
            site.extend(volume_id, 2)
            assert site.wait(volume_id, "in-use")["size"] == 1
            assert site.file_bytes(volume_id) == guest.disk(volume_id).capacity_bytes() == GiB
            (told,) = site.done("GET", "messages")["messages"]
            assert "refused with 400" in told["user_message"]
        finally:
            site.end()


def test_3_a_compute_service_with_the_event(tmp_path: Path, guest: DeviceGuest) -> None:
    site = ServiceSite(tmp_path, by_events=True)
    try:
        volume_id = site.create()
        site.attach(volume_id, guest)
        site.extend(volume_id, 2)
        assert site.wait(volume_id, "in-use")["size"] == 2
        assert site.file_bytes(volume_id) == guest.disk(volume_id).capacity_bytes() == 2 * GiB
    finally:
        site.end()


def test_every_other_status_is_refused(tmp_path: Path, guest: DeviceGuest) -> None:
    site = ServiceSite(tmp_path)
    try:
        volume_id = site.create()
        path = f"volumes/{volume_id}/action"
        reserved = site.done("POST", "attachments", {"attachment": {"volume_uuid": volume_id}})["attachment"][
            "id"
        ]
        assert site.show(volume_id)["status"] == "reserved"
        assert "is reserved, must be available or in-use" in site.refused(400, "POST", path, extend(2))
        connector = {"attachment": {"connector": {"host": "elsewhere", "ip": "192.0.2.1"}}}
        given = site.done("PUT", f"attachments/{reserved}", connector)["attachment"]["connection_info"]
        assert given["driver_volume_type"] == "file"
        assert site.show(volume_id)["status"] == "attaching"
        assert "is attaching, must be" in site.refused(400, "POST", path, extend(2))
        site.done("POST", f"attachments/{reserved}/action", {"os-complete": reserved})
        assert site.show(volume_id)["status"] == "in-use"
        # No agent is there who could tell: nothing is believed.
        assert "host elsewhere does not exist" in site.refused(400, "POST", path, extend(2))
        site.done("DELETE", f"attachments/{reserved}")
        site.extend(volume_id, 2)
        assert site.wait(volume_id, "available")["size"] == 2
    finally:
        site.end()


def test_a_volume_that_is_for_reading_is_not_attached_for_writing(tmp_path: Path) -> None:
    """Glance says so of an image that is whole (`os-update_readonly_flag`)."""
    site = ServiceSite(tmp_path)

    def attached(mode: str | None) -> Any:  # Any: what JSON holds
        body = {"volume_uuid": volume_id, "connector": {"host": "elsewhere", "ip": "192.0.2.1"}}
        return {"attachment": body if mode is None else {**body, "mode": mode}}

    def flag(value: object) -> dict[str, object]:
        return {"os-update_readonly_flag": {"readonly": value}}

    try:
        volume_id = site.create()
        action = f"volumes/{volume_id}/action"
        site.done("PUT", f"volumes/{volume_id}/metadata", {"metadata": {"a": "b"}})
        site.refused(400, "POST", action, flag("perhaps"))
        site.done("POST", action, flag(value=True))
        assert site.show(volume_id)["metadata"] == {"a": "b", "readonly": "True"}
        assert "is read-only" in site.refused(400, "POST", "attachments", attached("rw"))
        plugged = {"attachment": {"volume_uuid": volume_id, "voldrivers:host": "compute1"}}
        assert "is read-only" in site.refused(400, "POST", "attachments", plugged)
        for mode in ("ro", None):
            given = site.done("POST", "attachments", attached(mode))["attachment"]
            assert (given["attach_mode"], given["connection_info"]["access_mode"]) == ("ro", "ro")
            assert "must be available" in site.refused(400, "POST", action, flag(value=False))
            site.done("DELETE", f"attachments/{given['id']}")
        site.done("POST", action, flag(value=False))
        given = site.done("POST", "attachments", attached("rw"))["attachment"]
        assert given["attach_mode"] == "rw"
        assert site.show(volume_id)["metadata"] == {"a": "b"}
    finally:
        site.end()


def test_a_deployer_turns_it_off_by_policy(tmp_path: Path, guest: DeviceGuest) -> None:
    secret_file(tmp_path / "admin.token", "0123456789abcdef-of-admin")
    (tmp_path / "policy.yaml").write_text('"volume:extend_attached_volume": "!"\n')
    caller = '[caller.admin]\ntoken_file = "../admin.token"\nrole = "admin"\n'
    site = ServiceSite(
        tmp_path,
        tables=f'policy_file = "../policy.yaml"\n{caller}',
        headers={"X-Auth-Token": "0123456789abcdef-of-admin"},
    )
    try:
        volume_id = site.create()
        site.attach(volume_id, guest)
        said = site.refused(403, "POST", f"volumes/{volume_id}/action", extend(2))
        assert "volume:extend_attached_volume" in said
        assert site.file_bytes(volume_id) == GiB
    finally:
        site.end()


def test_a_compute_that_is_too_old_is_found_before_anything_is_left_unfinished(
    tmp_path: Path, guest: DeviceGuest
) -> None:
    def older(passing: Passing) -> tuple[int, bytes]:
        code, body = passing.forward()
        return code, body.replace(b'"version": 1', b'"version": 0')

    with standing("/v1/host") as agent:
        site = ServiceSite(tmp_path, agent_at=agent.url)
        try:
            agent.target = site.agent.url
            volume_id = site.create()
            site.attach(volume_id, guest)
            site.service.end()
            site.service.start()
            agent.meddle, agent.also_looks = older, True
            said = site.refused(400, "POST", f"volumes/{volume_id}/action", extend(2))
            assert "host compute: speaks protocol 0, 1 is needed" in said
            assert (site.show(volume_id)["status"], site.file_bytes(volume_id)) == ("in-use", GiB)
        finally:
            site.end()
