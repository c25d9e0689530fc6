"""The suite as vendors run it: a file of ten lines, three keys, one command; killed runs are swept up."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from voldrivers.process import wait_until

EXAMPLE = Path(__file__).parents[1] / "examples" / "acme_driver"
DRIVER = "acme.driver:AcmeDriver"
#: What every run needs to show something, in a second or two.
QUICK = ("--only", "LIF-001", "--only", "EXI-001", "--only", "SNP-090")

pytestmark = [pytest.mark.slow, pytest.mark.needs("qemu-system-x86_64")]


class Vendor:
    """A vendor's checkout, in which the commands are run as they would type them."""

    def __init__(self, directory: Path) -> None:
        self.box, self.state, self.results = (directory / each for each in ("box", "state", "results"))
        self.box.mkdir()
        self.environment = {
            **os.environ,
            "XDG_STATE_HOME": str(self.state),
            "ACME_BOX": str(self.box),
            "PYTHONPATH": f"{Path(__file__).parents[1]}:{directory}",
        }

    def begin(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(Path(sys.executable).with_name(words[0])), *words[1:]],
            cwd=EXAMPLE,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, program: str = "voldrivers") -> tuple[int, str]:
        began = self.begin(program, *words)
        said, _ = began.communicate(timeout=500)
        return began.returncode, said

    def lie(self, module: str, text: str) -> None:
        """Write a module with a driver that lies, beside this test's other files."""
        (self.box.parent / f"{module}.py").write_text(text)

    def conform(self, *words: str, driver: str = DRIVER) -> tuple[int, str]:
        return self.run("conform", driver, "--config", "conform.toml", *words)

    def mark(self) -> None:
        code, said = self.run("scratch", "init", DRIVER, "--config", "conform.toml", "--pool", str(self.box))
        assert code == 0, said

    def destroy(self, *words: str, driver: str = DRIVER) -> tuple[int, str]:
        return self.conform("--destroy", str(self.box), *words, driver=driver)

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.box.iterdir())

    @property
    def runs(self) -> list[str]:
        return sorted(path.name for path in (self.state / "voldrivers/runs").glob("*"))

    def verdicts(self) -> dict[str, str]:
        report = json.loads((self.results / "report.json").read_text())
        return {each["id"]: each["verdict"] for each in report["results"]}


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    return Vendor(tmp_path)


def test_without_a_key_nothing_is_touched(vendor: Vendor) -> None:
    code, said = vendor.conform()
    assert code == 0
    assert "SNP-002" in said
    assert "snapshots is not declared" in said
    assert f"must be named to it: --destroy {vendor.box}" in said
    assert vendor.destroy() == (
        3,
        f"voldrivers: pool {vendor.box} is without a mark, must be marked first:"
        " voldrivers scratch init; nothing was touched\n",
    )
    vendor.mark()
    code, said = vendor.conform("--destroy", "elsewhere")
    assert (code, "not the one of the file" in said) == (3, True)
    assert (vendor.files, vendor.runs) == ([".scratch"], [])


def test_a_plan_starts_nothing_and_reaches_for_no_host(vendor: Vendor, tmp_path: Path) -> None:
    text = (EXAMPLE / "conform.toml").read_text()
    far = text.replace('name = "local"', 'name = "far"\naddress = "ssh://nobody@127.0.0.1:9"')
    (tmp_path / "far.toml").write_text(far)
    code, said = vendor.run("conform", DRIVER, "--config", str(tmp_path / "far.toml"))
    assert (code, "on 1 host;" in said, "nothing was touched" in said) == (0, True, True), said
    code, said = vendor.conform("--replay", "/nowhere")
    assert (code, "/nowhere" in said) == (3, True), said


def test_a_pool_in_use_is_not_marked(vendor: Vendor) -> None:
    (vendor.box / "precious").touch()
    code, said = vendor.run("scratch", "init", DRIVER, "--config", "conform.toml", "--pool", str(vendor.box))
    assert (code, "there is precious" in said) == (5, True)
    assert vendor.files == ["precious"]


