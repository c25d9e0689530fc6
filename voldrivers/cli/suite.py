"""The commands of the conformance suite: `conform`, `scratch init` and `sweep`."""

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

from voldrivers.cli.failures import exit_code
from voldrivers.cli.output import complain, table, write_document, write_lines
from voldrivers.cli.subjects import find_driver, find_oracle, find_subject, with_places
from voldrivers.conformance import Check, Result, Subject, Verdict, catalogue
from voldrivers.conformance.known import read_known
from voldrivers.conformance.reports.evidence import Conformance
from voldrivers.conformance.reports.report import UNSELECTED, Report, card
from voldrivers.conformance.trials.config import read_config
from voldrivers.conformance.trials.runs import Run, default_runs, one_of, runs_in
from voldrivers.conformance.trials.scratch import init, missing_key
from voldrivers.conformance.trials.sweep import check_pool, left_of, sweep
from voldrivers.conformance.trials.trial import Trial, check_driver
from voldrivers.conformance.walks.machine import machine_checks
from voldrivers.conformance.walks.traces import read_trace
from voldrivers.errors import InvalidInput, InvalidState, VolDriverError
from voldrivers.model import utc_now
from voldrivers.process import run
from voldrivers.sizes import format_size

#: The exit codes of `conform`.
EXIT_CODES: Mapping[Conformance, int] = {
    Conformance.CONFORMANT: 0,
    Conformance.NON_CONFORMANT: 1,
    Conformance.INCONCLUSIVE: 2,
    Conformance.PARTIAL: 4,
}
REFUSED = 3
_WALKS_S = 60.0
_TOLD = (Verdict.FAILED, Verdict.ERROR, Verdict.FIXED)


def conform(args: Namespace) -> int:
    """`conform`: the plan, or the run."""
    if args.explain is not None:
        return _explain(args)
    if args.driver is None or args.config is None:
        raise InvalidInput("conform", "needs the driver, and its file: --config FILE")
    config, kind = read_config(Path(args.config)), find_driver(args.driver)
    checks = () if args.replay else _chosen(args.profile, args.only)
    trace = read_trace(Path(args.replay)) if args.replay else None
    ids = [check.id for check in (*catalogue(), *machine_checks())]
    known = read_known(Path(args.known), ids) if args.known else {}
    subject = find_subject(kind, config)
    if missing := missing_key(subject.make(kind, run), subject.oracle, subject.pool, args.destroy):
        if args.destroy is None:
            return _plan(args, subject, len(config.hosts), checks, missing)
        complain(f"{missing}; nothing was touched")
        return REFUSED
    trial = Trial(
        args.destroy,
        checks,
        known,
        tell=partial(_tell, quiet=args.json),
        keep=args.keep,
        check_s=config.limits.check_s,
        walks_s=_walks_s(args),
        seed=args.seed,
        trace=trace,
        reproduce=shlex.join(["voldrivers", *sys.argv[1:]]),
        facts={"driver": args.driver, "config": str(config.path), "directory": os.getcwd()},
    )
    with with_places(subject, config) as whole:
        report = check_driver(whole, trial, Path(args.out) if args.out else None)
    return _say_report(args, report)


def init_scratch(args: Namespace) -> int:
    """`scratch init`."""
    config, kind = read_config(Path(args.config or "")), find_driver(args.driver)
    if args.pool != config.scratch.pool:
        raise InvalidInput(f"pool {args.pool}", f"{config.path} names {config.scratch.pool}")
    mark = init(find_oracle(kind, config), args.pool)
    write_lines([f"pool {args.pool}: marked as scratch, {mark}"])
    return 0


def sweep_runs(args: Namespace) -> int:
    """`sweep`."""
    runs = default_runs()
    if args.run is not None:
        chosen = [one_of(runs, args.run)]
    else:
        before = utc_now() - timedelta(seconds=args.older_than or 0)
        chosen = [each for each in runs_in(runs) if not each.is_running and each.began <= before]
    left: dict[str, Sequence[str]] = {}
    codes = []
    for each in chosen:
        try:
            left[each.id] = _swept(each, left_of if args.dry_run else sweep)
        except VolDriverError as error:  # what keeps one run from being swept up does not keep the others
            complain(f"run {each.id}: {error}; nothing of it was touched, sweep again")
            codes.append(exit_code(error))
    what = "there is" if args.dry_run else "left all the same:"
    lines = [f"run {each}: {what} {', '.join(found) or 'nothing'}" for each, found in left.items()]
    write_lines(lines or ([] if codes else ["no runs that were killed"]))
    if any(left.values()) and not args.dry_run:
        codes.append(8)
    return codes[0] if codes else 0


def _swept(run: Run, act: Callable[[Run, Subject], Sequence[str]]) -> Sequence[str]:
    """Sweep up after a run, or only look, with the driver and the file that it had."""
    facts = run.facts
    config, kind = read_config(Path(facts["config"])), find_driver(facts["driver"], facts["directory"])
    subject = find_subject(kind, config)
    check_pool(run, subject)
    with with_places(subject, config) as whole:
        return act(run, whole)


