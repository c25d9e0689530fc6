"""What is made of results: verdicts on capabilities and drivers, known failures, files for people and CI."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import pytest
from liars.lifecycle import Leaky

from voldrivers.capabilities import Capabilities, InUseExtend
from voldrivers.conformance import Check, Result, Verdict, catalogue, memory, run_checks
from voldrivers.conformance.evidence import Conformance, Proof, conformance, evidence
from voldrivers.conformance.known import Known, judge, read_known
from voldrivers.conformance.report import Report, differences, matrix, read
from voldrivers.errors import InvalidInput
from voldrivers.memory import MemoryDriver
from voldrivers.model import utc_now

WORKS = Check("EXI-001", "it works", lambda _bench: None, capability="in_use_extend")
ABSENT = Check("EXI-090", "it is refused", lambda _bench: None, absent="in_use_extend")
BOTH = (WORKS, ABSENT)
DECLARED, NOT_DECLARED = Capabilities(in_use_extend=InUseExtend.BY_BACKEND), Capabilities()
NA = Verdict.NOT_APPLICABLE


def result(check: Check, verdict: Verdict, text: str = "") -> Result:
    return Result(check.id, verdict, 0.1, text)


@pytest.mark.parametrize(
    ("declared", "works", "absent", "proof"),
    [
        (DECLARED, Verdict.PASSED, NA, Proof.CONFIRMED),
        (DECLARED, Verdict.FAILED, NA, Proof.OVERCLAIM),
        (DECLARED, Verdict.FIXED, NA, Proof.OVERCLAIM),
        (DECLARED, Verdict.KNOWN, NA, Proof.UNVERIFIED),
        (DECLARED, Verdict.NOT_RUN, NA, Proof.UNVERIFIED),
        (NOT_DECLARED, NA, Verdict.PASSED, Proof.CONFIRMED_ABSENT),
        (NOT_DECLARED, NA, Verdict.FAILED, Proof.UNSAFE_ABSENT),
        (NOT_DECLARED, NA, Verdict.ERROR, Proof.UNVERIFIED),
    ],
)
def test_what_is_known_of_a_capability(
    declared: Capabilities, works: Verdict, absent: Verdict, proof: Proof
) -> None:
    found = evidence(declared, BOTH, [result(WORKS, works), result(ABSENT, absent)])
    (in_use,) = [each for each in found if each.capability == "in_use_extend"]
    assert in_use.proof is proof


def test_a_capability_that_is_proved_in_part_only() -> None:
    more = replace(WORKS, id="EXI-002")
    results = [result(WORKS, Verdict.PASSED), result(more, Verdict.NOT_RUN)]
    assert evidence(DECLARED, [WORKS, more], results)[0].proof is Proof.PARTIAL


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ([Verdict.PASSED, NA], Conformance.CONFORMANT),
        ([Verdict.PASSED, Verdict.NOT_RUN], Conformance.PARTIAL),
        ([Verdict.PASSED, Verdict.KNOWN], Conformance.PARTIAL),
        ([Verdict.PASSED, Verdict.FAILED, Verdict.ERROR], Conformance.NON_CONFORMANT),
        ([Verdict.PASSED, Verdict.FIXED], Conformance.NON_CONFORMANT),
        ([Verdict.PASSED, Verdict.ERROR], Conformance.INCONCLUSIVE),
        ([], Conformance.INCONCLUSIVE),
    ],
)
def test_the_verdict_on_a_driver(verdicts: list[Verdict], whole: Conformance) -> None:
    assert conformance([result(WORKS, verdict) for verdict in verdicts], ()) is whole


def test_known_failures_run_and_must_fail_as_they_are_known(tmp_path: Path) -> None:
    file = tmp_path / "known.toml"
    file.write_text('[EXI-001]\nreason = "slow"\nissue = "A-1"\nexpires = 2027-01-01\nmatch = "not all"\n')
    known = read_known(file, ["EXI-001"])
    before, after = date(2026, 12, 31), date(2027, 1, 1)
    failed = result(WORKS, Verdict.FAILED, "not all sizes agree")
    assert judge(failed, known, before).verdict is Verdict.KNOWN
    assert judge(failed, known, before).text == "slow (A-1): not all sizes agree"
    assert judge(failed, known, after).verdict is Verdict.FAILED
    assert judge(replace(failed, text="it hangs"), known, before).verdict is Verdict.FAILED
    assert judge(result(WORKS, Verdict.PASSED), known, before).verdict is Verdict.FIXED
    assert judge(result(WORKS, Verdict.ERROR), known, before).verdict is Verdict.ERROR
    assert judge(result(ABSENT, Verdict.FAILED), known, before).verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[EXI-999]", "there is no check of this id"),
        ("EXI-001 = 3", "there is no check of this id"),
        ("[EXI-001]\nreason = 'r'\nissue = 'i'", "expires: must be given"),
        ("[EXI-001]\nreason = 'r'\nissue = 'i'\nexpires = 'soon'", "Invalid isoformat"),
        ("[EXI-001]\nreason = 'r'\nissue = 'i'\nexpires = 2027-01-01\nmatch = '('", "no regular expression"),
        ("[EXI-001", "known failures"),
    ],
)
def test_a_file_of_known_failures_that_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "known.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=said):
        read_known(file, ["EXI-001"])
    assert Known("r", "i", "2027-01-01").match == ""


def report_of(driver: type[MemoryDriver]) -> Report:
    checks = [check for check in catalogue() if check.group == "LIF"]
    results = list(run_checks(memory.subject(driver), checks))
    return Report(driver, checks, results, utc_now(), 1.5, "voldrivers conform ...", has_oracle=True)


def test_the_files_of_a_report(tmp_path: Path) -> None:
    report = report_of(Leaky)
    assert report.verdict is Conformance.NON_CONFORMANT
    assert sum(report.totals.values()) == len(report.checks)
    report.write(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report.document()
    cases = ElementTree.parse(tmp_path / "out" / "junit.xml").findall("testcase")
    failed = [case.get("name") for case in cases if case.find("failure") is not None]
    assert "LIF-002" in failed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "non-conformant" in page
    assert "delete_volume(volume" in page
    assert "| in_use_extend |" in (tmp_path / "out" / "capabilities.md").read_text()


def test_two_reports_are_compared(tmp_path: Path) -> None:
    for name, driver in (("old", MemoryDriver), ("new", Leaky)):
        report_of(driver).write(tmp_path / name)
    old, new = (read(tmp_path / name / "report.json") for name in ("old", "new"))
    assert "LIF-002: PASS -> FAIL" in differences(old, new)
    assert differences(old, old) == []
    assert "liars.lifecycle:Leaky" in matrix([old, new]).splitlines()[0]
    (tmp_path / "newer.json").write_text('{"schema": 2}')
    for wrong in ("newer.json", "none.json"):
        with pytest.raises(InvalidInput, match=r"report .*: (is of form 2|cannot be read)"):
            read(tmp_path / wrong)