def test_a_run_leaves_its_results_and_nothing_else(vendor: Vendor) -> None:
    vendor.mark()
    code, said = vendor.destroy(*QUICK, "--only", "CRA-007", "--out", str(vendor.results))
    assert code == 4, said  # partial: most was not run
    assert "LIF-001 PASS" in said
    verdicts = vendor.verdicts()
    unselected = sum(each == "NOT-RUN" for each in verdicts.values())
    assert f"the driver is partial: {unselected} checks were not selected\n" in said
    assert {each: verdicts[each] for each in ("LIF-001", "EXI-001", "SNP-090")} == dict.fromkeys(
        ("LIF-001", "EXI-001", "SNP-090"), "PASS"
    )
    assert (verdicts["SNP-002"], verdicts["LIF-002"]) == ("N/A", "NOT-RUN")
    # This driver will never remember anything that could be damaged: nobody can run the check on it.
    assert verdicts["CRA-007"] == "N/A"
    assert (vendor.files, vendor.runs) == ([".scratch"], [])


def test_the_backend_is_taken_away_and_brought_back(vendor: Vendor, tmp_path: Path) -> None:
    """By the vendor's own commands."""
    vendor.mark()
    config, away = tmp_path / "conform.toml", tmp_path / "away"
    commands = f'begin = "mv {vendor.box} {away}"\nend = "mv {away} {vendor.box}"\n'
    config.write_text(f"{(EXAMPLE / 'conform.toml').read_text()}\n[outage]\n{commands}")
    ids = ("ROL-006", "CRA-006", "DAT-006")
    chosen = [word for check_id in ids for word in ("--only", check_id)]
    words = ["--config", str(config), "--destroy", str(vendor.box), "--out", str(vendor.results)]
    code, said = vendor.run("conform", DRIVER, *words, *chosen)
    assert code == 4, said
    verdicts = vendor.verdicts()
    assert [verdicts[each] for each in ids] == ["PASS"] * 3, said
    assert (vendor.files, away.exists()) == ([".scratch"], False)


@pytest.mark.parametrize("profile", ["smoke", pytest.param("all", marks=pytest.mark.full)])
def test_the_example_passes_all_that_can_be_run_here(vendor: Vendor, profile: str) -> None:
    vendor.mark()
    code, said = vendor.destroy("--profile", profile, "--out", str(vendor.results))
    assert code == 4, said  # what needs another host, or room that is not there, is not run
    assert not {"FAIL", "ERROR", "FIXED", "FINDING"} & set(vendor.verdicts().values())
    assert "in_use_extend  by-hypervisor" in said
    assert (vendor.files, vendor.runs) == ([".scratch"], [])


def test_a_lie_is_told_and_can_be_looked_at(vendor: Vendor, tmp_path: Path) -> None:
    """A driver that forgets a file when it deletes is non-conformant; with --keep what it left stays."""
    vendor.lie(
        "forgetful",
        "from acme.driver import AcmeDriver\n"
        "class Forgetful(AcmeDriver):\n"
        "    def delete_volume(self, volume):\n"
        "        path = self._path(volume)\n"
        "        if path.exists():\n"
        "            path.rename(path.with_suffix('.old'))\n",
    )
    vendor.mark()
    results = ("--out", str(vendor.results))
    code, said = vendor.destroy("--only", "LIF-002", "--keep", *results, driver="forgetful:Forgetful")
    assert code == 1, said
    repro = (vendor.results / "repro" / "LIF-002.sh").read_text()
    assert f"--destroy {vendor.box} --only LIF-002 --keep" in repro
    assert "LIF-002 FAIL: a deleted volume is gone, and its room is back" in said
    assert "delete_volume(volume" in said
    assert [name for name in vendor.files if name.endswith(".old")]
    (tmp_path / "known.toml").write_text(
        '[LIF-002]\nreason = "they are old"\nissue = "ACME-1"\nexpires = 2999-01-01\n'
    )
    code, said = vendor.destroy(
        "--only", "LIF-002", "--known", str(tmp_path / "known.toml"), driver="forgetful:Forgetful"
    )
    assert (code, "LIF-002 KNOWN" in said, "they are old (ACME-1)" in said) == (4, True, True)


