"""Extends of an LVM volume in use, over iSCSI and multipath, between two machines, and all that may go wrong.

The tests share a site as long as each leaves it as it was: everybody agreed, nothing left over.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sweeps
from labs import shell, started
from lvmsite import NAME, NOWHERE, SIZE, STEP, Controller, Site
from sweeps import Figures

from voldrivers.lab import levers, prepared
from voldrivers.lab.cache import Cache
from voldrivers.lab.lab import Lab, Topology
from voldrivers.process import wait_until

_SAMPLES, _AGENT_SAMPLES, _SLOW_SAMPLES = 4, 1, 12
#: What is done over and over, and the status that a volume has then.
_DONE = {"detach": "available", "attach": "in-use"}
#: How an operation may end whose host's agent was killed.
_TYPED = ("InvalidState", "HostUnreachable", "OutcomeUnknown", "BackendError")
#: A QEMU is killed within so long from the start of an assist_extend, at so many moments.
_ASSIST_S, _ASSIST_MOMENTS = 1.0, 8


class Sites:
    """The site that is shared, renewed when a test has left it otherwise."""

    def __init__(self, cache: Cache) -> None:
        self._cache, self._running = cache, ExitStack()
        self._site: Site | None = None

    def site(self) -> Site:
        if self._site is None or not self._site.is_agreed:
            self.end()
            lab = self._running.enter_context(started(self._cache, Topology.TWO_HOSTS, "attached"))
            self._site = Site(lab)
            self._running.callback(self._site.close)
        self._site.is_agreed = False
        return self._site

    def end(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def sites(lab_cache: Cache) -> Iterator[Sites]:
    kept = Sites(lab_cache)
    yield kept
    kept.end()


@pytest.fixture
def lvm_site(sites: Sites) -> Site:
    """Give a site where everybody agrees."""
    return sites.site()


def fault(program: str, how: str, *argv: str) -> dict[str, object]:
    return {"program": program, "how": how, "argv": argv}


def restart_iscsid(site: Site) -> None:
    shell(site.lab, "compute", "pkill iscsid; while pgrep iscsid; do sleep 0.1; done >/dev/null; iscsid")


def wait_for_paths(site: Site) -> None:
    """Wait until multipathd has both paths again."""
    paths = "multipathd show paths format '%o %t' | grep --count 'running active' || true"
    wait_until(lambda: shell(site.lab, "compute", paths) == "2", 100, "both paths")


def dying(
    site: Site, names: list[str], moment: int, what: str, **arguments: object
) -> tuple[Any, str]:  # Any: as Controller.do
    """Have something done whose agent dies at a moment, and give its answer, and where that was in words."""
    where = f"moment {moment}, {'after' if moment % 2 else 'before'} {names[moment // 2]}"
    site.agent.arm(kill_at=moment)
    answer = site.do(what, **arguments)
    assert site.agent.has_died, where
    print(f"{where}: {answer}")
    return answer, where


def check_ended_without_guest(site: Site, written: list[int]) -> None:
    """Have everybody agree on the next size, what was written be there, and nothing be left in the end."""
    found = site.do("volume")
    assert (found["status"], found["size_bytes"]) == ("in-use", site.larger_bytes), found
    assert site.layers(stale=True) == []
    assert set(written) <= set(site.written_blocks())
    assert site.do("detach", name=NAME) is None
    assert site.do("delete", name=NAME) is None
    site.check_gone()


def test_everybody_agrees_on_a_larger_size(lvm_site: Site) -> None:
    assert lvm_site.do("extend", size_bytes=lvm_site.larger_bytes) == "completed"
    lvm_site.check_extended()


def test_a_full_group_is_refused_and_nothing_changes(lvm_site: Site) -> None:
    shell(lvm_site.lab, "storage", "lvcreate --quiet --yes --extents 100%FREE --name filler vg0")
    answer = lvm_site.do("extend", size_bytes=lvm_site.larger_bytes)
    assert answer.startswith("NoSpace"), answer
    assert "4 MiB needed and 0 B free" in answer
    shell(lvm_site.lab, "storage", "lvremove --quiet --yes vg0/filler")
    lvm_site.check_agreed()


@pytest.mark.full
def test_a_program_that_fails_before_it_did_anything_is_rolled_back(lvm_site: Site) -> None:
    answer = lvm_site.do("extend", size_bytes=lvm_site.larger_bytes, fault=fault("lvextend", "before"))
    assert "CommandFailed" in answer, answer
    assert "rolled back, nothing changed" in lvm_site.do("volume")["messages"][-1]
    lvm_site.check_agreed()


def test_a_program_that_fails_after_its_effect_is_found_out(lvm_site: Site) -> None:
    answer = lvm_site.do("extend", size_bytes=lvm_site.larger_bytes, fault=fault("lvextend", "after"))
    if answer != "completed":
        assert lvm_site.do("volume")["status"] == "error_extending", answer
        assert lvm_site.do("retry") == "completed"
    lvm_site.check_extended()


def test_a_program_that_hangs_leaves_the_outcome_to_resume(lvm_site: Site) -> None:
    with lvm_site.slow_disk(200):
        answer = lvm_site.do("extend", size_bytes=lvm_site.larger_bytes, fault=fault("lvextend", "short"))
        assert answer.startswith("OutcomeUnknown"), answer
        assert lvm_site.do("volume")["status"] == "extending"
    assert lvm_site.do("resume") == []
    lvm_site.check_extended()


@pytest.mark.full
def test_a_program_that_outlives_its_killed_parent_is_waited_for(lvm_site: Site) -> None:
    with lvm_site.slow_disk(150):
        lvm_site.start("extend", size_bytes=lvm_site.larger_bytes, pause_at=NOWHERE)
        wait_until(lambda: bool(shell(lvm_site.lab, "storage", "pgrep lvextend || true")), 60, "lvextend")
        assert lvm_site.do("kill") == "killed"
        assert shell(lvm_site.lab, "storage", "pgrep lvextend || true"), "it has not outlived its parent"
        assert lvm_site.do("resume") == []
    lvm_site.check_extended()


def test_a_target_that_vanishes_before_the_rescan_is_named_and_given_back(lvm_site: Site) -> None:
    lvm_site.start("extend", size_bytes=lvm_site.larger_bytes, pause_at="RemoteHost compute rescan")
    shell(lvm_site.lab, "storage", "targetctl clear; rm /etc/rtslib-fb-target/saveconfig.json")
    down = "grep --quiet LOGGED_IN /sys/class/iscsi_session/*/state || echo down"
    wait_until(lambda: shell(lvm_site.lab, "compute", down) == "down", 100, "the sessions to fail")
    answer = lvm_site.go_on()
    assert "must be LOGGED_IN" in answer, answer
    assert lvm_site.do("volume")["status"] == "error_extending"
    rows = {row["layer"]: row for row in lvm_site.do("ledger")}
    assert rows["LV"]["agrees"]
    assert rows["LUN"]["observed_bytes"] is None
    assert "does not exist" in rows["LUN"]["note"], rows["LUN"]
    lvm_site.do("retry")  # the target is there again; the sessions take some seconds
    wait_for_paths(lvm_site)
    if lvm_site.do("volume")["status"] == "error_extending":
        assert lvm_site.do("retry") == "completed"
    lvm_site.check_extended()


def test_a_configuration_that_was_lost_is_given_back_by_a_repair(lvm_site: Site) -> None:
    shell(lvm_site.lab, "storage", "targetctl clear; rm /etc/rtslib-fb-target/saveconfig.json")
    lvm_site.do("repair")  # the target is there again; the sessions take some seconds
    wait_for_paths(lvm_site)
    wait_until(lambda: lvm_site.do("repair") == [], 60, "a repair that succeeds")
    lvm_site.check_agreed()


def test_a_session_that_was_logged_out_is_refused(lvm_site: Site) -> None:
    shell(lvm_site.lab, "compute", "iscsiadm --mode node --portal 10.77.2.1 --logout")
    answer = lvm_site.do("extend", size_bytes=lvm_site.larger_bytes)
    assert answer.startswith("InvalidState"), answer
    assert "10.77.2.1" in answer
    shell(lvm_site.lab, "compute", "iscsiadm --mode node --portal 10.77.2.1 --login; udevadm settle")
    shell(lvm_site.lab, "compute", "for scan in /sys/class/scsi_host/*/scan; do echo - - - >$scan; done")
    wait_for_paths(lvm_site)
    assert lvm_site.do("extend", size_bytes=lvm_site.larger_bytes) == "completed"
    lvm_site.check_extended()


@pytest.mark.full
def test_an_iscsid_that_is_restarted_meanwhile(lvm_site: Site) -> None:
    lvm_site.start("extend", size_bytes=lvm_site.larger_bytes, pause_at="RemoteHost compute rescan")
    restart_iscsid(lvm_site)
    if (answer := lvm_site.go_on()) != "completed":
        assert "must be LOGGED_IN" in answer, answer
        wait_until(lambda: lvm_site.do("retry") == "completed", 60, "a retry that succeeds")
    lvm_site.check_extended()


def test_a_path_that_is_down_is_refused_before_anything_grows(lvm_site: Site) -> None:
    levers.link_down(lvm_site.lab, "compute", "b")
    down = "grep --quiet --invert-match LOGGED_IN /sys/class/iscsi_session/*/state && echo down || true"
    wait_until(lambda: shell(lvm_site.lab, "compute", down) == "down", 100, "the session to fail")
    answer = lvm_site.do("extend", size_bytes=lvm_site.larger_bytes)
    assert answer.startswith("InvalidState"), answer
    assert "must be LOGGED_IN" in answer
    levers.link_up(lvm_site.lab, "compute", "b")
    wait_for_paths(lvm_site)
    lvm_site.check_agreed()


@pytest.mark.full
def test_a_path_that_is_lost_meanwhile_is_named_and_retried(lvm_site: Site) -> None:
    cut = fault("lvextend", "then", "ip", "link", "set", "portal2", "down")
    answer = lvm_site.do("extend", size_bytes=lvm_site.larger_bytes, fault=cut)
    assert "10.77.2.1" in answer, answer
    status = lvm_site.do("volume")["status"]
    shell(lvm_site.lab, "storage", "ip link set portal2 up")
    wait_for_paths(lvm_site)
    assert (lvm_site.do("retry") if status == "error_extending" else lvm_site.do("resume")) in (
        "completed",
        [],
    )
    lvm_site.check_extended()


def test_a_storage_machine_that_is_reset_goes_on_where_it_was(lvm_site: Site) -> None:
    lvm_site.start("extend", size_bytes=lvm_site.larger_bytes, pause_at="RemoteHost compute rescan")
    levers.reset(lvm_site.lab, "storage")
    lvm_site.restart()
    wait_for_paths(lvm_site)
    assert lvm_site.do("resume") == []
    lvm_site.check_extended()


@pytest.mark.full
def test_a_frozen_host_leaves_the_outcome_to_resume(lvm_site: Site) -> None:
    lvm_site.start("extend", size_bytes=lvm_site.larger_bytes, pause_at="RemoteHost compute rescan")
    levers.freeze(lvm_site.lab, "compute")
    answer = lvm_site.go_on()
    assert "host compute" in answer, answer
    refused = lvm_site.do("extend", size_bytes=lvm_site.larger_bytes)
    assert refused.startswith("InvalidState"), refused
    levers.thaw(lvm_site.lab, "compute")
    wait_for_paths(lvm_site)
    mend = "retry" if lvm_site.do("volume")["status"] == "error_extending" else "resume"
    assert lvm_site.do(mend) in ("completed", [])
    lvm_site.check_extended()


@pytest.mark.full
def test_two_processes_that_extend_at_once(lvm_site: Site) -> None:
    lvm_site.start("extend", size_bytes=lvm_site.larger_bytes, pause_at="LVMDriver lvm extend_volume")
    answer = lvm_site.do("extend", size_bytes=lvm_site.larger_bytes)
    assert answer.startswith("InvalidState"), answer
    assert "being worked on" in answer
    assert lvm_site.go_on() == "completed"
    lvm_site.check_extended()


@pytest.mark.timeout(3000)
def test_killed_at_any_point(
    lvm_site: Site, rng: random.Random, tier: str, request: pytest.FixtureRequest
) -> None:
    lvm_site.do("extend", size_bytes=lvm_site.larger_bytes, pause_at=NOWHERE)
    lvm_site.check_extended()
    names = lvm_site.do("passed")
    moments = range(2 * len(names))
    chosen = moments if tier == "full" else sorted(rng.sample(moments, _SAMPLES))
    for moment in chosen:
        where = f"moment {moment}, {'after' if moment % 2 else 'before'} {names[moment // 2]}"
        answer = lvm_site.do("extend", size_bytes=lvm_site.larger_bytes, kill_at=moment)
        assert answer == "killed", where
        lvm_site.end_extend(where)
    lvm_site.check_agreed()
    sweeps.count(request, Figures("over iSCSI", "extend an LVM volume in use", len(chosen), len(moments)))


def test_the_secret_is_for_nobody_else_to_read(lvm_site: Site) -> None:
    passwords = "/sys/kernel/config/target/iscsi/*/tpgt_1/acls/*/auth/password"
    secret = shell(lvm_site.lab, "storage", f"cat {passwords}")
    assert len(secret) >= 12
    for machine in ("storage", "compute"):
        shell(lvm_site.lab, machine, f"umask 077; cat >/root/secret <<<'{secret}'")
        files = "grep --recursive --files-with-matches --text --file /root/secret /etc /run /tmp /var || true"
        found = shell(lvm_site.lab, machine, files).split()
        assert found, "nobody has it, so it was looked for in a wrong way"
        modes = [shell(lvm_site.lab, machine, f"stat --format=%a {file}") for file in found]
        assert all(mode.endswith("00") for mode in modes), dict(zip(found, modes, strict=True))
        argvs = "cat /proc/[0-9]*/cmdline 2>/dev/null | grep --text --file /root/secret || true"
        assert shell(lvm_site.lab, machine, argvs) == ""
    told = "voldrivers -vv doctor attached; voldrivers volume show attached --json; dmesg"
    said = shell(lvm_site.lab, "storage", f"PYTHONPATH=/project:/deps; export PYTHONPATH; ({told}) 2>&1")
    assert "10.77.2.1" in said or "multipath" in said
    assert secret not in said
    lvm_site.check_agreed()


def test_a_lost_host_that_is_forgotten_is_let_in_no_more(lvm_site: Site) -> None:
    levers.freeze(lvm_site.lab, "compute")
    assert lvm_site.do("detach", host="compute").startswith("HostUnreachable")
    assert lvm_site.do("detach", host="compute", force=True) is None
    sessions = "find /sys/kernel/config/target/iscsi -path '*/acls/*' -name info"
    assert shell(lvm_site.lab, "storage", sessions) == ""
    assert lvm_site.do("delete", name=NAME) is None
    levers.thaw(lvm_site.lab, "compute")


@pytest.mark.full
@pytest.mark.timeout(3000)
def test_an_agent_that_is_killed_while_it_lets_go_or_connects(
    lvm_site: Site, rng: random.Random, request: pytest.FixtureRequest
) -> None:
    place, names, left = {"host": "compute", "instance": "guest"}, {}, {}
    for what in _DONE:
        lvm_site.agent.arm()
        lvm_site.do(what, **place)
        names[what], left[what] = lvm_site.agent.passed, lvm_site.belongings()
    chosen = {what: rng.sample(range(2 * len(names[what])), _SLOW_SAMPLES) for what in _DONE}
    for turn in range(_SLOW_SAMPLES):
        for what, status in _DONE.items():
            moment = chosen[what][turn]
            answer, where = dying(lvm_site, names[what], moment, what, **place)
            assert answer in (None, "compute/guest") or answer.startswith(_TYPED), (where, answer)
            assert lvm_site.do("resume") == [], where
            if lvm_site.do("volume")["status"] != status:  # it was undone, or nothing was done
                assert lvm_site.do(what, **place) in (None, "compute/guest"), where
            assert lvm_site.do("volume")["status"] == status, where
            assert lvm_site.belongings() == left[what], where
    lvm_site.check_agreed()
    for what in _DONE:
        scenario = f"{what} an LVM volume, its host's agent killed"
        sweeps.count(request, Figures("over iSCSI", scenario, _SLOW_SAMPLES, 2 * len(names[what])))


@pytest.mark.full
@pytest.mark.timeout(3000)
def test_an_agent_that_is_killed_at_any_point(
    lvm_site: Site, rng: random.Random, tier: str, request: pytest.FixtureRequest
) -> None:
    lvm_site.agent.arm()
    assert lvm_site.do("extend", size_bytes=lvm_site.larger_bytes) == "completed"
    lvm_site.size_bytes += STEP
    names = lvm_site.agent.passed
    moments = range(2 * len(names))
    chosen = moments if tier == "full" else sorted(rng.sample(moments, _AGENT_SAMPLES))
    for moment in chosen:
        answer, where = dying(lvm_site, names, moment, "extend", size_bytes=lvm_site.larger_bytes)
        assert answer == "completed" or answer.startswith(_TYPED), (where, answer)
        lvm_site.end_extend(where)
    lvm_site.check_agreed()
    scenario = "extend an LVM volume in use, its host's agent killed"
    sweeps.count(request, Figures("over iSCSI", scenario, len(chosen), len(moments)))


@pytest.mark.full
def test_a_guest_that_dies_before_it_answers_a_resize(lvm_site: Site) -> None:
    written = lvm_site.written_blocks()
    lvm_site.agent.arm(qemu=int(shell(lvm_site.lab, "compute", "pgrep qemu-system")))
    answer = lvm_site.do("extend", size_bytes=lvm_site.larger_bytes)
    assert answer.startswith("OutcomeUnknown: the outcome of block_resize at"), answer
    assert lvm_site.do("volume")["status"] == "extending"
    assert lvm_site.do("resume") == []
    check_ended_without_guest(lvm_site, written)


@pytest.mark.full
def test_a_guest_that_dies_in_the_middle(lvm_site: Site) -> None:
    lvm_site.start("extend", size_bytes=lvm_site.larger_bytes, pause_at="RemoteHost compute assist_extend")
    shell(lvm_site.lab, "compute", "pkill --full '[v]erified'; pkill -9 qemu-system; sleep 1")
    answer = lvm_site.go_on()
    found = lvm_site.do("volume")
    if found["status"] == "error_extending":
        assert lvm_site.do("retry") == "completed", answer
    assert lvm_site.do("volume")["size_bytes"] == lvm_site.larger_bytes
    assert lvm_site.layers(stale=True) == []
    lvm_site.do("detach", name=NAME)
    assert lvm_site.do("delete", name=NAME) is None


@pytest.mark.full
@pytest.mark.parametrize("moment", range(_ASSIST_MOMENTS))
def test_a_guest_that_dies_at_any_time_of_a_resize(lvm_site: Site, rng: random.Random, moment: int) -> None:
    written = lvm_site.written_blocks()
    lvm_site.start("extend", size_bytes=lvm_site.larger_bytes, pause_at="RemoteHost compute assist_extend")
    delay_s = (moment + rng.random()) * _ASSIST_S / _ASSIST_MOMENTS
    dying = f"sleep {delay_s}; pkill -9 qemu-system"
    shell(lvm_site.lab, "compute", f"setsid bash -c '{dying}' >/dev/null 2>&1 </dev/null &")
    answer = lvm_site.go_on()
    if lvm_site.do("volume")["status"] == "error_extending":
        assert lvm_site.do("retry") == "completed", answer
    assert lvm_site.do("resume") == [], answer
    check_ended_without_guest(lvm_site, written)


@pytest.mark.full
def test_two_hosts_acknowledge_and_one_that_fails_is_named(three_hosts: Lab) -> None:
    names = ["compute", "compute2"]
    for name in names:
        prepared.start_agent(three_hosts.machine(name))
    prepared.start_guest(three_hosts.machine("compute"))
    prepared.configure(three_hosts.machine("storage"), names)
    controller = Controller(three_hosts)
    shell(three_hosts, "storage", "lvcreate --quiet --size 256m --thinpool vg0-pool vg0")
    controller.do("create", name=NAME, size_bytes=SIZE, options={"lvm_type": "thin"}, multi_attach=True)
    assert controller.do("attach", host="compute", instance="guest") == "compute/guest"
    assert controller.do("attach", host="compute2") == "compute2"
    assert controller.do("extend", size_bytes=SIZE + STEP) == "completed"
    rows = controller.do("ledger")
    assert {row["observed_bytes"] for row in rows} == {SIZE + STEP}
    assert [row["place"].split()[0] for row in rows if row["layer"] == "multipath"] == names

    controller.start("extend", size_bytes=SIZE + 2 * STEP, pause_at="RemoteHost compute2 rescan")
    shell(three_hosts, "compute2", "pkill --full '[v]oldrivers agent'")
    answer = controller.go_on()
    assert "compute2" in answer, answer
    assert controller.do("volume")["status"] == "error_extending", answer
    stale = [row["place"] for row in controller.do("ledger") if not row["agrees"]]
    assert all("compute2" in place for place in stale), stale
    prepared.start_agent(three_hosts.machine("compute2"))
    assert controller.do("retry") == "completed"
    assert {row["observed_bytes"] for row in controller.do("ledger")} == {SIZE + 2 * STEP}

    # A second attachment on one host shares its device, and leaves it there.
    assert controller.do("attach", host="compute") == "compute"
    assert controller.do("detach", host="compute", instance="") is None
    assert {row["observed_bytes"] for row in controller.do("ledger")} == {SIZE + 2 * STEP}
    for host in names:
        assert controller.do("detach", host=host) is None
    assert controller.do("delete", name=NAME) is None
