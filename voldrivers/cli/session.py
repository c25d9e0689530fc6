"""What stands around a command: the engine, the line of progress, and what to do after an error."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voldrivers import registry
from voldrivers.cli import texts
from voldrivers.cli.output import ProgressLine
from voldrivers.errors import InvalidInput, NotFound, OutcomeUnknown, VolDriverError
from voldrivers.extend.engine import Engine
from voldrivers.model import Volume, VolumeStatus


@contextmanager
def working(args: Namespace) -> Iterator[Engine]:
    """Open the engine; an error leaves with what to do next, by the status that the volume has now.

    What is printed afterwards has the terminal's line for itself.
    """
    line = ProgressLine(sys.stderr, quiet=args.verbose > 0)
    with _opened(args, line) as engine:
        try:
            yield engine
        except VolDriverError as error:
            if args.volume is not None:
                _advise(error, engine, args)
            raise
        except KeyboardInterrupt as stopped:
            if args.volume is not None:
                _say_what_is_left(stopped, engine, args)
            raise
        finally:
            line.clear()


def config_path(args: Namespace) -> Path:
    """Choose the configuration. Raises InvalidInput when there is none."""
    return registry.find_config(Path(args.config) if args.config is not None else None)


def _opened(args: Namespace, line: ProgressLine) -> Engine:
    try:
        config = registry.load(config_path(args))
    except VolDriverError as error:
        error.add_note("see: voldrivers config check")
        raise
    except KeyboardInterrupt as stopped:
        stopped.add_note("nothing was changed")
        raise
    try:
        return Engine.open(config, lambda progress: line.show(texts.progress(progress)))
    except (VolDriverError, KeyboardInterrupt) as error:
        error.add_note("nothing was changed")
        raise


def _advise(error: VolDriverError, engine: Engine, args: Namespace) -> None:
    """Note the command that goes on from here, if the volume is left in the middle of something."""
    try:
        volume = _seen(engine, args)
    except VolDriverError:  # the records cannot be read; the error says why
        return
    if volume is None or isinstance(error, InvalidInput | OutcomeUnknown):
        return
    if volume.status is VolumeStatus.ERROR_EXTENDING:
        error.add_note(f"mend the cause, then run: voldrivers retry {volume.name}")
    elif volume.status not in texts.STEADY:
        error.add_note(f"if no process works on it, run: voldrivers resume {volume.name}")


def _say_what_is_left(stopped: KeyboardInterrupt, engine: Engine, args: Namespace) -> None:
    """Note whether something had begun: only then there is something to carry on."""
    try:
        volume = _seen(engine, args)
    except VolDriverError:  # the records cannot be read now; `resume` will
        return
    if volume is None:
        stopped.add_note("there is nothing to carry on")
    elif volume.status is VolumeStatus.ERROR_EXTENDING:
        stopped.add_note(f"its extend is not complete, run: voldrivers retry {volume.name}")
    elif volume.status in texts.STEADY:
        stopped.add_note(f"it is {volume.status}, there is nothing to carry on")
    else:
        stopped.add_note(f"what had begun is recorded, run: voldrivers resume {volume.name}")


def _seen(engine: Engine, args: Namespace) -> Volume | None:
    """Look up the volume of the command, if there is one; it is known by its name from here on."""
    try:
        volume = engine.volume(args.volume)
    except NotFound:
        return None
    args.volume = volume.name
    return volume