@pytest.mark.parametrize(
    "does", ["sys.exit(0)", "raise Finding('it is better than that')", "raise NotRun('no')"]
)
@pytest.mark.parametrize("where", ["extend_volume(self, volume, size)", "list_volumes(self)"])
def test_no_driver_ends_the_run_nor_speaks_for_the_suite(vendor: Vendor, does: str, where: str) -> None:
    vendor.lie(
        "clever",
        "import sys\n"
        "from acme.driver import AcmeDriver\n"
        "from voldrivers.conformance.verdicts import Finding, NotRun\n"
        "class Clever(AcmeDriver):\n"
        f"    def {where}:\n"
        f"        {does}\n",
    )
    vendor.mark()
    chosen = ("--only", "EXO-001", "--out", str(vendor.results))
    code, said = vendor.destroy(*chosen, driver="clever:Clever")
    if where.startswith("extend"):
        assert (code, "no error of voldrivers: " in said) == (1, True), said
    else:  # there is no bench without a list
        assert code != 0, said
    assert vendor.verdicts()["EXO-001"] not in ("PASS", "FINDING")


@pytest.mark.parametrize(
    ("size", "verdicts", "found"),
    [
        ("super().volume_size(volume)", ["PASS", "PASS"], "2 PASS"),
        (
            "self.sizes.setdefault(volume.id, super().volume_size(volume))",
            ["FAIL", "PASS"],
            "what was extended there, here has another size",
        ),
        (
            "super().volume_size(volume) if volume.id in self.made else 1 // 0",
            ["FAIL", "FAIL"],
            "ZeroDivisionError",
        ),
    ],
    ids=["asks", "remembers", "breaks"],
)
def test_a_driver_is_asked_in_another_process(
    vendor: Vendor, size: str, verdicts: list[str], found: str
) -> None:
    vendor.lie(
        "proud",
        "from acme.driver import AcmeDriver\n"
        "class Proud(AcmeDriver):\n"
        "    made, sizes = [], {}\n"
        "    def create_volume(self, volume, options):\n"
        "        self.made.append(volume.id)\n"
        "        return super().create_volume(volume, options)\n"
        "    def volume_size(self, volume):\n"
        "        print('what a driver prints is no answer', flush=True)\n"
        f"        return {size}\n",
    )
    vendor.mark()
    chosen = ("--only", "LIF-012", "--only", "ATT-014", "--out", str(vendor.results))
    said = vendor.destroy(*chosen, driver="proud:Proud")[1]
    assert [vendor.verdicts()[each] for each in ("LIF-012", "ATT-014")] == verdicts, said
    assert found in said


def test_a_driver_that_tells_its_secret_does_not_get_it_into_the_results(
    vendor: Vendor, tmp_path: Path
) -> None:
    vendor.lie(
        "chatty",
        "from dataclasses import dataclass\n"
        "from acme.driver import AcmeDriver, AcmeOptions\n"
        "from voldrivers.errors import BackendError\n"
        "from voldrivers.options import option\n"
        "@dataclass(frozen=True)\n"
        "class Options(AcmeOptions):\n"
        "    credential: str = option('what the box wants to hear', '', secret=True)\n"
        "class Chatty(AcmeDriver):\n"
        "    options_type = Options\n"
        "    def extend_volume(self, volume, size):\n"
        "        raise BackendError(volume.title, f'{self.options.credential} was refused')\n",
    )
    text = (EXAMPLE / "conform.toml").read_text()
    (tmp_path / "chatty.toml").write_text(
        text.replace("capacity", 'credential = "env:CREDENTIAL"\ncapacity', 1)
    )
    vendor.environment["PYTHONPATH"] += f":{tmp_path}:{EXAMPLE}"
    vendor.environment["CREDENTIAL"] = "sesame"
    vendor.mark()
    words = ("--config", str(tmp_path / "chatty.toml"), "--destroy", str(vendor.box), "--budget", "3")
    chosen = ("--only", "EXO-001", "--only", "BAD-008", "--out", str(vendor.results))
    code, said = vendor.run("conform", "chatty:Chatty", *words, *chosen)
    assert (code, "(hidden) was refused" in said, "sesame" in said) == (1, True, False), said
    written = [path for path in vendor.results.rglob("*") if path.is_file()]
    assert not [path for path in written if "sesame" in path.read_text()]


