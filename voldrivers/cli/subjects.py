"""What a run of the suite works on, found by the words of a command line and the file of the run."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from voldrivers import plugins
from voldrivers.api.places import HostTable, open_place
from voldrivers.base import Driver, Run
from voldrivers.conformance.elsewhere import in_another_process
from voldrivers.conformance.subject import Oracle, Subject
from voldrivers.conformance.trials.config import OutageTable, RunConfig
from voldrivers.process import run


def find_driver(text: str, directory: str = "") -> type[Driver]:
    """Find a driver; a module may lie in the working directory, as for `python -m`."""
    for path in filter(None, (directory, os.getcwd())):
        if ":" in text and path not in sys.path:
            sys.path.insert(0, path)
    return plugins.driver_at(text)


def find_oracle(kind: type[Driver], config: RunConfig) -> Oracle | None:
    """Make the oracle that the file names, or that the driver's package offers; None without."""
    make = plugins.oracle_maker(config.oracle) if config.oracle else plugins.oracle_of(kind)
    oracle: Oracle | None = make(config.read(kind.options_type, config.driver, "[driver]")) if make else None
    return oracle


def find_subject(kind: type[Driver], config: RunConfig) -> Subject:
    """Give the driver with all that its checks use, but without its places. Nothing is opened or started."""
    options: object = config.read(kind.options_type, config.driver, "[driver]")
    config.read(kind.volume_options_type, config.volume, "[volume]")
    name = kind.__name__.lower()  # as an operator might call it

    def make(chosen: type[Driver], run: Run) -> Driver:
        return chosen(name, options, run)

    return Subject(
        kind,
        make,
        [],
        find_oracle(kind, config),
        config.scratch.pool,
        config.scratch.max_bytes,
        config.driver,
        config.volume,
        deadline_s=config.limits.extend_s,
        sweep_s=config.limits.sweep_s,
        mode=config.mode,
        outage=partial(_away, config.outage) if config.outage else None,
        elsewhere=in_another_process(partial(kind, name, options, run)),
    )


@contextmanager
def _away(table: OutageTable) -> Iterator[None]:
    run(shlex.split(table.begin), timeout_s=table.limit_s)
    try:
        yield
    finally:
        run(shlex.split(table.end), timeout_s=table.limit_s)


@contextmanager
def with_places(subject: Subject, config: RunConfig) -> Iterator[Subject]:
    """Open the places of the file as long as the context is: guests, agents, connections."""
    tables = [config.read(HostTable, table, "[[host]]") for table in config.hosts]
    with TemporaryDirectory(prefix="voldrivers-conform-") as directory, ExitStack() as opened:
        places = [opened.enter_context(open_place(table, Path(directory))) for table in tables]
        yield replace(subject, places=places)
