"""Cinder on a storage machine, a guest at work on a compute machine with an agent: LVM/iSCSI, and NFS."""

import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress

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
for each in lvm nfs; do printf '[policy]\\ndeadline_s = 60.0\\n' >>{there}/$each.toml; done
cat >{there}/cinder.conf <<'END'
{conf}
END
lvcreate --quiet --size 3g --thinpool vg0-pool vg0
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
        inside(lab, "compute", cinderclients.make_type, "lvm", **{"voldrivers:lvm_type": "thin"})

    def python(self, *words: str) -> None:
        """Run a program of Cinder's on storage, to its end."""
        self.lab.machine("storage").channel.run(self._words(*words), timeout_s=400, env=self._environment)

    def start(self) -> None:
        """Start Cinder; give back when both of its backends are there."""
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


@pytest.mark.parametrize("backend", ["nfs", "lvm"])
def test_a_guest_at_work_sees_what_cinder_says(machines: TwoMachines, backend: str) -> None:
    lab = machines.lab
    volume_id = inside(lab, "compute", cinderclients.create, 1, backend)
    inside(lab, "compute", cinderclients.attach, volume_id, INSTANCE)
    machines.check(volume_id, 1)
    for size_gib in (2, 3):
        shown = inside(lab, "compute", cinderclients.extend, volume_id, size_gib)
        assert (shown["status"], shown["size"]) == ("in-use", size_gib), shown
        assert machines.disk(volume_id).capacity_bytes == size_gib * GiB
        machines.check(volume_id, size_gib)


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
