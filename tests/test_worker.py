"""The process that does a platform's work."""

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from voldrivers.errors import OutcomeUnknown, VolDriverError
from voldrivers.integrations import dialog
from voldrivers.integrations.asking import Worker
from voldrivers.process import holds_within

_KILLED = """
import os, signal, sys
from pathlib import Path
from voldrivers.integrations.asking import Worker
worker = Worker(Path(sys.argv[1]), "files")
worker.ask("pool")
print(worker._socket.parent, *sorted(os.listdir(worker._socket.parent)), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_platform_that_is_killed_leaves_nothing_of_its_worker(config: Path) -> None:
    words = [sys.executable, "-c", _KILLED, str(config)]
    said = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    directory, *names = said.stdout.split()
    assert names == ["worker", "worker.log"], said.stderr
    assert holds_within(lambda: not Path(directory).exists(), 10.0)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    written = tmp_path / "voldrivers.toml"
    written.write_text('state_dir = "state"\n[backend.files]\ndriver = "nfs"\nshare = "share"\n')
    return written


@pytest.fixture
def worker(config: Path) -> Iterator[Worker]:
    made = Worker(config, "files")
    yield made
    made.close()


def process_of(worker: Worker) -> int:
    """The number of the process that answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(worker._socket))
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)


def test_a_worker_that_nobody_can_reach_is_replaced(worker: Worker) -> None:
    total_bytes = worker.ask("pool").total_bytes
    first = process_of(worker)
    worker._socket.unlink()
    assert worker.ask("pool").total_bytes == total_bytes
    assert process_of(worker) != first
    assert not Path(f"/proc/{first}").exists()


def test_a_worker_that_has_fallen_silent_is_replaced(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialog, "SILENCE_S", 1.0)
    worker.ask("pool")
    first = process_of(worker)
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(OutcomeUnknown, match="it said nothing for 1 seconds"):
        worker.ask("pool")
    assert not Path(f"/proc/{first}").exists()
    assert worker.ask("pool").total_bytes


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('shaer = "share"\n', r"\[backend.files\] shaer: there is no such option"),
        ('share = "away"\n', "share .*/away"),
    ],
)
def test_what_is_wrong_with_the_configuration_is_told_in_a_sentence(
    config: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, said: str
) -> None:
    config.write_text(config.read_text().replace('share = "share"\n', wrong))
    monkeypatch.setattr(tempfile, "tempdir", str(config.parent))
    worker = Worker(config, "files")
    with pytest.raises(VolDriverError, match=said) as caught:
        worker.ask("describe")
    worker.close()
    assert "Traceback" not in str(caught.value)
    assert not list(config.parent.glob("voldrivers-worker-*"))


def test_no_socket_is_made_where_others_may_write(config: Path, tmp_path: Path) -> None:
    """One that is root by sudo would write and remove what its caller may not."""
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "closed")
    link.resolve().mkdir(0o700)
    for where in (directory, link):
        words = [sys.executable, "-m", "voldrivers.integrations.worker", str(config), "files"]
        ended = subprocess.run(
            [*words, str(where / "worker")], input="", capture_output=True, text=True, timeout=60, check=False
        )
        assert (ended.returncode, f"directory {where}" in ended.stdout) == (1, True), ended
        assert list(where.iterdir()) == []
