"""The one table from an error to its exit code, the hint beside it, and the sentence people read."""

import logging
import traceback
from collections.abc import Mapping

from voldrivers.errors import (
    BackendError,
    CommandFailed,
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

OK, BUG, USAGE, STALE, INTERRUPTED = 0, 1, 2, 10, 130

EXIT_CODES: Mapping[type[VolDriverError], int] = {
    InvalidInput: 3,
    InvalidSize: 3,
    NotFound: 4,
    InvalidState: 5,
    NotSupported: 6,
    NoSpace: 7,
    BackendError: 8,
    CommandFailed: 8,
    OutcomeUnknown: 9,
}

#: What to do next, where the error itself and the volume's status do not say it.
HINTS: Mapping[type[VolDriverError], str] = {
    InvalidInput: "nothing was changed, correct it and run it again",
    InvalidSize: "nothing was changed, ask for another size",
    NotFound: "see: voldrivers volume list",
    InvalidState: "see: voldrivers volume show {volume}",
    NotSupported: "see: voldrivers capabilities",
    NoSpace: "free some space and run it again",
    BackendError: "mend the cause, then look: voldrivers doctor {volume}",
    CommandFailed: "mend the cause, then look: voldrivers doctor {volume}",
    OutcomeUnknown: "run: voldrivers resume {volume}",
}

#: What `--help` says of the exit codes.
MEANINGS: Mapping[int, str] = {
    OK: "done",
    BUG: "a mistake in voldrivers; -v shows where",
    USAGE: "a wrong command line",
    3: "a wrong name, option, file or size",
    4: "no such volume, backend, host, instance or attachment",
    5: "its state forbids it now",
    6: "this backend or host cannot do it, or a library is missing",
    7: "no space",
    8: "the backend, a host or a program failed",
    9: "the outcome is unknown: `resume` looks",
    STALE: "doctor: a layer is stale, or an extend has not ended well",
    INTERRUPTED: "interrupted: `resume` carries on",
}


def exit_code(error: VolDriverError) -> int:
    """Give the exit code of an error, of a class that a vendor derived as well."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


def sentence(error: VolDriverError, volume: str | None) -> str:
    """Say what happened and what to do next, in one line; a note on the error replaces the hint."""
    _log.debug("the error came from here", exc_info=error)
    notes = getattr(error, "__notes__", ())
    hint = next(HINTS[kind] for kind in type(error).__mro__ if kind in HINTS)
    return f"{error}; {' '.join(notes) or hint.format(volume=volume or 'VOLUME')}"


def bug(error: Exception) -> str:
    """Say in one line that voldrivers itself failed, and where; the traceback goes to the log."""
    _log.info("a mistake in voldrivers", exc_info=error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return (
        f"a mistake in voldrivers: {type(error).__name__}: {error}{where};"
        " please report it with what `voldrivers -v` prints"
    )
