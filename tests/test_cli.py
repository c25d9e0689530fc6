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

from voldrivers.cli import EXIT_CODES, HINTS, failures, main
from voldrivers.cli.failures import MEANINGS
from voldrivers.errors import InvalidState, VolDriverError, leaves
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
        "snapshots",
    }
    attachment = operator("attach", "v", "--json").json
    assert set(attachment) == {"id", "host", "instance", "qmp", "state", "device_path"}
    assert "s3cret" not in json.dumps(attachment)
    (listed,) = operator("volume", "list", "--json").json
    assert (set(listed), listed["attachments"]) == (volume, [attachment])
    plan = operator("extend", "v", "2M", "--plan", "--json").json
    assert set(plan) == {"volume", "from_bytes", "requested_bytes", "to_bytes", "grown_by", "steps", "notes"}
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
    assert set(ledger) == {"volume", "status", "settled", "rows", "stopped"}
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
        (
            ["volume", "create", "w", "1M", "--backend", "x"],
            4,
            "volume w: backend x does not exist; configured: fast; see: voldrivers config check",
        ),
        (["detach", "v"], 4, "attachment of volume v does not exist; see: voldrivers volume show v"),
        (["attach", "v", "--host", "x"], 4, "volume v: host x does not exist; configured: one; see: voldr"),
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
        ("space", 7, "volume v: the array: no space, 2 KiB needed and 1 KiB free; free some space"),
        (
            "unknown",
            9,
            "volume v: the outcome of the creation is unknown: the array did not answer;"
            " run: voldrivers resume v",
        ),
        ("command", 8, "volume v: arrayctl ended with exit code 3: no way; mend the cause"),
        ("own", 8, "volume v: the array: is on fire; mend the cause"),
        ("library", 6, "volume v: library no_such_library: it is not installed"),
        ("bug", 1, r"volume v: a mistake in voldrivers: RuntimeError: lost\x1b[2J at "),
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
    said = "volume v: host one: does not rescan; mend the cause, then run: voldrivers retry v"
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
    assert "--repair" not in doctor.out
    resumed = operator("resume")
    assert (resumed.code, "volume v: was extending, now extended, 2 MiB" in resumed.out) == (0, True)
    assert operator.file("v").stat().st_size == 2**21
    assert operator("resume", "v").out == "nothing to resume\n"


def test_while_it_is_extending_nothing_else_than_resume_is_advised(operator: Operator) -> None:
    operator.make("v")
    operator("attach", "v")
    operator("extend", "v", "2M", "--no-wait")
    doctor = operator("doctor", "v")
    assert "device one is stale; mend it: voldrivers resume v" in doctor.out
    assert "--repair" not in doctor.out
    rows = operator("doctor", "v", "--json").json["rows"]
    assert {row["repair"] for row in rows} == {"voldrivers resume v"}


def test_a_layer_that_cannot_be_read_is_not_called_stale(operator: Operator) -> None:
    operator.make("v")
    operator("attach", "v")
    (operator.directory / "host" / "blind").touch()
    doctor = operator("doctor", "v")
    assert doctor.code == 10
    (row,) = [line for line in doctor.out.splitlines() if line.startswith("host ") and "NOTE" not in line][:1]
    assert row.split()[:6] == ["host", "one", "-", "1", "MiB", "unreadable"]
    assert doctor.out.splitlines()[-1] == (
        "host one cannot be read: host one: sees nothing;"
        " lost for good: voldrivers detach v --host one --force"
    )
    assert "STALE" not in doctor.out
    assert "mend it" not in doctor.out
    document = operator("doctor", "v", "--json").json
    assert [(row["observed_bytes"], row["repair"]) for row in document["rows"]] == [(2**20, ""), (None, "")]


def test_an_instance_that_has_stopped_is_told(operator: Operator) -> None:
    operator.make("v")
    operator("attach", "v", "--instance", "vm1")
    assert "stopped" not in operator("doctor", "v").out
    (operator.directory / "host" / "stopped").touch()
    doctor = operator("doctor", "v")
    assert doctor.code == 0
    assert "instance one/vm1 has stopped: no QEMU has the volume there" in doctor.out
    assert operator("doctor", "v", "--json").json["stopped"] == ["one/vm1"]


def test_a_cancelled_extend_is_rolled_back_by_resume_and_no_failure(operator: Operator) -> None:
    operator.make("v")
    operator("extend", "v", "2M", "--no-wait")
    answer = operator("cancel", "v")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("volume v: asked to roll its extend back, if nothing has grown yet; ")
    assert operator("cancel", "v", "--json").json["phase"] == "growing"
    assert operator("volume", "show", "v", "--json").json["status"] == "extending"
    resumed = operator("resume", "v")
    assert (resumed.code, resumed.err) == (0, "")
    assert resumed.out == "volume v: was extending, now cancelled, nothing has grown\n"
    assert operator("volume", "show", "v", "--json").json["status"] == "available"
    assert operator.file("v").stat().st_size == 2**20


