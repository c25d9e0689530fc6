"""`capabilities` with evidence: side by side, in every shape, and compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vendor

from voldrivers.base import Driver
from voldrivers.capabilities import Capabilities, InUseExtend
from voldrivers.cli import main
from voldrivers.conformance import Result, Verdict, catalogue
from voldrivers.conformance.reports.report import Report
from voldrivers.conformance.walks.machine import machine_checks
from voldrivers.memory import MemoryDriver
from voldrivers.model import utc_now


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    vendor.install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("VOLDRIVERS_CONFIG", "/nix")
    return tmp_path


Answer = tuple[int, str, str]


@pytest.fixture
def command(installed: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def run(*argv: str) -> Answer:
        code = main(["capabilities", *argv])
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    return run


def report(directory: Path, driver: type[Driver], failing: str = "", mode: str = "") -> str:
    """Write the report of a run in which all passes but one check."""
    manifest = (*catalogue(), *machine_checks())
    checks = [check for check in manifest if not check.not_for(driver.capabilities)]
    ended = [Result(c.id, Verdict.FAILED if c.id == failing else Verdict.PASSED, 0.1) for c in checks]
    Report(driver, checks, ended, utc_now(), 1.0, "", True, mode, environment={}).write(directory)
    return str(directory / "report.json")


def spoiled(path: str, change: Callable[[dict[str, Any]], object]) -> str:  # Any: a document
    document = json.loads(Path(path).read_text())
    change(document)
    Path(path).write_text(json.dumps(document))
    return path


def row(out: str, name: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.startswith(name)]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_declarations_and_evidence_stand_side_by_side(command: Callable[..., Answer], tmp_path: Path) -> None:
    acme, ram = report(tmp_path / "a", vendor.AcmeDriver, "EXI-003"), report(tmp_path / "b", MemoryDriver)
    code, out, err = command("--evidence", acme, ram)
    assert (code, err) == (0, "")
    assert row(out, "CAPABILITY") == ["CAPABILITY", "acme", "voldrivers.memory.driver:MemoryDriver"]
    assert row(out, "in-use-extend") == ["in-use-extend", "by-backend, OVERCLAIM", "by-backend, CONFIRMED"]
    assert row(out, "snapshots") == ["snapshots", "no, CONFIRMED-ABSENT", "yes, CONFIRMED"]
    assert row(out, "verdict") == ["verdict", "non-conformant", "conformant"]
    assert "acme: in-use-extend: not where the moon is full" in out
    assert "acme: in-use-extend OVERCLAIM: EXI-003 FAIL" in out
    assert "MemoryDriver: it is not installed here" in out


def test_one_driver_in_two_modes(command: Callable[..., Answer], tmp_path: Path) -> None:
    thin = report(tmp_path / "a", vendor.AcmeDriver, mode="thin")
    thick = report(tmp_path / "b", vendor.AcmeDriver, "EXI-001", mode="thick")
    _, out, _ = command("--evidence", thin, thick)
    assert row(out, "CAPABILITY") == ["CAPABILITY", "acme (thin)", "acme (thick)"]
    assert row(out, "in-use-extend")[1:] == ["by-backend, CONFIRMED", "by-backend, OVERCLAIM"]


def test_evidence_of_another_version_proves_nothing(command: Callable[..., Answer], tmp_path: Path) -> None:
    path = report(tmp_path, vendor.AcmeDriver)
    spoiled(path, lambda document: document["driver"].update({"from": "acme 0.9"}))
    _, out, _ = command("--evidence", path)
    assert row(out, "in-use-extend")[1:] == ["by-backend, UNVERIFIED"]
    assert row(out, "verdict")[1:] == ["UNVERIFIED"]
    assert "acme: the report is of acme 0.9, installed is vendor: nothing is proved of that" in out


@pytest.mark.parametrize(
    "declared",
    [
        Capabilities(),
        Capabilities(in_use_extend=InUseExtend.BY_BACKEND),  # without the condition that it had
    ],
)
def test_what_was_declared_otherwise_is_not_proved(
    command: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: Capabilities
) -> None:
    path = report(tmp_path, vendor.AcmeDriver)
    monkeypatch.setattr(vendor.AcmeDriver, "capabilities", declared)
    _, out, _ = command("--evidence", path)
    assert row(out, "in-use-extend")[1:] == [f"{declared.in_use_extend}, UNVERIFIED"]
    assert row(out, "snapshots")[1:] == ["no, CONFIRMED-ABSENT"]
    assert row(out, "verdict")[1:] == ["UNVERIFIED"]
    assert "the report is of 'by-backend' (not where the moon is full), declared is " in out


def test_every_shape_says_the_same(command: Callable[..., Answer], tmp_path: Path) -> None:
    path = report(tmp_path, vendor.AcmeDriver)
    _, markdown, _ = command("--evidence", path, "--format", "markdown")
    assert "| in-use-extend | by-backend, CONFIRMED |\n" in markdown
    _, html, _ = command("--evidence", path, "--format", "html")
    assert html.startswith("<!DOCTYPE html>")
    assert "<td>in-use-extend</td><td>by-backend, CONFIRMED</td>" in html
    _, out, _ = command("--evidence", path, "--json")
    (found,) = json.loads(out)
    assert command("--evidence", path, "--format", "json")[1] == out
    assert (found["driver"], found["verdict"]) == ("acme", "conformant")
    assert found["evidence"]["report"] == path
    assert found["capabilities"][0]["proof"] == "CONFIRMED"
    assert "EXI-001" in found["capabilities"][0]["checks"]


def test_without_evidence_nothing_is_proved(command: Callable[..., Answer]) -> None:
    _, markdown, _ = command("--format", "markdown")
    assert "- acme: no report of it was given\n" in markdown
    assert "- abstract: it cannot be used: " in markdown
    assert "CONFIRMED" not in markdown


def test_what_got_worse_has_an_exit_code(command: Callable[..., Answer], tmp_path: Path) -> None:
    old = report(tmp_path / "a", vendor.AcmeDriver)
    new = report(tmp_path / "b", vendor.AcmeDriver, "EXI-003")
    assert command("diff", old, old) == (0, "nothing has changed\n", "")
    code, out, _ = command("diff", old, new)
    assert (code, out.splitlines()) == (
        10,
        [
            "worse: verdict: conformant -> non-conformant",
            "worse: in-use-extend: CONFIRMED -> OVERCLAIM",
            "worse: EXI-003: PASS -> FAIL",
        ],
    )
    code, out, _ = command("diff", new, old, "--json")
    assert code == 0
    assert json.loads(out)[2] == {"what": "EXI-003", "before": "FAIL", "after": "PASS", "effect": "better"}


@pytest.mark.parametrize("argv", [("--evidence", "none.json"), ("diff", "none.json", "none.json")])
def test_a_report_that_cannot_be_read(command: Callable[..., Answer], argv: tuple[str, ...]) -> None:
    code, out, err = command(*argv)
    assert (code, out) == (3, "")
    assert err.startswith("voldrivers: report none.json: cannot be read: ")
    assert err.count("\n") == 1
