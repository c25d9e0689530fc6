"""The lab tested on itself: real LVM, LIO, multipath, NVMe, NFS and QEMU in its machines."""

import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from inside import functions
from labs import CHECKOUT, LOGS, inside, shell, started

from voldrivers import process
from voldrivers.errors import CommandFailed, InvalidInput, NotFound, NotSupported, OutcomeUnknown
from voldrivers.lab import levers, states
from voldrivers.lab.cache import MOST_BYTES, Cache
from voldrivers.lab.lab import PLACES, Lab, Topology, Wanted
from voldrivers.process import wait_until
from voldrivers.sizes import MiB

IQN, PORTALS = "iqn.2024-01.org.example:t", ["10.77.1.1", "10.77.2.1"]
NQN = "nqn.2024-01.org.example:t"
SMALL, LARGE = 64 * MiB, 96 * MiB
#: Mounts that fail instead of waiting for ever.
SOFT = "vers=4.2,soft,timeo=10,retrans=1"


def create_volume(lab: Lab, name: str = "v", size: int = SMALL) -> str:
    shell(lab, "storage", f"lvcreate --quiet --yes --size {size}b --name {name} vg0")
    return f"/dev/vg0/{name}"


def extend_volume(lab: Lab, name: str = "v", size: int = LARGE) -> None:
    shell(lab, "storage", f"lvextend --quiet --size {size}b vg0/{name}")


def size_of(lab: Lab, machine: str, device: str) -> int:
    return int(shell(lab, machine, f"blockdev --getsize64 {device}"))


def log_in(lab: Lab) -> str:
    """Log in over both portals; give the multipath map."""
    for portal in PORTALS:
        shell(lab, "compute", f"iscsiadm --mode discovery --type sendtargets --portal {portal}")
    shell(lab, "compute", "iscsiadm --mode node --login && udevadm settle")
    wait_until(lambda: paths(lab) == {"ready": 2}, 60, "two paths")
    return "/dev/mapper/" + shell(lab, "compute", "ls /dev/mapper | grep ^36001405")


def paths(lab: Lab) -> dict[str, int]:
    """Count the paths of the only map by what its checker found."""
    try:
        maps = json.loads(shell(lab, "compute", "multipathd show maps json"))["maps"]
    except ValueError:  # seen once while it was busy; what it said then was not kept
        return {}
    found = [path["chk_st"] for one in maps for group in one["path_groups"] for path in group["paths"]]
    return {state: found.count(state) for state in found}


def mount(lab: Lab, machine: str, options: str = "vers=4.2", source: str = "storage:/") -> None:
    shell(lab, machine, f"mount -t nfs -o {options} {source} /mnt")


@pytest.fixture
def in_background() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor()
    yield pool
    # The lab ends next, and with it whatever still runs there.
    pool.shutdown(wait=False)


def test_lvm_creates_and_extends_thick_and_thin_volumes(lab: Lab) -> None:
    thick = create_volume(lab)
    shell(lab, "storage", "lvcreate --quiet --size 256m --thinpool pool vg0")
    shell(lab, "storage", f"lvcreate --quiet --virtualsize {SMALL}b --thin --name thin vg0/pool")
    for name, device in (("v", thick), ("thin", "/dev/vg0/thin")):
        assert size_of(lab, "storage", device) == SMALL
        extend_volume(lab, name)
        assert size_of(lab, "storage", device) == LARGE
    report = json.loads(shell(lab, "storage", "pvs --reportformat json --options pv_name,vg_name"))
    assert report["report"][0]["pv"] == [{"pv_name": "/dev/mapper/lab-pv", "vg_name": "vg0"}]