def test_attaches_to_the_host_and_the_instance_that_are_named(operator: Operator) -> None:
    config = operator.directory / "voldrivers.toml"
    two = f'[host.two]\nkind = "acme"\ndirectory = "{operator.directory}/host"\n'
    config.write_text(config.read_text() + two)
    operator.make("v")
    refused = operator("attach", "v")
    assert (refused.code, "name one of those that are configured: one, two" in refused.err) == (3, True)
    answer = operator("attach", "v", "--host", "two", "--instance", "vm1", "--json")
    assert (answer.code, answer.json["host"], answer.json["instance"]) == (0, "two", "vm1")
    assert "two/vm1, attached, " in operator("volume", "show", "v").out
    for wrong in (["--host", "one"], ["--instance", "vm2"]):
        answer = operator("detach", "v", *wrong)
        assert (answer.code, one_sentence(answer.err).startswith("attachment of volume v to ")) == (4, True)
    assert operator("detach", "v", "--instance", "vm1").code == 0


def test_an_attachment_without_an_instance_can_be_named(operator: Operator) -> None:
    config = operator.directory / "voldrivers.toml"
    config.write_text(config.read_text().replace('driver = "acme"', 'driver = "shared"'))
    assert operator("volume", "create", "m", "1M", "--multi-attach").code == 0
    for instance in ("vm1", ""):
        assert operator("attach", "m", "--host", "one", "--instance", instance).code == 0
    refused = operator("detach", "m", "--host", "one")
    assert (refused.code, "name the host and the instance" in refused.err) == (3, True)
    left = operator("detach", "m", "--host", "one", "--instance", "", "--json").json["attachments"]
    assert [attachment["instance"] for attachment in left] == ["vm1"]
    assert "'' means the attachment without one" in " ".join(operator("detach", "--help").out.split())


def test_a_lost_host_is_forgotten_by_force(operator: Operator) -> None:
    operator.make("v")
    operator("attach", "v")
    config = operator.directory / "voldrivers.toml"
    config.write_text(config.read_text().replace("[host.one]", "[host.two]"))
    refused = operator("detach", "v")
    assert (refused.code, "volume v: host one does not exist" in refused.err) == (4, True)
    answer = operator("detach", "v", "--force")
    assert (answer.code, answer.out) == (0, "volume v: detached, available\n")
    assert list((operator.directory / "host").glob("seen-*")), "the lost host was asked"
    assert "by force, without asking the host" in operator("volume", "show", "v").out


def lose_host(operator: Operator) -> None:
    """Have the host be on another machine, where nobody answers."""
    token = operator.directory / "token"
    token.write_text("a-token-of-enough-characters")
    token.chmod(0o600)
    config = operator.directory / "voldrivers.toml"
    before = f'kind = "acme"\ndirectory = "{operator.directory}/host"\n'
    assert before in config.read_text()
    agent = 'kind = "agent"\nurl = "http://127.0.0.1:9"\ntoken_file = "token"\n'
    config.write_text(config.read_text().replace(before, agent))


def test_a_host_that_cannot_be_reached_is_named_with_what_helps(operator: Operator) -> None:
    operator.make("v", "w")
    operator("attach", "v")
    lose_host(operator)
    for_good = "; lost for good: voldrivers detach v --host one --force"
    for argv in (["extend", "v", "2M"], ["detach", "v"]):
        answer = operator(*argv)
        said = one_sentence(answer.err)
        assert (answer.code, "host one at http://127.0.0.1:9 is unreachable" in said) == (5, True)
        assert said.endswith(f"; start its agent and try again{for_good}")
    assert one_sentence(operator("attach", "w").err).endswith("its agent; start its agent and try again")
    doctor = operator("doctor", "v")
    assert (doctor.code, doctor.out.splitlines()[-1].endswith(for_good)) == (10, True)
    assert operator("detach", "v", "--force").code == 0


def test_an_extend_that_a_lost_host_has_stopped_says_what_helps(operator: Operator) -> None:
    operator.make("v", "w")
    for name in ("v", "w"):
        operator("attach", name)
        operator("extend", name, "2M", "--no-wait")
    lose_host(operator)
    helps = (
        "; mend the cause (host one lost for good: voldrivers detach v --host one --force),"
        " then run: voldrivers retry v"
    )
    for command in ("resume", "retry"):
        assert one_sentence(operator(command, "v").err).endswith(helps)
    assert operator("detach", "v", "--force").code == 0
    assert operator("retry", "v").code == 0


