"""The one table from an error to its exit code, the hint beside it, and the sentence people read."""

import logging
import re
import traceback
from collections.abc import Mapping

from voldrivers.errors import (
    BackendError,
    CommandFailed,
    HostUnreachable,
    InvalidInput,
    InvalidSize,
    InvalidState,
    NoSpace,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)

_log = logging.getLogger(__name__)

OK, BUG, USAGE, STALE, INTERRUPTED, TERMINATED = 0, 1, 2, 10, 130, 143
#: `conform` could not judge.
SUITE_FAILED = 2


class Terminated(KeyboardInterrupt):
    """SIGTERM came: it stops whatever Ctrl-C stops."""


EXIT_CODES: Mapping[type[VolDriverError], int] = {
    InvalidInput: 3,
    InvalidSize: 3,
    NotFound: 4,
    InvalidState: 5,
    HostUnreachable: 5,
    NotSupported: 6,
    NoSpace: 7,
    BackendError: 8,
    CommandFailed: 8,
    OutcomeUnknown: 9,
}

#: What to do where a host that has the volume will never answer again.
LOST_FOR_GOOD = "lost for good: voldrivers detach {volume} --host {host} --force"

#: What to do next, where the error itself and the volume's status do not say it.
HINTS: Mapping[type[VolDriverError], str] = {
    InvalidInput: "nothing was changed, correct it and run it again",
    InvalidSize: "nothing was changed, ask for another size",
    NotFound: "bring it back or name another one",
    InvalidState: "see: voldrivers volume show {volume}",
    HostUnreachable: f"start its agent and try again; {LOST_FOR_GOOD}",
    NotSupported: "see: voldrivers capabilities",
    NoSpace: "free some space and run it again",
    BackendError: "mend the cause, then look: voldrivers doctor {volume}",
    CommandFailed: "mend the cause, then look: voldrivers doctor {volume}",
    OutcomeUnknown: "run: voldrivers resume {volume}",
}

#: Where what is missing is listed, by its kind.
LISTED: Mapping[str, str] = {
    "volume": "see: voldrivers volume list",
    "snapshot": "see: voldrivers snapshot list",
    "attachment": "see: voldrivers volume show {volume}",
    "backend": "see: voldrivers config check",
    "host": "see: voldrivers config check",
}

#: What `--help` says of the exit codes.
MEANINGS: Mapping[int, str] = {
    OK: "done",
    BUG: "a mistake in voldrivers; -v shows where",
    USAGE: "a wrong command line",
    3: "a wrong name, option, file or size",
    4: "no such volume, snapshot, backend, host, instance or attachment",
    5: "its state, or that of a share, host or guest, forbids it now",
    6: "this backend or host cannot do it, or a library is missing",
    7: "no space",
    8: "the backend, a host or a program failed",
    9: "the outcome is unknown: `resume` looks",
    STALE: "doctor: a layer is stale or unreadable, or something is left to carry on; diff: it got worse",
    INTERRUPTED: "interrupted (Ctrl-C): `resume` carries on what had begun",
    TERMINATED: "terminated (SIGTERM): `resume` carries on what had begun",
}


def exit_code(error: VolDriverError) -> int:
    """Give the exit code of an error, of a class that a vendor derived as well."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


def sentence(error: VolDriverError, volume: str | None) -> str:
    """Say what happened to which volume and what to do next; a note on the error replaces the hint."""
    _log.debug("the error came from here", exc_info=error)
    known = {"volume": volume or "VOLUME", "host": getattr(error, "host", "")}
    hint = "; ".join(getattr(error, "__notes__", ())) or _hint(error).format_map(known)
    return f"{named(str(error), volume)}; {hint}"


def interruption(stopped: KeyboardInterrupt, volume: str | None) -> tuple[str, int]:
    """Say what is left behind, as the notes have it, and give the exit code."""
    recorded = f"whatever had begun is recorded: voldrivers resume {volume or ''}"
    hint = "; ".join(getattr(stopped, "__notes__", ())) or recorded
    terminated = isinstance(stopped, Terminated)
    what = "terminated" if terminated else "interrupted"
    return f"{named(what, volume)}; {hint}", TERMINATED if terminated else INTERRUPTED


def bug(error: Exception, volume: str | None) -> str:
    """Say in one line that voldrivers itself failed, and where; the traceback goes to the log."""
    _log.info("a mistake in voldrivers", exc_info=error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    what = f"a mistake in voldrivers: {type(error).__name__}: {error}{where}"
    return f"{named(what, volume)}; please report it with what `voldrivers -v` prints"


def bug_code(command: str | None) -> int:
    """Give the exit code of a mistake in voldrivers: of the suite 1 would say that the driver is bad."""
    return SUITE_FAILED if command == "conform" else BUG


def named(text: str, volume: str | None) -> str:
    """Put the volume before a text that does not name it."""
    if not volume or re.search(rf"\bvolume (name |{re.escape(volume)}(?![\w.+@:=-]*\w))", text):
        return text
    return f"volume {volume}: {text}"


def _hint(error: VolDriverError) -> str:
    # A volume that is not on its backend or not at its host (`where`) is in the list all the same.
    if isinstance(error, NotFound) and error.kind in LISTED and not (error.kind == "volume" and error.where):
        return LISTED[error.kind]
    if isinstance(error, HostUnreachable) and not error.host:
        return "start it, or look at the address, its port and whether it speaks TLS"
    return next(HINTS[kind] for kind in type(error).__mro__ if kind in HINTS)