@pytest.mark.full
def test_an_iscsi_volume_over_two_portals_grows_in_use(
    two_hosts: Lab, in_background: ThreadPoolExecutor
) -> None:
    inside(two_hosts, "storage", functions.export_iscsi, IQN, create_volume(two_hosts), PORTALS)
    device = log_in(two_hosts)
    guest = start_guest(two_hosts, in_background, device)
    extend_volume(two_hosts)
    assert size_of(two_hosts, "compute", device) == SMALL
    shell(two_hosts, "compute", "iscsiadm --mode session --rescan")
    shell(two_hosts, "compute", f"multipathd resize map {Path(device).name}")
    assert size_of(two_hosts, "compute", device) == LARGE
    assert extend_guest(two_hosts, guest) == {"before_bytes": SMALL, "after_bytes": LARGE, "announced": 1}
    last = f"dd if=/dev/vg0/v bs=512 count=1 skip={LARGE // 512 - 1} iflag=direct status=none"
    assert shell(two_hosts, "storage", last) == "y" * 512

    levers.link_down(two_hosts, "compute", "a")
    wait_until(lambda: paths(two_hosts).get("ready") == 1, 30, "one path left")
    shell(two_hosts, "compute", f"dd if=/dev/zero of={device} bs=64k count=16 oflag=direct")
    levers.link_up(two_hosts, "compute", "a")
    wait_until(lambda: paths(two_hosts) == {"ready": 2}, 30, "two paths again")
    with pytest.raises(InvalidInput, match="portal c"):
        levers.link_down(two_hosts, "compute", "c")


def test_an_nvme_volume_grows(two_hosts: Lab) -> None:
    create_volume(two_hosts)
    shell(
        two_hosts,
        "storage",
        f"""modprobe nvmet-tcp; cd /sys/kernel/config/nvmet
        space=subsystems/{NQN}/namespaces/1; mkdir -p $space ports/1
        echo 1 >subsystems/{NQN}/attr_allow_any_host
        echo /dev/vg0/v >$space/device_path; echo 1 >$space/enable
        cd ports/1; echo {PORTALS[0]} >addr_traddr; echo tcp >addr_trtype; echo ipv4 >addr_adrfam
        echo 4420 >addr_trsvcid; ln -s /sys/kernel/config/nvmet/subsystems/{NQN} subsystems/""",
    )
    shell(two_hosts, "compute", f"nvme connect -t tcp -a {PORTALS[0]} -s 4420 -n {NQN}; udevadm settle")
    assert size_of(two_hosts, "compute", "/dev/nvme0n1") == SMALL
    extend_volume(two_hosts)
    shell(
        two_hosts,
        "storage",
        f"echo 1 >/sys/kernel/config/nvmet/subsystems/{NQN}/namespaces/1/revalidate_size",
    )
    grown = "the host to hear of it"
    wait_until(lambda: size_of(two_hosts, "compute", "/dev/nvme0n1") == LARGE, 10, grown)


@pytest.mark.full
def test_only_the_qemu_that_has_a_file_open_can_extend_it(
    three_hosts: Lab, in_background: ThreadPoolExecutor
) -> None:
    for machine in ("compute", "compute2"):
        mount(three_hosts, machine)
    # A lock is there at once: the server's grace period, during which it gives no new ones, is over.
    assert shell(three_hosts, "storage", "cat /proc/fs/nfsd/v4_end_grace") == "Y"
    shell(three_hosts, "compute2", f"truncate --size {SMALL} /mnt/v; flock /mnt/v true")

    guest = start_guest(three_hosts, in_background, "/mnt/v")
    with pytest.raises(CommandFailed) as refused:
        shell(three_hosts, "compute2", f"qemu-img resize -f raw /mnt/v {LARGE}")
    assert refused.value.reason == (
        "qemu-img: Could not open '/mnt/v': Failed to get \"write\" lock\n"
        "Is another process using the image [/mnt/v]?"
    )
    assert extend_guest(three_hosts, guest) == {"before_bytes": SMALL, "after_bytes": LARGE, "announced": 1}
    shell(three_hosts, "compute2", f"qemu-img resize -f raw /mnt/v {2 * LARGE}")
    assert shell(three_hosts, "storage", "stat --format %s /srv/nfs/v") == str(2 * LARGE)


def start_guest(lab: Lab, pool: ThreadPoolExecutor, path: str) -> Future[dict[str, int]]:
    """Start a guest in compute, with a disk."""
    guest = pool.submit(inside, lab, "compute", functions.serve_guest, path)
    opened = ["test", "-e", str(functions.OPENED)]

    def has_disk() -> bool:
        if guest.done():
            guest.result()
        try:
            lab.machine("compute").channel.run(opened, timeout_s=10)
        except CommandFailed:
            return False
        return True

    wait_until(has_disk, 30, "the guest to have its disk")
    return guest


