"""Programs: what a run gives and raises, what it leaves behind, orphans of a killed parent."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from voldrivers.base import Completed
from voldrivers.errors import BackendError, CommandFailed, NotFound, OutcomeUnknown
from voldrivers.process import MARK, end_orphans, identity, is_gone, marked, run, start, talk, wait_until

#: Says its number and sleeps under it.
SAY_AND_SLEEP = "echo $$ > {file}; exec sleep 60"


@pytest.fixture
def pid_in(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """Wait for a number in a file of `tmp_path`; nothing named so outlives the test."""
    files: list[Path] = []

    def read(name: str) -> int:
        file = tmp_path / name
        wait_until(lambda: file.exists() and file.read_text().endswith("\n"), 20, f"a number in {name}")
        files.append(file)
        return int(file.read_text())

    yield read
    for file in files:
        if not ended(int(file.read_text())):
            os.kill(int(file.read_text()), signal.SIGKILL)


def ended(pid: int) -> bool:
    try:
        identity(pid)
    except NotFound:
        return True
    return False


def test_a_run_gives_what_was_printed() -> None:
    assert run(["sh", "-c", "echo out; echo err >&2"], timeout_s=10) == Completed("out\n", "err\n")


def test_a_failure_names_program_arguments_exit_code_and_stderr() -> None:
    argv = ["sh", "-c", "echo out; echo 'no such VG' >&2; exit 5"]
    with pytest.raises(CommandFailed) as caught:
        run(argv, timeout_s=10)
    assert (caught.value.argv, caught.value.exit_code) == (tuple(argv), 5)
    assert str(caught.value) == "sh ended with exit code 5: no such VG"


@pytest.mark.parametrize(
    ("script", "exit_code", "reason"),
    [
        ("echo only out; exit 1", 1, "only out"),
        ("exit 1", 1, "it did not say why"),
        (r"printf 'bad \377 byte' >&2; exit 1", 1, r"bad \xff byte"),
        (r"printf 'gr\303\266\303\237e' >&2; exit 1", 1, "größe"),
        ("kill -9 $$", -9, "it did not say why"),
    ],
)
def test_whatever_a_program_says_can_be_printed(script: str, exit_code: int, reason: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", script], timeout_s=10)
    assert (caught.value.exit_code, caught.value.reason) == (exit_code, reason)
    assert str(caught.value).encode()


@pytest.mark.parametrize("argv", [["no-such-program"], ["/etc/passwd"], ["/no/such/program", "--version"]])
def test_a_program_that_cannot_be_started_is_named(argv: list[str], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=f"^{argv[0]}: cannot be started: [NP]"):
        run(argv, timeout_s=10)
    with pytest.raises(BackendError, match=f"^{argv[0]}: cannot be started: [NP]"):
        start(argv, output=tmp_path / "log")


def test_arguments_reach_the_program_as_they_are_and_no_shell_reads_them() -> None:
    arguments = ["$HOME", "`id`", "a b", "*", "", "'", '"', "\n", "größe", "; exit 9"]
    printed = run(["printf", "%s\\0", *arguments], timeout_s=10).stdout
    assert printed.split("\0")[:-1] == arguments


def test_a_run_has_a_fixed_locale_and_no_input() -> None:
    printed = run(["sh", "-c", 'echo "$LC_ALL"; cat'], timeout_s=10).stdout
    assert printed == "C\n"


def test_much_output_on_both_streams_does_not_block() -> None:
    code = "import sys\nfor _ in range(64): sys.stdout.write('o' * 65536); sys.stderr.write('e' * 65536)"
    done = run([sys.executable, "-c", code], timeout_s=60)
    assert (len(done.stdout), len(done.stderr)) == (4 * 2**20, 4 * 2**20)


@pytest.mark.parametrize("leader", ["wait", "exit 0"], ids=["leader waits", "leader is gone"])
def test_the_time_limit_ends_grandchildren_too(
    leader: str, tmp_path: Path, pid_in: Callable[[str], int]
) -> None:
    grandchild = SAY_AND_SLEEP.format(file=tmp_path / "grandchild")
    with pytest.raises(OutcomeUnknown, match="did not end within 1 seconds"):
        run(["sh", "-c", f"sh -c '{grandchild}' & {leader}"], timeout_s=1)
    wait_until(lambda: ended(pid_in("grandchild")), 10, "the grandchild's end")


def test_the_time_limit_ends_a_program_that_ignores_signals() -> None:
    with pytest.raises(OutcomeUnknown):
        run(["sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done"], timeout_s=1)


def test_a_run_is_marked_only_inside_the_context() -> None:
    show = ["printenv", MARK]
    with marked("vol-1"):
        with marked("vol-2"):
            assert run(show, timeout_s=10).stdout == "vol-2\n"
        assert run(show, timeout_s=10).stdout == "vol-1\n"
    assert run(show, timeout_s=10).stdout == "\n"


@pytest.fixture
def orphaned() -> Callable[[str, str], None]:
    """Run a script marked for a volume in a process that is killed by SIGKILL once the script ran."""

    def orphan(volume_id: str, script: str) -> None:
        code = (
            "import sys\nfrom voldrivers.process import marked, run\n"
            "with marked(sys.argv[1]): run(['sh', '-c', sys.argv[2]], timeout_s=60)\n"
        )
        kill_parent = f"kill -9 $PPID; {script}"
        parent = subprocess.run([sys.executable, "-c", code, volume_id, kill_parent], check=False, timeout=60)
        assert parent.returncode == -signal.SIGKILL

    return orphan


def test_an_orphan_is_waited_for(tmp_path: Path, orphaned: Callable[[str, str], None]) -> None:
    orphaned("vol-1", f"sleep 0.3; echo done > {tmp_path}/file")
    end_orphans("vol-1", timeout_s=20)
    assert (tmp_path / "file").read_text() == "done\n"


def test_an_orphan_that_does_not_end_is_ended(
    tmp_path: Path, orphaned: Callable[[str, str], None], pid_in: Callable[[str], int]
) -> None:
    orphaned("vol-1", SAY_AND_SLEEP.format(file=tmp_path / "orphan"))
    orphan = pid_in("orphan")
    end_orphans("vol-2", timeout_s=0.1)
    assert not ended(orphan), "an orphan of another volume was ended"
    end_orphans("vol-1", timeout_s=0.1)
    assert ended(orphan)


def test_an_orphan_whose_group_has_lost_its_leader_is_ended(
    tmp_path: Path, orphaned: Callable[[str, str], None], pid_in: Callable[[str], int]
) -> None:
    orphaned("vol-1", f"sh -c '{SAY_AND_SLEEP.format(file=tmp_path / 'orphan')}' &")
    orphan = pid_in("orphan")
    wait_until(lambda: ended(os.getpgid(orphan)), 10, "the leader's end")
    end_orphans("vol-1", timeout_s=0.1)
    assert ended(orphan)


def test_without_orphans_nothing_is_waited_for() -> None:
    end_orphans("vol-1", timeout_s=0)


def test_a_process_is_gone_when_it_has_ended_and_a_zombie_too(tmp_path: Path) -> None:
    child = start(["sleep", "60"], output=tmp_path / "log")
    name = identity(child.pid)
    assert not is_gone(name)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie as we leave it one
    assert Path(f"/proc/{child.pid}").exists()
    assert is_gone(name)
    with pytest.raises(NotFound, match=f"process {child.pid} does not exist"):
        identity(child.pid)
    child.wait()
    assert is_gone(name)


def test_a_later_process_with_the_same_number_is_not_taken_for_it() -> None:
    boot, pid, started = identity(os.getpid()).split()
    assert not is_gone(f"{boot} {pid} {started}")
    assert is_gone(f"{boot} {pid} {int(started) - 1}")
    assert is_gone(f"another-boot {pid} {started}")


@pytest.mark.parametrize("text", ["", "gone", "a b c", "boot 1", "boot -1 5", "boot 1 5 extra"])
def test_what_names_no_process_proves_nothing(text: str) -> None:
    assert not is_gone(text)


@pytest.mark.parametrize("name", [b"a) Z 1 (b", b"\xff\xfe", b"with space"])
def test_a_name_cannot_hide_a_process(name: bytes, tmp_path: Path) -> None:
    program = os.fsencode(tmp_path) + b"/" + name
    os.symlink("/bin/sleep", program)
    child = start([os.fsdecode(program), "60"], output=tmp_path / "log")
    try:
        wait_until(lambda: name in Path(f"/proc/{child.pid}/stat").read_bytes(), 10, "the name")
        assert not is_gone(identity(child.pid))
    finally:
        child.kill()
        child.wait()


def test_no_python_runs_between_fork_and_exec() -> None:
    """Who has threads must not: see `process.run`. Python announces such a fork (os.register_at_fork)."""
    forks: list[str] = []
    os.register_at_fork(before=lambda: forks.append("fork"))
    session = run(["cut", "--delimiter= ", "--fields=1,6", "/proc/self/stat"], timeout_s=10).stdout.split()
    assert session[0] == session[1], "it has no session of its own"
    assert forks == []


def test_what_is_started_goes_on_in_its_own_session_and_appends_its_output(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    child = start(["sh", "-c", "echo out; echo err >&2; cut -d' ' -f6 /proc/$$/stat"], output=log)
    assert child.wait(timeout=20) == 0
    assert log.read_text().split() == ["before", "out", "err", str(child.pid)]


def test_waiting_ends_with_what_was_waited_for_and_does_not_sleep_for_real() -> None:
    pauses: list[float] = []
    with pytest.raises(OutcomeUnknown) as caught:
        wait_until(lambda: False, 3600, "the tide", sleep=pauses.append)
    assert str(caught.value) == "the outcome of waiting for the tide is unknown: not so after 3600 seconds"
    assert pauses == sorted(pauses)
    assert (pauses[0], max(pauses)) == (0.001, 0.1)
    assert sum(pauses) == pytest.approx(3600, abs=1)


def test_what_holds_already_is_not_waited_for() -> None:
    wait_until(lambda: True, 0, "nothing", sleep=lambda _: pytest.fail("it slept"))


# --- talks


def shell(*lines: str) -> list[str]:
    return ["sh", "-c", "\n".join(lines)]


def test_a_program_is_talked_to_line_by_line_and_ends_with_its_input(tmp_path: Path) -> None:
    program = shell("while read -r word; do echo $word $word; echo twice; done", f"echo end >{tmp_path}/end")
    with talk(program, log=tmp_path / "log", end_s=20) as talking:
        for word in ("a", "b"):
            talking.say(f"{word}\n")
            assert (talking.hear(20), talking.hear(20)) == (f"{word} {word}", "twice")
        talking.check_goes_on()
    assert (tmp_path / "end").read_text() == "end\n"


def test_one_that_says_nothing_has_an_unknown_outcome_and_one_that_ended_failed(tmp_path: Path) -> None:
    silent, said = (
        talk(["sleep", "60"], log=tmp_path / "log", end_s=0),
        r"it said nothing within 0\.1 seconds",
    )
    with silent as talking, pytest.raises(OutcomeUnknown, match=said):
        talking.hear(0.1)
    with talk(shell("echo last", "echo why >&2", "exit 3"), log=tmp_path / "log", end_s=0) as talking:
        assert talking.hear(20) == "last"
        for ask in (lambda: talking.hear(20), talking.check_goes_on):
            with pytest.raises(CommandFailed) as caught:
                ask()
            assert (caught.value.exit_code, caught.value.reason) == (3, "why")
        talking.say("nobody hears this")


@pytest.mark.parametrize("traps", ["", "trap '' TERM"])
def test_one_that_does_not_end_is_ended_after_an_error_too(
    tmp_path: Path, pid_in: Callable[[str], int], traps: str
) -> None:
    program = shell(traps, f"echo $$ >{tmp_path}/pid", "while :; do sleep 60; done")

    def fail() -> None:
        with talk(program, log=tmp_path / "log", end_s=0.1):
            pid_in("pid")
            raise KeyError("a mistake")

    with pytest.raises(KeyError):
        fail()
    assert ended(pid_in("pid"))


def test_one_that_cannot_be_started_is_no_talk(tmp_path: Path) -> None:
    none = talk([str(tmp_path / "none")], log=tmp_path / "log", end_s=0)
    with pytest.raises(BackendError, match="cannot be started"), none:
        pytest.fail("there is none")
