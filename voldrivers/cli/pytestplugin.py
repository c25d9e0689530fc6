"""The conformance suite as tests of pytest, for those whose CI knows nothing else.

    pytest -p voldrivers.cli.pytestplugin --pyargs voldrivers.conformance
        --voldrivers-driver acme --voldrivers-config conform.toml --voldrivers-destroy POOL

The options are those of `voldrivers conform`. Whatever did not run is skipped with its reason.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the engine is not for `pytest --help`
    from voldrivers.conformance.trials.trial import Running

_FIXTURE = "voldrivers_check"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("voldrivers", "the conformance suite of voldrivers")
    group.addoption("--voldrivers-driver", metavar="DRIVER", help="a driver's name, or module:Class")
    group.addoption("--voldrivers-config", metavar="FILE", help="the file of the run")
    group.addoption("--voldrivers-destroy", metavar="POOL", help="everything in this pool may be destroyed")
    group.addoption("--voldrivers-profile", choices=("smoke", "all"), default="all", help="which checks")
    group.addoption("--voldrivers-known", metavar="FILE", help="what is known to fail")
    group.addoption("--voldrivers-out", metavar="DIR", help="where the results come")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each check."""
    if _FIXTURE in metafunc.fixturenames:
        from voldrivers.conformance import catalogue

        smoke = metafunc.config.getoption("--voldrivers-profile") == "smoke"
        ids = [check.id for check in catalogue() if check.smoke or not smoke]
        metafunc.parametrize(_FIXTURE, ids)


@pytest.fixture(scope="session")
def voldrivers_run(request: pytest.FixtureRequest) -> "Iterator[Running]":
    """Give the run that the options ask for; its results are written in the end."""
    from voldrivers.cli.subjects import find_driver, find_subject, with_places
    from voldrivers.conformance import catalogue
    from voldrivers.conformance.known import read_known
    from voldrivers.conformance.trials.config import read_config
    from voldrivers.conformance.trials.trial import Trial, running

    names = ("driver", "config", "destroy", "known", "out")
    given = {name: request.config.getoption(f"--voldrivers-{name}") for name in names}
    if missing := [f"--voldrivers-{name}" for name in names[:3] if not given[name]]:
        pytest.skip(f"not given: {', '.join(missing)}")
    config, ids = read_config(Path(given["config"])), [check.id for check in catalogue()]
    trial = Trial(
        given["destroy"],
        known=read_known(Path(given["known"]), ids) if given["known"] else {},
        check_s=config.limits.check_s,
        facts={"driver": given["driver"], "config": str(config.path), "directory": str(Path.cwd())},
    )
    subject = find_subject(find_driver(given["driver"]), config)
    with with_places(subject, config) as whole, running(whole, trial) as run:
        yield run
        if given["out"]:
            run.report().write(Path(given["out"]))