def test_a_layer_that_refuses_an_extend_is_looked_at_by_doctor(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise InvalidState("session 3", "FAILED", "LOGGED_IN")

    operator.make("v")
    operator("attach", "v")
    monkeypatch.setattr(vendor.AcmeHost, "check_extend", refuse)
    answer = operator("extend", "v", "2M")
    assert answer.code == 5
    assert "FAILED, must be LOGGED_IN; wait or mend it, then look: voldrivers doctor v" in answer.err


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
    assert all(f"volume {r['volume']}: " in answer.err for r in answer.json)


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


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("deadline_s = 0.2", "deadline_s = 9e18", "[policy] deadline_s: must be 0.01 to 2592000, not 9e+18"),
        ('"state"', '"voldrivers.toml"', "voldrivers.toml is not a directory"),
        ('"state"', '"voldrivers.toml/not/there"', "voldrivers.toml is not a directory"),
    ],
)
def test_config_check_finds_what_would_be_refused_at_use(
    operator: Operator, old: str, new: str, said: str
) -> None:
    path = operator.directory / "voldrivers.toml"
    path.write_text(path.read_text().replace(old, new))
    checked, used = operator("config", "check"), operator("volume", "list")
    assert (checked.code, used.code) == (3, 3)
    assert "wrong: 1" in checked.out
    assert said in one_sentence(checked.err)
    assert said in one_sentence(used.err)


def test_config_check_makes_nothing(operator: Operator) -> None:
    path = operator.directory / "voldrivers.toml"
    path.write_text(path.read_text().replace('"state"', '"not/yet/there"'))
    assert operator("config", "check").code == 0
    assert not (operator.directory / "not").exists()


def test_config_check_explains_the_file_of_an_agent(operator: Operator) -> None:
    path = operator.directory / "voldrivers.toml"
    text = '[agent]\nlisten = "127.0.0.1:9871"\ntoken_file = "token"\n[host.one]\nkind = "local"\n'
    path.write_text(text)
    token = operator.directory / "token"
    token.write_text("a-token-of-enough-characters")
    token.chmod(0o600)
    answer = operator("config", "check")
    assert (answer.code, answer.err) == (0, "")
    assert "nothing is wrong" in answer.out
    for line in ("agent     listen", "agent     certificate", "host.one  qmp_dir"):
        assert line in answer.out
    path.write_text(text + "[backend.fast]\ndriver = 'acme'\n")
    answer = operator("config", "check")
    assert (answer.code, "backend: there is no such key or table" in answer.err) == (3, True)
    path.write_text(text)
    answer = operator("volume", "list")
    assert answer.code == 3
    assert "[agent]: this is the configuration of an agent, without backends" in one_sentence(answer.err)


def test_a_controller_is_no_agent(operator: Operator) -> None:
    answer = operator("agent")
    assert answer.code == 3
    assert "[agent]: must be there, with listen and token_file" in one_sentence(answer.err)


def test_help_says_what_an_agent_needs(operator: Operator) -> None:
    answer = operator("agent", "--help")
    assert answer.code == 0
    for word in ("[agent]", "listen", "token_file", "[host.NAME]", "SIGTERM"):
        assert word in answer.out


@pytest.mark.parametrize(
    "argv",
    [
        ["volume", "show", "\udcff"],
        ["volume", "create", "a\udcff", "1M"],
        ["extend", "v", "\udcff"],
        ["attach", "v", "--instance", "\udcff"],
        ["attach", "v", "--qmp", "/\udcff"],
        ["volume", "create", "w", "1M", "--option", "format=\udcff"],
    ],
)
def test_an_argument_that_is_not_utf_8_is_refused(operator: Operator, argv: list[str]) -> None:
    operator.make("v")
    answer = operator(*argv)
    assert (answer.code, "\\udcff': is not UTF-8" in one_sentence(answer.err)) == (3, True)


def test_the_name_of_the_configuration_may_hold_any_byte(operator: Operator) -> None:
    path = operator.directory / os.fsdecode(b"a\xff.toml")
    (operator.directory / "voldrivers.toml").rename(path)
    assert operator("volume", "list", "--config", str(path)).code == 0


def test_nothing_that_is_printed_moves_the_cursor(operator: Operator) -> None:
    operator.make("v")
    name = "vm\x1b[2J\nvolume w: attached\u202e"
    for argv in (
        ["attach", "v", "--instance", name],
        ["volume", "list"],
        ["volume", "show", "v"],
        ["extend", "v", "2M", "--plan"],
        ["doctor", "v"],
    ):
        answer = operator(*argv)
        assert answer.code == 0
        assert all(line.isprintable() for line in answer.out.splitlines())
        assert not [line for line in answer.out.splitlines() if line.startswith("volume w")]


