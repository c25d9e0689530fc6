"""The stateful machine of the suite: right drivers pass it, liars do not, and what fails is walked again."""

import builtins
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from liars import liars
from liars.liar import Liar
from realsite import mounted

from voldrivers import process
from voldrivers.base import Driver, Run
from voldrivers.capabilities import Capabilities
from voldrivers.conformance import Subject, Verdict, memory
from voldrivers.conformance.places import GuestPlace
from voldrivers.conformance.reports.report import Report
from voldrivers.conformance.runner import run_check
from voldrivers.conformance.verdicts import INVARIANTS
from voldrivers.conformance.walks import machine
from voldrivers.conformance.walks.machine import MachineOutcome, machine_checks, replay, run_machine
from voldrivers.conformance.walks.rules import RULES
from voldrivers.conformance.walks.traces import Step, Trace, read_trace
from voldrivers.errors import InvalidInput, NotSupported
from voldrivers.guests.device import DeviceGuest
from voldrivers.host.local import LocalHost, LocalOptions
from voldrivers.memory import MemoryDriver, MemoryFileDriver
from voldrivers.model import Volume, utc_now
from voldrivers.nfs.driver import NFSDriver
from voldrivers.nfs.options import NFSOptions
from voldrivers.nfs.oracle import ShareOracle
from voldrivers.process import run
from voldrivers.sizes import GiB, MiB, SizeRule

#: How many walks a right driver is walked for, and how long a real one.
WALKS = {"quick": 8, "ci": 100, "full": 1000}
REAL_S = {"quick": 0.0, "ci": 25.0, "full": 300.0}
#: Of the lies, those which a few walks find whatever the seed: by their names.
CAUGHT = {
    *("ForgetsThePending", "ForgetsAtRestart", "CompletesNothing", "RollsBackUnfenced", "PublishesFirst"),
    *("LosesLast", "Scrambling", "ClearsWhatHasGrown", "GrowsBehindTheHypervisor", "LiveSnapshots"),
    *("GrowsSnapshots", "LeavesSnapshots", "DeletesAll", "Leaky", "LeavesDevice", "Undeleted", "Uncleared"),
    *("Prefixed", "AllFree", "Counts", "LooksLate", "FillsUp", "Remembers", "KeepsTheSize", "ShutsAllOut"),
    *("ForgetsTheRescan", "TrustsTheCache", "RoundsDown", "ExtendsTheSource", "Linked", "SecondWriter"),
}


class OfflineDriver(MemoryDriver):
    """It can do what every driver must, and nothing more."""

    capabilities = Capabilities()


class CoarseDriver(MemoryDriver):
    """Its smallest volume is no multiple of its granule, and few fit."""

    size_rule = SizeRule(granularity_bytes=8 * MiB, minimum_bytes=9 * MiB)


def told(outcome: MachineOutcome) -> str:
    """Print every failure with its steps."""
    lines: list[object] = list(outcome.trouble)
    for each in outcome.failures:
        lines += [each.result.text, each.result.readings, *each.trace.steps, *each.result.calls]
    return "\n".join(map(str, lines))


@pytest.mark.parametrize("driver", [MemoryDriver, MemoryFileDriver, OfflineDriver, CoarseDriver])
def test_a_driver_that_is_right_walks_far(driver: type[MemoryDriver], tier: str) -> None:
    walks = WALKS[tier] if driver in (MemoryDriver, MemoryFileDriver) else WALKS[tier] // 4
    outcome = run_machine(memory.subject(driver), seed=2026, examples=walks)
    assert not outcome.failures, told(outcome)
    assert (outcome.examples, outcome.trouble) == (walks, ())
    print(f"{walks} walks, {outcome.steps} steps in {outcome.seconds:.1f} s")
    if driver in (MemoryDriver, MemoryFileDriver) and walks >= 100:
        assert {name for name, _ in outcome.walked} == RULES.keys()


@pytest.mark.parametrize(
    "liar", [each for each in liars() if each.lie.__name__ in CAUGHT], ids=lambda each: each.lie.__name__
)
def test_a_liar_is_caught_and_its_walk_is_short(liar: Liar) -> None:
    subject = liar.subject()
    if liar.lie.__name__ == "Leaky":  # with each try there is less room for another one
        subject = memory.subject(liar.driver, capacity_bytes=GiB)
    outcome = run_machine(subject, seed=1, examples=100, enough=1)
    assert outcome.failures, liar.title
    (failure,) = outcome.failures
    print(f"{failure.result.text}: {', '.join(map(str, failure.trace.steps))}")
    assert len(failure.trace.steps) <= 8, told(outcome)
    assert not failure.trace.fails_in_ram
    # Some lie about what was there before: the same array is needed for that. Others leave it spoiled.
    again = {replay(failure.trace, each).invariant for each in (subject, liar.subject())}
    assert failure.trace.invariant in again


