"""The keeper and the commands of `voldrivers lab`: real processes, killed; nothing of them is left."""

import fcntl
import hashlib
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import termios
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import pytest
from labs import TOOLS

import voldrivers
from voldrivers import process
from voldrivers.errors import BackendError, NoSpace, to_document
from voldrivers.guests.machine import QEMU
from voldrivers.lab.cache import MOST_BYTES, Cache
from voldrivers.lab.channel import WINDOW_BYTES
from voldrivers.lab.keeper import requirements, runtime
from voldrivers.lab.keeper.protocol import Connection

pytestmark = [pytest.mark.slow, pytest.mark.lab, pytest.mark.needs(*TOOLS, "flock")]

MAIN = "import sys; from voldrivers.cli import main; sys.exit(main())"
UNUSUAL = "65M"
STATE = "test-keeper"
NOBODY = os.getuid() or 65534


@dataclass(frozen=True)
class Answer:
    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Person:
    """Somebody with a project, a cache, and a runtime directory that nobody else uses."""

    project: Path
    runtime: Path
    cache: Path
    prefix: Sequence[str] = ()
    more: Mapping[str, str] = field(default_factory=dict)

    def __call__(
        self, *words: str, code: int | None = 0, stdin: bytes = b"", timeout_s: float = 90
    ) -> Answer:
        with self.begin(*words, stdin=subprocess.PIPE) as begun:
            stdout, stderr = begun.communicate(stdin, timeout=timeout_s)
        answer = Answer(begun.returncode, stdout.decode(), stderr.decode())
        assert code in (None, answer.code), answer
        return answer

    @contextmanager
    def begin(self, *words: str, stdin: int = subprocess.DEVNULL) -> Iterator["subprocess.Popen[bytes]"]:
        """Begin `voldrivers lab ...`; it is killed at the end of the block."""
        argv = [*self.prefix, sys.executable, "-P", "-c", MAIN, "lab", *words]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            argv, cwd=self.project, env=self.environment, stdin=stdin, stdout=pipe, stderr=pipe
        ) as begun:
            try:
                yield begun
            finally:
                begun.kill()

    @property
    def environment(self) -> dict[str, str]:
        own = {"VOLDRIVERS_CACHE": str(self.cache), "XDG_RUNTIME_DIR": str(self.runtime)}
        path = str(Path(voldrivers.__file__).parents[1])
        return {**os.environ, **own, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **self.more}

    def status(self) -> list[dict[str, Any]]:  # Any: JSON
        shown: list[dict[str, Any]] = json.loads(self("status", "--json").stdout)
        return shown

    def keeper(self, name: str) -> int:
        return int(next(lab["pid"] for lab in self.status() if lab["name"] == name))

    def added_to(self, before: list[str]) -> list[str]:
        """What there is of labs and was not before, after some seconds for all to end."""
        process.holds_within(lambda: not set(self.left()) - set(before), 15)
        return sorted(set(self.left()) - set(before))

    def left(self) -> list[str]:
        """What there is of labs: files outside the cache, disks in it, processes."""
        files = [*self.runtime.iterdir(), *self.cache.glob("running/*"), *self.cache.glob("locks/lab-run-*")]
        return [str(path) for path in files] + self.processes()

    def processes(self) -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                argv = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if re.search(rf"{self.runtime}/|lab\.keeper .*{self.cache}", argv):
                    found.append(f"{entry.name} {argv}")
        return found


@pytest.fixture(scope="module")
def person() -> Iterator[Person]:
    """Give somebody whose labs are all gone in the end."""
    with tempfile.TemporaryDirectory(prefix="vk-") as name:
        someone = Person(Path(name, "project"), Path(name, "run"), Path(name, "cache"))
        someone.project.mkdir()
        someone.runtime.mkdir(mode=0o700)
        share_in_place(runtime.cache_directory(), someone.cache)
        (someone.project / "kept.txt").write_text("first\n")
        yield someone
        for lab in someone.status():
            someone("down", "--name", lab["name"])
        assert someone.added_to([]) == []