@pytest.mark.parametrize("trouble", ["damaged", "empty", "foreign"])
def test_a_state_file_that_is_none_is_a_failure_with_its_path(operator: Operator, trouble: str) -> None:
    operator.make("v")
    path = operator.directory / "state" / "voldrivers.db"
    whole = path.read_bytes()
    damaged = whole.replace(b"available", b"availablf")
    path.write_bytes(
        {"damaged": damaged, "empty": b"", "foreign": whole[:68] + b"Fake" + whole[72:]}[trouble]
    )
    assert whole != path.read_bytes()
    answer = operator("volume", "show", "v")
    assert answer.code == 8
    assert one_sentence(answer.err).startswith(f"volume v: state file {path}: ")


def test_the_volume_is_named_by_its_name_also_when_its_id_was_given(operator: Operator) -> None:
    operator.make("v")
    volume_id = operator("volume", "show", "v", "--json").json["id"]
    (operator.directory / "backend" / "broken").touch()
    operator("extend", "v", "2M", "--no-wait")
    answer = operator("extend", volume_id, "2M")
    assert one_sentence(answer.err) == (
        "volume v is extending, must be available or in-use;"
        " if no process works on it, run: voldrivers resume v"
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("volume v is extending", True),
        ("volume v: cannot be 1 B", True),
        ("the outcome of the extend of volume v is unknown", True),
        ("volume name 'v': must start", True),
        ("volume v-2 is extending", False),
        ("volume v:2 is there", False),
        ("file /srv/v: no", False),
        ("backend v does not exist", False),
    ],
)
def test_a_text_that_does_not_name_the_volume_gets_its_name(text: str, named: bool) -> None:
    assert failures.named(text, "v") == (text if named else f"volume v: {text}")
    assert failures.named(text, None) == text


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


def stopped(operator: Operator, number: signal.Signals, *argv: str) -> Answer:
    """Start the command, and stop it once its driver is at work."""
    process = started(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    waiting = operator.directory / "backend" / "waiting"
    wait_until(waiting.exists, 60.0, "the driver to be at work")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return Answer(process.returncode, out.decode(), err.decode())


STOPS = pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)


@STOPS
def test_a_stopped_create_says_that_resume_carries_on(
    operator: Operator, number: signal.Signals, code: int, word: str
) -> None:
    answer = stopped(operator, number, "volume", "create", "v", "1M", "--option", "trouble=wait")
    assert (answer.code, answer.out) == (code, "")
    said = f"volume v: {word}; what had begun is recorded, run: voldrivers resume v"
    assert one_sentence(answer.err) == said
    assert operator("resume").code == 0
    assert operator("volume", "show", "v", "--json").json["status"] == "available"


@STOPS
def test_a_stopped_extend_says_that_resume_carries_on(
    operator: Operator, number: signal.Signals, code: int, word: str
) -> None:
    operator.make("v")
    (operator.directory / "backend" / "hang-extend").touch()
    answer = stopped(operator, number, "extend", "v", "2M")
    assert answer.code == code
    assert f"{word}; what had begun is recorded, run: voldrivers resume v" in one_sentence(answer.err)
    assert operator("volume", "show", "v", "--json").json["status"] == "extending"
    assert operator("resume").code == 0
    assert operator.file("v").stat().st_size == 2**21


@STOPS
def test_before_anything_is_recorded_there_is_nothing_to_carry_on(
    operator: Operator, number: signal.Signals, code: int, word: str
) -> None:
    operator.make("v")
    (operator.directory / "backend" / "hang").touch()
    answer = stopped(operator, number, "extend", "v", "2M")
    assert answer.code == code
    said = f"volume v: {word}; it is available, there is nothing to carry on"
    assert one_sentence(answer.err) == said
    assert operator("resume").out == "nothing to resume\n"


def test_sigterm_is_ours_only_while_a_command_runs(operator: Operator) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert operator("volume", "list").code == 0
    assert signal.getsignal(signal.SIGTERM) is before


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


@pytest.mark.parametrize("command", ["extend", "retry"])
def test_the_result_has_the_line_of_the_terminal_for_itself(operator: Operator, command: str) -> None:
    operator.make("v")
    operator("attach", "v")
    argv = [command, "v", "2M"][: 3 if command == "extend" else 2]
    if command == "retry":
        deaf = operator.directory / "host" / "deaf"
        deaf.touch()
        assert operator("extend", "v", "2M").code == 8
        deaf.unlink()
    ours, theirs = pty.openpty()
    process = started(*argv, stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert process.wait(timeout=60) == 0
    seen = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "settling 2 MiB ...\r\x1b[Kvolume v: extended" in seen


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