def test_the_liars_that_are_to_be_caught_are_there() -> None:
    assert {liar.lie.__name__ for liar in liars()} >= CAUGHT


def liar(name: str) -> Liar:
    return next(each for each in liars() if each.lie.__name__ == name)


def test_the_same_seed_is_the_same_walk() -> None:
    first, again, other = (
        run_machine(liar("LosesLast").subject(), seed=seed, examples=6).failures[0].trace
        for seed in (3, 3, 4)
    )
    assert first == again
    assert (first.seed, other.seed) == (3, 4)


def test_a_failure_is_written_down_and_walked_again_without_hypothesis(tmp_path: Path) -> None:
    outcome = run_machine(liar("LosesLast").subject(), seed=1, examples=6)
    trace_path, test_path = outcome.write(tmp_path, "maker:broken")
    trace = read_trace(trace_path)
    assert trace == outcome.failures[0].trace
    assert (trace_path.parent.name, test_path.parent.name) == ("traces", "repro")
    assert "hypothesis" not in test_path.read_text()
    (tmp_path / "maker.py").write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from liars.extend_detached import LosesLast\n"
        "from voldrivers.conformance import memory\nfrom voldrivers.memory import MemoryDriver\n"
        "def broken(): return memory.subject(LosesLast)\ndef right(): return memory.subject(MemoryDriver)\n"
    )
    assert "1 failed" in _pytest(tmp_path, test_path)
    test_path.write_text(trace.test("maker:right"))
    assert "1 passed" in _pytest(tmp_path, test_path)


def _pytest(directory: Path, test: Path) -> str:
    """Run a test where hypothesis cannot be imported."""
    (directory / "hypothesis.py").write_text("raise ImportError('it is not here')\n")
    where = f"PYTHONPATH={directory}:{Path(__file__).parents[1]}"
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={directory}"]
    alone = ["-u", "PYTEST_ADDOPTS", where, "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1"]
    argv = ["env", *alone, sys.executable, "-m", "pytest", *options, str(test)]
    return process.run(["sh", "-c", '"$@" 2>&1; true', "sh", *argv], timeout_s=60).stdout


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "steps": [{"name": 1}]}']
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(InvalidInput):
        read_trace(path)


def test_a_trace_that_names_no_rule_is_refused(tmp_path: Path) -> None:
    document = dict(_trace([Step("create", {"volume": 0})]).document())
    document["steps"] = [{"name": "explode", "arguments": {}}]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidInput, match="explode"):
        replay(read_trace(path), memory.subject(MemoryDriver))


def _trace(steps: list[Step]) -> Trace:
    return Trace("MAC-001-0-0", "acme:Acme", 0, tuple(steps), "I1", "it is 'so'", False)


def test_what_fails_in_ram_too_is_no_fault_of_the_driver() -> None:
    """A rule that rounds down is declared, so a right driver that declares it fails as well."""

    class Rule(SizeRule):
        def round_up(self, asked_bytes: int) -> int:
            return super().round_up(asked_bytes) if asked_bytes % 512 else 512 * 3

    class Declares(MemoryDriver):
        size_rule = Rule(granularity_bytes=512)

    outcome = run_machine(memory.subject(Declares), seed=1, examples=5)
    assert outcome.failures
    assert {failure.result.verdict for failure in outcome.failures} == {Verdict.ERROR}
    assert all(failure.trace.fails_in_ram for failure in outcome.failures)


def test_time_that_is_over_ends_a_run() -> None:
    outcome = run_machine(memory.subject(MemoryDriver), seed=1, budget_s=3.0)
    assert outcome.examples > 0
    nothing = run_machine(memory.subject(MemoryDriver), seed=1, budget_s=0.0)
    assert {result.verdict for result in nothing.results()} == {Verdict.NOT_RUN}
    with pytest.raises(ValueError, match="budget"):
        run_machine(memory.subject(MemoryDriver))


def test_a_run_that_walked_too_little_proves_nothing() -> None:
    narrow = replace(memory.subject(MemoryDriver), max_bytes=16 * MiB)
    short = run_machine(narrow, seed=1, examples=1)
    assert {result.verdict for result in short.results()} == {Verdict.NOT_RUN}
    walked = f"too little was walked (1 walks, {short.steps} steps, seed 1), and never: "
    assert walked in short.results()[0].text
    assert "clone" in short.missed


