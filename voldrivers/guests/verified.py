"""A guest that works: it writes to every disk that it is given, and checks all that it reads.

`python -m voldrivers.guests.verified DIRECTORY NAME` runs a device-level guest (see `device`) whose disks
come and go by hot plug. Its QMP socket is DIRECTORY/NAME.qmp; what it saw stands in DIRECTORY/NAME.report as
JSON (`Report`), new several times a second. After SIGTERM it reads everything once more, and `ended` is true.
"""

import hashlib
import json
import math
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from voldrivers.errors import BackendError, OutcomeUnknown
from voldrivers.guests.device import SECTOR_BYTES, DeviceGuest, Disk

BLOCK_BYTES = 4096

_SECTORS = BLOCK_BYTES // SECTOR_BYTES
#: So many blocks of a disk are written over and over: its first and its last one, and others anywhere.
_PLACES = 16
_LOOK_S, _REPORT_S, _REST_S = 0.5, 0.2, 0.01
_SHOWN_PROBLEMS = 20


@dataclass
class DiskReport:
    """What was seen of one disk, by its serial."""

    serial: str
    capacity_bytes: int
    writes: int = 0
    reads: int = 0
    #: What the disk refused; the guest goes on.
    errors: int = 0
    #: The longest time that one request took.
    longest_s: float = 0.0
    #: Content that is neither what was written last nor zeroes in a new range; a disk that became smaller.
    problems: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What a guest saw until now. A disk that was taken away stays in it."""

    turns: int = 0
    #: When it was written, in ISO 8601: a guest whose disk does not answer writes none.
    written_at: str = ""
    ended: bool = False
    disks: list[DiskReport] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Tell that nothing was lost; refused requests are no loss."""
        return not any(disk.problems for disk in self.disks)


