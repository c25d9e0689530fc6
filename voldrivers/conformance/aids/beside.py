"""What goes on beside: somebody else at work with a driver and records of their own, or reads and writes."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Barrier, Event
from typing import ClassVar

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.disk import STAMP_BYTES, Disk, probes
from voldrivers.conformance.verdicts import Broken, expect
from voldrivers.errors import InvalidSize, InvalidState, NotFound, VolDriverError
from voldrivers.extend.engine import Engine
from voldrivers.model import Volume, VolumeStatus

Act = Callable[[Engine], object]
#: Tells, of a call of the driver, whether it is where somebody else begins: its name, and whether before it.
Where = Callable[[str, bool], bool]

_START_S = 60.0
#: What one of two that are at it at once may be answered.
_REFUSED = (InvalidState, InvalidSize, NotFound)
#: So long an operation waits, at each of its boundaries, for reads and writes to go on there.
_ROUND_S, _LOOK_S = 0.2, 0.001
#: Reads and writes are so far apart.
_SLOT_BYTES = 8 * STAMP_BYTES
#: A journal has so many pages, each so many pages after the one before: half of the disk.
_PAGES, _PAGE_STEP = 33, 16


def at_once(bench: Bench, acts: Sequence[Act]) -> list[VolDriverError | None]:
    """Do things at once, each in a thread with an engine of its own; give the error of each."""
    barrier = Barrier(len(acts))

    def work(act: Act) -> None:
        with bench.another() as engine:
            barrier.wait(_START_S)
            act(engine)

    with ThreadPoolExecutor(len(acts)) as pool:
        return [error_of(future) for future in [pool.submit(work, act) for act in acts]]


@dataclass
class Beside:
    """Something that is done once, elsewhere, when it is told to begin."""

    bench: Bench
    act: Act
    pool: ThreadPoolExecutor
    begun: Future[None] | None = None
    is_told: bool = False

    def begin(self) -> None:
        """Have it begin, and wait until it has ended, or seems to wait for its turn."""
        if not self.is_told:
            self.is_told = True  # at once: what it does comes by here too
            self.begun = self.pool.submit(self._work)
            with suppress(TimeoutError):
                self.begun.exception(timeout=self.bench.subject.deadline_s)

    @property
    def is_over(self) -> bool:
        """Tell whether it has ended."""
        return self.begun is not None and self.begun.done()

    @property
    def error(self) -> VolDriverError | None:
        """Wait for its end, and give its error. Raises Broken where it was never told to begin."""
        if self.begun is None:
            raise Broken("I9", "what was to happen beside it never began: no such step was taken")
        return error_of(self.begun)

    def _work(self) -> None:
        with self.bench.another() as engine:
            self.act(engine)


@contextmanager
def beside(bench: Bench, act: Act) -> Iterator[Beside]:
    """Have something ready to be done elsewhere; it has ended when this does."""
    with ThreadPoolExecutor(1) as pool:
        yield Beside(bench, act, pool)


def in_the_middle(
    bench: Bench, main: Callable[[], object], act: Act, where: Where
) -> tuple[VolDriverError | None, VolDriverError | None]:
    """Do one thing, and another one elsewhere when the driver gets there; give both errors."""
    failed: VolDriverError | None = None
    with beside(bench, act) as other:

        def strike(_number: int, name: str, before: bool) -> None:
            if where(name, before):
                other.begin()

        with bench.watch.struck(strike):
            try:
                main()
            except VolDriverError as error:
                failed = error
    return failed, other.error


def error_of(future: Future[None]) -> VolDriverError | None:
    """Give the error with which something ended, if it is one that may be."""
    error = future.exception()
    if error is None or isinstance(error, VolDriverError):
        return error
    raise error


def expect_no_error(errors: Sequence[VolDriverError | None], refused: int) -> None:
    """Have none failed but those that were refused, of which there may be so many."""
    failed = [error for error in errors if error is not None]
    expect(all(isinstance(error, _REFUSED) for error in failed), "I11", "one failed", errors=failed)
    expect(len(failed) <= refused, "I9", "too many were refused", errors=failed)


def check_settled(bench: Bench, volume: Volume, errors: Sequence[VolDriverError | None]) -> None:
    """Have each of two succeeded or been refused, and the volume be whole, or gone."""
    expect_no_error(errors, 1)
    if all(each.id != volume.id for each in bench.engine.volumes()):
        expect(volume.id not in bench.driver.list_volumes(), "I10", "it was deleted, and is still there")
        return
    now = bench.now(volume)
    expect(now.status in (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE), "I6", "it is not settled", now=now)
    bench.check_agreed(volume, now.size_bytes)


@dataclass
class Traffic:
    """Reads and writes of one volume, without a pause, each read back and compared."""

    #: So many more rounds an operation waits for at each of its boundaries.
    more: ClassVar[int] = 2
    disk: Disk
    depth: int
    stop: Event = field(default_factory=Event)
    rounds: list[int] = field(default_factory=list)
    longest_s: float = 0.0
    workers: list[Future[None]] = field(default_factory=list)

    def prepare(self) -> None:
        """Write what must be there before all else begins."""

    def work(self, number: int) -> None:
        """Write to a place of one's own and read it back, again and again."""
        at = number * _SLOT_BYTES
        while True:
            began = time.monotonic()
            text = f"{self.disk.volume.id} {at} round {self.rounds[number]} ".encode()
            content = (text * STAMP_BYTES)[:STAMP_BYTES]
            self.disk.write(at, content)
            self.rounds[number] += 1
            time.sleep(0)  # so that others have their turn while it is written and not yet read
            found = self.disk.read(at)
            expect(found == content, "I4", f"the block at {at} is not what was written", found=found[:60])
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            if self.stop.is_set():
                return

    def pass_by(self, _number: int, name: str, _before: bool) -> None:
        """Wait a moment for everybody to read and write here, if they can."""
        if name.startswith(("list_", "pool", "snapshot_size", "volume_size")):
            return
        wanted = [each + self.more for each in self.rounds]
        until = time.monotonic() + _ROUND_S
        while time.monotonic() < until and not any(worker.done() for worker in self.workers):
            if all(seen >= want for seen, want in zip(self.rounds, wanted, strict=True)):
                return
            time.sleep(_LOOK_S)


