"""Labs for tests: who asks for `lab` (one host), `two_hosts` or `three_hosts` gets machines of its own.

`linux_guest` and `attached` are two hosts in these states of `voldrivers.lab.prepared`.

They come from a saved state within a second or two, are the same each time, and end with the test. What the
kernels wrote stands in build/lab/TEST.log when a test fails, the end of it in its report.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

import voldrivers
from voldrivers.errors import CommandFailed, VolDriverError
from voldrivers.lab import project
from voldrivers.lab.cache import Cache
from voldrivers.lab.keeper import runtime
from voldrivers.lab.lab import Lab, Topology, Wanted
from voldrivers.lab.machine import LabMachine

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

CHECKOUT = Path(voldrivers.__file__).parents[1]
LOGS = CHECKOUT / "build" / "lab"
#: What takes longest to prepare or to run first.
FIXTURES = ("linux_guest", "lvm_site", "served", "attached", "three_hosts", "two_hosts", "lab")
#: The programs that an image is made and run with.
TOOLS = ("qemu-system-x86_64", "qemu-img", "setpriv", "apt-get", "dpkg-deb", "xargs")

_COMMAND_S, _LOG_S = 60.0, 5.0
#: How much of a log the report shows, in characters; the file has all.
_SHOWN = 2000
_CALL = (
    "import json, sys; from {module} import {name}; "
    "print(json.dumps({name}(*json.loads(sys.argv[1]), **json.loads(sys.argv[2]))))"
)


@pytest.fixture(scope="session")
def lab_cache() -> Cache:
    """Images and saved states, kept from run to run; what takes long is printed."""
    return Cache(runtime.cache_directory(), print)


@pytest.fixture
def lab(lab_cache: Cache) -> Iterator[Lab]:
    """Give one machine that is both storage and compute."""
    with started(lab_cache, Topology.ONE_HOST) as running:
        yield running


@pytest.fixture
def two_hosts(lab_cache: Cache) -> Iterator[Lab]:
    """Give a storage machine and a compute machine."""
    with started(lab_cache, Topology.TWO_HOSTS) as running:
        yield running


@pytest.fixture
def three_hosts(lab_cache: Cache) -> Iterator[Lab]:
    """Give a storage machine and two compute machines."""
    with started(lab_cache, Topology.THREE_HOSTS) as running:
        yield running


@pytest.fixture
def linux_guest(lab_cache: Cache) -> Iterator[Lab]:
    """Give two hosts with a Linux guest on compute."""
    with started(lab_cache, Topology.TWO_HOSTS, "linux-guest") as running:
        yield running


@pytest.fixture
def attached(lab_cache: Cache) -> Iterator[Lab]:
    """Give two hosts with a guest on compute that works on an iSCSI disk and on an NFS volume."""
    with started(lab_cache, Topology.TWO_HOSTS, "attached") as running:
        yield running


@contextmanager
def started(cache: Cache, topology: Topology, state: str = "") -> Iterator[Lab]:
    """Start a lab in a short directory in RAM; end it, and leave nothing."""
    with (
        tempfile.TemporaryDirectory(prefix="vold-", dir="/dev/shm") as directory,
        ExitStack() as until_the_end,
    ):
        wanted = Wanted(topology, state=state)
        # Of two that want a state which is not there yet, the second waits and restores what the first made.
        with cache.alone(f"test-{topology}-{state}"):
            running = until_the_end.enter_context(Lab(Path(directory), cache, wanted))
        yield running


def shell(lab: Lab, machine: str, command: str, timeout_s: float = _COMMAND_S) -> str:
    """Run a line of bash in a machine, which ends at its first error; give what it printed."""
    argv = ["bash", "-euo", "pipefail", "-c", command]
    return lab.machine(machine).channel.run(argv, timeout_s=timeout_s).stdout.strip()


def inside(
    lab: Lab,
    machine: str,
    function: Callable[Arguments, Result],
    *arguments: Arguments.args,
    **named: Arguments.kwargs,
) -> Result:
    """Call a function of the project, or of a module of its tests, in a machine; give what it returns."""
    return inside_for(_COMMAND_S, lab, machine, function, *arguments, **named)


def inside_for(
    limit_s: float,
    lab: Lab,
    machine: str,
    function: Callable[Arguments, Result],
    *arguments: Arguments.args,
    **named: Arguments.kwargs,
) -> Result:
    """Call a function that may take so long.

    The project's files are brought as they are now. Arguments and result go as JSON. What else it prints is
    in the report of a test that fails.
    """
    lab.bring_project(machine, CHECKOUT)
    code = _CALL.format(module=function.__module__, name=function.__name__)
    argv = ["python3", "-c", code, json.dumps(arguments), json.dumps(named)]
    done = lab.machine(machine).channel.run(argv, timeout_s=limit_s, env=project.ENVIRONMENT)
    *printed, answer = done.stdout.splitlines()
    print(*printed, done.stderr, sep="\n")
    result: Result = json.loads(answer)
    return result


def run_tests(lab: Lab, machine: str, file: str, *chosen: str, timeout_s: float, **environment: str) -> None:
    """Run a file of tests/inside/ in a machine, as a pytest of its own; what it printed is in the report.

    What begins with VOLDRIVERS_TEST_ here is passed on.
    """
    lab.bring_project(machine, CHECKOUT)
    passed_on = {name: value for name, value in os.environ.items() if name.startswith("VOLDRIVERS_TEST_")}
    environment = {**project.ENVIRONMENT, "CI": "true", **passed_on, **environment}
    limits = ["-o", f"timeout={timeout_s}", "-o", f"faulthandler_timeout={timeout_s}"]
    options = ["-q", "-rP", "--durations=5", "-p", "no:cacheprovider", "--rootdir=/project", *limits]
    argv = ["python3", "-m", "pytest", *options, f"/project/tests/inside/{file}", *chosen]
    try:
        print(lab.machine(machine).channel.run(argv, timeout_s=timeout_s, env=environment).stdout)
    except CommandFailed as error:
        pytest.fail(error.reason)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _fixtures(item):
            for mark in (pytest.mark.lab, pytest.mark.slow, pytest.mark.needs(*TOOLS)):
                item.add_marker(mark)
    items.sort(key=_turn)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        logs = dict(_logs(item))
        report.sections += ((title, text[-_SHOWN:]) for title, text in logs.items())
        if logs:
            LOGS.mkdir(parents=True, exist_ok=True)
            text = "\n".join(f"==== {title}\n{text}" for title, text in logs.items())
            (LOGS / f"{re.sub(r'[^-.a-zA-Z0-9]+', '_', item.name)}.log").write_text(text)
    return report


def _fixtures(item: pytest.Item) -> list[str]:
    return [name for name in FIXTURES if name in getattr(item, "fixturenames", ())]


def _turn(item: pytest.Item) -> int:
    """Say when it is a test's turn: of two processes, none shall be left with a long one in the end."""
    found = _fixtures(item)
    if found:
        return FIXTURES.index(found[0])
    return len(FIXTURES) + (item.get_closest_marker("lab") is None)


def _logs(item: pytest.Item) -> Iterator[tuple[str, str]]:
    given = getattr(item, "funcargs", {})
    for name in (name for name in _fixtures(item) if name in given):
        for machine in given[name].machines.values():
            yield f"kernel log of {machine.name} in {name}", _kernel_log(machine)
            yield f"console of {machine.name} in {name}", machine.console_text()


def _kernel_log(machine: LabMachine) -> str:
    try:
        return machine.channel.run(["dmesg"], timeout_s=_LOG_S).stdout
    except VolDriverError as error:
        return f"none: {error}"
