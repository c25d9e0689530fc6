"""Whatever is sent, as the services describe themselves and otherwise: schemathesis with all its checks."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servicesite import AGENT_TOKEN, PROJECT, ServiceSite

from voldrivers import process
from voldrivers.guests.device import DeviceGuest

pytestmark = [pytest.mark.needs("qemu-system-x86_64", "qemu-img"), pytest.mark.slow]

#: A driver's own options, and what excludes one another, no schema knows; 501 is the specification's own.
_CONFIG = """
[checks]
not_a_server_error.enabled = false
""" + "".join(
    f"""
[[operations]]
include-name = "POST {path}"
checks.{check}.enabled = false
"""
    for path, check in (
        ("/v3/{project_id}/volumes", "positive_data_acceptance"),
        ("/v3/{project_id}/manageable_volumes", "positive_data_acceptance"),
        # A header that nobody knows is no error, and what is wrong with one event is said of that one (207).
        ("/v2/{tenant_id}/os-server-external-events", "negative_data_rejection"),
        ("/v2.1/{tenant_id}/os-server-external-events", "negative_data_rejection"),
    )
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ServiceSite]:
    made = ServiceSite(tmp_path, tables="requests_per_second = 10000.0\n")
    yield made
    made.end()


def schemathesis(site: ServiceSite, tier: str, url: str, *options: str) -> None:
    config = site.directory / "schemathesis.toml"
    config.write_text(_CONFIG)
    program = str(Path(sys.executable).with_name("schemathesis"))
    # Coverage of every boundary and sequences of requests take minutes.
    thorough = ["--max-examples=60"] if tier == "full" else ["--phases=fuzzing", "--max-examples=10"]
    found = [f"--config-file={config}", "run", f"{url}/openapi.json", f"--url={url}", "--no-color", *thorough]
    argv = ["sh", "-c", '"$@"; echo "exit code $?"', "sh", program, *found, *options]
    done = process.run(argv, timeout_s=400)
    assert "exit code 0" in done.stdout, done.stdout[-8000:]


def test_the_volume_service(site: ServiceSite, tmp_path: Path, tier: str) -> None:
    with DeviceGuest(tmp_path) as guest:
        volume_id = site.create(name="in use")
        site.attach(volume_id, guest)
        before = site.show(volume_id)
        schemathesis(site, tier, site.service.url, "--header=OpenStack-API-Version: volume 3.71")
        after = site.show(volume_id)
        assert {"status": after["status"], "size": after["size"]} == {
            "status": "in-use",
            "size": before["size"],
        }
    assert 'status="500"' not in site.ask("GET", "/metrics").text
    assert "mistake in voldrivers" not in site.service.log


def test_the_agent(site: ServiceSite, tmp_path: Path, tier: str) -> None:
    with DeviceGuest(tmp_path) as guest:
        volume_id = site.create()
        site.attach(volume_id, guest)
        schemathesis(site, tier, site.agent.url, f"--header=Authorization: Bearer {AGENT_TOKEN}")
        assert guest.disk(volume_id).capacity_bytes() == site.file_bytes(volume_id)
    assert "mistake in voldrivers" not in site.agent.log
    answer = site.compute("GET", f"servers/guest/os-online_extend_volume/{volume_id}")
    assert (answer.status_code, PROJECT) == (404, PROJECT) or answer.status_code == 409
