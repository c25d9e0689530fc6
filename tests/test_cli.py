"""The command: what it prints, what it refuses and how, and its exit codes."""

import json
import os
import pty
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import vendor

from voldrivers.cli import EXIT_CODES, HINTS, main
from voldrivers.cli.failures import MEANINGS
from voldrivers.errors import VolDriverError, leaves
from voldrivers.process import wait_until

COMMAND = str(Path(sys.executable).with_name("voldrivers"))


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # Any: a document
        return json.loads(self.out)


@dataclass(frozen=True)
class Operator:
    """Runs the command in this process, on a configuration in a directory of its own."""

    directory: Path
    output: pytest.CaptureFixture[str]

    def __call__(self, *argv: str) -> Answer:
        code = main(argv)
        seen = self.output.readouterr()
        return Answer(code, seen.out, seen.err)

    def make(self, *names: str, size: str = "1M") -> None:
        for name in names:
            assert self("volume", "create", name, size).code == 0

    def file(self, name: str) -> Path:
        volume_id: str = self("volume", "show", name, "--json").json["id"]
        return self.directory / "backend" / volume_id


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Operator:
    vendor.install(tmp_path)
    for name in ("backend", "host"):
        (tmp_path / name).mkdir()
    (tmp_path / "voldrivers.toml").write_text(
        'state_dir = "state"\npolicy.deadline_s = 0.2\n'
        f'[backend.fast]\ndriver = "acme"\ndirectory = "{tmp_path}/backend"\n'
        f'[host.one]\nkind = "acme"\ndirectory = "{tmp_path}/host"\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    # For the tests that start the command as a program.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parent)]))
    monkeypatch.setenv("VOLDRIVERS_CONFIG", str(tmp_path / "voldrivers.toml"))
    return Operator(tmp_path, capsys)


def one_sentence(err: str) -> str:
    """What was said, as one line; never a traceback, nothing that moves a cursor."""
    assert err.startswith("voldrivers: ")
    assert err.count("\n") == 1
    assert err.strip("\n").isprintable()
    return err.removeprefix("voldrivers: ").strip()


def test_a_volume_from_creation_to_deletion(operator: Operator) -> None:
    answer = operator("volume", "create", "vol-1", "1.5 KiB")
    assert (answer.code, answer.out) == (0, "volume vol-1: 2 KiB on backend fast\n")
    assert operator.file("vol-1").stat().st_size == 2048
    listed = operator("volume", "list").out.splitlines()
    assert [line.split() for line in listed] == [
        ["NAME", "SIZE", "STATUS", "BACKEND", "ATTACHED", "TO"],
        ["vol-1", "2", "KiB", "available", "fast"],
    ]
    assert operator("attach", "vol-1").code == 0
    answer = operator("extend", "vol-1", "5k")
    assert (answer.code, answer.out) == (0, "volume vol-1: extended from 2 KiB to 5 KiB\n")
    shown = operator("volume", "show", "vol-1").out
    for part in ("5 KiB", "in-use", "one, attached, ", "extended from 2 KiB to 5 KiB"):
        assert part in shown
    assert "s3cret" not in shown
    assert operator("detach", "vol-1").out == "volume vol-1: detached, available\n"
    assert operator("volume", "delete", "vol-1").out == "volume vol-1: deleted\n"
    assert operator("volume", "list").out == "no volumes\n"
    assert not list((operator.directory / "backend").iterdir())


def test_the_keys_of_every_document_are_stable(operator: Operator) -> None:
    volume = set(operator("volume", "create", "v", "1M", "--json").json)
    assert volume == {
        "id",
        "name",
        "backend",
        "status",
        "size_bytes",
        "backend_bytes",
        "extend_new_size_bytes",
        "multi_attach",
        "attachments",
    }
    attachment = operator("attach", "v", "--json").json
    assert set(attachment) == {"id", "host", "instance", "qmp", "state", "device_path"}
    assert "s3cret" not in json.dumps(attachment)
    (listed,) = operator("volume", "list", "--json").json
    assert (set(listed), listed["attachments"]) == (volume, [attachment])
    plan = operator("extend", "v", "2M", "--plan", "--json").json
    assert set(plan) == {"volume", "from_bytes", "requested_bytes", "to_bytes", "grown_by", "steps"}
    extend = operator("extend", "v", "2M", "--json").json
    assert {key: extend[key] for key in ("from_bytes", "requested_bytes", "to_bytes", "phase")} == {
        "from_bytes": 2**20,
        "requested_bytes": 2**21,
        "to_bytes": 2**21,
        "phase": "completed",
    }
    shown = operator("volume", "show", "v", "--json").json
    assert set(shown) == volume | {"last_extend", "messages"}
    assert shown["last_extend"] == extend
    ledger = operator("doctor", "v", "--json").json
    assert set(ledger) == {"volume", "status", "settled", "rows"}
    assert ledger["settled"] is True
    assert [row["observed_bytes"] for row in ledger["rows"]] == [2**21, 2**21]
    assert operator("resume", "--json").json == []
    assert operator("detach", "v", "--json").json["attachments"] == []
    assert operator("volume", "delete", "v", "--json").json == {"volume": "v", "deleted": True}


def test_options_reach_the_driver_with_their_types(operator: Operator) -> None:
    argv = ("volume", "create", "v", "1M", "--backend", "fast", "--format", "qcow2", "--preallocate")
    assert operator(*argv, "--option", "shards=3").code == 0
    wrong = operator("volume", "create", "w", "1M", "--option", "shards=many")
    assert (wrong.code, "shards: must be a whole number, not 'many'" in wrong.err) == (3, True)
    wrong = operator("volume", "create", "w", "1M", "--option", "shards")
    assert (wrong.code, "option shards: must be KEY=VALUE" in wrong.err) == (3, True)
    wrong = operator("volume", "create", "w", "1M", "--format", "vmdk")
    assert (wrong.code, "must be one of raw, qcow2" in wrong.err) == (3, True)
    wrong = operator("volume", "create", "w", "1M", "--multi-attach")
    assert (wrong.code, one_sentence(wrong.err).startswith("volume w: ")) == (6, True)
    assert [v["name"] for v in operator("volume", "list", "--json").json] == ["v"]


@pytest.mark.parametrize(
    "size", ["0", "-1", "-5G", "-0.5M", "abc", "NaN", "1.5", "9223372036854775808", "", "1 KiB", "-v5"]
)
@pytest.mark.parametrize("separator", [(), ("--",)], ids=["bare", "after --"])
def test_refuses_a_wrong_size_with_both_sizes(
    operator: Operator, size: str, separator: tuple[str, ...]
) -> None:
    operator.make("v")
    answer = operator("extend", *separator, "v", size)
    assert answer.code == 3
    said = one_sentence(answer.err)
    assert said.startswith("volume v: cannot be ")
    assert ", it is 1 MiB: " in said
    assert operator.file("v").stat().st_size == 2**20


@pytest.mark.parametrize(
    "name", ["-x", "-1", "-", "--json", "a/b", "../x", "a\nb", "a\0b", "'", "x" * 300, ""]
)
def test_refuses_a_wrong_name(operator: Operator, name: str) -> None:
    answer = operator("volume", "create", "--", name, "1M")
    assert answer.code == 3
    assert one_sentence(answer.err).startswith("volume name ")
    assert not list((operator.directory / "backend").iterdir())


def test_a_name_with_one_dash_needs_no_separator(operator: Operator) -> None:
    assert operator("volume", "create", "-name", "1M").code == 3
    assert operator("volume", "show", "-vol").code == 4


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["extend", "v", "--plna", "2M"], "unrecognized arguments: --plna"),
        (["extend", "v", "2M", "-x"], "unrecognized arguments: -x"),
        (["volume", "lst"], "invalid choice: 'lst'"),
        (["volume"], "required: COMMAND"),
        ([], "required: COMMAND"),
        (["volume", "create", "v"], "required: SIZE"),
        (["volume", "list", "--js"], "unrecognized arguments: --js"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(operator: Operator, argv: list[str], said: str) -> None:
    answer = operator(*argv)
    assert answer.code == 2
    assert said in answer.err.splitlines()[0]
    assert "usage: voldrivers" in answer.err
    assert "\0" not in answer.err


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["volume", "show", "w"], 4, "volume w does not exist; see: voldrivers volume list"),
        (
            ["extend", "v", "512"],
            3,
            "volume v: cannot be 512 B, it is 1 MiB: a volume never becomes smaller;",
        ),
        (["volume", "create", "v", "1M"], 5, "volume v is there already"),
        (["volume", "create", "w", "1M", "--backend", "x"], 4, "backend x does not exist"),
        (["detach", "v"], 4, "attachment"),
        (["retry", "v"], 5, "volume v is available, must be error_extending; see: voldrivers volume show v"),
        (["cancel", "v"], 5, "volume v is available, must be extending"),
        (["volume", "list", "--config", "nix"], 3, "see: voldrivers config check"),
    ],
)
def test_an_error_is_one_sentence_with_what_to_do(
    operator: Operator, argv: list[str], code: int, said: str
) -> None:
    operator.make("v")
    answer = operator(*argv)
    assert (answer.code, answer.out) == (code, "")
    assert said in one_sentence(answer.err)


