"""CHAP secrets that the target does not take any more: of a volume in use, and of one that is attached."""

from collections.abc import Iterator

import pytest
from inside import chap
from labs import inside, shell, started
from lvmsite import SIZE, Site

from voldrivers.lab.cache import Cache
from voldrivers.lab.lab import Topology
from voldrivers.process import wait_until

pytestmark = pytest.mark.full
_STATES = "cat /sys/class/iscsi_session/*/state"
_PATHS = "multipathd show paths format '%o %t' | grep --count 'running active' || true"
_PASSWORDS = "cat /sys/kernel/config/target/iscsi/*/tpgt_1/acls/*/auth/password"
#: All that logging in leaves on a host.
_RECORDS = "cd /etc/iscsi; find . | sort; ls -A /var/lib/iscsi 2>/dev/null || true"
_DOCTOR = "PYTHONPATH=/project:/deps voldrivers doctor attached 2>&1 || echo exit code $?"


@pytest.fixture(scope="module")
def lvm_site(lab_cache: Cache) -> Iterator[Site]:
    """Give a site that every test leaves as it was: everybody agreed, nothing left over."""
    with started(lab_cache, Topology.TWO_HOSTS, "attached") as lab:
        site = Site(lab)
        yield site
        site.close()


def has_everywhere(site: Site, secret: str) -> list[str]:
    """Name the files on both machines that hold a secret, but for the one of this search."""
    found = []
    for machine in ("storage", "compute"):
        shell(site.lab, machine, f"umask 077; cat >/root/secret <<<'{secret}'")
        files = "grep --recursive --files-with-matches --text --file /root/secret /etc /run /tmp /var || true"
        found += [f"{machine}:{file}" for file in shell(site.lab, machine, files).split()]
    return found


def test_an_attach_that_is_refused_leaves_nothing_and_the_next_one_works(lvm_site: Site) -> None:
    lvm_site.do("create", name="other", size_bytes=SIZE)
    before, records = lvm_site.belongings(), shell(lvm_site.lab, "compute", _RECORDS)
    kind, said, secret, seconds = inside(lvm_site.lab, "storage", chap.attach, "other", "compute")
    print(f"refused after {seconds:.1f} s: {said}")
    assert kind == "InvalidState"
    assert "is refusing CHAP user" in said[0], said
    assert len(said) == 1, "something is left of it"
    assert seconds < 60
    assert len(secret) >= 12
    assert secret not in said[0]
    assert lvm_site.do("volume", name="other")["status"] == "available"
    assert lvm_site.belongings() == before
    assert shell(lvm_site.lab, "compute", _RECORDS) == records
    assert has_everywhere(lvm_site, secret) == []

    assert lvm_site.do("attach", name="other", host="compute") == "compute"
    assert {row["observed_bytes"] for row in lvm_site.do("ledger", name="other")} == {SIZE}
    assert lvm_site.do("detach", name="other") is None
    assert lvm_site.do("delete", name="other") is None
    assert shell(lvm_site.lab, "compute", _RECORDS) == records
    lvm_site.check_guest_works()


def test_a_secret_that_others_changed_is_named_and_given_back(lvm_site: Site) -> None:
    secret, volume_id = shell(lvm_site.lab, "storage", _PASSWORDS), lvm_site.do("volume")["id"]
    inside(lvm_site.lab, "storage", chap.change_secret, volume_id)
    inside(lvm_site.lab, "storage", chap.drop_sessions, volume_id)
    wait_until(lambda: "LOGGED_IN" not in shell(lvm_site.lab, "compute", _STATES), 60, "the sessions to fail")

    refused = lvm_site.do("extend", size_bytes=lvm_site.larger_bytes)
    assert refused.startswith("InvalidState"), refused
    assert f"volume-{volume_id} of path" in refused
    assert "by portal 10.77." in refused
    assert ", must be LOGGED_IN" in refused
    found = lvm_site.do("volume")
    assert (found["status"], found["backend_bytes"]) == ("in-use", lvm_site.size_bytes)
    doctor = shell(lvm_site.lab, "storage", _DOCTOR)
    print(doctor)
    assert f"volume-{volume_id} is refusing the CHAP secret that its hosts have" in doctor
    assert doctor.splitlines()[-1] == "exit code 10"
    assert "mend it: voldrivers doctor attached --repair" in doctor

    repaired = lvm_site.do("repair")  # the secret is there again; the sessions take some seconds
    assert shell(lvm_site.lab, "storage", _PASSWORDS) == secret
    wait_until(lambda: shell(lvm_site.lab, "compute", _PATHS) == "2", 100, "both paths")
    wait_until(lambda: lvm_site.do("repair") == [], 60, "a repair that succeeds")
    lvm_site.check_agreed()
    assert lvm_site.do("extend", size_bytes=lvm_site.larger_bytes) == "completed"
    lvm_site.check_extended()
    said = [refused, doctor, str(repaired), *lvm_site.do("volume")["messages"]]
    assert not [text for text in said if secret in text or "of-other-hands" in text]


def test_a_secret_that_others_change_meanwhile_is_given_back_by_a_retry(lvm_site: Site) -> None:
    volume_id = lvm_site.do("volume")["id"]
    lvm_site.start("extend", size_bytes=lvm_site.larger_bytes, pause_at="RemoteHost compute rescan")
    inside(lvm_site.lab, "storage", chap.change_secret, volume_id)
    inside(lvm_site.lab, "storage", chap.drop_sessions, volume_id)
    wait_until(lambda: "LOGGED_IN" not in shell(lvm_site.lab, "compute", _STATES), 60, "the sessions to fail")
    answer = lvm_site.go_on()
    assert "must be LOGGED_IN" in answer, answer
    assert lvm_site.do("volume")["status"] == "error_extending"
    lvm_site.do("retry")  # as above
    wait_until(lambda: shell(lvm_site.lab, "compute", _PATHS) == "2", 100, "both paths")
    if lvm_site.do("volume")["status"] == "error_extending":
        assert lvm_site.do("retry") == "completed"
    lvm_site.check_extended()
