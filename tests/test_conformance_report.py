"""What is made of results: verdicts on capabilities and drivers, known failures, files for people and CI."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from liars.lifecycle import Leaky

from voldrivers.base import Completed
from voldrivers.capabilities import Capabilities, InUseExtend
from voldrivers.conformance import Check, Level, Result, Verdict, catalogue, memory, run_checks
from voldrivers.conformance.known import Known, judge, read_known
from voldrivers.conformance.reports import matrix
from voldrivers.conformance.reports.comparison import Effect, changes
from voldrivers.conformance.reports.environment import environment
from voldrivers.conformance.reports.evidence import Conformance, Evidence, Proof, conformance, evidence
from voldrivers.conformance.reports.recorded import Recorded, read
from voldrivers.conformance.reports.report import Report
from voldrivers.conformance.walks.machine import machine_checks
from voldrivers.errors import CommandFailed, InvalidInput, OutcomeUnknown
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
        (DECLARED, Verdict.FIXED, NA, Proof.CONFIRMED),
        (DECLARED, Verdict.KNOWN, NA, Proof.UNVERIFIED),
        (DECLARED, Verdict.NOT_RUN, NA, Proof.UNVERIFIED),
        (NOT_DECLARED, NA, Verdict.PASSED, Proof.CONFIRMED_ABSENT),
        (NOT_DECLARED, NA, Verdict.FAILED, Proof.UNSAFE_ABSENT),
        (NOT_DECLARED, NA, Verdict.FINDING, Proof.UNDERCLAIM),
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


def test_a_refusal_that_is_not_clean_weighs_more_than_what_works_undeclared() -> None:
    tried = replace(ABSENT, id="EXI-091")
    results = [result(ABSENT, Verdict.FAILED), result(tried, Verdict.FINDING)]
    assert evidence(NOT_DECLARED, [ABSENT, tried], results)[0].proof is Proof.UNSAFE_ABSENT


def test_provisional_checks_prove_nothing() -> None:
    tried = replace(WORKS, id="EXI-002", level=Level.EXTENDED, provisional=True)
    for verdict in (Verdict.PASSED, Verdict.FAILED):
        assert evidence(DECLARED, [tried], [result(tried, verdict)])[0].proof is Proof.UNVERIFIED
    results = [result(WORKS, Verdict.PASSED), result(tried, Verdict.FAILED)]
    (in_use, *_) = evidence(DECLARED, [WORKS, tried], results)
    assert (in_use.proof, in_use.checks) == (Proof.CONFIRMED, ("EXI-001",))


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ([Verdict.PASSED, NA], Conformance.CONFORMANT),
        ([Verdict.PASSED, Verdict.FINDING], Conformance.CONFORMANT),
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


LIFE = tuple(check for check in catalogue() if check.group == "LIF")
MANIFEST = (*catalogue(), *machine_checks())
PLACE = {"python": "3.11", "kernel": "6.1"}


def report_of(driver: type[MemoryDriver], **more: Any) -> Report:  # Any: fields of a report
    results = list(run_checks(memory.subject(driver), LIFE))
    given: dict[str, Any] = {"has_oracle": True, "environment": PLACE} | more  # Any: as above
    return Report(driver, LIFE, results, utc_now(), 1.5, "voldrivers conform ...", **given)


def test_the_files_of_a_report(tmp_path: Path) -> None:
    report = report_of(Leaky, mode="thin", seed=7)
    assert report.verdict is Conformance.NON_CONFORMANT
    assert sum(report.totals.values()) == len(MANIFEST)
    report.write(tmp_path / "out")
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert document == report.document()
    assert document["environment"] == PLACE
    assert (document["suite"]["level"], document["suite"]["seed"]) == ("2026.1", 7)
    assert all(each["seconds"] >= 0 for each in document["results"])
    cases = ElementTree.parse(tmp_path / "out" / "junit.xml").findall("testcase")
    failed = [case.get("name") for case in cases if case.find("failure") is not None]
    assert "LIF-002" in failed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "non-conformant" in page
    assert "delete_volume(volume" in page
    assert "| in-use-extend | by-backend, UNVERIFIED |" in (tmp_path / "out" / "capabilities.md").read_text()
    assert "<td>by-backend, UNVERIFIED</td>" in (tmp_path / "out" / "capabilities.html").read_text()


def test_what_was_not_selected_is_not_run_and_what_is_missing_is_an_error() -> None:
    whole = report_of(MemoryDriver)
    assert whole.totals == {
        "N/A": sum(bool(check.not_for(MemoryDriver.capabilities)) for check in catalogue()),
        "NOT-RUN": whole.totals["NOT-RUN"],
        "PASS": sum(not check.not_for(MemoryDriver.capabilities) for check in LIFE),
    }
    assert sum(whole.totals.values()) == len(MANIFEST)
    assert whole.verdict is Conformance.PARTIAL
    lost = replace(whole, results=whole.results[1:])
    assert (lost.verdict, lost.totals["ERROR"]) == (Conformance.INCONCLUSIVE, 1)
    assert sum(lost.totals.values()) == len(MANIFEST)
    twice = replace(whole, results=[*whole.results, whole.results[0]])
    assert (twice.verdict, twice.totals["ERROR"]) == (Conformance.INCONCLUSIVE, 1)
    foreign = replace(whole, results=[*whole.results, Result("LIF-999", Verdict.PASSED, 0.1)])
    with pytest.raises(ValueError, match="results of no check: LIF-999"):
        foreign.document()


def test_a_provisional_check_is_reported_and_decides_nothing(tmp_path: Path) -> None:
    tried = Check("LIF-999", "it works", lambda _bench: None, Level.EXTENDED, provisional=True)
    before = report_of(MemoryDriver)
    for verdict in (Verdict.FAILED, Verdict.ERROR):
        came = [*before.results, result(tried, verdict, "it does \x1b not")]
        report = replace(before, checks=[*LIFE, tried], results=came)
        assert report.verdict is before.verdict
        assert report.totals == dict(before.totals) | {f"PROVISIONAL-{verdict}": 1}
        report.write(tmp_path)
        found = read(tmp_path / "report.json")
        assert found.results["LIF-999"] == f"PROVISIONAL-{verdict}"
        suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
        assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
        assert f"PROVISIONAL-{verdict}" in (tmp_path / "report.html").read_text()


def test_a_report_says_where_it_was_made(tmp_path: Path) -> None:
    def told(argv: Sequence[str], *, timeout_s: float) -> Completed:
        if argv[0] == "lvs":
            return Completed("  LVM version:     2.03.16(2)\x1b\n  Library version: 1.02", "")
        if argv[0] == "iscsiadm":
            raise OutcomeUnknown("iscsiadm", f"it did not end within {timeout_s} seconds")
        raise CommandFailed(argv[0], "no", argv=tuple(argv), exit_code=1)

    found = environment(told)
    assert set(found) == {"python", "kernel", "machine", "lvm2"}
    assert found["lvm2"] == "LVM version: 2.03.16(2)"
    assert dict(report_of(MemoryDriver, environment=environment(told)).document())["environment"] == found
    report_of(MemoryDriver).write(tmp_path)
    assert set(environment()) >= {"python", "kernel", "machine"}


def written(directory: Path, driver: type[MemoryDriver] = MemoryDriver) -> dict[str, Any]:  # Any: a document
    report_of(driver).write(directory)
    document: dict[str, Any] = json.loads((directory / "report.json").read_text())  # Any: as above
    return document


def test_a_report_is_read_back(tmp_path: Path) -> None:
    written(tmp_path)
    found = read(tmp_path / "report.json")
    assert found.driver == "voldrivers.memory.driver:MemoryDriver"
    assert found.verdict is Conformance.PARTIAL
    assert found.capabilities["manage"].proof is Proof.PARTIAL  # it is killed and asked again in other groups
    assert "LIF-009" in found.capabilities["manage"].checks
    assert (found.results["LIF-001"], found.results["LIF-090"]) == ("PASS", "N/A")


SPOILED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {  # Any: a document
    "a newer form": (lambda d: d.update(schema=2), "is of form 2, only 1 is known"),
    "no form": (lambda d: d.pop("schema"), "it has no 'schema'"),
    "yes for a form": (lambda d: d.update(schema=True), "schema of it is no int"),
    "no driver": (lambda d: d.pop("driver"), "it has no 'driver'"),
    "a driver without a class": (lambda d: d["driver"].pop("class"), "driver has no 'class'"),
    "a verdict that there is not": (
        lambda d: d.update(verdict="fine"),
        "verdict of it is 'fine', not one of",
    ),
    "a proof that there is not": (
        lambda d: d["capabilities"][2].update(proof="SURE"),
        r"proof of capabilities\[2\] is 'SURE', not one of CONFIRMED, ",
    ),
    "checks that are none": (lambda d: d["capabilities"][0].update(checks=[3]), "is no list of texts"),
    "results that are none": (lambda d: d.update(results=["PASS"]), r"results\[0\] has no 'id'"),
    "a table for a list": (lambda d: d.update(results={}), "results of it is no list"),
    "a result less": (lambda d: d["results"].pop(), "it does not add up: "),
    "a result twice": (lambda d: d["results"].__setitem__(0, d["results"][1]), "it does not add up: "),
    "a total more": (lambda d: d["totals"].update(PASS=1000), "it does not add up: "),
    "fewer checks": (lambda d: d["suite"].update(checks=5), "it does not add up: "),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_what_is_no_report_is_refused(tmp_path: Path, spoiled: str) -> None:
    spoil, said = SPOILED[spoiled]
    document = written(tmp_path)
    spoil(document)
    (tmp_path / "spoiled.json").write_text(json.dumps(document))
    with pytest.raises(InvalidInput, match=f"report .*spoiled.json: .*{said}"):
        read(tmp_path / "spoiled.json")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"null", b"[]", b"[" * 200_000, b'{"schema": 1e999}'])
def test_what_is_no_document_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"report .*report.json: "):
        read(file)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read(tmp_path)


def recorded_as(proof: Proof, verdict: str, whole: Conformance, **more: str) -> Recorded:
    said = {"driver": "a:B", "package": "a 1", "mode": "", "level": "2026.1"} | more
    found = {"in_use_extend": Evidence("in_use_extend", "by-backend", proof, ("EXI-001",))}
    return Recorded("r", **said, began="", verdict=whole, capabilities=found, results={"EXI-001": verdict})


GOOD = recorded_as(Proof.CONFIRMED, "PASS", Conformance.CONFORMANT)
BAD = recorded_as(Proof.OVERCLAIM, "FAIL", Conformance.NON_CONFORMANT)
UNKNOWN = recorded_as(Proof.UNVERIFIED, "NOT-RUN", Conformance.INCONCLUSIVE)


@pytest.mark.parametrize(
    ("old", "new", "effect"),
    [
        (GOOD, BAD, Effect.WORSE),
        (BAD, GOOD, Effect.BETTER),
        (GOOD, UNKNOWN, Effect.WORSE),
        (UNKNOWN, GOOD, Effect.BETTER),
        (UNKNOWN, BAD, Effect.WORSE),
        (BAD, UNKNOWN, Effect.OTHER),
    ],
)
def test_what_a_later_report_says_is_weighed(old: Recorded, new: Recorded, effect: Effect) -> None:
    found = changes(old, new)
    assert [change.what for change in found] == ["verdict", "in-use-extend", "EXI-001"]
    assert {change.effect for change in found} == {effect}
    assert changes(old, old) == ()


@pytest.mark.parametrize(
    ("was", "now", "effect"),
    [
        ("PASS", "KNOWN", Effect.WORSE),
        ("PASS", "FINDING", Effect.OTHER),
        ("PASS", "N/A", Effect.OTHER),
        ("PASS", "PROVISIONAL-FAIL", Effect.OTHER),
        ("PROVISIONAL-PASS", "PROVISIONAL-FAIL", Effect.OTHER),
        ("KNOWN", "FAIL", Effect.WORSE),
        ("KNOWN", "PASS", Effect.BETTER),
    ],
)
def test_how_a_check_ended_is_weighed(was: str, now: str, effect: Effect) -> None:
    (change,) = changes(replace(GOOD, results={"LIF-001": was}), replace(GOOD, results={"LIF-001": now}))
    assert change.effect is effect


def test_a_check_that_is_gone_and_another_version_are_told() -> None:
    lines = [str(each) for each in changes(GOOD, replace(GOOD, results={}, package="a 2", mode="thin"))]
    assert lines == [
        "worse: EXI-001: PASS -> not there",
        "otherwise: package: a 1 -> a 2",
        "otherwise: mode: not given -> thin",
    ]


def test_a_matrix_keeps_to_its_lines_and_columns() -> None:
    evil = replace(GOOD, driver="a|b\n| c <script>", mode="*")
    text = matrix.markdown([matrix.reported(evil), matrix.reported(GOOD)])
    head, _, *rows = text.split("\n\n")[0].splitlines()
    assert head == r"| capability | a\|b \| c &lt;script&gt; (*) | a:B |"
    assert all(row.replace(r"\|", "").count("|") == 4 for row in rows)
    assert "<script>" not in matrix.html([matrix.reported(evil)])
