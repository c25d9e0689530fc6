"""Cinder on a storage machine, a guest at work on a compute machine with an agent: LVM/iSCSI, and NFS."""

import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from cindersite import CONF, SECTION, environment
from inside import cinderclients
from labs import CHECKOUT, inside, inside_for, shell, started

from voldrivers.errors import BackendError, OutcomeUnknown
from voldrivers.guests.verified import DiskReport, read_report
from voldrivers.lab import prepared, project
from voldrivers.lab.cache import Cache
from voldrivers.lab.channel import Start
from voldrivers.lab.lab import Lab, Topology
from voldrivers.process import wait_until
from voldrivers.sizes import GiB

pytestmark = [pytest.mark.full, pytest.mark.timeout(3000)]
INSTANCE = "9b1a3c52-0f7b-4f6e-8d6f-2f3f0d1c5e77"
_THERE = "/opt/cinder"
_PREPARE = """
mkdir -p {there}/cinder
cp /etc/voldrivers/token /etc/voldrivers/identity.pem {there}
cp /etc/voldrivers/voldrivers.toml {there}/lvm.toml
printf 'state_dir = "/var/lib/voldrivers"\\n[backend.nfs]\\n' >{there}/nfs.toml
printf 'driver = "nfs"\\nshare = "storage:/"\\n' >>{there}/nfs.toml
sed --quiet '/^.host/,$p' {there}/lvm.toml >>{there}/nfs.toml
sed --in-place '/^volume_group/i lvm_type = "thin"' {there}/lvm.toml
for each in lvm nfs; do printf '[policy]\\ndeadline_s = 60.0\\n' >>{there}/$each.toml; done
cat >{there}/cinder.conf <<'END'
{conf}
END
lvcreate --quiet --size 3g --thinpool vg0-pool vg0
"""


#: Waits until an extend that is under way stands in Cinder's records.
_BEGUN = f"""
import sqlite3, time
records = sqlite3.connect("{_THERE}/cinder/cinder.sqlite", timeout=60)
of_extends = "SELECT 1 FROM volume_admin_metadata WHERE deleted = 0 AND key = ?"
while not records.execute(of_extends, ("voldrivers:extend",)).fetchall():
    time.sleep(0.05)
"""


class TwoMachines:
    """Cinder with both backends on storage, a guest at work on compute."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.machines = lab, dict(lab.machines)
        prepared.start_agent(lab.machine("compute"))
        prepared.start_guest(lab.machine("compute"))
        shell(lab, "compute", f"ln -s guest.qmp /run/lab/{INSTANCE}.qmp")
        prepared.configure(lab.machine("storage"), ["compute"])
        lab.bring_project("storage", CHECKOUT)
        storage = lab.machine("storage").channel
        storage.run(["mkdir", "-p", f"{_THERE}/lib"], timeout_s=60)
        storage.unpack(f"{_THERE}/lib", libraries(), timeout_s=600)
        facts = {"directory": _THERE, "port": cinderclients.PORT, "nova": 1}
        conf = CONF.format(**facts, backends="lvm,nfs", listen="0.0.0.0", environment=f"{_THERE}/lib")
        conf += "".join(SECTION.format(name=name, **facts) for name in ("lvm", "nfs"))
        shell(lab, "storage", _PREPARE.format(there=_THERE, conf=conf), 200)
        self.python("-c", "from cinder.cmd.manage import main; main()", "db", "sync")
        self.start()
        assert inside_for(150, lab, "compute", cinderclients.wait_for_pools, 2) == 2
        inside(lab, "compute", cinderclients.make_type, "nfs")
        inside(lab, "compute", cinderclients.make_type, "lvm")

    def python(self, *words: str) -> None:
        """Run a program of Cinder's on storage, to its end."""
        self.lab.machine("storage").channel.run(self._words(*words), timeout_s=400, env=self._environment)

    def start(self) -> None:
        """Start Cinder; give back when both of its backends are there."""
        shell(self.lab, "storage", f"rm --force {_THERE}/cinder.log")
        start = Start(self._words("/project/tests/inside/cinderinone.py"), env=self._environment)
        command = self.lab.machine("storage").channel.start(start, _print)

        def to_its_end() -> None:
            with suppress(BackendError, OutcomeUnknown):  # the lab ends first
                command.wait(3000.0)

        threading.Thread(target=to_its_end, daemon=True).start()
        both = f"[ $(grep -c 'Driver post RPC initialization completed' {_THERE}/cinder.log || true) = 2 ]"
        waited = f"while pgrep -f cinderinone >/dev/null; do ! {both} || exit 0; sleep 1; done"
        shell(self.lab, "storage", f"{waited}; grep -v INFO {_THERE}/cinder.log | tail -50 >&2; exit 1", 500)

    @property
    def _environment(self) -> dict[str, str]:
        return {**project.ENVIRONMENT, "PYTHONPATH": f"{_THERE}/lib:/project:/project/tests"}

    def _words(self, *words: str) -> list[str]:
        first, *rest = words
        given = [first, rest.pop(0)] if first == "-c" else [first]
        return ["python3", *given, "--config-file", f"{_THERE}/cinder.conf", *rest]

    def disk(self, volume_id: str) -> DiskReport:
        """What the guest saw of a volume."""
        report = read_report(shell(self.lab, "compute", "cat /run/lab/guest.report"))
        return [disk for disk in report.disks if disk.serial == volume_id[:20]][-1]

    def check(self, volume_id: str, size_gib: int) -> None:
        """Have the guest see a size, and be at work on right data."""
        wait_until(lambda: self.disk(volume_id).capacity_bytes == size_gib * GiB, 60, "the guest to see it")
        writes = self.disk(volume_id).writes
        wait_until(lambda: self.disk(volume_id).writes > writes, 60, "the guest to write")
        assert self.disk(volume_id).problems == []


