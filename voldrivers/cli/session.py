"""What stands around a command: the engine, the line of progress, and what to do after an error."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast  # cast: see `_opened`

from voldrivers import registry
from voldrivers.cli import texts
from voldrivers.cli.output import ProgressLine
from voldrivers.errors import (
    BackendError,
    HostUnreachable,
    InvalidInput,
    InvalidState,
    NoSpace,
    NotFound,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.extend.engine import Engine
from voldrivers.model import Volume, VolumeStatus

#: What is refused there because of some layer below an attached volume.
_LOOKING_HELPS = ("extend", "doctor")
#: What comes before `resume` where an operation has failed in the middle.
_ALONE = "if no process works on it,"
_FIRST = {NoSpace: "free some space, then", BackendError: "mend the cause, then"}
#: These make a volume, or leave none.
_MAKING = ("create", "manage")


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
                advise(error, engine, args)
            raise
        except KeyboardInterrupt as stopped:
            if args.volume is not None:
                _say_what_is_left(stopped, engine, args)
            raise
        finally:
            line.clear()


def advise(error: VolDriverError, engine: Engine, args: Namespace) -> None:
    """Note what goes on from here, by how the volume of the command is now."""
    try:
        volume = _seen(engine, args)
    except VolDriverError:  # the records cannot be read; the error says why
        return
    if isinstance(error, InvalidInput | OutcomeUnknown):
        return
    if volume is None:
        if args.command in _MAKING and isinstance(error, InvalidState | BackendError):
            again = "mend the cause and run it again, " if isinstance(error, BackendError) else ""
            error.add_note(f"{again}no volume was made")
        return
    if note := _advice(error, volume, args.command):
        error.add_note(note)


def config_path(args: Namespace) -> Path:
    """Choose the configuration. Raises InvalidInput when there is none."""
    return registry.find_config(Path(args.config) if args.config is not None else None)


def _opened(args: Namespace, line: ProgressLine) -> Engine:
    if args.url is not None:
        from voldrivers.api.served import Served  # 150 ms: only who uses a service pays

        token_file, ca_file = (
            None if each is None else Path(each) for each in (args.token_file, args.ca_file)
        )
        served = Served(args.url, token_file, ca_file)
        return cast(Engine, served)  # cast: it has the operations, and refuses the others
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


def _advice(error: VolDriverError, volume: Volume, command: str) -> str:
    """Say what helps where the error alone does not tell."""
    lost = error.host if isinstance(error, HostUnreachable) else ""
    has_it = any(each.host == lost for each in volume.attachments)
    if volume.status is VolumeStatus.ERROR_EXTENDING:
        without = f" (host {lost} lost for good: voldrivers detach {volume.name} --host {lost} --force)"
        return f"mend the cause{without if has_it else ''}, then run: voldrivers retry {volume.name}"
    if not texts.is_steady(volume):
        first = next((what for kind, what in _FIRST.items() if isinstance(error, kind)), _ALONE)
        return f"{first} run: voldrivers resume {volume.name}"
    if lost:
        return "" if has_it else "start its agent and try again"
    is_elsewhere = isinstance(error, InvalidState) and error.subject != volume.title
    if is_elsewhere and volume.attachments and command in _LOOKING_HELPS:
        return f"wait or mend it, then look: voldrivers doctor {volume.name}"
    return ""


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
    elif texts.is_steady(volume):
        if not hasattr(stopped, "__notes__"):  # else what was interrupted has said what remains
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
