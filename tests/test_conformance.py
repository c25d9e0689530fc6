"""The suite itself: drivers that are right pass all of it."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from liars import liars
from liars.declaration import LacksAMethod
from liars.extend_in_use import ClearsDetachedOnly
from liars.liar import Liar

from voldrivers.abilities import Merge
from voldrivers.capabilities import Capabilities, Condition
from voldrivers.conformance import Level, Verdict, catalogue, memory, run_checks
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import RESERVED, Check
from voldrivers.conformance.memory import MemoryOracle
from voldrivers.conformance.naming import Names
from voldrivers.conformance.runner import run_check
from voldrivers.errors import BackendError, InvalidState, NotSupported
from voldrivers.memory import MemoryDriver, MemoryFileDriver, MemoryHost
from voldrivers.model import Attachment, ConnectionInfo, ExtendReply, Snapshot, Volume, check_name


class OfflineDriver(MemoryDriver):
    """It can do what every driver must, and nothing more."""

    capabilities = Capabilities()

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if volume.attachments and self.volume_size(volume) < new_size_bytes:
            raise InvalidState(volume.title, "attached", "detached")
        return super().extend_volume(volume, new_size_bytes)


class DeafDriver(OfflineDriver):
    """It would grow an attached volume if it was asked to, but its hosts would not see that."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        return MemoryDriver.extend_volume(self, volume, new_size_bytes)


class DeafHost(MemoryHost):
    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        """Read nothing."""


class StaleDriver(ClearsDetachedOnly):
    """It could grow an attached volume, and old bytes would show in it."""

    capabilities = Capabilities()


