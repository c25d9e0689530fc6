"""Hypervisors that are watched while they are asked to grow a volume, fail, or do nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from unittest.mock import patch

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.verdicts import expect
from voldrivers.conformance.watch import Killed
from voldrivers.errors import BackendError, OutcomeUnknown, VolDriverError
from voldrivers.model import Attachment, Extend, Volume, VolumeStatus


def _nothing() -> None:
    """Do nothing."""


@contextmanager
def asked(
    bench: Bench, before: Callable[[], None] = _nothing, after: Callable[[], None] = _nothing
) -> Iterator[None]:
    """Have something happen before and after a hypervisor does what it is asked for."""
    host = bench.subject.places[0].host
    really = host.assist_extend

    def act(volume: Volume, attachment: Attachment, extend: Extend) -> None:
        before()
        really(volume, attachment, extend)
        after()

    with patch.object(host, "assist_extend", act):
        yield


@contextmanager
def answering(bench: Bench, error: VolDriverError | None) -> Iterator[None]:
    """Have a hypervisor do nothing, and answer with an error or that all is well."""
    with patch.object(bench.subject.places[0].host, "assist_extend", side_effect=error, return_value=None):
        yield


def say(kind: type[BackendError] | type[OutcomeUnknown]) -> None:
    """Have a hypervisor answer with this error."""
    raise kind("hypervisor", "the suite had it say so")


def leave_pending(bench: Bench, volume: Volume, size_bytes: int, *, grown: bool = False) -> None:
    """Kill who extends while the hypervisor is asked, before or after it acted; start everything anew."""
    died = asked(bench, after=_die) if grown else asked(bench, before=_die)
    with died, suppress(Killed):
        bench.extend(volume, size_bytes)
    bench.restart()
    status = bench.now(volume).status
    expect(status is VolumeStatus.EXTENDING, "I14", "its extend was forgotten", status=status)


def _die() -> None:
    raise Killed
