"""The `voldrivers` command: one sentence and one exit code for whatever happens."""

import logging
import sys
from argparse import Namespace
from collections.abc import Sequence

from voldrivers.cli import arguments, failures
from voldrivers.cli.failures import EXIT_CODES, HINTS
from voldrivers.cli.output import complain, prepare
from voldrivers.errors import VolDriverError

__all__ = ["EXIT_CODES", "HINTS", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit code: see `failures.MEANINGS`."""
    prepare()
    try:
        args = arguments.read(sys.argv[1:] if argv is None else argv)
    except SystemExit as end:  # argparse has said it all
        return end.code if isinstance(end.code, int) else failures.USAGE
    except VolDriverError as error:  # the help could not be written
        complain(str(error))
        return failures.exit_code(error)
    return _run(args)


def _run(args: Namespace) -> int:
    _log_to_stderr(args.verbose)
    try:
        from voldrivers.cli import commands  # the engine: not for --help

        return commands.COMMANDS[args.command](args)
    except VolDriverError as error:
        complain(failures.sentence(error, args.volume))
        return failures.exit_code(error)
    except ModuleNotFoundError as error:
        from voldrivers.registry import missing_library

        missing = missing_library(error)
        complain(failures.sentence(missing, args.volume))
        return failures.exit_code(missing)
    except KeyboardInterrupt:
        complain(f"interrupted; what had begun is recorded, run: voldrivers resume {args.volume or ''}")
        return failures.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last door: a person never sees a traceback unasked
        complain(failures.bug(error))
        return failures.BUG


def _log_to_stderr(verbose: int) -> None:
    """Log the story, or every program run too; without -v foreign libraries stay silent as well."""
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())
    log = logging.getLogger("voldrivers")
    log.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG))
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        log.handlers[:] = [handler]