@pytest.mark.parametrize(
    ("trouble", "code", "said"),
    [
        ("space", 7, "the array: no space, 2 KiB needed and 1 KiB free; free some space"),
        (
            "unknown",
            9,
            "the outcome of the creation is unknown: the array did not answer; run: voldrivers resume v",
        ),
        ("command", 8, "arrayctl ended with exit code 3: no way; mend the cause"),
        ("own", 8, "the array: is on fire; mend the cause"),
        ("library", 6, "library no_such_library: it is not installed"),
        ("bug", 1, r"a mistake in voldrivers: RuntimeError: lost\x1b[2J at "),
    ],
)
def test_every_failure_has_its_code(operator: Operator, trouble: str, code: int, said: str) -> None:
    answer = operator("volume", "create", "v", "1M", "--option", f"trouble={trouble}")
    assert (answer.code, answer.out) == (code, "")
    assert said in one_sentence(answer.err)


def test_verbose_shows_where_a_mistake_is(operator: Operator) -> None:
    answer = operator("-v", "volume", "create", "v", "1M", "--option", "trouble=bug")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert "in create_volume" in answer.err


def test_verbose_tells_the_story_of_an_extend(operator: Operator) -> None:
    operator.make("v")
    assert "growing -> " in operator("extend", "v", "2M", "--verbose").err
    assert operator("extend", "v", "3M").err == ""


