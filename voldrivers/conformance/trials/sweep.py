"""Sweeping: what a run that was killed has left on the backend and on the hosts is taken away."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from voldrivers.abilities import Snapshots
from voldrivers.base import Driver
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.ending import take_away
from voldrivers.conformance.subject import Marks, Subject
from voldrivers.conformance.trials.runs import Intent, Run
from voldrivers.errors import InvalidState, VolDriverError


def left_of(run: Run, subject: Subject) -> Sequence[str]:
    """Name what there is on the backend of a run: what the driver lists, and what the oracle sees."""
    driver = subject.make(subject.driver_class, subject.run)
    listed = {f"volume {each}" for each in driver.list_volumes() if each.startswith(run.id)}
    if isinstance(driver, Snapshots):
        listed |= {f"snapshot {each}" for each in driver.list_snapshots() if each.startswith(run.id)}
    seen = subject.oracle.objects() if subject.oracle else ()
    return sorted(listed | {each for each in seen if run.id in each})


def check_pool(run: Run, subject: Subject) -> None:
    """Refuse to look for what a run has left in another pool than it worked on. Raises InvalidState."""
    pools = [subject.pool, subject.oracle.pool] if isinstance(subject.oracle, Marks) else [subject.pool]
    for pool in pools:
        if pool != run.facts.get("pool", pool):
            raise InvalidState(f"pool {pool}", f"not the one that run {run.id} worked on", run.facts["pool"])


def sweep(run: Run, subject: Subject) -> Sequence[str]:
    """Take away what a run has left; give what is left all the same. May be repeated.

    By the records of its checks first, which know the attachments; then, through the driver, what it was
    asked for past the engine. Nothing without the run's id in its own is touched.
    """
    problems: list[str] = []
    for directory in run.checks:
        problems += _end_check(run, subject, directory)
    driver = subject.make(subject.driver_class, subject.run)
    for intent in run.intents:
        if intent.volume.id.startswith(run.id):
            with suppress(VolDriverError):  # what is there all the same is named below
                _undo(driver, intent)
    left = left_of(run, subject)
    if not left and not problems:
        run.forget()
    return [*problems, *left]


def _end_check(run: Run, subject: Subject, directory: Path) -> Sequence[str]:
    bench = Bench(subject, directory, run.id)
    try:
        take_away(bench)
    except VolDriverError as error:
        return [f"{directory.name}: {error}"]
    finally:
        bench.close()
    shutil.rmtree(directory)
    return []


def _undo(driver: Driver, intent: Intent) -> None:
    if intent.connector is not None:
        driver.terminate_connection(intent.volume, intent.connector)
    elif intent.snapshot is not None:
        assert isinstance(driver, Snapshots)
        if intent.snapshot.id in driver.list_snapshots():
            driver.delete_snapshot(intent.volume, intent.snapshot)
    elif intent.volume.id in driver.list_volumes():
        driver.delete_volume(intent.volume)
