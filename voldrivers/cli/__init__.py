"""The `voldrivers` command: one sentence and one exit code for whatever happens."""

import logging
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from voldrivers.cli import arguments, failures
from voldrivers.cli.failures import EXIT_CODES, HINTS
from voldrivers.cli.output import complain, prepare
from voldrivers.errors import VolDriverError

__all__ = ["EXIT_CODES", "HINTS", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit code: see `failures.MEANINGS`."""
    prepare()
    args = Namespace(volume=None, command=None)
    try:
        with _stopped_by_sigterm():
            args = arguments.read(sys.argv[1:] if argv is None else argv)
            return _run(args)
    except SystemExit as end:  # argparse has said it all
        return end.code if isinstance(end.code, int) else failures.USAGE
    except VolDriverError as error:
        complain(failures.sentence(error, args.volume))
        return failures.exit_code(error)
    except KeyboardInterrupt as stopped:
        text, code = failures.interruption(stopped, args.volume)
        complain(text)
        return code
    except Exception as error:  # noqa: BLE001 - the last door: a person never sees a traceback unasked
        complain(failures.bug(error, args.volume))
        return failures.bug_code(args.command)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM stop the command in order, as Ctrl-C does."""

    def stop(_number: int, _frame: object) -> None:
        raise failures.Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # only the main thread takes signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _run(args: Namespace) -> int:
    _log_to_stderr(args.verbose)
    arguments.check(args)
    try:
        return _command(args.command)(args)
    except (
        SystemExit
    ) as end:  # a vendor's driver has no say in how a command ends, least of all that it went well
        raise RuntimeError(f"something in it called exit({end.code!r})") from end
    except ModuleNotFoundError as error:
        from voldrivers.plugins import missing_library

        raise missing_library(error) from error


def _command(name: str) -> Callable[[Namespace], int]:
    """Import what a command needs and no more: the engine is not for `--help`, nor for a lab."""
    if name.startswith("lab_"):
        from voldrivers.cli import lab

        return lab.COMMANDS[name]
    if name.startswith("image_"):
        from voldrivers.cli import images

        return images.COMMANDS[name]
    if name in ("conform", "scratch_init", "sweep"):
        from voldrivers.cli import suite

        return suite.COMMANDS[name]
    if name in ("serve", "agent"):
        from voldrivers.cli import serving

        return serving.serve_volumes if name == "serve" else serving.serve_host
    if name.endswith("capabilities"):
        from voldrivers.cli import capabilities

        return capabilities.COMMANDS[name]
    from voldrivers.cli import commands

    return commands.COMMANDS[name]


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