def extend_guest(lab: Lab, guest: Future[dict[str, int]]) -> dict[str, int]:
    shell(lab, "compute", f"echo {LARGE} >/run/lab/new; mv /run/lab/new {functions.EXTEND}")
    return guest.result(timeout=60)


@pytest.mark.full
def test_nfs_version_3_locks_too(three_hosts: Lab) -> None:
    with pytest.raises(CommandFailed):
        mount(three_hosts, "compute", "vers=3", "storage:/srv/nfs")
    for _ in "twice":
        levers.nfs_3(three_hosts, grace_s=3)
    for machine in ("compute", "compute2"):
        mount(three_hosts, machine, "vers=3", "storage:/srv/nfs")
    shell(three_hosts, "compute", "touch /mnt/v; flock /mnt/v sleep 600 >/dev/null & sleep 0.1; jobs")
    wait_until(lambda: locked(three_hosts), 20, "the lock")
    levers.kill(three_hosts, "compute", "sleep")
    wait_until(lambda: not locked(three_hosts), 20, "the lock to be free")


def locked(lab: Lab) -> bool:
    return shell(lab, "compute2", "flock --nonblock /mnt/v true && echo free || echo locked") == "locked"


def test_nothing_outside_can_be_reached(two_hosts: Lab) -> None:
    host = socket.gethostbyname(socket.gethostname())
    for machine in ("storage", "compute"):
        routes = json.loads(shell(two_hosts, machine, "ip -json route"))
        assert {route["dst"] for route in routes} == {"10.77.1.0/24", "10.77.2.0/24"}
        for address in {"1.1.1.1", "10.0.2.2", host} - {"127.0.0.1"}:
            with pytest.raises(CommandFailed, match="Network is unreachable"):
                shell(two_hosts, machine, f"exec 3<>/dev/tcp/{address}/80")
    for running in two_hosts.machines.values():
        assert network_sockets(running.pid) == []