def _chosen(profile: str, only: Sequence[str]) -> Sequence[Check]:
    """Choose checks by profile, ids and groups. Raises InvalidInput for what is neither."""
    checks = [check for check in catalogue() if profile == "all" or check.smoke]
    if not only:
        return checks
    wanted = {each.upper() for each in only}
    for each in wanted:
        if not any(each in (check.id, check.group) for check in (*catalogue(), *machine_checks())):
            raise InvalidInput(f"check {each}", "there is no check and no group of this name")
    return [check for check in catalogue() if wanted & {check.id, check.group}]


def _walks_s(args: Namespace) -> float:
    """How long the stateful machine walks: where all is tried, unless something else is said."""
    if args.budget is not None:
        return float(args.budget)
    walks = any(each.upper().startswith("MAC") for each in args.only)
    return _WALKS_S if walks or (not args.only and args.profile == "all") else 0.0


def _plan(
    args: Namespace, subject: Subject, hosts: int, checks: Sequence[Check], missing: InvalidState
) -> int:
    """Say what would be run and why not; nothing is touched."""
    declared = subject.driver_class.capabilities
    rows = [(check.id, check.not_for(declared) or "runs", check.invariant) for check in checks]
    runs = [row for row in rows if row[1] == "runs"]
    facts = [
        *([f"a walk of {len(read_trace(Path(args.replay)).steps)} steps"] if args.replay else []),
        f"{len(runs)} of {len(rows)} checks, {'with' if subject.oracle else 'without'} an oracle,"
        f" on {hosts} host{'s' if hosts > 1 else ''};"
        f" their volumes take at most {format_size(subject.max_bytes)} of pool {subject.pool} at a time",
        f"nothing was touched: {missing}",
    ]
    if args.json:
        document = [{"id": check_id, "runs": why == "runs", "why": why} for check_id, why, _ in rows]
        write_document({"checks": document, "missing": str(missing)})
    else:
        write_lines([*table(("CHECK", "RUNS", "WHAT MUST HOLD"), rows), *facts])
    return 0


def _tell(check: Check, result: Result, *, quiet: bool) -> None:
    if quiet:
        return
    reason = f": {result.text}" if result.text and result.verdict not in _TOLD else ""
    write_lines(
        [f"{result.id} {check.shown(result.verdict)} {result.seconds:.2f} s  {check.invariant}{reason}"]
    )
    if result.verdict in _TOLD:
        write_lines(card(check, result).splitlines())


def _say_report(args: Namespace, report: Report) -> int:
    if args.out:
        _write_repros(args, report)
    if args.json:
        write_document(dict(report.document()))
    else:
        rows = [(e.capability, e.declared, str(e.proof)) for e in report.evidence]
        totals = ", ".join(f"{count} {verdict}" for verdict, count in report.totals.items())
        where = [f"results are in {args.out}"] if args.out else []
        because = ", ".join(_open_ones(report))
        verdict = f"the driver is {report.verdict}{because and ': '}{because}"
        said = [f"{totals} in {report.seconds:.0f} s", verdict, *where]
        write_lines(["", *table(("CAPABILITY", "DECLARED", "PROOF"), rows), "", *said])
    return EXIT_CODES[report.verdict]


def _open_ones(report: Report) -> Iterator[str]:
    """Give what the verdict rests on, beside what passed; what was not selected is only counted."""
    unselected = 0
    for check, result in report.rows:
        if result.text == UNSELECTED:
            unselected += 1
        elif result.verdict not in (Verdict.PASSED, Verdict.NOT_APPLICABLE):
            yield f"{check.id} {check.shown(result.verdict)}"
    if unselected:
        yield f"{unselected} checks were not selected"


def _write_repros(args: Namespace, report: Report) -> None:
    """Write a script for each check that failed, which runs it again and leaves what it made."""
    directory = Path(args.out) / "repro"
    for earlier in directory.glob("*.sh"):
        earlier.unlink()
    for check, result in report.rows:
        if result.verdict not in _TOLD:
            continue
        directory.mkdir(exist_ok=True)
        words = ["voldrivers", "conform", args.driver, "--config", str(Path(args.config).absolute())]
        words += ["--destroy", args.destroy, "--only", check.id, "--keep"]
        lines = [
            "#!/bin/sh",
            f"# {check.id}: {check.invariant}",
            f"cd {shlex.quote(str(Path.cwd()))} || exit",
        ]
        (directory / f"{check.id}.sh").write_text("\n".join([*lines, shlex.join(words), ""]))
        (directory / f"{check.id}.sh").chmod(0o755)


def _explain(args: Namespace) -> int:
    found = _chosen("all", [args.explain])
    walked = [each for each in machine_checks() if args.explain.upper() in (each.id, each.group)]
    check, *others = (*found, *walked)
    if others:
        raise InvalidInput(
            f"check {args.explain}",
            f"is a group; its checks are {', '.join(each.id for each in (check, *others))}",
        )
    runs = f"where {check.capability} is declared" if check.capability else "for every driver"
    lines = [
        f"{check.id}: {check.invariant}",
        f"runs: {f'where {check.absent} is not declared' if check.absent else runs}; level: {check.level}",
        f"steps: {check.steps}",
        *([f"hint: {check.hint}"] if check.hint else []),
    ]
    if args.json:
        write_document(
            {"id": check.id, "invariant": check.invariant, "steps": check.steps, "hint": check.hint}
        )
    else:
        write_lines(lines)
    return 0


COMMANDS: Mapping[str, Callable[[Namespace], int]] = {
    "conform": conform,
    "scratch_init": init_scratch,
    "sweep": sweep_runs,
}
