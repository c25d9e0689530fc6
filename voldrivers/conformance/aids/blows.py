"""Blows: one boundary of an operation after the other is struck - each call of the driver, each program."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.verdicts import Broken, expect
from voldrivers.conformance.watch import Killed
from voldrivers.errors import BackendError, CommandFailed, OutcomeUnknown, VolDriverError
from voldrivers.model import Volume, VolumeStatus

#: Calls that change nothing: whether they fail before or after that is the same.
_LOOKS = (
    "check_extend",
    "extend_notes",
    "ledger_rows",
    "list_volumes",
    "pool",
    "snapshot_size",
    "volume_size",
)
#: Makes what is raised at a boundary, of the name of the call or program there.
Harm = Callable[[str], BaseException]


def fails(name: str) -> BaseException:
    """Make the error of a call or a program that fails."""
    kind, _, program = name.partition(" ")
    if program:
        return CommandFailed(program, "the suite had it fail", argv=(program,), exit_code=5)
    return BackendError(kind, "the suite had it fail")


def is_lost(_name: str) -> BaseException:
    """Make the error of an answer that did not come in time."""
    return OutcomeUnknown("a call of the driver", "the suite had its answer lost")


def is_killed(_name: str) -> BaseException:
    """Make the end of the process."""
    return Killed()


def matters(name: str, before: bool) -> bool:
    """Tell whether a blow is different here from one at the next boundary."""
    return before or name not in _LOOKS


@dataclass
class Blow:
    """Harm done once, at one boundary of an operation; meanwhile the size of a volume must never fall."""

    bench: Bench
    harm: Harm
    #: The number of the boundary among those that count.
    at: int
    counts: Callable[[str, bool], bool] = matters
    volume: Volume | None = None
    where: str = ""
    #: The names of the boundaries that count, as they were passed.
    passed: list[str] = field(default_factory=list)
    _floor: int = 0

    def __call__(self, _number: int, name: str, before: bool) -> None:
        """Look at the size, and strike if it is time."""
        self.look()
        if self.where or not self.counts(name, before):
            return
        self.passed.append(f"{'before' if before else 'after'} {name}")
        if len(self.passed) == self.at + 1:
            self.where = self.passed[-1]
            raise self.harm(name)

    def __str__(self) -> str:
        """Say what was done where."""
        return f"{self.where or 'nowhere'}: {self.harm.__name__}"

    @property
    def landed(self) -> bool:
        """Tell whether the operation had such a boundary."""
        return bool(self.where)

    def look(self) -> None:
        """Have the volume not be smaller than it was when it was last looked at (I2)."""
        oracle = self.bench.subject.oracle
        if oracle is None or self.volume is None:
            return
        size_bytes = oracle.size_bytes(self.volume) or self._floor
        expect(size_bytes >= self._floor, "I2", "it became smaller", was=self._floor, now=size_bytes)
        self._floor = size_bytes


def strike_all(bench: Bench, harms: tuple[Harm, ...], scenario: Callable[[Blow], None]) -> None:
    """Play a scenario again and again, each time with another of its boundaries struck.

    One of each kind comes first, and from the middle outwards: there most is half done. One is struck however
    long it takes; what there is no time for then (`Subject.sweep_s`) is told with the result.
    """
    began = time.monotonic()
    whole = _played(Blow(bench, harms[0], -1), scenario).passed
    first = [at for at, name in enumerate(whole) if name not in whole[:at]]
    order = sorted(range(len(whole)), key=lambda at: (at not in first, abs(2 * at - len(whole))))
    for struck, at in enumerate(order):
        if struck and time.monotonic() - began > bench.subject.sweep_s:
            bench.told.append(f"{struck} of {len(order)} boundaries struck in {bench.subject.sweep_s:g} s")
            return
        for harm in harms:
            _played(Blow(bench, harm, at), scenario)


def _played(blow: Blow, scenario: Callable[[Blow], None]) -> Blow:
    try:
        scenario(blow)
    except Broken as broken:
        broken.add_note(f"struck {blow}")
        raise
    except VolDriverError as error:
        text = f"it does not recover, struck {blow}: {type(error).__name__}: {error}"
        raise Broken("I6", text) from error
    return blow


def check_halfway(bench: Bench, volume: Volume, old_bytes: int, new_bytes: int) -> None:
    """Have every size be the old one or the new one, and all the same where nothing is under way (I6)."""
    now, read = bench.now(volume), bench.sizes(volume)
    expect(set(read.values()) <= {old_bytes, new_bytes}, "I6", "neither the old size nor the new one", **read)
    if now.status in (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE):
        expect(len(set(read.values())) == 1, "I6", f"it is {now.status} again, but not as before", **read)


def bring_to(bench: Bench, volume: Volume, size_bytes: int) -> None:
    """Do what an operator does after a failed extend, until the volume has its size; all must agree then."""
    for resumed in bench.engine.resume(volume.id):
        if resumed.error is not None:
            raise resumed.error
    now = bench.now(volume)
    if now.status is VolumeStatus.ERROR_EXTENDING:
        bench.engine.retry(volume.id)
    elif now.size_bytes != size_bytes:
        bench.extend(volume, size_bytes)
    bench.check_agreed(volume, size_bytes)
    steady = VolumeStatus.IN_USE if now.attachments else VolumeStatus.AVAILABLE
    expect(bench.now(volume).status is steady, "I1", "its status does not follow from its attachments")


def check_grown(bench: Bench, volume: Volume, old_bytes: int) -> None:
    """Read back what was stamped, and zeros where the volume has grown (I4)."""
    with bench.opened(volume) as disk:
        disk.check()
        disk.check_zeros(old_bytes, disk.size_bytes)
