"""The volume service between machines: clients on one, the service on another, guests on two; over TLS."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from inside import clients
from labs import CHECKOUT, inside, inside_for, shell, started

from voldrivers.errors import BackendError, OutcomeUnknown
from voldrivers.guests.verified import DiskReport, read_report
from voldrivers.lab import levers, prepared, project
from voldrivers.lab.cache import Cache
from voldrivers.lab.channel import RunningCommand, Start
from voldrivers.lab.lab import Lab, Topology
from voldrivers.lab.machine import LabMachine
from voldrivers.process import wait_until
from voldrivers.sizes import GiB, MiB

_CONFIG = """
cat >>/etc/voldrivers/voldrivers.toml <<'END'
[policy]
deadline_s = 40.0
[backend.nfs]
driver = "nfs"
share = "storage:/"
[service]
listen = "0.0.0.0:8776"
certificate = "identity.pem"
[caller.operator]
token_file = "token"
role = "admin"
END
lvcreate --quiet --size 3g --thinpool vg0-pool vg0
"""
_QEMU = (
    "qemu-system-x86_64 -name vm -M pc -m 64 -nodefaults -display none -S -daemonize"
    " -qmp unix:/run/lab/vm.qmp,server=on,wait=off"
)
THIN = {"volume_type": "lvm", "voldrivers:options": {"lvm_type": "thin"}}
GUEST = {"voldrivers:host": "compute", "instance_uuid": "guest"}
OTHER = {"voldrivers:host": "compute2", "instance_uuid": "vm"}


class ThreeMachines:
    """A service on storage, a guest at work on compute, another on compute2, where the clients are too."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        for name in ("compute", "compute2"):
            prepared.start_agent(lab.machine(name))
        prepared.start_guest(lab.machine("compute"))
        shell(lab, "compute2", _QEMU)
        prepared.configure(lab.machine("storage"), ["compute", "compute2"])
        shell(lab, "storage", _CONFIG)
        self.start_service()

    @property
    def machines(self) -> dict[str, LabMachine]:
        """The lab's, for the logs of a test that failed."""
        return dict(self.lab.machines)

    def start_service(self) -> None:
        self.lab.bring_project("storage", CHECKOUT)
        argv = ["voldrivers", "serve", "--config", "/etc/voldrivers/voldrivers.toml", "-v"]
        start = Start(argv, env=project.ENVIRONMENT)
        command = self.lab.machine("storage").channel.start(start, _print)
        threading.Thread(target=_to_its_end, args=[command], daemon=True).start()
        answers = "while ! (: >/dev/tcp/127.0.0.1/8776) 2>/dev/null; do sleep 0.1; done"
        shell(self.lab, "storage", answers, 400)

    def do(self, function: Any, *arguments: object) -> Any:  # Any: as the function has it
        """Call one of `inside.clients` on compute2."""
        return inside(self.lab, "compute2", function, *arguments)

    def extend(self, volume_id: str, size_gib: int) -> None:
        """Begin an extend."""
        body = {"os-extend": {"new_size": size_gib}}
        assert self.do(clients.ask, "POST", f"volumes/{volume_id}/action", body) == [202, None]

    def disk(self, volume_id: str) -> DiskReport:
        """What the guest on compute saw of a volume."""
        report = read_report(shell(self.lab, "compute", "cat /run/lab/guest.report"))
        return [disk for disk in report.disks if disk.serial == volume_id[:20]][-1]

    def check(self, volume_id: str, size_gib: int) -> None:
        """Have every layer and the guest agree on a size, and the guest be at work on right data."""
        shown = self.do(clients.wait, volume_id)
        assert (shown["status"], shown["size"]) == ("in-use", size_gib), shown
        _, answer = self.do(clients.ask, "GET", f"volumes/{volume_id}/ledger")
        assert {row["observed_bytes"] for row in answer["ledger"]} == {size_gib * GiB}, answer
        wait_until(lambda: self.disk(volume_id).capacity_bytes == size_gib * GiB, 30, "the guest to see it")
        writes = self.disk(volume_id).writes
        wait_until(lambda: self.disk(volume_id).writes > writes, 60, "the guest to write")
        assert self.disk(volume_id).problems == []

    def mend(self, volume_id: str) -> None:
        """Have a disturbed extend to 2 GiB end as one that was not, by what an operator would do."""
        shown = self.do(clients.wait, volume_id)
        if shown["status"] == "error_extending":
            retry = {"voldrivers:retry": None}
            assert self.do(clients.ask, "POST", f"volumes/{volume_id}/action", retry) == [202, None]
        elif shown["size"] == 1:  # nothing had changed
            self.extend(volume_id, 2)
        self.check(volume_id, 2)

    def delete(self, volume_id: str) -> None:
        """Detach a volume everywhere, and delete it."""
        _, shown = self.do(clients.ask, "GET", f"attachments?volume_id={volume_id}")
        for attachment in shown["attachments"]:
            assert self.do(clients.ask, "DELETE", f"attachments/{attachment['id']}")[0] == 200
        assert self.do(clients.ask, "DELETE", f"volumes/{volume_id}")[0] == 202