def test_results_that_cannot_be_written_are_told_before_the_run(vendor: Vendor, tmp_path: Path) -> None:
    vendor.mark()
    (tmp_path / "taken").touch()
    code, said = vendor.destroy(*QUICK, "--out", str(tmp_path / "taken"))
    assert (code, said.partition(";")[0]) == (
        3,
        f"voldrivers: results {tmp_path / 'taken'}: cannot be written: File exists",
    )
    assert (vendor.files, vendor.runs) == ([".scratch"], [])


def test_a_walk_that_breaks_something_can_be_walked_again(vendor: Vendor) -> None:
    """A driver whose volumes are shorter than it says is found on the way, and again by its trace."""
    vendor.lie(
        "short",
        "from dataclasses import replace\n"
        "from acme.driver import AcmeDriver\n"
        "class Short(AcmeDriver):\n"
        "    def create_volume(self, volume, options):\n"
        "        shorter = replace(volume, size_bytes=volume.size_bytes - 2**20)\n"
        "        return super().create_volume(shorter, options)\n"
        "    def volume_size(self, volume):\n"
        "        return max(super().volume_size(volume), volume.size_bytes)\n",
    )
    vendor.mark()
    chosen = ("--only", "DEC-002", "--budget", "20", "--seed", "3", "--out", str(vendor.results))
    code, said = vendor.destroy(*chosen, driver="short:Short")
    assert (code, "FAIL: in any order of operations" in said) == (1, True), said
    trace, *_ = sorted((vendor.results / "traces").iterdir())
    assert sorted((vendor.results / "repro").glob("test_*.py"))
    code, said = vendor.destroy("--replay", str(trace), driver="short:Short")
    assert (code, f"{trace.name[:7]} FAIL" in said) == (1, True), said
    code, said = vendor.destroy("--replay", str(trace))
    assert (code, f"{trace.name[:7]} PASS" in said) == (4, True), said
    assert vendor.files == [".scratch"]


@pytest.mark.parametrize("after_s", [1.0, 2.5])
def test_what_a_killed_run_has_left_is_swept_up(vendor: Vendor, after_s: float) -> None:
    vendor.mark()
    began = vendor.begin(
        "voldrivers",
        "conform",
        DRIVER,
        "--config",
        "conform.toml",
        "--destroy",
        str(vendor.box),
        "--only",
        "CRA",
    )
    wait_until(lambda: any(name.endswith(".volume") for name in vendor.files), 60, "the first volume")
    time.sleep(after_s)
    assert vendor.run("sweep")[1] == "no runs that were killed\n"  # it is at work
    began.send_signal(signal.SIGKILL)
    began.communicate(timeout=20)
    (run,) = vendor.runs
    code, said = vendor.run("sweep", "--dry-run")
    assert (code, said.startswith(f"run {run}: there is")) == (0, True), said
    assert vendor.run("sweep", "--run", run) == (0, f"run {run}: left all the same: nothing\n")
    assert (vendor.files, vendor.runs) == ([".scratch"], [])


def test_an_interrupted_run_leaves_nothing_or_says_how_to_sweep_it_up(vendor: Vendor) -> None:
    vendor.mark()
    began = vendor.begin(
        "voldrivers",
        "conform",
        DRIVER,
        "--config",
        "conform.toml",
        "--destroy",
        str(vendor.box),
        "--only",
        "SIZ-001",
        "--only",
        "STA",
        "--out",
        str(vendor.results),
    )
    wait_until(lambda: any(name.endswith(".volume") for name in vendor.files), 60, "the first volume")
    began.send_signal(signal.SIGINT)
    said, _ = began.communicate(timeout=60)
    assert began.returncode == 130, said
    assert vendor.verdicts()["STA-005"] == "ERROR"  # selected, and without a result
    if vendor.runs:  # interrupted while it took something away
        assert f"take away what it has left: voldrivers sweep --run {vendor.runs[0]}" in said
        vendor.run("sweep", "--run", vendor.runs[0])
    assert (vendor.files, vendor.runs) == ([".scratch"], [])