class Journal(Traffic):
    """Numbers, one after the other, on pages at the beginning and at the end of a disk, again and again.

    None is written before the one before it was answered: at every moment there are as many consecutive
    numbers as there are pages. How long a write takes is not looked at.
    """

    more = 6

    def prepare(self) -> None:
        """Write on every page."""
        for _ in range(_PAGES):
            self._write_next()

    def work(self, number: int) -> None:
        """Write the next number, where the one that stood there is found again."""
        while not self.stop.is_set():
            written = self.rounds[number]
            found = page(self.disk, written)
            expect(found == written - _PAGES, "I4", "an answered write is lost", number=found, of=written)
            self._write_next()
            time.sleep(0)

    def _write_next(self) -> None:
        content = f"{self.rounds[0]} ".encode().ljust(STAMP_BYTES, b"#")
        self.disk.write(_page_at(self.disk, self.rounds[0]), content)
        self.rounds[0] += 1


def page(disk: Disk, number: int) -> int:
    """Read the number on the page where a number belongs; -1 where there is none."""
    told = disk.read(_page_at(disk, number)).partition(b" ")[0]
    return int(told) if told.isdigit() else -1


def check_moment(disk: Disk, least: int) -> None:
    """Have a disk hold a journal as it was at one moment, of which so many numbers were written at least."""
    numbers = [page(disk, each) for each in range(_PAGES)]
    last = max(numbers)
    expect(last >= least - 1, "I4", "answered writes are not there", last=last, written=least)
    wanted = [last - (last - each) % _PAGES for each in range(_PAGES)]
    expect(numbers == wanted, "I4", "it is of no one moment", numbers=numbers)


def _page_at(disk: Disk, number: int) -> int:
    return probes(disk.volume.size_bytes, _PAGES)[number * _PAGE_STEP % _PAGES]


@contextmanager
def traffic(bench: Bench, volume: Volume, depth: int = 1, kind: type[Traffic] = Traffic) -> Iterator[Traffic]:
    """Read and write a volume meanwhile: no error, no wrong byte, no pause beyond the time of an extend."""
    with bench.opened(volume) as disk, ThreadPoolExecutor(depth) as pool:
        running = kind(disk, depth, rounds=[0] * depth)
        running.prepare()
        running.workers = [pool.submit(running.work, number) for number in range(depth)]
        try:
            with bench.watch.struck(running.pass_by):
                yield running
        finally:
            running.stop.set()
    for worker in running.workers:
        if (error := worker.exception()) is not None:
            raise error
    longest_s, limit_s = running.longest_s, bench.subject.deadline_s
    expect(longest_s <= limit_s, "I12", "reads and writes stood still", seconds=longest_s, limit_s=limit_s)