@pytest.mark.parametrize("driver", [MemoryDriver, MemoryFileDriver, OfflineDriver, CoarseDriver])
def test_the_first_walk_takes_all_that_is_declared(driver: type[MemoryDriver]) -> None:
    """A slow backend may have time for no other."""
    first = run_machine(memory.subject(driver), seed=1, examples=1)
    assert (first.examples, first.missed) == (1, ())
    assert {result.verdict for result in first.results()} == {Verdict.PASSED}
    declared = driver.capabilities.declares("in_use_extend")
    assert any(name == "extend_in_use" for name, _ in first.walked) == declared
    assert {"interrupt", "complete", "reuse", "restart"} <= {name for name, _ in first.walked}


def test_what_prepares_a_walk_is_not_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine nothing was walked in a minute."""
    real = machine._sampler()

    def slow(*arguments: Any, **more: Any) -> Any:  # Any: whatever a sampler takes and gives
        time.sleep(1.5)
        return real(*arguments, **more)

    monkeypatch.setattr(machine, "_sampler", lambda: slow)
    assert run_machine(memory.subject(MemoryDriver), seed=1, budget_s=1.0).examples > 0


def test_a_report_holds_one_result_for_each_invariant() -> None:
    outcome = run_machine(liar("Leaky").subject(), seed=1, examples=5)
    results, checks = outcome.results(), machine_checks()
    assert [result.id for result in results] == [check.id for check in checks]
    assert len(checks) == len(INVARIANTS)
    report = Report(MemoryDriver, checks, results, utc_now(), 1.0, "again", has_oracle=True, seed=1)
    assert {result.id for _, result in report.rows if result.verdict is Verdict.FAILED} == {"MAC-008"}
    assert run_check(checks[0], memory.subject(MemoryDriver)).verdict is Verdict.NOT_RUN


def test_without_hypothesis_the_suite_is_there_and_the_machine_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    really = builtins.__import__

    def lacking(name: str, *args: Any, **words: Any) -> Any:
        if name.partition(".")[0] == "hypothesis":
            raise ImportError(name)
        return really(name, *args, **words)

    monkeypatch.delitem(sys.modules, "voldrivers.conformance.walks.moves", raising=False)
    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(NotSupported, match=r"voldrivers\[conformance\]"):
        run_machine(memory.subject(MemoryDriver), examples=1)
    steps = [Step("create", {"volume": 0, "size_bytes": 1, "multi": False})]
    assert replay(steps, memory.subject(MemoryDriver)).verdict is Verdict.PASSED


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Subject]:
    """Give files on a file system so small that it gets full, with a QEMU beside it."""
    share, disk = tmp_path / "share", tmp_path / "disk"
    share.mkdir()
    with disk.open("wb") as file:
        file.truncate(128 * MiB)
    run(["mkfs.ext4", "-q", "-F", str(disk)], timeout_s=20)
    options = NFSOptions(str(share), max_over_subscription_ratio=1.0)

    def make(kind: type[Driver], run: Run) -> Driver:
        return kind("files", options, run)

    with mounted("ext4", "-o", "loop", str(disk), point=share), DeviceGuest(tmp_path) as guest:
        place = GuestPlace(LocalHost("here", LocalOptions(qmp_dir=tmp_path), run), guest)
        oracle, raw = ShareOracle(options), {"format": "raw"}
        yield Subject(NFSDriver, make, [place], oracle, volume_options=raw, deadline_s=20.0)


@pytest.mark.slow
@pytest.mark.needs("qemu-system-x86_64", "qemu-img", "mkfs.ext4")
@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of one's own needs root")
def test_files_in_a_directory(files: Subject, tier: str) -> None:
    outcome = run_machine(files, seed=2026, budget_s=REAL_S[tier])
    print(f"{outcome.examples} walks, {outcome.steps} steps in {outcome.seconds:.1f} s")
    assert outcome.examples
    assert not outcome.failures, told(outcome)
    assert not outcome.trouble


def test_the_oracle_of_a_share_tells_ids_apart_that_begin_alike(tmp_path: Path) -> None:
    for name, size_bytes in (("volume-a", 512), ("volume-a0", 2048), ("volume-a.snap.snapshot", 0)):
        (tmp_path / name).write_bytes(bytes(size_bytes))
    oracle = ShareOracle(NFSOptions(str(tmp_path)))
    sizes = [oracle.size_bytes(Volume(each, each, "files", 512)) for each in ("a", "a0", "b")]
    assert sizes == [512, 2048, None]
