"""What all tests share: tiers, seeds, skips that count, a directory in RAM.

`--tier quick|ci|full` (see the Makefile) chooses the tests and the hypothesis profile of that name.
"""

import logging
import os
import random
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:  # tests that need no QEMU start without them
    from realsite import RealSite
    from working import Working

    from voldrivers.guests.device import DeviceGuest

pytest_plugins = ["labs", "sweeps"]

#: How many examples hypothesis tries, and which markers are left out.
TIERS = {"quick": (50, {"slow", "full"}), "ci": (300, {"full"}), "full": (5000, set[str]())}

for _tier, (_examples, _left_out) in TIERS.items():
    settings.register_profile(_tier, max_examples=_examples, deadline=None, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=list(TIERS), default="quick", help="which tests run, how thoroughly")


@pytest.hookimpl(tryfirst=True)  # before hypothesis reads the option
def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile(config.getoption("tier"))
    if config.getoption("hypothesis_seed") is None:
        given = getattr(config, "workerinput", {})
        config.option.hypothesis_seed = given.get("seed", str(random.getrandbits(32)))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_configure_node(node: Any) -> None:  # Any: pytest-xdist has no types
    node.workerinput["seed"] = node.config.getoption("hypothesis_seed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = TIERS[config.getoption("tier")][1]
    deselected = [item for item in items if left_out & {mark.name for mark in item.iter_markers()}]
    items[:] = [item for item in items if item not in deselected]
    config.hook.pytest_deselected(items=deselected)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        missing = [tool for tool in mark.args if shutil.which(tool) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}; see `make setup`")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_skipped_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_skipped_in_ci(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tier, seed = config.getoption("tier"), config.getoption("hypothesis_seed")
    terminalreporter.write_line(f"tier {tier}, seed {seed}; again: --tier {tier} --hypothesis-seed={seed}")


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Take away what a command has a log written to: the stream of its test is closed afterwards."""
    logs = [logging.getLogger(), logging.getLogger("voldrivers")]
    before = [(log.handlers[:], log.level) for log in logs]
    yield
    for log, (handlers, level) in zip(logs, before, strict=True):
        log.handlers[:] = [h for h in log.handlers if h in handlers or type(h) is not logging.StreamHandler]
        log.setLevel(level)


@pytest.fixture
def tier(pytestconfig: pytest.Config) -> str:
    """`quick`, `ci` or `full`: for tests that sample what the full tier does exhaustively."""
    return str(pytestconfig.getoption("tier"))


@pytest.fixture
def rng(pytestconfig: pytest.Config) -> random.Random:
    """Randomness that follows the printed seed."""
    return random.Random(pytestconfig.getoption("hypothesis_seed"))


@pytest.fixture
def ram_path() -> Iterator[Path]:
    """Give a short directory in RAM: sockets fit (108 bytes, unix(7)), fsync costs nothing.

    A tmpfs has no O_DIRECT before Linux 6.6; use `tmp_path` for `cache.direct=on`.
    """
    with tempfile.TemporaryDirectory(prefix="vold-", dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture
def site(ram_path: Path) -> Iterator["RealSite"]:
    """Give a site without volumes; its share is a directory in VOLDRIVERS_TEST_SHARES, if that is set."""
    from realsite import SHARES, RealSite

    with tempfile.TemporaryDirectory(prefix="share-", dir=os.environ.get(SHARES, ram_path)) as share:
        yield RealSite(ram_path, Path(share))


@pytest.fixture
def guest(ram_path: Path) -> Iterator["DeviceGuest"]:
    """Give a running QEMU."""
    from voldrivers.guests.device import DeviceGuest

    with DeviceGuest(ram_path) as running:
        yield running


@pytest.fixture
def working(ram_path: Path) -> Iterator["Working"]:
    """Give a guest that works on every disk it gets, in a process of its own."""
    from working import Working

    begun = Working(ram_path)
    yield begun
    begun.process.kill()
    begun.process.wait()


def _fail_skipped_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        report.outcome, report.longrepr = "failed", f"a skip is a failure in CI: {reason}"
