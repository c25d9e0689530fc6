"""What a person or a test does with labs, through their keepers (see `protocol`)."""

import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace

from voldrivers import process
from voldrivers.errors import BackendError, NotFound, OutcomeUnknown, VolDriverError, from_document
from voldrivers.lab import project
from voldrivers.lab.keeper import runtime
from voldrivers.lab.keeper.protocol import Command, Connection, Frame, LabStatus, Libraries, Wish
from voldrivers.lab.keeper.runtime import Site
from voldrivers.lab.keeper.streams import Streams, Take

Say = Callable[[str], None]

_BEGIN_S, _ANSWER_S = 20.0, 5.0
_TRIES = 3
_LOG_LINES = 30


@dataclass(frozen=True)
class Found:
    """A lab that was found: how it is, or why that is not known."""

    name: str
    status: LabStatus | None
    problem: str = ""


def up(name: str, wish: Wish, say: Say) -> LabStatus:
    """Start a lab, or wait until the one that is starting or runs is ready.

    Raises InvalidState when it runs and is not as wished; NotFound without the state; NotSupported,
    BackendError, OutcomeUnknown, with the end of its log, when it does not come up.
    """
    place = runtime.site(name)
    for _ in range(_TRIES):  # an earlier keeper may be ending, and hear nothing any more
        connection = _begin(place)
        try:
            if status := _come_up(connection, place, wish, say, stays=False):
                return status
        finally:
            connection.close()
    raise _ended(place)


def run(name: str, command: Command, take_results: Take = lambda _: None) -> int:
    """Run a command in a lab that runs, with our standard streams; give its exit code, as a shell would.

    Our signals become its own. Raises NotFound without the lab; what `Lab.bring_project`,
    `RunningCommand.wait` and `take_results` raise; InvalidState while another command's results are awaited.
    """
    place = runtime.site(name)
    connection = Connection.open(place.socket)
    if connection is None:
        raise NotFound("lab", name)
    libraries = Libraries(str(project.site_packages()), project.dependencies_key())
    try:
        connection.send({"request": "run", "command": asdict(replace(command, libraries=libraries))})
        return Streams(connection, command, take_results).follow()
    finally:
        connection.close()


@contextmanager
def private(wish: Wish, say: Say) -> Iterator[str]:
    """Start a lab that ends with the block, however it ends; give its name. Raises as `up`."""
    place = Site(f"run-{os.getpid()}-{secrets.token_hex(2)}", runtime.cache_directory(), private=True)
    connection = _begin(place)
    try:
        if _come_up(connection, place, wish, say, stays=True) is None:
            raise _ended(place)
        yield place.name
    finally:
        connection.close()
        runtime.wait_until_gone(place)


def is_running(name: str) -> bool:
    """Tell whether a lab has a keeper. Raises InvalidState when that does not answer."""
    connection = Connection.open(runtime.site(name).socket)
    if connection is not None:
        connection.close()
    return connection is not None


def found() -> Iterator[Found]:
    """Give all labs of this user, of all caches; what is left of ended ones is removed."""
    for name in runtime.names():
        place = runtime.site(name)
        try:
            connection = Connection.open(place.socket)
            if connection is not None:
                yield Found(name, _status(connection))
            elif runtime.remove_stale(place):
                yield Found(name, None, "it had ended without cleaning up; its rest was removed")
        except VolDriverError as error:
            yield Found(name, None, str(error))


def down(name: str) -> bool:
    """End a lab and wait until nothing is left of it; tell whether it ran.

    A keeper that does not answer is killed. Raises OutcomeUnknown when even that does not end it.
    """
    place = runtime.site(name)
    connection = Connection.open(place.socket)
    if connection is None:
        runtime.remove_stale(place)
        return False
    keeper = connection.peer_pid
    try:
        _ask(connection, {"request": "down"})
        runtime.wait_until_gone(place)
    except OutcomeUnknown:
        with suppress(ProcessLookupError):
            os.kill(keeper, signal.SIGKILL)
        runtime.wait_until_gone(place)
    finally:
        connection.close()
    return True


def save(name: str, state: str) -> None:
    """Save the machines of a lab that runs as a state for `Wish.state`. Raises NotFound, as `Lab.save`."""
    _request(name, {"request": "save", "name": state})


