"""The runner: takes checks one after the other, each on a bench of its own, and gives every one a verdict."""

import os
import secrets
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Check, catalogue
from voldrivers.conformance.hiding import hidden
from voldrivers.conformance.subject import Subject
from voldrivers.conformance.verdicts import Broken, Finding, NotApplicable, NotRun, Overdue, Result, Verdict
from voldrivers.errors import VolDriverError

#: Records of a check need not survive a power cut; on a disk each of them waits for it.
_IN_RAM = Path("/dev/shm")  # noqa: S108 - a directory of its own is made in it
#: So many calls of the driver are kept of a check that failed.
_TRACE = 40


@dataclass(frozen=True)
class Kept:
    """Where records of checks stand on disk, so that a killed run can be swept up; else they are in RAM."""

    directory: Path
    #: Whether a check that failed leaves all as it is, for who looks.
    failures: bool = False


def run_checks(subject: Subject, checks: Sequence[Check] | None = None) -> Iterator[Result]:
    """Run checks, all of the catalogue unless some are given; give each result as it comes."""
    run_id = secrets.token_hex(4)
    for check in catalogue() if checks is None else checks:
        yield run_check(check, subject, run_id)


def run_check(check: Check, subject: Subject, run_id: str | None = None, kept: Kept | None = None) -> Result:
    """Run one check to its verdict; what the driver raises never gets out."""
    if reason := check.not_for(subject.driver_class.capabilities):
        return Result(check.id, Verdict.NOT_APPLICABLE, 0.0, reason)
    began = time.monotonic()
    benches: list[Bench] = []
    with _directory(check, kept, benches) as directory:
        keeps = kept is not None and kept.failures
        verdict, text, invariant, readings = _judged(
            lambda: _run(check, Bench(subject, directory, run_id, keeps=keeps), benches), benches
        )
    calls = tuple(str(call) for bench in benches for call in bench.watch.calls[-_TRACE:])
    told = calls if verdict in (Verdict.FAILED, Verdict.ERROR) else ()
    result = Result(check.id, verdict, time.monotonic() - began, text, invariant, readings, told)
    return hidden(result, subject)


@contextmanager
def _directory(check: Check, kept: Kept | None, benches: list[Bench]) -> Iterator[Path]:
    """Give the directory of a check's records. On disk it stays where something is left of the check."""
    if kept is None:
        where = _IN_RAM if os.access(_IN_RAM, os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="voldrivers-conform-", dir=where) as directory:
            yield Path(directory)
        return
    path = kept.directory / check.id
    path.mkdir()
    try:
        yield path
    finally:
        if all(bench.is_clean for bench in benches):
            shutil.rmtree(path)


def _run(check: Check, bench: Bench, benches: list[Bench]) -> None:
    benches.append(bench)
    try:
        with bench:
            check.act(bench)
    except Exception as error:
        # What is tidied up after Ctrl-C may fail, and must not take its place.
        behind: BaseException | None = error
        while behind is not None:
            if isinstance(behind, KeyboardInterrupt):
                raise behind from error
            behind = behind.__context__
        raise


def _judged(act: Callable[[], None], benches: list[Bench]) -> tuple[Verdict, str, str, Mapping[str, object]]:
    try:
        act()
    except (Broken, Overdue) as said:
        return Verdict.FAILED, _with_notes(said.text, said), said.invariant, said.readings
    except VolDriverError as error:
        return Verdict.FAILED, _with_notes(f"{type(error).__name__}: {error}", error), "I9", {}
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a driver may raise all, the next check must run
        return _other(error, benches)
    return Verdict.PASSED, "; ".join(text for bench in benches for text in bench.told), "", {}


def _with_notes(text: str, error: BaseException) -> str:
    return "; ".join([text, *getattr(error, "__notes__", [])])


def _other(error: BaseException, benches: list[Bench]) -> tuple[Verdict, str, str, Mapping[str, object]]:
    """Judge by an error of the suite or of nobody; from a driver the suite's own words count for nothing."""
    if any(error is bench.watch.foreign_error for bench in benches):
        return Verdict.FAILED, f"no error of voldrivers: {type(error).__name__}: {error}", "I11", {}
    if isinstance(error, NotRun):
        is_never = isinstance(error, NotApplicable)
        return Verdict.NOT_APPLICABLE if is_never else Verdict.NOT_RUN, str(error), "", {}
    if isinstance(error, Finding) and benches:  # without a bench nothing has been looked at
        return Verdict.FINDING, error.text, error.invariant, error.readings
    return Verdict.ERROR, "".join(traceback.format_exception(error)[-3:]), "", {}