@pytest.fixture(scope="module")
def served(lab_cache: Cache) -> Iterator[ThreeMachines]:
    with started(lab_cache, Topology.THREE_HOSTS) as running:
        yield ThreeMachines(running)


def test_cinderclient_on_a_third_machine_extends_a_volume_in_use(served: ThreeMachines) -> None:
    volume_id = served.do(clients.create, {"size": 1, **THIN}, GUEST)
    served.check(volume_id, 1)
    assert served.do(clients.extend_by_cinderclient, volume_id, 2)["status"] == "in-use"
    served.check(volume_id, 2)
    served.delete(volume_id)


@pytest.mark.full
@pytest.mark.parametrize("kind", [THIN, {"volume_type": "nfs"}], ids=["LVM over iSCSI", "NFS"])
def test_one_client_after_the_other_extends_a_volume_in_use(
    served: ThreeMachines, kind: dict[str, object]
) -> None:
    volume_id = served.do(clients.create, {"size": 1, **kind}, GUEST)
    extends = [
        clients.extend_by_command_line,
        clients.extend_by_openstacksdk,
        clients.extend_by_cinderclient,
    ]
    for size_gib, extend in enumerate(extends, 2):
        assert served.do(extend, volume_id, size_gib)["status"] == "in-use"
        served.check(volume_id, size_gib)
    served.delete(volume_id)


@pytest.mark.full
def test_glance_store_writes_an_image_of_unknown_size_and_extends_in_use(served: ThreeMachines) -> None:
    """It connects by itself (os-brick on compute2); the agent there finds the volume, and verifies the size.

    Over NFS its own code cannot (glance_store 5.7.0, _drivers/cinder/nfs.py: extend_volume).
    """
    written, said, volume_id, digest = inside_for(900, served.lab, "compute2", clients.add_image, 1040)
    assert (written, said) == (1040 * MiB, digest)
    _, shown = served.do(clients.ask, "GET", f"volumes/{volume_id}")
    assert (shown["volume"]["status"], shown["volume"]["size"]) == ("available", 2)
    path = f"/dev/vg0/volume-{volume_id}"
    there = f"lvchange --activate y --ignoreactivationskip vg0/volume-{volume_id}; head -c {written} {path}"
    assert shell(served.lab, "storage", f"{there} | sha256sum", 100).split()[0] == digest
    assert served.do(clients.ask, "DELETE", f"volumes/{volume_id}")[0] == 202


@pytest.mark.full
def test_a_network_that_is_cut_between_the_phases(served: ThreeMachines) -> None:
    """The backend has grown and the host cannot be reached: it is named, and `retry` does the rest."""
    volume_id = served.do(clients.create, {"size": 1, **THIN}, GUEST)
    levers.pv_delay(served.lab, 300)
    served.extend(volume_id, 2)
    for portal in ("a", "b"):
        levers.link_down(served.lab, "compute", portal)
    levers.pv_mend(served.lab)
    shown = served.do(clients.wait, volume_id)
    print("after the cut:", shown["status"], shown["voldrivers:last_extend"])
    assert shown["status"] in ("error_extending", "in-use")
    if shown["status"] == "error_extending":
        assert "compute" in shown["voldrivers:last_extend"]["reason"]
    for portal in ("a", "b"):
        levers.link_up(served.lab, "compute", portal)
    served.mend(volume_id)
    served.delete(volume_id)


@pytest.mark.full
def test_an_agent_that_is_frozen_and_thawed(served: ThreeMachines) -> None:
    """Without an answer it stays as it is, or what has grown by then is told; afterwards it goes on."""
    volume_id = served.do(clients.create, {"size": 1, "volume_type": "nfs"}, GUEST)
    agent = "pgrep --oldest --full '[v]oldrivers agent'"
    served.extend(volume_id, 2)
    shell(served.lab, "compute", f"kill -STOP $({agent})")
    shown = served.do(clients.wait, volume_id, 45)
    print("while frozen:", shown["status"], shown["voldrivers:last_extend"])
    shell(served.lab, "compute", f"kill -CONT $({agent})")
    served.mend(volume_id)
    served.delete(volume_id)


@pytest.mark.full
def test_two_compute_hosts_on_one_volume(served: ThreeMachines) -> None:
    volume_id = served.do(clients.create, {"size": 1, "multiattach": True, **THIN}, GUEST)
    served.do(clients.attach, volume_id, OTHER)
    assert served.do(clients.extend_by_cinderclient, volume_id, 2)["status"] == "in-use"
    served.check(volume_id, 2)
    _, answer = served.do(clients.ask, "GET", f"volumes/{volume_id}/ledger")
    nodes = [row["place"] for row in answer["ledger"] if row["layer"] == "QEMU node"]
    assert nodes == ["compute/guest", "compute2/vm"]


def _print(_stream: int, content: bytes) -> None:
    print(content.decode(errors="backslashreplace"), end="")


def _to_its_end(command: RunningCommand) -> None:
    with suppress(OutcomeUnknown, BackendError):  # it was killed, or the machine reset
        command.wait()
