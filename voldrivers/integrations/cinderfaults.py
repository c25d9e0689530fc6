"""voldrivers' errors as Cinder's."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cinder import exception
from oslo_log import log as logging

from voldrivers.errors import InvalidInput, InvalidState, NotFound, VolDriverError
from voldrivers.integrations import translation

LOG = logging.getLogger(__name__)
#: Exceptions that an operation has of its own, made of what is told.
Own = Mapping[type[VolDriverError], Callable[[str], Exception]]


@contextmanager
def translated(own: Own | None = None) -> Iterator[None]:
    """Raise voldrivers' errors as Cinder's: those of an operation's `own` first, then by the table."""
    try:
        yield
    except VolDriverError as error:
        told = translation.told(error)
        for kind, make in (own or {}).items():
            if isinstance(error, kind):
                LOG.warning("%s", told)
                raise make(told) from error
        raise getattr(exception, translation.exception_name(error))(told) from error


def raising(made: Exception, *kinds: type[VolDriverError]) -> Own:
    """Give one exception for some errors; what is told of those is logged."""
    return dict.fromkeys(kinds, lambda _told: made)


def which(existing_ref: Mapping[str, str]) -> str:
    """Give the name of what is to be managed. Raises ManageExistingInvalidReference."""
    for name in ("source-name", "source-id"):
        if existing_ref.get(name):
            return existing_ref[name]
    reason = "must have the element source-name, with the backend's name of what is there"
    raise exception.ManageExistingInvalidReference(existing_ref=existing_ref, reason=reason)


def refused(existing_ref: Mapping[str, str]) -> Own:
    """Give what is raised where the reason lies in what is to be managed."""

    def refusal(told: str) -> Exception:
        made: Exception = exception.ManageExistingInvalidReference(existing_ref=existing_ref, reason=told)
        return made

    return dict.fromkeys((NotFound, InvalidInput, InvalidState), refusal)