class LitteringDriver(OfflineDriver):
    """It grows no attached volume, and leaves something behind when it is asked to."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if volume.attachments:
            self.array.resize(f"{volume.id}-new", self.size_rule.granularity_bytes)
        return super().extend_volume(volume, new_size_bytes)


FOUND_OUT = (Verdict.FAILED, Verdict.FINDING)
RIGHT = (MemoryDriver, MemoryFileDriver, OfflineDriver)


@pytest.mark.parametrize("check", catalogue(), ids=lambda check: check.id)
@pytest.mark.parametrize("driver", RIGHT, ids=lambda driver: driver.__name__)
def test_a_driver_that_is_right_passes(driver: type[MemoryDriver], check: Check) -> None:
    result = run_check(check, memory.subject(driver))
    assert result.verdict in (Verdict.PASSED, Verdict.NOT_APPLICABLE), result


def test_names_are_those_of_operators_and_come_again_with_the_run() -> None:
    drawn, again, others = (Names(run_id) for run_id in ("0a1b2c3d", "0a1b2c3d", "4e5f6071"))
    names = [drawn.next() for _ in range(1000)]
    assert names == [again.next() for _ in names]
    assert len(names) == len(set(names))
    assert others.next() not in names
    for name in names:
        check_name(name)
        assert 8 <= len(name) <= 60  # so short that more may follow, so long that no host bears it by chance
    begins = Counter(name[:2] for name in names)
    assert begins.most_common(1)[0][1] < len(names) / 2  # there is no prefix by which they are known


def test_all_of_them_run_one_after_the_other() -> None:
    results = list(run_checks(memory.subject(MemoryDriver)))
    assert [result.id for result in results] == [check.id for check in catalogue()]


def test_every_check_ends_with_all_sizes_compared() -> None:
    """Whatever a check is about: a volume that rests with two sizes fails it."""

    def leave_behind(bench: Bench) -> None:
        assert isinstance(bench.subject.oracle, MemoryOracle)
        bench.subject.oracle.array.sizes[bench.create().id] += bench.granule

    result = run_check(
        Check("LIF-001", "it is about something else", leave_behind), memory.subject(MemoryDriver)
    )
    assert (result.verdict, result.invariant) == (Verdict.FAILED, "I1"), result


def test_what_cannot_be_taken_away_is_told_by_its_cause() -> None:
    class Burnt(MemoryDriver):
        def delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> Merge | None:
            raise BackendError("the shelf", "has burnt")

    def snapped(bench: Bench) -> None:
        bench.engine.create_snapshot(bench.create().id, bench.name())

    result = run_check(Check("X-001", "none", snapped), memory.subject(Burnt))
    assert result.verdict is Verdict.FAILED
    assert result.text.startswith("BackendError: the shelf: has burnt; then: volume ")
    assert "which is deleting, must be finished with it" in result.text


class TriesItsPortal(MemoryHost):
    """Tries whether the target answers before it logs in: LIO takes that for a login that failed."""

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        self.machine.log += ["<3>rx_data returned 0, expecting 48.", "<3>iSCSI Login negotiation failed."]
        return super().connect(volume, attachment, connection_info)


def test_a_portal_that_was_only_tried_is_no_complaint() -> None:
    check = next(each for each in catalogue() if each.id == "LEK-004")
    tried = Liar(TriesItsPortal, check.id, host=TriesItsPortal)
    assert run_check(check, tried.subject()).verdict is Verdict.PASSED


def test_what_there_was_no_time_to_strike_is_told() -> None:
    (killed,) = (check for check in catalogue() if check.id == "CRA-001")
    hurried = replace(memory.subject(MemoryDriver), sweep_s=0.0)
    assert re.match(r"1 of \d+ boundaries struck in 0 s", run_check(killed, hurried).text)
    assert run_check(killed, memory.subject(MemoryDriver)).text == ""


@pytest.mark.parametrize("name", ["ROL-006", "CRA-006", "DAT-006"])
@pytest.mark.parametrize("driver", [MemoryDriver, MemoryFileDriver])
def test_a_backend_that_is_late_to_come_back_is_waited_for(driver: type[MemoryDriver], name: str) -> None:
    """An NFS client reaches its server some seconds after that is back."""
    subject = memory.subject(driver)
    assert subject.outage is not None
    begin, late = subject.outage, ExitStack()

    @contextmanager
    def outage() -> Iterator[None]:
        with ExitStack() as away:
            away.enter_context(begin())
            yield
            late.push(away.pop_all())

    def sleep(seconds: float) -> None:
        late.close()
        subject.sleep(seconds)

    check = next(each for each in catalogue() if each.id == name)
    result = run_check(check, replace(subject, outage=outage, sleep=sleep))
    assert result.verdict is Verdict.PASSED, result


@pytest.mark.parametrize("liar", liars(), ids=lambda liar: liar.lie.__name__)
def test_a_liar_is_found_out(liar: Liar) -> None:
    check = next(each for each in catalogue() if each.id == liar.found_by)
    assert run_check(check, liar.subject()).verdict in FOUND_OUT, liar.title


def test_every_check_that_counts_is_the_one_that_finds_some_liar() -> None:
    found_by = {liar.found_by for liar in liars()}
    assert found_by <= {check.id for check in catalogue()}
    assert {check.id for check in catalogue() if not check.provisional} <= found_by


#: The published catalogue: the last number of each group, which has all before it too.
PUBLISHED = {
    "DEC": 8,
    "LIF": 12,
    "SIZ": 9,
    "EXO": 11,
    "EXI": 16,
    "DEF": 16,
    "ROL": 9,
    "CRA": 11,
    "CON": 9,
    "DAT": 10,
    "SNP": 15,
    "CLN": 9,
    "ATT": 14,
    "STA": 6,
    "BAD": 8,
    "IDM": 7,
    "LEK": 7,
    "ADP": 8,
}
#: What is refused where a capability is not declared, and what works all the same.
ABSENT = {"EXI-090", "EXI-091", "LIF-090", "SNP-090", "SNP-091", "CLN-090", "ATT-090"}


def test_every_id_of_the_published_catalogue_is_a_check_or_has_a_reason_why_not() -> None:
    published = {f"{group}-{number:03}" for group, last in PUBLISHED.items() for number in range(1, last + 1)}
    checks = {check.id for check in catalogue()}
    assert published - checks == RESERVED.keys()
    assert checks - published == ABSENT
    assert all(len(reason.split()) > 5 for reason in RESERVED.values())


def test_the_docs_say_which_ids_have_no_check_and_why() -> None:
    docs = (Path(__file__).parents[1] / "docs" / "conformance.md").read_text()
    spared = {i for i in RESERVED if i in docs or (i[:4] == "ADP-" and "ADP-001 to ADP-008" in docs)}
    assert spared == RESERVED.keys()
    assert [reason for reason in RESERVED.values() if reason not in docs] == []


def test_half_a_driver_fails_every_check_and_says_what_it_lacks() -> None:
    for check in catalogue():
        result = run_check(check, memory.subject(LacksAMethod))
        assert result.verdict in (Verdict.FAILED, Verdict.NOT_APPLICABLE), result
        assert "pool" in str(result.readings) or result.verdict is Verdict.NOT_APPLICABLE


def test_a_check_that_is_core_is_never_provisional() -> None:
    for level in Level:
        with pytest.raises(ValueError, match="never provisional") if level is Level.CORE else nullcontext():
            Check("EXI-999", "it works", lambda _bench: None, level, provisional=True)


@pytest.mark.parametrize(
    ("driver", "host", "verdict"),
    [
        (OfflineDriver, MemoryHost, Verdict.PASSED),
        (DeafDriver, DeafHost, Verdict.PASSED),
        (DeafDriver, MemoryHost, Verdict.FINDING),
        (StaleDriver, MemoryHost, Verdict.PASSED),
        (LitteringDriver, MemoryHost, Verdict.FAILED),
        (MemoryDriver, MemoryHost, Verdict.NOT_APPLICABLE),
    ],
)
def test_what_is_not_declared_is_tried_all_the_same(
    driver: type[MemoryDriver], host: type[MemoryHost], verdict: Verdict
) -> None:
    check = next(each for each in catalogue() if each.id == "EXI-091")
    assert run_check(check, memory.subject(driver, host)).verdict is verdict


class NeverReverts(MemoryDriver):
    """It declares reverts with a condition, and refuses each."""

    capabilities = replace(
        MemoryDriver.capabilities,
        conditions=(Condition(capability="revert", unless="the snapshot is not the newest"),),
    )

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        raise NotSupported(snapshot.title, "only the newest one can be reverted to")


def test_a_condition_is_no_excuse_for_doing_nothing() -> None:
    check = next(each for each in catalogue() if each.id == "SNP-006")
    refused = run_check(check, memory.subject(NeverReverts))
    assert (refused.verdict, refused.text) == (
        Verdict.NOT_RUN,
        "a declared condition refuses every revert that was tried",
    )
    some = run_check(check, memory.subject(MemoryFileDriver))
    assert some.verdict is Verdict.PASSED
    assert "a declared condition refused it: " in some.text


def test_the_kill_table_in_the_docs_has_every_lie() -> None:
    """Made by tools/kill-table."""
    table = (Path(__file__).parents[1] / "docs" / "kill-table.md").read_text()
    missing = [liar.title for liar in liars() if f"| {liar.title} | {liar.found_by} |" not in table]
    assert missing == []