def share_in_place(cache: Path, view: Path) -> None:
    """Make a cache with the content of another one, but with labs of its own: a name is free in it.

    What is made there is made in the other one, under its locks.
    """
    Cache(cache, print).accelerator()
    (cache / "packages").mkdir(exist_ok=True)
    (view / "locks").mkdir(parents=True)
    for name in ("image", "dependencies", "states"):
        (cache / "locks" / name).touch()
    kinds = MOST_BYTES.keys() - {"logs"}
    for name in (*kinds, "packages", "accelerator.json", "locks/image", "locks/dependencies", "locks/states"):
        (view / name).symlink_to(cache / name)


@pytest.fixture
def nothing_left(person: Person) -> Iterator[None]:
    """Check that nothing of what a test did is left."""
    before = person.left()
    yield
    assert person.added_to(before) == []


@pytest.fixture(scope="module")
def running(person: Person) -> Person:
    """Give the same person with the default lab running."""
    answer = person("up", "--topology", "one-host", timeout_s=200)
    assert "lab default is ready: one-host" in answer.stdout
    assert "CPUs by" in answer.stderr
    return person


def test_a_lab_says_what_it_is_and_up_again_succeeds(running: Person) -> None:
    (shown,) = running.status()
    assert (shown["name"], shown["topology"], shown["ready"]) == ("default", "one-host", True)
    assert shown["machines"][0]["addresses"] == ["10.77.1.1", "10.77.2.1"]
    assert "default  one-host  storage" in running("status").stdout
    again = running("up")
    assert "vg0 of 8 GiB" in again.stdout
    assert again.stderr == ""
    assert running.keeper("default") == shown["pid"]
    other = running("up", "--topology", "two-hosts", code=5)
    assert "running with topology one-host" in other.stderr
    assert "Traceback" not in other.stderr


