"""Many at once: 200 looks at a device, and 50 extends of different volumes. No error, and bounded memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servicesite import ServiceSite

from voldrivers.guests.device import DeviceGuest
from voldrivers.sizes import MiB

pytestmark = [pytest.mark.needs("qemu-system-x86_64", "qemu-img"), pytest.mark.slow]
LOOKS, EXTENDS = 200, 50
#: What 250 requests at once may add; a connection, a thread and an engine each are far less.
_MORE_BYTES = 256 * MiB


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ServiceSite]:
    made = ServiceSite(tmp_path, tables="requests_per_second = 10000.0\n", deadline_s=120)
    yield made
    made.end()


def resident_bytes(pid: int) -> int:
    (line,) = (each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in each)
    return int(line.split()[1]) * 1024


def test_looks_and_extends_at_once(site: ServiceSite, tmp_path: Path) -> None:
    with DeviceGuest(tmp_path) as guest:
        watched = site.create()
        site.attach(watched, guest)
        volumes = [site.create(name=f"v{number}") for number in range(EXTENDS)]
        pids = [site.service.process.pid, site.agent.process.pid]
        before = [resident_bytes(pid) for pid in pids]
        path = f"servers/guest/os-online_extend_volume/{watched}"
        with ThreadPoolExecutor(100) as clients:
            looks = [clients.submit(site.compute, "GET", path) for _ in range(LOOKS)]
            extends = [clients.submit(site.extend, volume, 2) for volume in volumes]
            refused = {look.result().text for look in looks if look.result().status_code != 200}
            for extend in extends:
                extend.result()
        assert not refused
        for volume in volumes:
            assert site.wait(volume, "available")["size"] == 2
            assert site.file_bytes(volume) == 2 * 1024 * MiB
        grown = [resident_bytes(pid) - was for pid, was in zip(pids, before, strict=True)]
        print("bytes more:", grown)
        assert max(grown) < _MORE_BYTES