class VerifiedDisk:
    """One disk, and what it must hold."""

    def __init__(self, disk: Disk, serial: str) -> None:
        """Take a disk whose blocks are free to be written; they hold anything now."""
        self.disk, self.report = disk, DiskReport(serial, disk.capacity_bytes())
        self._random = random.Random(serial)  # noqa: S311 - the same places each time
        #: What each place may hold: 0 for zeroes, a generation that was written, None for anything.
        self._may_hold: dict[int, set[int | None]] = {}
        self._generation = 0
        self._choose(first=0, holding=None)

    def work(self) -> None:
        """Write a block and read another one; what is refused is counted."""
        with suppress(BackendError):
            self._look()
            places = list(self._may_hold)
            self._write(self._random.choice(places))
            self._check(self._random.choice(places))

    def check_all(self) -> None:
        """Read every block that it knows."""
        for place in self._may_hold:
            with suppress(BackendError):
                self._check(place)

    def _look(self) -> None:
        """Take notice of a new capacity; what it added must read as zeroes."""
        before_bytes, now_bytes = self.report.capacity_bytes, self.disk.capacity_bytes()
        self.report.capacity_bytes = now_bytes
        if now_bytes < before_bytes:
            self._complain(f"it became smaller: {before_bytes} bytes, then {now_bytes}")
        if now_bytes > before_bytes:
            for place in self._choose(first=-(-before_bytes // BLOCK_BYTES), holding=0):
                self._check(place)

    def _choose(self, first: int, holding: int | None) -> list[int]:
        """Choose places from a block to the end: the first one, the last one, and some between."""
        end = self.report.capacity_bytes // BLOCK_BYTES
        between = {self._random.randrange(first, end) for _ in range(_PLACES)} if first < end else set()
        chosen = sorted(between | {first, end - 1}) if first < end else []
        self._may_hold |= {place: {holding} for place in chosen}
        return chosen

    def _write(self, place: int) -> None:
        self._generation += 1
        may_hold = self._may_hold[place]
        may_hold.add(self._generation)  # also when the write is refused half-way
        with self._timed():
            self.disk.write(place * _SECTORS, self._sector(place, self._generation) * _SECTORS)
        self._may_hold[place] = {self._generation}
        self.report.writes += 1

    def _check(self, place: int) -> None:
        with self._timed():
            content = self.disk.read(place * _SECTORS, _SECTORS)
        self.report.reads += 1
        may_hold = self._may_hold[place]
        expected = {self._sector(place, generation) for generation in may_hold if generation is not None}
        found = {content[at : at + SECTOR_BYTES] for at in range(0, BLOCK_BYTES, SECTOR_BYTES)}
        if None not in may_hold and not found <= expected:
            wrong = (found - expected).pop()[:16].hex()
            self._complain(f"block {place} holds {wrong}..., not what generation {may_hold} wrote")

    def _sector(self, place: int, generation: int) -> bytes:
        if generation == 0:
            return bytes(SECTOR_BYTES)
        seed = f"{self.report.serial} {place} {generation}".encode()
        digest = hashlib.blake2b(seed).digest()
        return digest * (SECTOR_BYTES // len(digest))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        except BackendError:
            self.report.errors += 1
            raise
        finally:
            self.report.longest_s = max(self.report.longest_s, round(time.monotonic() - began, 3))

    def _complain(self, problem: str) -> None:
        if len(self.report.problems) < _SHOWN_PROBLEMS:
            self.report.problems.append(problem)


class VerifiedGuest(DeviceGuest):
    """A device-level guest that works on its disks by turns, and lets go of those that it is asked for."""

    def __init__(self, directory: Path, name: str = "guest") -> None:
        """Start it; see `DeviceGuest`. A request to a disk may take as long as it takes."""
        super().__init__(directory, name, answer_s=None)
        self.report = Report()
        self._disks: dict[tuple[int, str], VerifiedDisk] = {}
        self._looked_at = -math.inf

    def turn(self) -> None:
        """Work once on each disk; find new ones now and then. Raises BackendError when QEMU has ended."""
        if not self.is_running:
            raise BackendError(f"guest {self.name}", "its QEMU has ended")
        if time.monotonic() - self._looked_at > _LOOK_S:
            self._look()
            self._looked_at = time.monotonic()
        for disk in self._disks.values():
            disk.work()
        self.report.turns += 1

    def end(self) -> None:
        """Read everything once more."""
        for disk in self._disks.values():
            disk.check_all()
        self.report.ended = True

    def _look(self) -> None:
        with suppress(OutcomeUnknown):  # no disk is asked for
            self.eject(0)
        found = {(disk.slot, disk.serial): disk for disk in self.disks()}
        self._disks = {place: disk for place, disk in self._disks.items() if place in found}
        for place in found.keys() - self._disks.keys():
            added = self._disks[place] = VerifiedDisk(found[place], found[place].serial)
            self.report.disks.append(added.report)


def main(arguments: Sequence[str]) -> int:
    """Run a guest until SIGTERM; 0 when all that it read was right."""
    directory, name = Path(arguments[0]), arguments[1]
    asked_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked_to_end.append(number))
    with VerifiedGuest(directory, name) as guest:
        print("ready", flush=True)
        reported_at = -math.inf
        while not asked_to_end:
            began = time.monotonic()
            guest.turn()
            if time.monotonic() - reported_at > _REPORT_S:
                _write(directory / f"{name}.report", guest.report)
                reported_at = time.monotonic()
            time.sleep(max(time.monotonic() - began, _REST_S))  # half of a CPU is for what is tested
        guest.end()
        _write(directory / f"{name}.report", guest.report)
        return 0 if guest.report.is_good else 1


def read_report(text: str) -> Report:
    """Read what a guest wrote into its report."""
    content = json.loads(text)
    return Report(**{**content, "disks": [DiskReport(**disk) for disk in content["disks"]]})


def _write(path: Path, report: Report) -> None:
    report.written_at = datetime.now().astimezone().isoformat(timespec="milliseconds")
    written = path.with_suffix(".new")
    written.write_text(json.dumps(asdict(report)))
    written.rename(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
