"""Places over ssh: a real sshd on loopback, with keys of its own, and agents that are there for one run."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from servicesite import COMMAND, SOON_S, free_port
from test_places import (
    RUNS,
    SMOKE,
    VOLUME,
    a_file_system,
    connected,
    processes,
    subject_at,
    volume_file,
)

import voldrivers
from voldrivers.api import sshagent
from voldrivers.api.places import HostTable, open_place
from voldrivers.conformance import Verdict
from voldrivers.conformance.runner import run_check
from voldrivers.errors import BackendError, HostUnreachable, NotSupported, VolDriverError
from voldrivers.process import run, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("ssh", "sshd", "ssh-keygen", "qemu-system-x86_64"),
    pytest.mark.skipif(os.geteuid() != 0, reason="sshd lets its own user in only, unless it is root"),
]
#: Whatever is wrong is told within that; nothing here takes nearly as long.
BOUNDED_S = 30.0


@dataclass
class Sshd:
    """A machine that sshd reaches: this one, with a directory for temporary files of its own."""

    directory: Path
    port: int

    def __post_init__(self) -> None:
        self.there = self.directory / "there"
        self.there.mkdir()
        for name in ("host", "own", "other", "stuck"):
            key = str(self.directory / name)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], timeout_s=20)
        known = (self.directory / "host.pub").read_text()
        (self.directory / "known").write_text(f"[127.0.0.1]:{self.port} {known}")
        allowed = [(self.directory / f"{name}.pub").read_text() for name in ("own", "stuck")]
        (self.directory / "allowed").write_text('{}command="exec sleep 20" {}'.format(*allowed))
        self.write_program("voldrivers", f"exec {COMMAND}")
        Path("/run/sshd").mkdir(exist_ok=True, mode=0o755)
        (self.directory / "sshd").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self.directory}/host\nUsePAM no\n"
            f"AuthorizedKeysFile {self.directory}/allowed\nStrictModes no\nPidFile none\n"
            f"PermitRootLogin prohibit-password\nSetEnv TMPDIR={self.there}\n"
        )
        sshd = shutil.which("sshd")
        assert sshd
        with (self.directory / "sshd.log").open("wb") as log:
            argv = [sshd, "-D", "-e", "-f", str(self.directory / "sshd")]
            self.process = subprocess.Popen(argv, stderr=log)
        self.write_config()
        wait_until(self.answers, SOON_S, "sshd")

    def answers(self) -> bool:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def write_config(self, known: str = "known", key: str = "own") -> None:
        """Write the configuration of the client, as an operator has it in ~/.ssh."""
        (self.directory / "config").write_text(
            f"UserKnownHostsFile {self.directory}/{known}\nGlobalKnownHostsFile none\n"
            f"IdentityFile {self.directory}/{key}\nIdentitiesOnly yes\nIdentityAgent none\n"
        )

    def write_program(self, name: str, last: str) -> str:
        program = self.directory / name
        source = Path(voldrivers.__file__).parent.parent
        program.write_text(f'#!/bin/sh\nexport PYTHONPATH={source}\n{last} "$@"\n')
        program.chmod(0o755)
        return str(program)

    def table(self, **more: object) -> HostTable:
        made = HostTable(
            "far",
            f"ssh://root@127.0.0.1:{self.port}",
            program=str(self.directory / "voldrivers"),
            ssh_config=self.directory / "config",
        )
        return replace(made, **more)  # type: ignore[arg-type]  # as HostTable has them

    def check_nothing_left(self) -> None:
        def gone() -> bool:
            return not list(self.there.iterdir()) and not processes(str(self.there))

        wait_until(gone, SOON_S, "the far side to be clean")

    def refused(self, where: Path, **more: object) -> VolDriverError:
        """Open a place that cannot be opened, in bounded time, and have nothing left."""
        began = time.monotonic()
        with pytest.raises(VolDriverError) as caught, open_place(self.table(**more), where):
            pytest.fail("it was opened")
        assert time.monotonic() - began < BOUNDED_S
        self.check_nothing_left()
        assert not [each for each in where.iterdir() if each.name.startswith("voldrivers-")]
        return caught.value


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    made = Sshd(tmp_path_factory.mktemp("sshd"), free_port())
    yield made
    made.process.terminate()
    made.process.wait(SOON_S)


@pytest.fixture(autouse=True)
def as_usual(sshd: Sshd) -> None:
    sshd.write_config()


@RUNS
def test_the_checks_run_over_ssh(sshd: Sshd, ram_path: Path, tmp_path: Path) -> None:
    with a_file_system(tmp_path) as share, open_place(sshd.table(), ram_path) as place:
        assert place.instance
        subject = subject_at(share, place)
        results = [run_check(each, subject) for each in SMOKE]
        wrong = [each for each in results if each.verdict in (Verdict.FAILED, Verdict.ERROR)]
        assert wrong == []
        passed = [each for each in results if each.verdict is Verdict.PASSED]
        assert len(passed) > len(results) / 2
    sshd.check_nothing_left()
    assert not list(ram_path.glob("voldrivers-*"))


def test_the_token_is_in_no_list_of_processes(sshd: Sshd, ram_path: Path) -> None:
    with open_place(sshd.table(guest=False), ram_path) as place:
        (token_file,) = ram_path.glob("voldrivers-*/token")
        token = token_file.read_text().strip()
        assert re.fullmatch("[0-9a-f]{64}", token)
        assert token_file.stat().st_mode & 0o77 == 0
        (there,) = sshd.there.glob("voldrivers-*/token")
        assert there.read_text().strip() == token
        assert (there.stat().st_mode & 0o77, there.parent.stat().st_mode & 0o77) == (0, 0)
        assert processes(token) == []
        assert place.residue()
    assert token.encode() not in b"".join(each.read_bytes() for each in sshd.directory.glob("*.log"))
    sshd.check_nothing_left()


def test_nothing_is_left_after_an_error(sshd: Sshd, ram_path: Path) -> None:
    def make_a_mistake() -> None:
        with open_place(sshd.table(), ram_path) as place:
            connected(place, volume_file(ram_path))
            raise KeyError("a mistake")

    with pytest.raises(KeyError):
        make_a_mistake()
    sshd.check_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_there_when_this_side_is_killed(sshd: Sshd, ram_path: Path, number: int) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from voldrivers.api.places import HostTable, open_place\n"
        "address, program, config, where = sys.argv[1:]\n"
        "table = HostTable('far', address, program=program, ssh_config=Path(config))\n"
        "with open_place(table, Path(where)) as place:\n"
        "    print(place.instance, flush=True)\n"
        "    time.sleep(60)\n"
    )
    table = sshd.table()
    words = [table.address, table.program, str(table.ssh_config), str(ram_path)]
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        instance = child.stdout.readline().strip()
        assert processes(instance)
        child.send_signal(number)
    sshd.check_nothing_left()
    assert not processes(instance)
    wait_until(lambda: not processes(str(ram_path)), SOON_S, "the client of ssh to end")


def test_an_agent_that_is_killed_there_is_told(sshd: Sshd, ram_path: Path) -> None:
    with open_place(sshd.table(guest=False), ram_path) as place:
        attachment = connected(place, volume_file(ram_path))
        for pid in processes(f"{sshd.there}/voldrivers-"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(HostUnreachable, match="host far at http"):
            place.read(VOLUME, attachment, 0, 1)
    sshd.check_nothing_left()


def test_where_nobody_listens(sshd: Sshd, ram_path: Path) -> None:
    error = sshd.refused(ram_path, address=f"ssh://root@127.0.0.1:{free_port()}")
    assert isinstance(error, HostUnreachable)
    assert error.host == "far"
    assert "Connection refused" in str(error)


def test_where_nobody_answers(sshd: Sshd, ram_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        error = sshd.refused(ram_path, address=f"ssh://root@127.0.0.1:{port}", connect_timeout_s=1.0)
    assert isinstance(error, HostUnreachable)
    assert "unreachable" in str(error)


def test_an_agent_that_does_not_answer(sshd: Sshd, ram_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sshagent, "_START_S", 1.0)
    error = sshd.refused(ram_path, program=sshd.write_program("slow", "exec sleep 60 #"))
    assert isinstance(error, BackendError)
    assert "it does not answer" in str(error)


def test_a_shell_that_says_nothing(sshd: Sshd, ram_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_START_S", "_MORE_S", "_END_S"):
        monkeypatch.setattr(sshagent, limit, 1.0)
    sshd.write_config(key="stuck")
    error = sshd.refused(ram_path, connect_timeout_s=1.0)
    assert isinstance(error, HostUnreachable)
    assert "silent (it said nothing within 3 seconds)" in str(error)


@pytest.mark.parametrize(
    ("known", "key", "said"),
    [
        ("wrong", "own", "Host key verification failed"),
        ("unknown", "own", "Host key verification failed"),
        ("known", "other", "Permission denied"),
    ],
)
def test_keys_that_are_not_believed(sshd: Sshd, ram_path: Path, known: str, key: str, said: str) -> None:
    other = (sshd.directory / "other.pub").read_text()
    (sshd.directory / "wrong").write_text(f"[127.0.0.1]:{sshd.port} {other}")
    (sshd.directory / "unknown").write_text("")
    sshd.write_config(known, key)
    error = sshd.refused(ram_path)
    assert isinstance(error, HostUnreachable)
    assert said in str(error)


def test_where_voldrivers_is_not_installed(sshd: Sshd, ram_path: Path) -> None:
    error = sshd.refused(ram_path, program="/opt/no such/voldrivers; touch x")
    assert isinstance(error, NotSupported)
    assert "there is no program /opt/no such/voldrivers; touch x" in str(error)


def test_where_it_cannot_start(sshd: Sshd, ram_path: Path) -> None:
    program = sshd.write_program("broken", "echo it is broken >&2; exit 3 #")
    error = sshd.refused(ram_path, program=program)
    assert isinstance(error, BackendError)
    assert "it is broken" in str(error)


def test_a_login_that_chatters_is_passed_over(sshd: Sshd, ram_path: Path) -> None:
    (sshd.directory / "rc").write_text("echo Welcome\necho voldrivers-0000 ready http://127.0.0.1:1\n")
    program = sshd.write_program("chatty", f". {sshd.directory}/rc\nexec {COMMAND}")
    with open_place(sshd.table(guest=False, program=program), ram_path) as place:
        assert place.residue()
    sshd.check_nothing_left()