def test_a_run_is_swept_up_in_its_own_pool_only(vendor: Vendor, tmp_path: Path) -> None:
    """Where the file leads elsewhere by now nothing would be found, and the run must not be forgotten."""
    vendor.mark()
    vendor.lie(
        "killing",
        "import os\n"
        "from acme.driver import AcmeDriver\n"
        "class Killing(AcmeDriver):\n"
        "    def extend_volume(self, volume, size):\n"
        "        if 'SPARE' not in os.environ:\n"
        "            os.kill(os.getpid(), 9)\n"
        "        return super().extend_volume(volume, size)\n",
    )
    assert vendor.destroy("--only", "EXO-001", driver="killing:Killing")[0] == -9
    left, (run,) = vendor.files, vendor.runs
    vendor.environment |= {"SPARE": "1", "ACME_BOX": str(tmp_path / "other")}
    (tmp_path / "other").mkdir()
    for words in (("--dry-run",), ()):
        code, said = vendor.run("sweep", *words)
        assert (code, f"must be {vendor.box}" in said) == (5, True), said
    assert (vendor.files, vendor.runs) == (left, [run])
    damaged = vendor.state / "voldrivers/runs/damaged"
    damaged.mkdir()
    (damaged / "run.json").write_text("{")
    vendor.environment["ACME_BOX"] = str(vendor.box)
    code, said = vendor.run("sweep")
    assert (code, f"file {damaged / 'run.json'}: cannot be read" in said) == (3, True), said
    (damaged / "run.json").unlink()
    assert vendor.run("sweep")[0] == 0
    assert vendor.files == [".scratch"]


def test_pytest_runs_the_same_checks(vendor: Vendor) -> None:
    given = ("--voldrivers-driver", DRIVER, "--voldrivers-config", "conform.toml")
    words = (
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "voldrivers.cli.pytestplugin",
        "--pyargs",
        "voldrivers.conformance",
        *given,
    )
    chosen = ("-k", "LIF-001 or EXI-001 or SNP-002", "--voldrivers-out", str(vendor.results))
    code, said = vendor.run(*words, *chosen, program="pytest")
    assert (code, "3 skipped" in said) == (0, True), said  # a key is missing
    vendor.mark()
    key = ("--voldrivers-destroy", str(vendor.box))
    code, said = vendor.run(*words, *chosen, *key, program="pytest")
    assert (code, "2 passed, 1 skipped" in said) == (0, True), said
    assert vendor.verdicts()["EXI-001"] == "PASS"
    assert vendor.files == [".scratch"]


def test_what_is_wrong_is_told(vendor: Vendor, tmp_path: Path) -> None:
    def said(*words: str) -> Sequence[object]:
        code, text = vendor.run("conform", *words)
        return code, text.removeprefix("voldrivers: ").partition(";")[0]

    assert said(DRIVER) == (3, "conform: needs the driver, and its file: --config FILE")
    assert said("--explain", "XYZ-001") == (3, "check XYZ-001: there is no check and no group of this name")
    (tmp_path / "wrong.toml").write_text("[drivers]\n")
    code, text = said(DRIVER, "--config", str(tmp_path / "wrong.toml"))
    assert (code, "drivers: there is no such table" in str(text)) == (3, True)
    code, text = said("acme.driver:NoDriver", "--config", "conform.toml")
    assert (code, "cannot be loaded" in str(text)) == (6, True)
    assert str(said("--explain", "mac-004")[1]).startswith("MAC-004: in any order of operations:")
    code, text = said("--explain", "exi-003")
    assert (code, str(text).startswith("EXI-003: what was written stays")) == (0, True)