def pull(name: str, lever: str, words: Sequence[str]) -> None:
    """Pull a lever in a lab that runs. Raises NotFound, and as `levers.pull`."""
    _request(name, {"request": "lever", "name": lever, "words": list(words)})


def _begin(place: Site) -> Connection:
    """Connect to the keeper of a lab; start it if there is none."""
    connection = Connection.open(place.socket)
    if connection is not None:
        return connection
    from voldrivers.lab.keeper import requirements  # the image's recipe: only who starts a lab pays

    requirements.check(place.cache)
    try:
        for directory in (place.log.parent, place.lock.parent):
            directory.mkdir(parents=True, exist_ok=True)
        requirements.check_space(place.cache)
        place.log.touch()
    except OSError as error:
        raise BackendError(f"the cache {place.cache}", f"cannot be used: {error.strerror}") from error
    mode = ["private"] if place.private else []
    argv = [sys.executable, "-P", "-m", "voldrivers.lab.keeper", place.name, str(place.cache), *mode]
    before_bytes = place.log.stat().st_size if place.log.exists() else 0
    keeper = process.start(argv, output=place.log)
    connection = _connect(place, lambda: keeper.poll() is not None)
    if connection is None:
        raise BackendError(
            f"the keeper of lab {place.name}", f"it does not start: {_log_end(place, before_bytes)}"
        )
    return connection


def _connect(place: Site, has_ended: Callable[[], bool]) -> Connection | None:
    """Connect to a keeper that starts; the socket of an earlier one may still be there, and go."""
    found: list[Connection | None] = [None]

    def connected() -> bool:
        ended = has_ended()  # looked at first: it may have ended because another one is faster
        found[:] = [Connection.open(place.socket)]
        return ended or found[0] is not None

    process.holds_within(connected, _BEGIN_S)
    return found[0]


def _come_up(connection: Connection, place: Site, wish: Wish, say: Say, *, stays: bool) -> LabStatus | None:
    """Wait until a lab is as wished; None if its keeper ended without a word."""
    try:
        connection.send({"request": "up", "wish": asdict(wish), "stays": stays})
        answer = _answer(connection, place, say)
        return None if answer is None else LabStatus.read(answer["status"])
    except OSError:  # it is gone already
        return None
    except (BackendError, OutcomeUnknown):
        say(f"the end of {place.log}:\n{_log_end(place)}")
        raise


def _request(name: str, frame: Frame) -> None:
    place = runtime.site(name)
    connection = Connection.open(place.socket)
    if connection is None:
        raise NotFound("lab", name)
    try:
        connection.send(frame)
        if _answer(connection, place) is None:
            raise NotFound("lab", name)
    finally:
        connection.close()


def _answer(connection: Connection, place: Site, say: Say = lambda _: None) -> Frame | None:
    """Wait for an answer; None from a keeper that ended without a word."""
    heard = False
    for frame in connection.frames():
        heard = True
        if "say" in frame:
            say(frame["say"])
        elif "error" in frame:
            raise from_document(frame["error"])
        else:
            return frame
    if heard:
        raise _ended(place)
    return None


def _ended(place: Site) -> BackendError:
    return BackendError(f"the keeper of lab {place.name}", f"it ended, see {place.log}")


def _ask(connection: Connection, frame: Frame) -> Frame:
    """Ask what a keeper answers at once. Raises OutcomeUnknown when it does not, and what it answers."""
    try:
        connection.send(frame)
        answer = connection.receive(_ANSWER_S)
    except OSError as error:
        raise OutcomeUnknown("a request to the keeper", str(error)) from error
    if answer is None:
        raise OutcomeUnknown("a request to the keeper", "it ended meanwhile")
    if "error" in answer:
        raise from_document(answer["error"])
    return answer


def _status(connection: Connection) -> LabStatus:
    try:
        return LabStatus.read(_ask(connection, {"request": "status"})["status"])
    finally:
        connection.close()


def _log_end(place: Site, from_bytes: int = 0) -> str:
    try:
        with place.log.open(errors="replace") as log:
            log.seek(from_bytes)
            return "".join(deque(log, _LOG_LINES)).strip() or "it printed nothing"
    except OSError as error:
        return f"no log: {error.strerror}"
