"""What clients of the Block Storage API are told of our errors."""

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

#: How an error of ours is told. Cinder says 400 where others would say 409.
STATUS: Mapping[type[VolDriverError], int] = {
    InvalidInput: 400,
    InvalidSize: 400,
    NotFound: 404,
    InvalidState: 400,
    HostUnreachable: 400,
    NotSupported: 400,
    NoSpace: 413,
    BackendError: 500,
    CommandFailed: 500,
    OutcomeUnknown: 500,
}


class Refused(Exception):
    """A request that is refused with a status, for a reason."""

    def __init__(self, status: int, reason: str, error: VolDriverError | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.error = status, reason, error


def refusal(error: VolDriverError) -> Refused:
    """Give an error of ours as what a client gets."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
    return Refused(status, f"{error}{notes}", error)