def network_sockets(pid: int) -> list[str]:
    """Give the sockets of a process of ours that are no unix sockets, by their inodes in /proc/net."""
    inodes = {
        found[1]
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if (found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link)))
    }
    tables = (Path("/proc/net", name) for name in ("tcp", "tcp6", "udp", "udp6", "raw", "packet"))
    lines = [line for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return [line for line in lines if inodes & set(line.split())]


def test_levers_on_a_machine_and_its_physical_volume(lab: Lab) -> None:
    channel = lab.machine("storage").channel
    for _ in "twice":
        levers.freeze(lab, "storage")
    assert not channel.answers()
    for _ in "twice":
        levers.thaw(lab, "storage")
    wait_until(channel.answers, 10, "an answer")

    pid = shell(lab, "storage", "sleep 600 >/dev/null 2>&1 & echo $!")
    levers.kill(lab, "storage", pid)
    shell(lab, "storage", "for i in 1 2; do sleep 600 >/dev/null 2>&1 & done")
    levers.kill(lab, "storage", "sleep")
    for name in (pid, "sleep"):
        with pytest.raises(NotFound, match=f"process {name} does not exist on storage"):
            levers.kill(lab, "storage", name)
    with pytest.raises(NotSupported, match="no links"):
        levers.link_down(lab, "storage", "a")

    device = create_volume(lab)
    read = f"dd if={device} of=/dev/null bs=4k count=1 iflag=direct"
    write = f"dd if=/dev/zero of={device} bs=4k count=1 oflag=direct"
    shell(lab, "storage", f"{read}; {write}")
    levers.pv_error(lab)
    for command in (read, write):
        with pytest.raises(CommandFailed, match="Input/output error"):
            shell(lab, "storage", command)
    levers.pv_refuse_writes(lab)
    shell(lab, "storage", read)
    with pytest.raises(CommandFailed, match="Input/output error"):
        shell(lab, "storage", write)
    levers.pv_delay(lab, 700)
    assert duration_s(lab, read) > 0.7
    levers.pv_flaky(lab, 1, 1)
    wait_until(lambda: works(lab, read), 5, "a good second")
    wait_until(lambda: not works(lab, read), 5, "a bad second")
    for _ in "twice":
        levers.pv_mend(lab)
    assert shell(lab, "storage", "dmsetup table lab-pv").split()[2] == "linear"
    shell(lab, "storage", f"{read}; {write}")
    extend_volume(lab)


def duration_s(lab: Lab, command: str) -> float:
    began = time.monotonic()
    shell(lab, "storage", command)
    return time.monotonic() - began


def works(lab: Lab, command: str, machine: str = "storage") -> bool:
    try:
        shell(lab, machine, command)
    except CommandFailed:
        return False
    return True


def test_levers_on_the_nfs_server(two_hosts: Lab) -> None:
    mount(two_hosts, "compute", SOFT)
    write = "dd if=/dev/zero of=/mnt/v bs=64k count=1 conv=fsync"
    shell(two_hosts, "compute", write)
    for _ in "twice":
        levers.nfs_fill(two_hosts)
    with pytest.raises(CommandFailed, match="No space left on device"):
        shell(two_hosts, "compute", f"{write} seek=1")
    levers.nfs_fill(two_hosts, 8 * MiB)
    shell(two_hosts, "compute", f"{write} bs=1M count=7 seek=1")
    with pytest.raises(CommandFailed, match="No space left on device"):
        shell(two_hosts, "compute", f"{write} bs=1M count=2 seek=8")
    for _ in "twice":
        levers.nfs_free(two_hosts)
    shell(two_hosts, "compute", f"{write} seek=1")

    for _ in "twice":
        levers.nfs_read_only(two_hosts)
    with pytest.raises(CommandFailed, match="Read-only file system"):
        shell(two_hosts, "compute", write)
    levers.nfs_writable(two_hosts)
    shell(two_hosts, "compute", write)

    for _ in "twice":
        levers.nfs_stop(two_hosts)
    with pytest.raises(CommandFailed):
        shell(two_hosts, "compute", write)
    for _ in "twice":
        levers.nfs_start(two_hosts)
    wait_until(lambda: works(two_hosts, write, "compute"), 30, "the client to go on")


@pytest.mark.full
def test_a_reset_and_a_power_cut_keep_what_was_configured(two_hosts: Lab) -> None:
    device = create_volume(two_hosts)
    inside(two_hosts, "storage", functions.export_iscsi, IQN, device, PORTALS)
    path = log_in(two_hosts)
    mount(two_hosts, "compute")
    shell(two_hosts, "compute", "echo before >/mnt/v; sync /mnt/v")
    lines = "while :; do echo line; sync /mnt/lines; done >>/mnt/lines"
    shell(two_hosts, "compute", f"flock /mnt/v bash -c '{lines}' >/dev/null 2>&1 &")
    wait_until(lambda: works(two_hosts, "test -s /mnt/lines", "compute"), 10, "the writer")

    boot = boot_id(two_hosts, "storage")
    levers.freeze(two_hosts, "storage")
    levers.reset(two_hosts, "storage")
    assert boot_id(two_hosts, "storage") != boot
    assert size_of(two_hosts, "storage", device) == SMALL
    before = int(shell(two_hosts, "storage", "stat --format %s /srv/nfs/lines"))
    size = "stat --format %s /srv/nfs/lines"
    wait_until(lambda: int(shell(two_hosts, "storage", size)) > before, 60, "the writer to go on")
    assert inside(two_hosts, "storage", functions.is_locked, "/srv/nfs/v")
    wait_until(lambda: paths(two_hosts) == {"ready": 2}, 60, "the sessions to come back")
    assert size_of(two_hosts, "compute", path) == SMALL

    shell(two_hosts, "compute", "sync; echo unflushed >/etc/lost")
    for _ in "twice":
        levers.power_off(two_hosts, "compute")
    assert not two_hosts.machine("compute").is_running
    for _ in "twice":
        levers.power_on(two_hosts, "compute")
    mount(two_hosts, "compute")
    assert shell(two_hosts, "compute", "cat /mnt/v /etc/lost 2>/dev/null || true") == "before"
    assert log_in(two_hosts) == path


def boot_id(lab: Lab, machine: str) -> str:
    return shell(lab, machine, "cat /proc/sys/kernel/random/boot_id")


def test_a_machine_that_does_not_come_back_is_killed_with_its_console_shown(lab: Lab) -> None:
    shell(lab, "storage", "printf '#!/bin/bash\\necho stuck here >/dev/console\\nread\\n' >/lab/init; sync")
    with pytest.raises(OutcomeUnknown, match="waiting for the agent") as caught:
        lab.reset("storage", timeout_s=8)
    assert any("stuck here" in note for note in caught.value.__notes__)
    assert not lab.machine("storage").is_running


def test_two_labs_side_by_side_share_nothing_and_leave_nothing(lab: Lab, lab_cache: Cache) -> None:
    with started(lab_cache, Topology.ONE_HOST) as other:
        directory, pid = other.directory, other.machine("storage").pid
        for one, word in ((lab, "one"), (other, "other")):
            shell(one, "storage", f"echo {word} >/srv/nfs/word; mount -t nfs -o vers=4.2 storage:/ /mnt")
        assert [shell(one, "storage", "cat /mnt/word") for one in (lab, other)] == ["one", "other"]
        boots = {boot_id(one, "storage") for one in (lab, other)}
        assert len(boots) == 1, "both come from one state"
        assert len({shell(one, "storage", "head -c 16 /dev/urandom | base64") for one in (lab, other)}) == 2
        for one in (lab, other):
            assert abs(float(shell(one, "storage", "date +%s.%N")) - time.time()) < 5
    assert not directory.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert lab.machine("storage").channel.answers()
    with pytest.raises(NotFound, match="machine compute2 does not exist, there are storage"):
        lab.machine("compute2")


@pytest.fixture
def private_cache(lab: Lab, ram_path: Path) -> Cache:
    """A cache with the image of the shared one, and a copy of the state that `lab` came from."""
    cache = Cache(ram_path / "cache", print)
    for kind in ("images", "dependencies"):
        (cache.directory / kind).rmdir()
        (cache.directory / kind).symlink_to(lab.cache.directory / kind)
    state = Path("states", states.key(lab.model, lab.places, "fresh"))
    shutil.copytree(lab.cache.directory / state, cache.directory / state)
    return cache


@pytest.mark.full
def test_a_state_that_is_corrupt_or_wrong_is_refused_and_made_again(private_cache: Cache) -> None:
    said: list[str] = []
    private_cache.say = said.append
    (state,) = (private_cache.directory / "states").iterdir()
    memory = state / "storage.memory"
    with memory.open("r+b") as file:
        file.seek(memory.stat().st_size // 2)
        file.write(b"corrupt")
    with started(private_cache, Topology.ONE_HOST) as anew:
        assert anew.machine("storage").channel.answers()
    assert f"the saved state {state.name} cannot be used: changed since it was saved" in said
    assert "booting 1 machine" in said

    wrong = memory.read_bytes()[: 4 * MiB]
    memory.write_bytes(wrong)
    recorded = json.loads((state / "files.json").read_text())
    recorded[memory.name] = hashlib.sha256(wrong).hexdigest()
    (state / "files.json").write_text(json.dumps(recorded))
    said.clear()
    with started(private_cache, Topology.ONE_HOST) as anew:
        assert anew.machine("storage").channel.answers()
    assert [line for line in said if line.startswith("the saved state cannot be used, it is made anew:")]

    said.clear()
    with started(private_cache, Topology.ONE_HOST) as again:
        assert again.machine("storage").restored
    assert not [line for line in said if "boot" in line]


def test_a_lab_saved_by_name_comes_back_as_it_was(lab: Lab, private_cache: Cache, ram_path: Path) -> None:
    lab.cache = private_cache
    shell(lab, "storage", "echo kept >/run/lab/word; lvcreate --quiet --yes --size 8m --name kept vg0")
    lab.save("with-volume")
    assert shell(lab, "storage", "cat /run/lab/word") == "kept", "it goes on"
    wanted = Wanted(Topology.ONE_HOST, state="with-volume")
    with Lab(ram_path, private_cache, wanted) as again:
        assert shell(again, "storage", "cat /run/lab/word; ls /dev/vg0") == "kept\nkept"
    with pytest.raises(InvalidInput, match="state 'no/name'"):
        lab.save("no/name")
    with (
        pytest.raises(NotFound, match="state unheard-of"),
        Lab(ram_path, private_cache, replace(wanted, state="unheard-of")),
    ):
        pass


def test_a_state_fits_only_what_it_was_saved_with(two_hosts: Lab) -> None:
    model, places = two_hosts.model, two_hosts.places
    others = (
        replace(model, image=replace(model.image, digest="another")),
        replace(model, memory_mib=model.memory_mib + 1),
        replace(model, vg_bytes=2 * model.vg_bytes),
        replace(model, accelerator=replace(model.accelerator, name="another")),
    )
    keys = {states.key(each, places, "") for each in (model, *others)}
    keys |= {states.key(model, PLACES[Topology.ONE_HOST], ""), states.key(model, places, "named")}
    assert len(keys) == 7


def test_the_cache_keeps_what_was_used_last_and_what_a_person_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(MOST_BYTES, "states", 3 * MiB)
    cache = Cache(tmp_path, print)
    states_of_cache = tmp_path / "states"
    for number, name in enumerate(["saved-mine-1", "old-1", "making-1", "newer-1", "making-2", "newest-1"]):
        (states_of_cache / name).mkdir()
        (states_of_cache / name / "memory").write_bytes(bytes(MiB))
        age_s = 0 if name == "making-2" else 5000 - number
        os.utime(states_of_cache / name, (time.time() - age_s,) * 2)
    cache.used(states_of_cache / "newest-1")
    kept = {path.name for path in states_of_cache.iterdir()}
    assert kept == {"saved-mine-1", "old-1", "newer-1", "making-2", "newest-1"}
    cache.used(states_of_cache / "newer-1")
    (states_of_cache / "newer-1" / "more").write_bytes(bytes(2 * MiB))
    cache.used(states_of_cache / "newer-1")
    assert {path.name for path in states_of_cache.iterdir()} == {"saved-mine-1", "newer-1", "making-2"}


def test_many_clean_one_cache_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(MOST_BYTES, "states", MiB)

    def make_and_clean(who: int) -> None:
        cache = Cache(tmp_path, print)
        for number in range(100):
            made = tmp_path / "states" / f"{who}-{number}"
            making = made.with_name(f"making-{made.name}")
            making.mkdir()
            (making / "memory").write_bytes(bytes(MiB))
            making.rename(made)
            cache.used(made)

    with ThreadPoolExecutor(4) as people:
        assert list(people.map(make_and_clean, range(4))) == [None] * 4
    assert len(list((tmp_path / "states").iterdir())) <= 4


def test_levers_by_name(lab: Lab) -> None:
    levers.pull(lab, "pv-delay", ["50"])
    assert "delay" in shell(lab, "storage", "dmsetup table lab-pv")
    levers.pull(lab, "pv-mend", [])
    assert "linear" in shell(lab, "storage", "dmsetup table lab-pv")
    with pytest.raises(NotFound, match="lever explode does not exist, there are freeze, thaw"):
        levers.pull(lab, "explode", [])
    for words in ([], ["soon"], ["1", "2"]):
        with pytest.raises(InvalidInput, match="lever pv-delay: "):
            levers.pull(lab, "pv-delay", words)


def test_a_failed_test_shows_what_its_machines_wrote(lab: Lab, tmp_path: Path) -> None:
    for name in ("pyproject.toml", "tests/conftest.py", "tests/labs.py", "tests/sweeps.py"):
        shutil.copy(CHECKOUT / name, tmp_path)
    (tmp_path / "test_inner.py").write_text(
        "from labs import shell\n"
        "def test_inner(lab):\n"
        "    shell(lab, 'storage', 'echo oops >/dev/kmsg; echo ouch >/dev/console; false')\n"
    )
    pytest_argv = [sys.executable, "-m", "pytest", "--rootdir", ".", "--tier", "ci", "test_inner.py"]
    with pytest.raises(CommandFailed) as failed:
        process.run(["env", f"--chdir={tmp_path}", *pytest_argv], timeout_s=60)
    for words in ("kernel log of storage in lab", "oops", "console of storage in lab", "ouch", "1 failed"):
        assert words in failed.value.reason
    assert "oops" in (LOGS / "test_inner.log").read_text()