@pytest.fixture(scope="module")
def machines(lab_cache: Cache) -> Iterator[TwoMachines]:
    with started(lab_cache, Topology.TWO_HOSTS) as running:
        yield TwoMachines(running)


@pytest.fixture(autouse=True)
def log(machines: TwoMachines) -> Iterator[None]:
    """Have what Cinder complains of in the report of a test that fails."""
    yield
    complaints = f"grep --extended-regexp ' (ERROR|WARNING) ' {_THERE}/cinder.log | tail --lines=60"
    print(shell(machines.lab, "storage", f"{complaints} || true"))


@dataclass(frozen=True)
class Busy:
    """A volume that the guest works on."""

    machines: TwoMachines
    backend: str
    volume_id: str

    @property
    def size_gib(self) -> int:
        """Its size in Cinder, once nothing is under way."""
        return int(self.do(cinderclients.wait)["size"])

    def do(self, function: Callable[..., Any], *arguments: object) -> Any:  # Any: as the function has it
        """Call one of `inside.cinderclients` for it."""
        return inside_for(1200, self.machines.lab, "compute", function, self.volume_id, *arguments)

    def check(self, shown: dict[str, Any], size_gib: int) -> None:  # Any: what JSON holds
        """Have Cinder say that it is in use, of that size, and the guest agree at once and work on."""
        assert (shown["status"], shown["size"]) == ("in-use", size_gib), shown
        assert self.machines.disk(self.volume_id).capacity_bytes == size_gib * GiB
        self.machines.check(self.volume_id, size_gib)


@pytest.fixture(scope="module", params=["lvm", "nfs"])
def busy(machines: TwoMachines, request: pytest.FixtureRequest) -> Busy:
    volume_id = inside(machines.lab, "compute", cinderclients.create, 1, request.param)
    inside(machines.lab, "compute", cinderclients.attach, volume_id, INSTANCE)
    machines.check(volume_id, 1)
    return Busy(machines, request.param, volume_id)


def test_a_guest_at_work_sees_what_cinder_says(busy: Busy) -> None:
    for _ in range(2):
        larger = busy.size_gib + 1
        busy.check(busy.do(cinderclients.extend, larger), larger)


def test_without_its_agent_nothing_changes(busy: Busy) -> None:
    compute, size_gib = busy.machines.lab.machine("compute"), busy.size_gib
    shell(busy.machines.lab, "compute", "pkill --full '[v]oldrivers agent'")
    busy.do(cinderclients.begin_extend, size_gib + 1)
    is_back = lambda: busy.do(cinderclients.wait)["status"] == "in-use"  # noqa: E731
    wait_until(is_back, 60, "its status to be given back")
    shown = busy.do(cinderclients.wait)
    assert "host compute" in shown["metadata"]["voldrivers:extend_failure"], shown
    busy.check(shown, size_gib)
    prepared.start_agent(compute)
    busy.check(busy.do(cinderclients.extend, size_gib + 1), size_gib + 1)


def test_killed_in_the_middle_it_is_carried_on(busy: Busy) -> None:
    larger = busy.size_gib + 1
    busy.do(cinderclients.begin_extend, larger)
    shell(busy.machines.lab, "storage", f"python3 -c '{_BEGUN}'; pkill -9 --full '[c]inderinone'")
    busy.machines.start()
    busy.check(busy.do(cinderclients.wait), larger)


@pytest.mark.parametrize(("backend", "there"), [("lvm", "lvs --options lv_name vg0"), ("nfs", "ls /srv/nfs")])
def test_the_life_of_a_volume(machines: TwoMachines, backend: str, there: str) -> None:
    before = shell(machines.lab, "storage", there)
    seen = inside_for(1200, machines.lab, "compute", cinderclients.live, backend)
    assert [tuple(each) for each in seen] == [("available", size_gib) for size_gib in (2, 2, 3, 2)]
    assert shell(machines.lab, "storage", there) == before


def test_with_a_snapshot_it_goes_on_too(busy: Busy) -> None:
    larger = busy.size_gib + 1
    busy.check(busy.do(cinderclients.extend_with_a_snapshot, larger), larger)


def libraries() -> bytes:
    """Pack Cinder's environment: the machines have the same Python."""
    (site,) = (environment() / "lib").glob("python*/site-packages")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        for path in sorted(site.iterdir()):
            if not path.name.startswith(("pip", "setuptools", "_distutils", "__editable__")):
                tar.add(path, path.name, filter=_needed)
        for name in ("api-paste.ini", "resource_filters.json"):
            tar.add(environment() / "etc" / "cinder" / name, f"etc/cinder/{name}")
    return packed.getvalue()


def _needed(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    left_out = ("__pycache__", "cinder/tests", "cinder/locale")
    return None if any(f"/{part}" in f"/{member.name}" for part in left_out) else member


def _print(_stream: int, content: bytes) -> None:
    print(content.decode(errors="backslashreplace"), end="", flush=True)
