"""The runner: takes checks one after the other, each on a bench of its own, and gives every one a verdict."""

import os
import secrets
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Check, catalogue
from voldrivers.conformance.subject import Subject
from voldrivers.conformance.verdicts import Broken, NotRun, Result, Verdict
from voldrivers.errors import VolDriverError

#: Records of a check need not survive a power cut; on a disk each of them waits for it.
_IN_RAM = Path("/dev/shm")  # noqa: S108 - a directory of its own is made in it
#: So many calls of the driver are kept of a check that failed.
_TRACE = 40


def run_checks(subject: Subject, checks: Sequence[Check] | None = None) -> Iterator[Result]:
    """Run checks, all of the catalogue unless some are given; give each result as it comes."""
    run_id = secrets.token_hex(4)
    for check in catalogue() if checks is None else checks:
        yield run_check(check, subject, run_id)


def run_check(check: Check, subject: Subject, run_id: str | None = None) -> Result:
    """Run one check to its verdict; what the driver raises never gets out."""
    if reason := check.not_for(subject.driver_class.capabilities):
        return Result(check.id, Verdict.NOT_APPLICABLE, 0.0, reason)
    began = time.monotonic()
    where = _IN_RAM if os.access(_IN_RAM, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="voldrivers-conform-", dir=where) as directory:
        benches: list[Bench] = []
        verdict, text, invariant, readings = _judged(
            lambda: _run(check, subject, Path(directory), run_id, benches), benches
        )
    calls = tuple(str(call) for bench in benches for call in bench.watch.calls[-_TRACE:])
    kept = calls if verdict in (Verdict.FAILED, Verdict.ERROR) else ()
    return Result(check.id, verdict, time.monotonic() - began, text, invariant, readings, kept)


def _run(check: Check, subject: Subject, directory: Path, run_id: str | None, benches: list[Bench]) -> None:
    with Bench(subject, directory, run_id) as bench:
        benches.append(bench)
        check.act(bench)


def _judged(act: Callable[[], None], benches: list[Bench]) -> tuple[Verdict, str, str, dict[str, object]]:
    try:
        act()
    except NotRun as reason:
        return Verdict.NOT_RUN, str(reason), "", {}
    except Broken as broken:
        notes = getattr(broken, "__notes__", [])
        return Verdict.FAILED, "; ".join([broken.text, *notes]), broken.invariant, broken.readings
    except VolDriverError as error:
        return Verdict.FAILED, f"{type(error).__name__}: {error}", "I9", {}
    except Exception as error:  # noqa: BLE001 - a driver may raise anything, and the next check must run
        if any(error is bench.watch.foreign_error for bench in benches):
            return Verdict.FAILED, f"no error of voldrivers: {type(error).__name__}: {error}", "I11", {}
        return Verdict.ERROR, "".join(traceback.format_exception(error)[-3:]), "", {}
    return Verdict.PASSED, "", "", {}
