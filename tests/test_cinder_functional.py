"""Cinder's own functional tests, each of which starts a Cinder, with our driver on a directory."""

import json
from collections import Counter
from pathlib import Path

import pytest
from cindersite import environment

from voldrivers.process import run

pytestmark = [pytest.mark.full, pytest.mark.needs("qemu-img"), pytest.mark.timeout(900)]
_RUNNER = Path(__file__).parent / "inside" / "cinderfunctional.py"
_LIMIT_S = 800.0
#: Each test of them starts a Cinder.
MODULES = (
    "test_volumes",
    "test_groups",
    "test_group_snapshots",
    "test_default_types",
    "test_extensions",
    "test_login",
    "test_middleware",
)
PASSING = 38
#: Why a module is left out.
LEFT_OUT = {
    "test_group_replication": "drivers of voldrivers replicate nothing",
    "api_sample_tests": "the samples that they compare with are in Cinder's source, not in its package",
}


def test_cinders_own_functional_tests_pass(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    python = str(environment() / "bin" / "python")
    words = [python, "-W", "ignore", str(_RUNNER), str(results), *MODULES]
    run(words, timeout_s=_LIMIT_S)
    became: dict[str, tuple[str, str]] = json.loads(results.read_text())
    became |= {module: ("skipped", why) for module, why in LEFT_OUT.items()}
    counted = Counter(what for what, _ in became.values())
    print(
        "Cinder's functional tests:", *(f"{what} {counted[what]}" for what in ("passed", "failed", "skipped"))
    )
    for name, (what, why) in became.items():
        if what != "passed":
            print(f"{what} {name}: {why[-3000:]}")
    assert counted == {"passed": PASSING, "skipped": len(LEFT_OUT)}
