"""The process that does a platform's work."""

import subprocess
import sys
from pathlib import Path

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


def test_a_platform_that_is_killed_leaves_nothing_of_its_worker(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    config = tmp_path / "voldrivers.toml"
    config.write_text('state_dir = "state"\n[backend.files]\ndriver = "nfs"\nshare = "share"\n')
    words = [sys.executable, "-c", _KILLED, str(config)]
    said = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    directory, *names = said.stdout.split()
    assert names == ["worker", "worker.log"], said.stderr
    assert holds_within(lambda: not Path(directory).exists(), 10.0)
