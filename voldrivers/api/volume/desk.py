"""The desk: where requests meet the engine. A look is answered, an act is begun, answered, and carried on.

An operation that was refused before it began is refused to its client, with the reason. One that has begun is
on disk: the client has its answer then, and the operation goes on here, in `resume` after a crash.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from voldrivers.api.figures import Figures
from voldrivers.config import Config
from voldrivers.errors import InvalidState, OutcomeUnknown, VolDriverError
from voldrivers.extend.engine import Engine
from voldrivers.extend.resuming import under_way
from voldrivers.extend.site import Progress
from voldrivers.model import Phase, Volume

_log = logging.getLogger(__name__)
#: So many operations at once; more wait for their turn, and their clients for an answer.
_AT_ONCE = 64
_LOOKS = 16
#: Whoever ends an operation has its result on disk a moment before it lets go of the volume.
_PATIENCE_S = 5.0
#: What was left under way is looked for again so often.
RESUME_S = 20.0

Result = TypeVar("Result")
Begun = Callable[[Engine, Volume], None]
Failed = Callable[[Engine, VolDriverError], None]


@dataclass
class _Operation:
    """One operation in one thread: what its client waits for, and in which phase an extend is."""

    begun: Begun
    told: Future[object] = field(default_factory=Future)
    step: str = ""
    since: float = field(default_factory=time.monotonic)


class Desk:
    """Threads, each with an engine of its own."""

    def __init__(self, config: Config, figures: Figures) -> None:
        """Work on what a configuration reaches."""
        self._config, self._figures = config, figures
        self._mine = threading.local()
        self._looks = ThreadPoolExecutor(_LOOKS, "look")
        self._acts = ThreadPoolExecutor(_AT_ONCE, "act")
        self._ends = threading.Event()
        self._resumer = threading.Thread(target=self._resume_now_and_then, daemon=True)

    def start(self) -> None:
        """Carry on what an earlier service, or a command that was killed, left under way."""
        self._resumer.start()

    def stop(self) -> None:
        """Take nothing new, and wait for what has begun."""
        self._ends.set()
        self._acts.shutdown(wait=True, cancel_futures=True)
        self._looks.shutdown(wait=True, cancel_futures=True)

    def look(self, work: Callable[[Engine], Result]) -> Future[Result]:
        """Have something looked up."""
        return self._looks.submit(copy_context().run, self._looked, work)

    def act(
        self,
        work: Callable[[Engine], object],
        begun: Begun = lambda _engine, _volume: None,
        failed: Failed = lambda _engine, _error: None,
    ) -> Future[object]:
        """Begin an operation: the answer is there when it is on disk, or has been refused, or has ended.

        `begun` is called then, before anything acts; `failed` where it fails after its client was answered.
        """
        operation = _Operation(begun)
        self._acts.submit(copy_context().run, self._acted, operation, work, failed)
        return operation.told

    def act_whole(self, work: Callable[[Engine], Result]) -> Future[Result]:
        """Take an operation to its end: the answer is what came of it."""
        return self._acts.submit(copy_context().run, self._looked, work)

    def _looked(self, work: Callable[[Engine], Result]) -> Result:
        return work(self._engine())

    def _acted(self, operation: _Operation, work: Callable[[Engine], object], failed: Failed) -> None:
        engine: Engine | None = None
        self._figures.at_work.inc()
        try:
            engine = self._engine()
            self._mine.operation = operation
            result = work(engine)
            self._ended(operation, "completed")
            if not operation.told.done():
                operation.told.set_result(result)
        except VolDriverError as error:
            self._failed(operation, engine, error, failed)
        except BaseException as error:
            self._ended(operation, "failed")
            if operation.told.done():
                _log.exception("an operation ended with a mistake in voldrivers")
                raise
            operation.told.set_exception(error)
            raise
        finally:
            self._mine.operation = None
            self._figures.at_work.dec()

    def _failed(
        self, operation: _Operation, engine: Engine | None, error: VolDriverError, failed: Failed
    ) -> None:
        self._ended(operation, "unknown" if isinstance(error, OutcomeUnknown) else "failed")
        if not operation.told.done():
            operation.told.set_exception(error)
            return
        _log.warning("%s", error)
        if engine is not None:
            failed(engine, error)

    def _engine(self) -> Engine:
        """Give this thread's own engine: SQLite's connections belong to a thread."""
        engine: Engine | None = getattr(self._mine, "engine", None)
        if engine is None:
            engine = self._mine.engine = Engine.open(self._config, self._progressed)
            engine.site = replace(engine.site, patience_s=_PATIENCE_S)
        return engine

    def _progressed(self, progress: Progress) -> None:
        """Answer the client when the first step begins: it is recorded then; take the time of phases."""
        operation: _Operation | None = getattr(self._mine, "operation", None)
        if operation is None:
            return
        self._entered(operation, progress.step)
        if not operation.told.done():
            operation.begun(self._mine.engine, progress.volume)
            operation.told.set_result(progress.volume)

    def _entered(self, operation: _Operation, step: str) -> None:
        now = time.monotonic()
        if operation.step in _PHASES:
            self._figures.phase_seconds.labels(operation.step).observe(now - operation.since)
        operation.step, operation.since = step, now

    def _ended(self, operation: _Operation, result: str) -> None:
        phase = operation.step
        self._entered(operation, "")
        if phase in _PHASES:
            self._figures.extends.labels(phase, result).inc()

    def _resume_now_and_then(self) -> None:
        while True:
            try:
                for volume in self._looks.submit(self._looked, Engine.volumes).result():
                    if under_way(volume):
                        self.act(partial(_resumed, volume_id=volume.id))
            except VolDriverError as error:
                _log.warning("what is under way cannot be looked up: %s", error)
            except RuntimeError:  # the threads have ended with the service
                return
            if self._ends.wait(RESUME_S):
                return


_PHASES = frozenset(phase for phase in Phase if phase.under_way)


def _resumed(engine: Engine, volume_id: str) -> None:
    """Carry on what is under way with a volume, if nobody works on it."""
    for resumed in engine.resume(volume_id):
        if resumed.error is None:
            _log.info("%s: was %s, now %s", resumed.volume.title, resumed.what, resumed.outcome)
        elif not isinstance(resumed.error, InvalidState):
            _log.warning("%s stays %s: %s", resumed.volume.title, resumed.what, resumed.error)
