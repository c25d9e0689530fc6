"""The watch: every call of the driver and every program of it goes past, is noted, and may be struck."""

import inspect
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from voldrivers.abilities import INTERFACES
from voldrivers.base import Completed, Driver, Run
from voldrivers.conformance.subject import Intend
from voldrivers.conformance.verdicts import Broken
from voldrivers.errors import VolDriverError
from voldrivers.model import Snapshot, Volume

#: Called before (True) and after (False) each call of the driver, with the call's number and name; for a
#: program that the driver runs, the name is `run` and the program's.
Strike = Callable[[int, str, bool], None]


@dataclass(frozen=True)
class Call:
    """One call of the driver, ended."""

    name: str
    about: str
    answer: str
    seconds: float

    def __str__(self) -> str:
        """Write it as a line of a trace."""
        return f"{self.name}({self.about}) -> {self.answer} in {self.seconds:.3f} s"


class Killed(BaseException):
    """The process that works on a volume is gone, here and now."""


def _no_strike(_number: int, _name: str, _before: bool) -> None:
    """Let everything pass."""


@dataclass
class Watch:
    """What passes between the suite and one driver. Only what the run has made may be touched."""

    is_ours: Callable[[str], bool]
    intend: Intend
    calls: list[Call] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)
    strike: Strike = _no_strike
    foreign_error: BaseException | None = None

    @contextmanager
    def struck(self, strike: Strike) -> Iterator[None]:
        """Have `strike` called around every call."""
        self.strike = strike
        try:
            yield
        finally:
            self.strike = _no_strike

    def pass_on(self, name: str, method: Callable[..., Any], *args: Any, **words: Any) -> Any:  # Any: all
        """Make a call."""
        things = [each for each in (*args, *words.values()) if isinstance(each, Volume | Snapshot)]
        for each in things:
            if not self.is_ours(each.id):
                raise RuntimeError(f"the suite was about to call {name} for {each.id}, which is not its own")
        self.intend(name, [*args, *words.values()])
        about = ", ".join(f"{type(each).__name__.lower()} {each.name}" for each in things)
        return self._noted(name, about, partial(method, *args, **words))

    def running(self, run: Run) -> Run:
        """Give a way to run programs that goes past the watch too."""

        def watched_run(argv: Sequence[str], *, timeout_s: float) -> Completed:
            act = partial(run, argv, timeout_s=timeout_s)
            ended: Completed = self._noted(f"run {Path(argv[0]).name}", shlex.join(argv), act)
            return ended

        return watched_run

    def _noted(self, name: str, about: str, act: Callable[[], Any]) -> Any:  # Any: all
        number, began, answer = next(self.numbers), time.monotonic(), "killed"
        try:
            self.strike(number, name, True)
            result = act()
            answer = _shown(result)
            self.strike(number, name, False)
        except VolDriverError as error:
            answer = f"{type(error).__name__}: {error}"
            raise
        except (Killed, Broken):
            raise
        except (Exception, SystemExit) as error:
            answer = f"{type(error).__name__}: {error}"
            self.foreign_error = error
            raise
        finally:
            self.calls.append(Call(name, about, answer, time.monotonic() - began))
        return result


def watched(kind: type[Driver], watch: Watch) -> type[Driver]:
    """Make a subclass of a driver whose every call goes past the watch. Raises Broken for half a driver."""
    if lacking := sorted(getattr(kind, "__abstractmethods__", ())):
        raise Broken("I9", f"{kind.__name__} does not have all methods", lacking=lacking)
    wrapped = {name: _wrapped(name, watch) for name in methods(kind)}
    return type(kind.__name__, (kind,), wrapped | {"__module__": kind.__module__})


def methods(kind: type[Driver]) -> dict[str, Callable[..., Any]]:  # Any: each method has its own
    """Give the methods of the interfaces that a driver implements, by name, as the interfaces have them."""
    interfaces = [Driver, *(each for _, _, each in INTERFACES if issubclass(kind, each))]
    return {
        name: value
        for interface in interfaces
        for name, value in vars(interface).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


def _wrapped(name: str, watch: Watch) -> Callable[..., Any]:  # Any: each method has its own
    def call(self: Driver, *args: Any, **words: Any) -> Any:  # Any: each method has its own
        if getattr(self, "_inside", False):  # the driver calls itself
            return getattr(super(type(self), self), name)(*args, **words)
        self._inside = True  # type: ignore[attr-defined]  # of the subclass made here
        try:
            return watch.pass_on(name, partial(getattr(super(type(self), self), name)), *args, **words)
        finally:
            self._inside = False  # type: ignore[attr-defined]  # as above

    return call


def _shown(result: object) -> str:
    return repr(result)[:200]
