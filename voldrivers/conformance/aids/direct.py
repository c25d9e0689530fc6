"""Calls of the driver past the engine: what the engine would never ask for, or would set right."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.hiding import SECRET, secret_options
from voldrivers.conformance.verdicts import NotRun, expect
from voldrivers.errors import OutcomeUnknown, VolDriverError
from voldrivers.model import ConnectionInfo, Connector, Volume
from voldrivers.options import read_options


def options(bench: Bench) -> object:
    """Give the options of a volume for which none were asked."""
    kind: type[object] = bench.driver.volume_options_type
    return read_options(kind, {}, "volume option")


def usual_options(bench: Bench) -> object:
    """Give the options of every volume that is made here."""
    kind: type[object] = bench.driver.volume_options_type
    return read_options(kind, bench.subject.volume_options, "volume option")


def blank(bench: Bench, size_bytes: int = 0, name: str = "") -> Volume:
    """Give a volume that nobody has made yet."""
    return Volume(bench.new_id(), name or bench.name(), bench.driver.name, size_bytes or bench.small)


def make(bench: Bench, volume: Volume) -> Volume:
    """Have the driver make a volume; give it with its provider_data."""
    return replace(volume, provider_data=bench.driver.create_volume(volume, options(bench)))


@contextmanager
def made(bench: Bench, volume: Volume) -> Iterator[Volume]:
    """Have a volume that only the driver knows, and have it removed at the end."""
    try:
        yield make(bench, volume)
    finally:
        bench.driver.delete_volume(volume)


def gone(bench: Bench) -> Volume:
    """Give a volume that was there, and is not any more."""
    volume = bench.create()
    bench.engine.delete_volume(volume.id)
    return volume


@contextmanager
def exported(bench: Bench, volume: Volume) -> Iterator[tuple[Connector, ConnectionInfo]]:
    """Let the first host reach a volume that is not attached there, and take that back at the end."""
    connector = bench.subject.places[0].host.connector()
    try:
        yield connector, bench.driver.initialize_connection(volume, connector)
    finally:
        bench.driver.terminate_connection(volume, connector)


def elsewhere(bench: Bench, method: str, *things: object) -> Any:  # Any: each method has its own answer
    """Call a method of the driver in a process that has just been started. Raises NotRun."""
    ask = bench.subject.elsewhere
    if ask is None:
        raise NotRun("the subject tells no way to another process")
    return bench.watch.pass_on(method, partial(ask, method), *things)


@contextmanager
def lost_answer(bench: Bench, method: str, error: VolDriverError | None = None) -> Iterator[None]:
    """Have the first call of a method take effect and end in an error, which ends here: a lost answer."""
    error = error or OutcomeUnknown(method, "its answer was lost")
    struck: list[str] = []

    def strike(_number: int, name: str, before: bool) -> None:
        if name == method and not before and not struck:
            struck.append(name)
            raise error

    with bench.watch.struck(strike), suppress(type(error)):
        yield
    expect(struck, "I9", f"{method} was not called")


def secrets(bench: Bench, info: ConnectionInfo | None) -> set[str]:
    """Name what nobody may see: secrets among the driver's options, and those that a host logs in with."""
    given = info.properties.items() if info else ()
    return secret_options(bench.subject) | {
        str(value) for name, value in given if value and SECRET.search(name)
    }
