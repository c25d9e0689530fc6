"""The words of the conformance suite on the command line."""

import argparse

from voldrivers.cli.parsers import Parser, Words, add, group, seconds


def add_suite(words: Words, everywhere: argparse.ArgumentParser) -> None:
    """Add `conform`, `scratch init` and `sweep`."""
    conform = add(words, "conform", everywhere, "conform", "run the conformance suite on a driver")
    driver = "the name of an installed one, or module:Class"
    conform.add_argument("driver", metavar="DRIVER", nargs="?", help=driver)
    conform.add_argument("--destroy", metavar="POOL", help="run it: everything in this pool may be destroyed")
    conform.add_argument("--out", metavar="DIR", help="where the results come")
    conform.add_argument("--profile", choices=("smoke", "all"), default="all", help="which checks")
    conform.add_argument(
        "--only", metavar="ID", action="append", default=[], help="a check or a group; may be repeated"
    )
    conform.add_argument("--known", metavar="FILE", help="what is known to fail, a TOML file")
    conform.add_argument("--keep", action="store_true", help="leave everything as it is where a check fails")
    conform.add_argument(
        "--budget", metavar="SECONDS", type=seconds, help="how long to walk in any order; 60 after all checks"
    )
    conform.add_argument("--seed", metavar="NUMBER", type=int, default=0, help="other walks")
    conform.add_argument("--replay", metavar="TRACE", help="walk as this file of an earlier run has it")
    conform.add_argument("--explain", metavar="ID", help="say what a check does, and nothing else")
    conform.epilog = (
        "Without --destroy it says what would be run, and touches nothing. --config is the file of the\n"
        "run (docs/conformance.md).\n\n"
        "exit codes:\n    0  conformant\n    1  non-conformant\n"
        "    2  inconclusive: the suite itself failed; or the command line is wrong\n"
        "    3  not run: a key is missing, or the input is wrong (6: the driver cannot be loaded)\n"
        "    4  partial: something could not be run, or is known to fail"
    )
    scratch = group(words, "scratch", "pools that may be destroyed")
    init = add(scratch, "init", everywhere, "scratch_init", "mark an empty pool as one that may be destroyed")
    init.add_argument("driver", metavar="DRIVER", help=driver)
    init.add_argument("--pool", metavar="POOL", required=True, help="as the file of the run has it")
    sweep = add(words, "sweep", everywhere, "sweep", "take away what killed runs of the suite have left")
    sweep.add_argument("--run", metavar="ID", help="only this one")
    sweep.add_argument("--older-than", metavar="SECONDS", type=seconds, help="only those that began before")
    sweep.add_argument("--dry-run", action="store_true", help="say what there is, and touch nothing")


def add_capabilities(words: Words, everywhere: argparse.ArgumentParser) -> None:
    """Add `capabilities`."""
    listed = add(
        words, "capabilities", everywhere, "capabilities", "list what drivers declare, and what is proved"
    )
    listed.add_argument(
        "--evidence",
        metavar="REPORT",
        nargs="+",
        default=[],
        help="a report.json of each driver to be shown",
    )
    shapes, shaped = ("table", "json", "markdown", "html"), "table unless given; json is the same as --json"
    listed.add_argument("--format", choices=shapes, default="table", help=shaped)
    listed.epilog = (
        "CONFIRMED and CONFIRMED-ABSENT are proved, PARTIAL in part; OVERCLAIM is declared and fails,\n"
        "UNSAFE-ABSENT not declared and not refused cleanly, UNDERCLAIM not declared, though it works.\n"
        "UNVERIFIED is everything without a report of the same driver, version and declaration."
    )
    more = listed.add_subparsers(metavar="[diff OLD NEW]", parser_class=Parser)
    diff = add(
        more, "diff", everywhere, "compare_capabilities", "compare two reports; 10 when something is worse"
    )
    diff.add_argument("old", metavar="OLD", help="the report.json of before")
    diff.add_argument("new", metavar="NEW", help="the report.json of now")
