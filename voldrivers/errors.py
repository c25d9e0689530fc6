"""The errors: each class answers what the caller can do next.

Every error states its facts as fields and builds its sentence from them once. Edges (the command
line, HTTP, gRPC, Cinder) own one table each from these classes to their codes; a test checks that
every leaf stands in every table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from voldrivers import sizes


@dataclass(eq=False)
class VolDriverError(Exception):
    """Base of every error that voldrivers raises on purpose."""

    message: ClassVar[str] = "something went wrong"

    def __str__(self) -> str:
        """Say what happened in one sentence, with the facts in it."""
        return self.message.format_map({f.name: getattr(self, f.name) for f in fields(self)})


@dataclass(eq=False)
class InvalidInput(VolDriverError):
    """A name, option, file or call is wrong. Nothing has happened; correct it."""

    message = "{subject}: {reason}"
    subject: str
    reason: str


@dataclass(eq=False)
class InvalidSize(InvalidInput):
    """The size cannot be had. Nothing has happened; ask for another one.

    `current_bytes` is the published size of the volume, `asked` the size as the caller gave it.
    """

    message = "{subject}: cannot be {asked}{now}: {reason}"
    asked: str
    current_bytes: int | None = None

    @property
    def now(self) -> str:
        """The current size as a part of the sentence."""
        return "" if self.current_bytes is None else f", it is {sizes.format_size(self.current_bytes)}"

    def __str__(self) -> str:
        """Name the asked and the current size."""
        return self.message.format(subject=self.subject, asked=self.asked, now=self.now, reason=self.reason)


@dataclass(eq=False)
class NotFound(VolDriverError):
    """There is no such volume, attachment, instance or host. Name another one."""

    message = "{kind} {name} does not exist{where}"
    kind: str
    name: str
    where: str = ""


@dataclass(eq=False)
class InvalidState(VolDriverError):
    """The subject is in a state that forbids the call. Nothing has happened; wait or mend it."""

    message = "{subject} is {state}, must be {needed}"
    subject: str
    state: str
    needed: str


@dataclass(eq=False)
class HostUnreachable(InvalidState):
    """The agent of machine `host` does not answer. Nothing was sent; start it, or give the host up."""

    message = "{subject} is {state}, must be {needed}"
    host: str = ""


@dataclass(eq=False)
class NotSupported(VolDriverError):
    """This backend or host cannot do it. Nothing has happened; choose another one."""

    message = "{subject}: {reason}"
    subject: str
    reason: str


@dataclass(eq=False)
class NoSpace(VolDriverError):
    """There is not enough room. Nothing has happened; free space, then ask again."""

    message = "{subject}: no space, {needed} needed and {free} free"
    subject: str
    needed_bytes: int
    free_bytes: int | None = None

    def __str__(self) -> str:
        """Name the needed and the free bytes."""
        free = "an unknown amount" if self.free_bytes is None else sizes.format_room(self.free_bytes)
        return self.message.format(
            subject=self.subject, needed=sizes.format_size(self.needed_bytes), free=free
        )


#: After one of these nothing has happened, so what was recorded before the call can be taken back.
NOTHING_HAPPENED = (InvalidInput, NotFound, InvalidState, NotSupported, NoSpace)


@dataclass(eq=False)
class BackendError(VolDriverError):
    """The backend, a host or a file failed. Something may have happened: look, then retry."""

    message = "{subject}: {reason}"
    subject: str
    reason: str


@dataclass(eq=False)
class CommandFailed(BackendError):
    """A program ended with an error: its arguments, its exit code and what it wrote."""

    message = "{subject} ended with exit code {exit_code}: {reason}"
    argv: tuple[str, ...] = ()
    exit_code: int | None = None


@dataclass(eq=False)
class OutcomeUnknown(VolDriverError):
    """No answer came in time, so the act may or may not have happened. Look before anything else."""

    message = "the outcome of {what} is unknown: {reason}"
    what: str
    reason: str


def leaves(base: type[VolDriverError] = VolDriverError) -> Iterator[type[VolDriverError]]:
    """Yield every error class below `base`, for the tables at the edges and their test."""
    for child in base.__subclasses__():
        yield child
        yield from leaves(child)


def to_document(error: VolDriverError) -> dict[str, Any]:  # Any: what JSON holds
    """Write an error for another process, one of a vendor's class as the one here that it derives from."""
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == __name__)
    facts = {field.name: getattr(error, field.name) for field in fields(kind)}
    return {"type": kind.__name__, "fields": facts, "notes": getattr(error, "__notes__", [])}


def from_document(document: Mapping[str, Any]) -> VolDriverError:  # Any: what JSON holds
    """Read an error that `to_document` wrote; one of a newer voldrivers is a BackendError.

    Raises KeyError, TypeError, ValueError, AttributeError for something else.
    """
    ours = {kind.__name__: kind for kind in leaves() if kind.__module__ == __name__}
    kind = ours.get(document["type"], BackendError)
    facts = {name: tuple(v) if isinstance(v, list) else v for name, v in document["fields"].items()}
    error = kind(**facts)
    for note in document["notes"]:
        error.add_note(note)
    str(error)  # facts of another type are found here, not where it is shown
    return error
