"""The writer of an image stopped wherever it touches the world: nothing is called whole that is not.

Real files, programs and kills. Sampled with the printed seed; exhaustive with `--tier full`.
"""

import io
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path

import pytest
import sweeps
from crashing import Points
from killing import counted_run
from realsite import NAME, RAW, Child, RealSite
from sweeps import Figures

from voldrivers.errors import InvalidState
from voldrivers.images import Growth, WriteOptions, flow, read_image, target, write_image
from voldrivers.images.records import ImageRecords, ImageState
from voldrivers.images.source import Source
from voldrivers.model import VolumeStatus
from voldrivers.sizes import GiB, KiB, MiB

pytestmark = [
    pytest.mark.needs("qemu-img", "fallocate", "prlimit"),
    pytest.mark.slow,
    pytest.mark.timeout(3000),
]

#: What stands in the volume before, whole, and what is written over it: through several extends.
OLD, NEW = (random.Random(n).randbytes(n) for n in (3 * MiB + 7, 17 * MiB + 1000))
PIECE = 512 * KiB
SWEEP = "while an image is written"
_SAMPLES = {"quick": 2, "ci": 5}


@dataclass
class NamedPoints(Points):
    """Points of several threads, known by name and by how often that came: so they are alike in each run."""

    stop_at: str = ""
    number: int = signal.SIGKILL
    counts: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def point(self, name: str) -> Iterator[None]:
        with self.lock:
            self.counts[name] += 1
            label = f"{name}, {self.counts[name]}"
        self._reach(f"before {label}")
        try:
            yield
        finally:
            self._reach(f"after {label}")

    def _reach(self, moment: str) -> None:
        self.passed.append(moment)
        if moment == self.stop_at:
            os.kill(os.getpid(), self.number)


@dataclass(frozen=True)
class Case:
    """One volume with a whole image in it, which another one is written over."""

    site: RealSite
    in_place: bool

    def prepare(self) -> None:
        """Make the volume with the old image."""
        self.site.create(RAW)
        self.site.attach(None)
        self.write(OLD)

    def remove(self) -> None:
        """Take it away; nothing of it is left."""
        with self.site.engine() as engine:
            engine.detach(NAME)
            engine.delete_volume(NAME)
        assert list(self.site.share.iterdir()) == []

    def write(self, content: bytes, points: Points | None = None) -> None:
        run = {} if points is None else {"run": counted_run(points)}
        with self.site.engine(points, **run) as engine:
            growth = Growth(2.0, MiB, GiB)
            options = WriteOptions(extend_attached=self.in_place, growth=growth)
            write_image(engine, NAME, io.BytesIO(content), options)

    def stopped_at(self, moment: str, number: int = signal.SIGKILL) -> list[str]:
        """Write the new image in a process of its own, which is stopped there; give the moments it passed."""
        points = NamedPoints(stop_at=moment, number=number)
        passed = self.site.directory / "passed"

        def write() -> None:
            with suppress(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
                count_device(patch, points)
                self.write(NEW, points)
            passed.write_text("\n".join(points.passed))

        answer = Child(write).answer()
        assert answer == ("killed" if moment and number == signal.SIGKILL else ""), moment
        return [] if answer else passed.read_text().splitlines()

    def check_told(self, moment: str) -> None:
        """Have records, message and what can be read agree, and be the old image or the new one or none."""
        state, told, found = self.state, self.site.messages.splitlines()[-1], self.found()
        assert (state is ImageState.WHOLE) is ("is whole" in told), (moment, state, told)
        volume = self.site.volume
        if isinstance(found, bytes):
            assert (state, found in (OLD, NEW)) == (ImageState.WHOLE, True), moment
        elif volume.attachments and volume.status is VolumeStatus.IN_USE:
            assert state is not ImageState.WHOLE, (moment, found)
            assert "holding an image that is not whole" in found, moment

    def check_goes_on(self, moment: str) -> None:
        """Carry on what was begun; then the volume is sound, and the image can be written again."""
        with self.site.engine() as engine:
            for resumed in engine.resume():
                assert resumed.error is None, (moment, resumed)
            if not engine.volume(NAME).attachments:
                engine.attach(NAME)
        self.check_told(moment)
        self.write(NEW)
        assert self.read() == NEW, moment
        self.site.check_steady(VolumeStatus.IN_USE, self.site.volume.size_bytes)

    def found(self) -> bytes | str:
        """What is read, or why nothing is."""
        try:
            return self.read()
        except InvalidState as error:
            return str(error)

    def read(self) -> bytes:
        sink = io.BytesIO()
        with self.site.engine() as engine:
            assert read_image(engine, NAME, sink).is_verified
        return sink.getvalue()

    @property
    def state(self) -> ImageState | None:
        with self.site.engine() as engine:
            record = ImageRecords(engine.store).get(engine.volume(NAME))
        return None if record is None else record.state


@pytest.fixture(params=[True, False], ids=["in place", "detached each time"])
def case(request: pytest.FixtureRequest, ram_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    for where in ("flow", "reading"):
        monkeypatch.setattr(f"voldrivers.images.{where}.PIECE_BYTES", PIECE)
    monkeypatch.setattr(flow, "BUFFERS", 3)
    (ram_path / "share").mkdir()
    return Case(RealSite(ram_path, ram_path / "share"), request.param)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_at_a_point_nothing_is_called_whole_that_is_not(
    case: Case,
    number: signal.Signals,
    rng: random.Random,
    tier: str,
    request: pytest.FixtureRequest,
) -> None:
    case.prepare()
    moments = case.stopped_at("")
    assert case.read() == NEW
    case.remove()
    chosen = moments if tier == "full" else rng.sample(moments, _SAMPLES[tier])
    for moment in chosen:
        case.prepare()
        case.stopped_at(moment, number)
        case.check_told(moment)
        case.check_goes_on(moment)
        case.remove()
    scenario = f"{number.name}, {'in place' if case.in_place else 'detached each time'}"
    sweeps.count(request, Figures(SWEEP, scenario, len(chosen), len(moments)))


def count_device(patch: pytest.MonkeyPatch, points: Points) -> None:
    """Make a point of whatever is done with the stream and with the open device."""
    for owner, name in (
        (Source, "fill"),
        (target.Target, "__init__"),
        (target.Target, "write"),
        (target.Target, "flush"),
        (target.Target, "close"),
        (os, "pwritev"),
        (os, "fsync"),
    ):
        patch.setattr(owner, name, _counted(points, f"{owner.__name__} {name}", getattr(owner, name)))


def _counted(points: Points, name: str, call: Callable[..., object]) -> Callable[..., object]:
    @wraps(call)
    def counted(*arguments: object, **options: object) -> object:
        with points.point(name):
            return call(*arguments, **options)

    return counted
