"""Cinder's own functional tests with our driver where they bring one that does nothing.

Runs in Cinder's environment: `python cinderfunctional.py RESULTS MODULE...`. RESULTS gets, in JSON, what
became of each test and why.
"""

import importlib
import json
import os
import sys
import tempfile
import unittest
from collections import defaultdict
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, ClassVar

from cinder import service
from cinder.tests.functional import functional_helpers
from cinder.volume import configuration
from oslo_config import cfg

from voldrivers.integrations.cinder import CinderDriver
from voldrivers.integrations.cinderoptions import OPTIONS

_ETC = Path(sys.prefix) / "etc" / "cinder"
_CONFIG = 'state_dir = "state"\n[backend.files]\ndriver = "nfs"\nshare = "share"\n'
_PATIENCE_S = 60
Theirs = Any  # Any: Cinder has no types


class Watched(CinderDriver):
    """Keeps what its calls raise: Cinder's tests do not look how each of them ended."""

    #: By the file of a test: one that ends too soon leaves calls behind, whose files are taken away then.
    raised: ClassVar[dict[str, list[str]]] = defaultdict(list)

    def __init__(self, *args: Theirs, **kwargs: Theirs) -> None:
        super().__init__(*args, **kwargs)
        # Now: options are read when they are asked for, and those of the next test may be set then.
        self.made_for: str = self.configuration.voldrivers_config

    @classmethod
    def watch(cls, name: str) -> None:
        """Have one of its methods watched."""

        def watched(self: Watched, *args: Theirs, **kwargs: Theirs) -> Theirs:
            try:
                return getattr(CinderDriver, name)(self, *args, **kwargs)
            except Exception as error:
                cls.raised[self.made_for].append(f"{name}: {error!r}")
                raise

        setattr(cls, name, watched)


for _name, _kind in vars(CinderDriver).items():
    if isinstance(_kind, FunctionType) and not _name.startswith("_"):
        Watched.watch(_name)


class Ours:
    """Goes before a class of Cinder's tests: its volumes are files in a directory of its own."""

    # Cinder's tests look for both in a source tree.
    RESOURCE_FILTER_PATH = str(_ETC / "resource_filters.json")

    def tearDown(self) -> None:
        """Fail where the driver did."""
        super().tearDown()  # type: ignore[misc]  # theirs
        raised = Watched.raised[self._config]
        assert raised == [], raised

    def _poll_resource_while(self, *args: Theirs) -> Theirs:
        # They wait as long as what does nothing takes: the fifth argument are seconds.
        waited = (*args[:4], max(args[4], _PATIENCE_S), *args[5:])
        return super()._poll_resource_while(*waited)  # type: ignore[misc]  # theirs

    def _start_api_service(self) -> None:
        conf: Theirs = cfg.CONF
        conf.api_paste_config = str(_ETC / "api-paste.ini")
        self.osapi = service.WSGIService("osapi_volume")
        self.osapi.start()
        self.auth_url = f"http://{self.osapi.host}:{self.osapi.port}/v3"

    def _get_flags(self) -> dict[str, dict[str, Theirs]]:
        directory = Path(tempfile.mkdtemp())  # in a directory that Cinder's tests take away
        (directory / "share").mkdir()
        config = directory / "voldrivers.toml"
        config.write_text(_CONFIG)
        self._config = str(config)
        group = configuration.SHARED_CONF_GROUP
        cfg.CONF.register_opts(OPTIONS, group)
        ours = {
            "volume_driver": f"{__name__}.Watched",
            "voldrivers_config": self._config,
            "voldrivers_backend": "files",
        }
        flags: dict[str, dict[str, Theirs]] = super()._get_flags()  # type: ignore[misc]  # theirs
        flags |= {name: {"v": value, "g": group} for name, value in ours.items()}
        # The scheduler waits a minute by default, and their tests mock a sleep that it does not use.
        return flags | {"scheduler_driver_init_wait_time": {"v": 1}}


class Results(unittest.TestResult):
    """What became of each test."""

    def __init__(self) -> None:
        super().__init__()
        self.became: dict[str, tuple[str, str]] = {}

    def addSuccess(self, test: Theirs) -> None:  # noqa: N802 - their name
        self._add(test, "passed", "")

    def addError(self, test: Theirs, err: Theirs, details: Theirs = None) -> None:  # noqa: N802 - their name
        self._add(test, "failed", str(err[1]) if err else _text(details))

    def addFailure(self, test: Theirs, err: Theirs, details: Theirs = None) -> None:  # noqa: N802 - their name
        self.addError(test, err, details)

    def addSkip(self, test: Theirs, reason: str, details: Theirs = None) -> None:  # noqa: N802 - their name
        self._add(test, "skipped", reason or _text(details))

    def _add(self, test: Theirs, what: str, why: str) -> None:
        name = test.id().removeprefix("cinder.tests.functional.")
        self.became[name] = (what, why)
        print(what, name, flush=True)


def main() -> None:
    """Run them one after the other: what they start they start in this process."""
    results, suite = Results(), unittest.TestSuite()
    for name in sys.argv[2:]:
        suite.addTests(_tests(importlib.import_module(f"cinder.tests.functional.{name}")))
    suite.run(results)
    Path(sys.argv[1]).write_text(json.dumps(results.became))
    # Greenlets of theirs are left, which the end of an interpreter disturbs.
    os._exit(0)


def _tests(module: ModuleType) -> unittest.TestSuite:
    base, suite = functional_helpers._FunctionalTestBase, unittest.TestSuite()
    for each in vars(module).values():
        if isinstance(each, type) and issubclass(each, base) and each.__module__ == module.__name__:
            case = type(each.__name__, (Ours, each), {"__module__": module.__name__})
            suite.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    return suite


def _text(details: Theirs) -> str:
    return "\n".join(each.as_text() for each in (details or {}).values())


main()