def test_a_command_runs_in_the_project_and_gives_its_exit_status(running: Person) -> None:
    answer = running("run", "--", "bash", "-c", "pwd; cat kept.txt; echo complaint >&2; exit 7", code=7)
    assert answer == Answer(7, "/project\nfirst\n", "complaint\n")
    assert running("run", "--", "bash", "-c", "kill -9 $$", code=137).stdout == ""
    assert running("run", "--on", "compute", "--", "hostname").stdout == "storage\n"
    assert running("run", "--", "test", "--version", code=None).code in (0, 1)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("run", "--on", "moon", "--", "true"), 4, "machine moon does not exist, there are storage"),
        (("run", "--", "no-such-program"), 8, "cannot be started"),
        (("run", "--name", "nobody", "--", "true"), 4, "start it: voldrivers lab up --name nobody"),
        (("run", "--name", "../x", "--", "true"), 3, "at most 32 letters"),
        (("run", "--timeout", "0.5", "--", "sleep", "1000"), 9, "did not end within 0.5 seconds"),
        (
            ("up", "--from", "never-saved", "--name", "other", "--topology", "one-host"),
            4,
            "state never-saved",
        ),
        (("up", "--vg", "1"), 3, "64 MiB to 15 TiB"),
        (("save", "a b"), 3, "a name has letters"),
        (("lever", "no-such-lever"), 4, "lever no-such-lever does not exist"),
        (("shell",), 3, "its input is no terminal"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_goes_wrong_is_said_in_one_line(
    running: Person, words: Sequence[str], code: int, said: str
) -> None:
    complaint = running(*words, code=code).stderr.splitlines()[-1]
    assert complaint.startswith("voldrivers: ")
    assert said in complaint


def test_input_and_output_pass_unchanged(running: Person) -> None:
    content = os.urandom(1 << 20) * 3
    assert (
        running("run", "--", "sha256sum", stdin=content).stdout.split()[0]
        == hashlib.sha256(content).hexdigest()
    )
    printed = running("run", "--", "bash", "-c", "yes 0123456 | head -c 8000000").stdout
    assert printed == "0123456\n" * 1_000_000


def test_a_command_that_reads_nothing_and_a_reader_that_stops_hold_up_nobody(running: Person) -> None:
    with (
        running.begin("run", "--", "sleep", "1000", stdin=subprocess.PIPE) as deaf,
        running.begin("run", "--", "yes"),
    ):
        assert deaf.stdin
        os.set_blocking(deaf.stdin.fileno(), False)
        written = deque[int]()
        process.wait_until(lambda: fill(deaf.stdin, written) > WINDOW_BYTES, 20, "nothing more to be taken")
        running("run", "--timeout", "20", "--", "true")


def fill(pipe: IO[bytes] | None, written: deque[int]) -> int:
    """Write what a pipe takes now; give how much it has taken since the beginning."""
    assert pipe
    with suppress(BlockingIOError):
        while True:
            written.append(os.write(pipe.fileno(), bytes(1 << 16)))
    return sum(written)


def test_signals_are_passed_on(running: Person) -> None:
    script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done"
    with running.begin("run", "--", "bash", "-c", script) as begun:
        assert begun.stdout
        assert begun.stdout.readline() == b"ready\n"
        begun.send_signal(signal.SIGINT)
        assert begun.stdout.readline() == b"caught\n"
        assert begun.wait(20) == 3
    with running.begin("run", "--", "bash", "-c", "echo ready; sleep 1000") as begun:
        assert begun.stdout
        assert begun.stdout.readline() == b"ready\n"
        begun.terminate()
        assert begun.wait(20) == 128 + signal.SIGTERM


def test_a_command_dies_with_its_client(running: Person) -> None:
    with running.begin("run", "--", "bash", "-c", "echo ready; sleep 54321") as begun:
        assert begun.stdout
        assert begun.stdout.readline() == b"ready\n"
        assert running("run", "--", "pgrep", "-f", "^sleep 54321").code == 0
        begun.kill()
        begun.wait()
    ended = "while pgrep -f '^sleep 54321'; do sleep 0.05; done"
    running("run", "--timeout", "20", "--", "bash", "-c", ended)


def test_an_edit_is_there_at_once(running: Person) -> None:
    edited, removed = running.project / "edited.txt", running.project / "removed.txt"
    edited.write_text("one")
    removed.write_text("gone soon")
    assert running("run", "--", "cat", "edited.txt").stdout == "one"
    edited.write_text("another")
    removed.unlink()
    assert running("run", "--", "bash", "-c", "cat edited.txt; ls removed.txt; true").stdout == "another"


def test_what_is_no_project_is_not_brought(running: Person) -> None:
    large = running.project / "large"
    with large.open("wb") as file:
        file.truncate(65 << 20)
    assert "it is no project" in running("run", "--", "true", code=3).stderr
    large.unlink()


def test_results_come_back_also_of_a_command_that_fails(running: Person) -> None:
    (running.project / "test_it.py").write_text("def test_it() -> None:\n    assert False\n")
    there = running.project / "build" / "results"
    pytest_inside = ("python3", "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=/results/sub/junit.xml")
    running("run", "--results", str(there), "--", *pytest_inside, "test_it.py", code=1)
    junit = ElementTree.parse(there / "sub" / "junit.xml")
    assert [suite.get("failures") for suite in junit.iter("testsuite")] == ["1"]
    script = "ls /results; echo text >/results/log; ln -s /etc/passwd /results/link; kill -9 $$"
    answer = running("run", "--results", str(there), "--", "bash", "-c", script, code=137)
    assert answer.stdout == ""  # it was emptied
    assert "'./link' is left out" in answer.stderr
    assert sorted(os.listdir(there)) == ["log", "sub"]
    slow = ("bash", "-c", "echo late >/results/log; sleep 1000")
    running("run", "--results", str(there), "--timeout", "1", "--", *slow, code=9)
    assert (there / "log").read_text() == "late\n"


def test_results_are_of_one_command_at_a_time(running: Person) -> None:
    waits = ("run", "--results", "build/one", "--", "bash", "-c", "touch /results/one; echo ready; read")
    with running.begin(*waits, stdin=subprocess.PIPE) as begun:
        assert begun.stdin
        assert begun.stdout
        assert begun.stdout.readline() == b"ready\n"
        refused = running("run", "--results", "build/two", "--", "true", code=5).stderr
        assert "running another command with --results on storage" in refused
        running("run", "--", "true")
        begun.stdin.close()
        begun.stdin = None
        assert begun.wait(20) == 1
    assert os.listdir(running.project / "build" / "one") == ["one"]
    assert not (running.project / "build" / "two").exists(), "it was refused"


@pytest.mark.usefixtures("nothing_left")
def test_a_machine_that_lies_about_its_results_writes_nothing_else(person: Person) -> None:
    """Root in the machine can make any program there send anything."""
    outside = person.project.parent / "outside"
    outside.write_text("kept")
    with tarfile.open(person.project / "hostile.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, kind, target in (
            ("link", tarfile.SYMTYPE, str(outside.parent)),
            ("link/outside", tarfile.REGTYPE, ""),
            ("../outside", tarfile.REGTYPE, ""),
            (str(outside), tarfile.REGTYPE, ""),
            ("null", tarfile.CHRTYPE, ""),
            ("a\nb", tarfile.REGTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    lie = (
        "rm /usr/bin/tar; printf '#!/bin/sh\\ncat /project/hostile.tar' >/usr/bin/tar; chmod +x /usr/bin/tar"
    )
    there = person.project / "build" / "hostile"
    with tempfile.TemporaryDirectory(prefix="vk-") as empty:
        loner = Person(person.project, Path(empty), person.cache)
        answer = loner("run", "--results", str(there), "--", "bash", "-c", lie)
    assert answer.stderr.count("is left out") == 5
    assert outside.read_text() == "kept"
    assert [str(path.relative_to(there)) for path in sorted(there.rglob("*"))] == ["link", "link/outside"]
    assert (there / "link").is_dir()
    assert not (there / "link").is_symlink()
    (person.project / "hostile.tar").unlink()


def test_a_shell_has_a_terminal(running: Person) -> None:
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(running.project)
        os.execve(sys.executable, [sys.executable, "-P", "-c", MAIN, "lab", "shell"], running.environment)
    try:
        os.write(terminal, b"echo early $((6 * 7))\r")
        read_until(terminal, b"early 42\r\nstorage:/project# ")
        os.write(terminal, b"tty; until stty size | grep '33 77'; do sleep 0.05; done\r")
        read_until(terminal, b"/dev/pts/")
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        read_until(terminal, b"33 77\r\nstorage:/project# ")
        os.write(terminal, b"bash -c 'printf be%s gun; exec sleep 1000'\r")
        read_until(terminal, b"begun")  # Ctrl-C before it has the terminal would be the shell's
        os.write(terminal, b"\x03")
        read_until(terminal, b"storage:/project# ")  # what is typed before it is thrown away with the line
        os.write(terminal, b"exit 4\r")
        read_until(terminal, b"exit 4\r\nexit")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
    finally:
        os.close(terminal)


def read_until(terminal: int, wanted: bytes) -> None:
    """Read what a terminal shows; a shell of its own kind may set colours and the cursor."""
    found = b""
    while wanted not in found:
        assert select.select([terminal], [], [], 20)[0], found
        found += os.read(terminal, 4096)


@pytest.mark.usefixtures("nothing_left")
def test_a_lab_can_be_saved_and_goes_on_from_there_beside_another_one(running: Person) -> None:
    running(
        "run", "--", "bash", "-c", "lvcreate --quiet --yes --size 8m --name saved vg0; echo here >/root/file"
    )
    assert STATE in running("save", STATE).stdout
    running("run", "--", "lvremove", "--quiet", "--yes", "vg0/saved")
    running("up", "--name", "second", "--topology", "one-host", "--from", STATE)
    shown = running(
        "run", "--name", "second", "--", "bash", "-c", "lvs --noheadings -o lv_name; cat /root/file"
    )
    assert shown.stdout.split() == ["saved", "here"]
    assert running("run", "--", "lvs", "--noheadings").stdout == ""
    assert [each["name"] for each in running.status()] == ["default", "second"]
    assert "second: ended" in running("down", "--name", "second").stdout
    assert "does not run" in running("down", "--name", "second").stdout
    assert [each["name"] for each in running.status()] == ["default"]


@pytest.mark.usefixtures("nothing_left")
def test_a_frozen_machine_is_told_from_a_lab_that_ends(running: Person) -> None:
    running("up", "--name", "levers", "--topology", "one-host")
    running("lever", "--name", "levers", "freeze", "storage")
    assert (
        "within 1 seconds"
        in running("run", "--name", "levers", "--timeout", "1", "--", "true", code=9).stderr
    )
    running("lever", "--name", "levers", "thaw", "storage")
    running("run", "--name", "levers", "--", "true")
    running("lever", "--name", "levers", "power-off", "storage")
    assert "storage (off)" in running("status").stdout
    assert running("run", "--name", "levers", "--", "true", code=8)
    running("down", "--name", "levers")


@pytest.mark.usefixtures("nothing_left")
def test_a_lab_ends_when_it_is_idle_or_loses_a_machine(running: Person) -> None:
    running("up", "--name", "idle", "--topology", "one-host", "--idle", "1")
    running("up", "--name", "broken", "--topology", "one-host")
    (qemu,) = next(each["machines"] for each in running.status() if each["name"] == "broken")
    os.kill(qemu["pid"], signal.SIGKILL)
    process.wait_until(lambda: [each["name"] for each in running.status()] == ["default"], 15, "both to end")
    assert "no client for 1 seconds" in (running.cache / "logs" / "idle").read_text()
    assert "ended by itself" in (running.cache / "logs" / "broken").read_text()


def test_a_lab_that_cannot_tell_how_it_is_hides_no_other(running: Person) -> None:
    with held_up(running, "ending"):
        answer = running("status", "--json")
    assert [each["name"] for each in json.loads(answer.stdout)] == ["default"]
    assert answer.stderr == "voldrivers: lab ending: QMP of storage: it ended\n"


@contextmanager
def held_up(person: Person, name: str) -> Iterator[None]:
    """Have a lab whose keeper can only answer why it cannot answer, as one does that loses a machine."""
    directory = person.runtime / f"voldrivers-lab-{os.getuid()}-{name}"
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "keeper"))
        listener.listen()

        def answer() -> None:
            connected, _ = listener.accept()
            client = Connection(connected)
            client.receive()
            client.send({"error": to_document(BackendError("QMP of storage", "it ended"))})
            client.close()

        answers = threading.Thread(target=answer, daemon=True)
        answers.start()
        try:
            yield
        finally:
            shutil.rmtree(directory)


@pytest.mark.usefixtures("nothing_left")
def test_kill_9_of_a_keeper_leaves_nothing(person: Person) -> None:
    person("up", "--name", "killed", "--topology", "one-host")
    os.kill(person.keeper("killed"), signal.SIGKILL)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("moment", ["keeper", "booting"])
def test_an_up_that_is_killed_leaves_nothing(person: Person, moment: str, number: signal.Signals) -> None:
    # Of this size there is no state: it is booted, which takes long enough.
    never_ready = f"{random.randrange(70, 2000)}M"
    words = ("up", "--name", "early", "--topology", "one-host", "--vg", never_ready)
    with person.begin(*words) as begun:
        seen = r"early/storage" if moment == "booting" else r"lab\.keeper early"
        process.wait_until(lambda: any(re.search(seen, one) for one in person.processes()), 20, moment)
        begun.send_signal(number)
        assert begun.wait(15) == (130 if number == signal.SIGINT else -9)


@pytest.mark.full
@pytest.mark.usefixtures("nothing_left")
def test_a_lab_that_two_wait_for_stays_for_the_second(person: Person) -> None:
    words = ("up", "--name", "shared", "--topology", "one-host", "--vg", UNUSUAL)
    with person.begin(*words) as first, person.begin(*words) as second:
        process.wait_until(lambda: any("shared/storage" in one for one in person.processes()), 20, "booting")
        assert second.stderr
        assert b"CPUs by" in second.stderr.readline()  # it waits
        first.kill()
        assert second.wait(60) == 0
    assert len(person("run", "--name", "shared", "--", "hostname").stdout) > 1
    person("down", "--name", "shared")


def test_a_run_without_a_lab_has_one_of_its_own(person: Person) -> None:
    with tempfile.TemporaryDirectory(prefix="vk-") as empty:
        loner = Person(person.project, Path(empty), person.cache)
        before = loner.left()
        assert (
            loner("run", "--on", "compute", "--", "bash", "-c", "hostname; exit 6", code=6).stdout
            == "compute\n"
        )
        assert loner.added_to(before) == []
        with loner.begin("run", "--", "bash", "-c", "echo ready; sleep 1000") as begun:
            assert begun.stdout
            assert begun.stdout.readline() == b"ready\n"
            assert "for one command" in loner("status").stdout
            begun.kill()
            begun.wait()
        assert loner.added_to(before) == []


@pytest.mark.usefixtures("nothing_left")
def test_the_rest_of_a_lab_is_found_and_removed(person: Person) -> None:
    rest = person.runtime / f"voldrivers-lab-{os.getuid()}-stale"
    rest.mkdir(mode=0o700)
    (rest / "lock").symlink_to(person.cache / "locks" / "lab-stale")
    orphan = [QEMU, "-machine", "none", "-display", "none", "-qmp", f"unix:{rest}/a.qmp,server=on,wait=off"]
    with subprocess.Popen(orphan) as qemu:
        process.wait_until((rest / "a.qmp").exists, 10, "QEMU")
        assert "its rest was removed" in person("status").stderr
        assert qemu.wait(10) == -signal.SIGKILL


@pytest.fixture
def newcomer(person: Person, tmp_path: Path) -> Iterator[Person]:
    """Give somebody with an empty cache; check that nothing else is left of what a test did."""
    with tempfile.TemporaryDirectory(prefix="vk-") as empty:
        someone = Person(person.project, Path(empty), tmp_path / "cache")
        yield someone
        assert someone.added_to([]) == []


@pytest.mark.parametrize("program", [QEMU, "qemu-img", "setpriv", "flock", "apt-get", "dpkg-deb", "xargs"])
def test_a_program_that_is_missing_is_named(newcomer: Person, tmp_path: Path, program: str) -> None:
    few = tmp_path / "programs"
    few.mkdir()
    for name in (*TOOLS, "flock"):
        found = shutil.which(name)
        if name != program and found:
            (few / name).symlink_to(found)
    (complaint,) = replace(newcomer, more={"PATH": str(few)})("up", code=6).stderr.splitlines()
    assert f"the lab: it needs {program}, not installed here; install Debian's " in complaint
    assert not newcomer.cache.exists()


def test_without_a_network_it_says_so(newcomer: Person, tmp_path: Path) -> None:
    settings = tmp_path / "apt.conf"
    settings.write_text('Acquire::Retries "0";\n')  # it would wait for 7 s between them
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    nowhere["APT_CONFIG"] = str(settings)
    for _ in range(2):  # the second meets the end of the first one's keeper
        complaint = replace(newcomer, more=nowhere)("up", code=8).stderr.splitlines()[-1]
        assert "apt-get: Failed to fetch" in complaint
    assert list(newcomer.cache.glob("*/making-*")) == []


def test_a_cache_that_cannot_be_written_is_named(newcomer: Person, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/voldrivers")):
        (complaint,) = replace(newcomer, more={"VOLDRIVERS_CACHE": str(cache)})(
            "up", code=8
        ).stderr.splitlines()
        assert f"the cache {cache}: cannot be used: " in complaint


def test_a_cache_without_room_is_refused() -> None:
    with pytest.raises(NoSpace, match=r"1\.5 GiB needed and 0 B free"):
        requirements.check_space(Path("/proc"))  # where nothing is ever free


def test_nobody_can_run_a_lab(person: Person, running: Person) -> None:
    """An unprivileged user, with links to the files of this cache; without root we are one."""
    with tempfile.TemporaryDirectory(prefix="vk-") as name:
        home = Path(name)
        home.chmod(0o755)
        # Reading what only root may is all that is kept: the checkout and its Python may be in /root.
        kept = ",".join(("-all", "+dac_read_search"))
        rights = [f"--{kind}={kept}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
        ids = ("--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
        prefix = () if os.getuid() else ("setpriv", *ids, *rights, "--")
        nobody = Person(person.project, home / "run", home / "cache", prefix)
        person.project.parent.chmod(0o755)
        share(person.cache, nobody.cache)
        nobody.runtime.mkdir(mode=0o700)
        os.chown(nobody.runtime, NOBODY, NOBODY)
        print(nobody("up", "--topology", "one-host").stderr)
        assert nobody("run", "--", "cat", "kept.txt").stdout == "first\n"
        assert [each["name"] for each in nobody.status()] == ["default"]
        nobody("down")
        assert nobody.added_to([]) == []


def share(cache: Path, copy: Path) -> None:
    """Give a cache of the same image and states to another user, without copying the large files."""
    for kind in ("images", "states", "dependencies"):
        unfinished = shutil.ignore_patterns("making-*")
        shutil.copytree(cache / kind, copy / kind, copy_function=link, ignore=unfinished)
    for directory, _, names in os.walk(copy):
        os.chown(directory, NOBODY, NOBODY)
        for name in names:
            if Path(directory).name == "dependencies":
                os.chown(Path(directory, name), NOBODY, NOBODY)


def link(source: str, target: str) -> None:
    if Path(source).parent.name == "dependencies":  # whose time is set when it is used
        shutil.copyfile(source, target)
    else:
        os.link(source, target)
