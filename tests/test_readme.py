"""The README's examples, executed as they stand."""

import doctest
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no {language} block any more"
    return found


def test_the_driver_in_the_readme_works() -> None:
    names: dict[str, Any] = {}  # Any: what the README defines
    for block in blocks("python"):
        if ">>>" not in block:
            exec(block, names)
            continue
        test = doctest.DocTestParser().get_doctest(block, names, "README.md", "README.md", 0)
        result = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(test)
        assert result.attempted
        assert not result.failed


@pytest.mark.needs("qemu-system-x86_64", "qemu-img")
def test_the_commands_in_the_readme_work(tmp_path: Path) -> None:
    script = tmp_path / "script"
    lines = [
        line[2:] for block in blocks("console") for line in block.splitlines() if line[:2] in ("$ ", "> ")
    ]
    script.write_text("\n".join(lines) + "\n")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    try:
        done = subprocess.run(
            ["bash", "-e", str(script)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 GiB" in done.stdout
        assert "QEMU node" in done.stdout
        assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("tmp.")} == {
            "script",
            ".venv",
        }, "the directory in which the reader stands is left as it was"
    finally:
        for pid in tmp_path.rglob("vm.pid"):
            with suppress(FileNotFoundError, ProcessLookupError):  # the script's last line ended it
                os.kill(int(pid.read_text()), signal.SIGKILL)