def test_a_failed_extend_says_how_to_go_on(operator: Operator) -> None:
    operator.make("v")
    operator("attach", "v")
    deaf = operator.directory / "host" / "deaf"
    deaf.touch()
    answer = operator("extend", "v", "2M")
    assert answer.code == 8
    said = "host one: does not rescan; mend the cause, then run: voldrivers retry v"
    assert one_sentence(answer.err) == said
    doctor = operator("doctor", "v")
    assert doctor.code == 10
    (stale,) = [line for line in doctor.out.splitlines() if "STALE" in line]
    assert stale.split() == ["device", "one", "1", "MiB", "2", "MiB", "STALE"]
    assert "device one is stale; mend it: voldrivers doctor v --repair" in doctor.out
    assert operator("doctor", "v", "--json").json["settled"] is False
    deaf.unlink()
    repaired = operator("doctor", "v", "--repair")
    assert (repaired.code, "STALE" in repaired.out) == (0, False)
    assert operator("volume", "show", "v", "--json").json["status"] == "in-use"


def test_retry_completes_a_failed_extend(operator: Operator) -> None:
    operator.make("v")
    operator("attach", "v")
    deaf = operator.directory / "host" / "deaf"
    deaf.touch()
    assert operator("extend", "v", "2M").code == 8
    deaf.unlink()
    assert operator("retry", "v").code == 0
    assert operator("doctor", "v").code == 0


def test_an_extend_that_changed_nothing_says_so_and_can_be_repeated(operator: Operator) -> None:
    operator.make("v")
    broken = operator.directory / "backend" / "broken"
    broken.touch()
    answer = operator("extend", "v", "2M")
    assert answer.code == 8
    assert "volume v: the array is broken" in one_sentence(answer.err)
    shown = operator("volume", "show", "v")
    assert "rolled-back" in shown.out
    assert "nothing changed" in shown.out
    broken.unlink()
    assert operator("extend", "v", "2M").code == 0


def test_no_wait_leaves_it_to_resume(operator: Operator) -> None:
    operator.make("v")
    answer = operator("extend", "v", "2M", "--no-wait")
    assert (answer.code, "voldrivers resume v" in answer.out) == (0, True)
    assert operator.file("v").stat().st_size == 2**20
    refused = operator("extend", "v", "3M")
    assert refused.code == 5
    assert "run: voldrivers resume v" in one_sentence(refused.err)
    doctor = operator("doctor", "v")
    assert (doctor.code, "voldrivers resume v" in doctor.out) == (10, True)
    resumed = operator("resume")
    assert (resumed.code, "volume v: was extending, now extended, 2 MiB" in resumed.out) == (0, True)
    assert operator.file("v").stat().st_size == 2**21
    assert operator("resume", "v").out == "nothing to resume\n"


def test_resume_tells_every_failure_and_gives_its_code(operator: Operator) -> None:
    operator.make("a", "b")
    for name in ("a", "b"):
        operator("extend", name, "2M", "--no-wait")
    (operator.directory / "backend" / "broken").touch()
    answer = operator("resume", "--json")
    assert answer.code == 8
    assert [r["error"] for r in answer.json] == [
        "volume a: the array is broken",
        "volume b: the array is broken",
    ]
    assert len(answer.err.splitlines()) == 2


def test_a_plan_changes_nothing(operator: Operator) -> None:
    operator.make("v")
    answer = operator("extend", "v", "1048577", "--plan")
    assert answer.code == 0
    assert answer.out.startswith("volume v: from 1 MiB to 1025 KiB, grown by backend fast\n  growing: ")
    assert operator("volume", "show", "v", "--json").json["last_extend"] is None
    assert operator.file("v").stat().st_size == 2**20


def test_capabilities_need_no_configuration(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOLDRIVERS_CONFIG", "/nix")
    answer = operator("capabilities")
    assert answer.code == 0
    lines = [line.split(maxsplit=3) for line in answer.out.splitlines()]
    assert ["acme", "in-use-extend", "by-backend", "the moon is full"] in lines
    assert ["acme", "multi-attach", "no"] in lines
    assert "driver abstract cannot be used: " in answer.out
    (acme,) = [each for each in operator("capabilities", "--json").json if each["driver"] == "acme"]
    assert acme["capabilities"][0] == {
        "name": "in-use-extend",
        "declared": "by-backend",
        "unless": "the moon is full",
    }


def test_config_check_explains_and_judges(operator: Operator) -> None:
    answer = operator("config", "check")
    assert (answer.code, answer.err) == (0, "")
    assert "how much at once" in answer.out
    assert "nothing is wrong" in answer.out
    path = operator.directory / "voldrivers.toml"
    path.write_text(path.read_text().replace("state_dir", "statedir") + "[host.two]\n")
    answer = operator("config", "check")
    assert answer.code == 3
    assert [line.split(": ")[2] for line in answer.err.splitlines()] == [
        "statedir",
        "state_dir",
        "[host.two] kind",
    ]
    document = operator("config", "check", "--json").json
    assert set(document) == {"path", "settings", "problems"}
    assert len(document["problems"]) == 3
    keys = {"table", "key", "value", "given", "type", "default", "meaning"}
    assert all(set(setting) == keys for setting in document["settings"])


def test_help_lists_the_exit_codes(operator: Operator) -> None:
    answer = operator("--help")
    assert answer.code == 0
    for code, meaning in MEANINGS.items():
        assert f"{code:>3}  {meaning}" in answer.out
    assert operator("extend", "--help").code == 0


def test_version(operator: Operator) -> None:
    answer = operator("--version")
    assert answer.code == 0
    assert answer.out.startswith("voldrivers 0.")


def test_every_error_has_a_code_and_a_hint() -> None:
    ours = {leaf for leaf in leaves() if leaf.__module__.startswith("voldrivers")}
    assert set(EXIT_CODES) == set(HINTS) == ours
    assert set(EXIT_CODES.values()) <= set(MEANINGS)
    assert VolDriverError not in EXIT_CODES


def started(*argv: str, **streams: Any) -> "subprocess.Popen[bytes]":  # Any: as subprocess.Popen
    return subprocess.Popen([COMMAND, *argv], **streams)


def test_a_reader_that_goes_away_is_no_error(operator: Operator) -> None:
    operator.make("v")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        process = started("extend", "v", "2M", stdout=nobody, stderr=subprocess.PIPE)
        assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0
    assert operator.file("v").stat().st_size == 2**21


def test_a_full_disk_is_told(operator: Operator) -> None:
    with Path("/dev/full").open("wb") as full:
        process = started("volume", "list", stdout=full, stderr=subprocess.PIPE)
        err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 8
    assert "No space left on device; what was asked for was done" in one_sentence(err)


def test_an_interruption_says_that_resume_carries_on(operator: Operator) -> None:
    argv = ("volume", "create", "v", "1M", "--option", "trouble=wait")
    process = started(*argv, stderr=subprocess.PIPE)
    waiting = operator.directory / "backend" / "waiting"
    wait_until(waiting.exists, 60.0, "the driver to be at work")
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert "run: voldrivers resume v" in one_sentence(err)
    assert operator("resume").code == 0
    assert operator("volume", "show", "v", "--json").json["status"] == "available"


def test_a_terminal_sees_the_step_at_work(operator: Operator) -> None:
    operator.make("v")
    ours, theirs = pty.openpty()
    process = started("extend", "v", "2M", stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    assert process.wait(timeout=60) == 0
    seen = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "volume v: growing 2 MiB ..." in seen
    assert seen.endswith("\r\x1b[K")


def test_help_imports_nothing_foreign() -> None:
    code = "import sys; from voldrivers.cli import main; main(['--help']); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in (
        "oslo_concurrency",
        "os_brick",
        "qemu",
        "sqlite3",
        "asyncio",
        "importlib.metadata",
        "tomllib",
    ):
        assert f"'{heavy}'" not in out
