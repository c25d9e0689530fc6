"""The engine's machine with snapshots, clones and reverting added: see test_engine_machine.py.

Whatever broke, the world is then healed and resumed: an operation was done or it was not, and every byte
of everything else is what it was.
"""

from dataclasses import dataclass

from faulty import AFTER, GRANULE_BYTES, LEAVES, Fault
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from test_engine_machine import STEADY, EngineMachine

from voldrivers.errors import (
    NOTHING_HAPPENED,
    InvalidState,
    NoSpace,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.model import SnapshotStatus, VolumeStatus

SNAPSHOTS = ("s", "t", "u")
Refusals = set[type[VolDriverError]]


def breaking(*calls: str) -> st.SearchStrategy[Fault | None]:
    """Faults at one of these calls or at any, and often none."""
    where = st.one_of(
        st.fixed_dictionaries({"call": st.sampled_from(calls), "nth": st.sampled_from([0, 0, 1])}),
        st.fixed_dictionaries({"call": st.just(""), "nth": st.integers(0, 8)}),
    )
    failing = st.sampled_from(
        [("error", leaf) for leaf in LEAVES] + [("error-after", leaf) for leaf in AFTER]
    )
    killing = st.sampled_from([("kill", OutcomeUnknown), ("kill-after", OutcomeUnknown)])
    what = st.one_of(failing, killing)
    made = st.builds(lambda at, how: Fault(at["call"], at["nth"], how[0], how[1]), where, what)
    return st.one_of(st.none(), made)


reverting = breaking("driver.revert_to_snapshot", "driver.volume_size")


@dataclass
class Kept:
    """What the model knows of a snapshot."""

    volume: str
    size_bytes: int
    written: dict[int, str]


class CopyMachine(EngineMachine):
    """All rules; `written` is what each volume must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Kept] = {}
        self.written: dict[str, dict[int, str]] = {}
        self.words = 0

    @rule(name=st.sampled_from("abcd"), offset_bytes=st.sampled_from([0, 512]))
    def write(self, name: str, offset_bytes: int) -> None:
        """The guest writes."""
        known = self.known.get(name)
        if known is not None and known.id in self.world.array.sizes:
            self.words += 1
            self.world.array.write(known.id, offset_bytes, f"word {self.words}")
            self.written.setdefault(known.id, {})[offset_bytes] = f"word {self.words}"

    @rule(
        name=st.sampled_from("abcd"),
        snapshot=st.sampled_from(SNAPSHOTS),
        fault=breaking(
            "driver.create_snapshot", "host.switch", "driver.snapshot_size", "driver.delete_snapshot"
        ),
    )
    def take(self, name: str, snapshot: str, fault: Fault | None) -> None:
        name, taken = self.prefer(name, *STEADY), snapshot in self.kept
        refusals = self.no_take(name, snapshot)
        _, error = self.attempt(lambda: self.engine.create_snapshot(name, snapshot), fault, refusals)
        self.settle(name)
        if name not in self.known or taken:
            return
        there = any(each.name == snapshot for each in self.engine.volume(name).snapshots)
        assert there or error
        assert not there or not isinstance(error, NOTHING_HAPPENED) or self.world.fired
        if there:
            known = self.known[name]
            self.kept[snapshot] = Kept(name, self.truth(name), dict(self.written.get(known.id, {})))

    def no_take(self, name: str, snapshot: str) -> Refusals:
        volume = self.find(name)
        if volume is None:
            return {NotFound}
        refusals: Refusals = set()
        if volume.status not in STEADY or snapshot in self.kept:
            refusals.add(InvalidState)
        if volume.backend == "plain":
            refusals.add(NotSupported)
        if self.truth(name) > self.world.array.free_bytes:
            refusals.add(NoSpace)
        if volume.backend == "file" and any(a.instance is None for a in volume.attachments):
            refusals.add(NotSupported)
        if volume.backend == "file" and not self.healthy(name):
            refusals |= {InvalidState, OutcomeUnknown}
        return refusals

    @rule(snapshot=st.sampled_from(SNAPSHOTS), fault=breaking("driver.delete_snapshot", "host.merge"))
    def drop(self, snapshot: str, fault: Fault | None) -> None:
        snapshot = self.prefer_kept(snapshot, *STEADY)
        kept = self.kept.get(snapshot)
        refusals: Refusals = set() if kept else {NotFound}
        volume = self.find(kept.volume) if kept else None
        if volume is not None and volume.status not in STEADY:
            refusals.add(InvalidState)
        sure = volume is None or volume.backend != "file" or self.healthy(volume.name)
        _, error = self.attempt(
            lambda: self.engine.delete_snapshot(snapshot), fault, refusals, sure=sure or bool(refusals)
        )
        if kept is None:
            return
        self.settle(kept.volume)
        if all(each.name != snapshot for each in self.engine.volume(kept.volume).snapshots):
            assert not refusals
            del self.kept[snapshot]
        else:
            assert error

    @rule(
        snapshot=st.sampled_from(SNAPSHOTS), fault=breaking("driver.revert_to_snapshot", "driver.volume_size")
    )
    def revert(self, snapshot: str, fault: Fault | None) -> None:
        snapshot = self.prefer_kept(snapshot, VolumeStatus.AVAILABLE)
        kept = self.kept.get(snapshot)
        refusals: Refusals = set() if kept else {NotFound}
        volume = self.find(kept.volume) if kept else None
        if volume is not None and volume.status is not VolumeStatus.AVAILABLE:
            refusals.add(InvalidState)
        if volume is not None and volume.backend == "file" and volume.snapshots[-1].name != snapshot:
            refusals.add(NotSupported)
        _, error = self.attempt(lambda: self.engine.revert_to_snapshot(snapshot), fault, refusals)
        if kept is None or refusals:
            return
        self.settle(kept.volume)
        known = self.known[kept.volume]
        if error is None or self.engine.volume(kept.volume).size_bytes != known.size_bytes:
            known.size_bytes = kept.size_bytes
        if error is None or self.world.array.written.get(known.id) == kept.written:
            self.written[known.id] = dict(kept.written)

    @rule(
        name=st.sampled_from("abcd"),
        source=st.sampled_from((*"abc", *SNAPSHOTS)),
        more=st.sampled_from([0, 0, 512, 4 * 2**20]),
        fault=breaking("driver.clone_volume", "driver.volume_size", "driver.delete_volume"),
    )
    def clone(self, name: str, source: str, more: int, fault: Fault | None) -> None:
        kept, origin = self.kept.get(source), self.known.get(source)
        least = kept.size_bytes if kept else origin.size_bytes if origin else 0
        refusals, size_bytes = self.no_clone(name, source, least + more), least + more
        new = name not in self.known
        of = (None, source) if source in SNAPSHOTS else (source, None)
        _, error = self.attempt(
            lambda: self.engine.clone_volume(name, of[0], of[1], size_bytes), fault, refusals
        )
        if new:
            self.settle(name)
        volume = self.find(name)
        assert error or volume
        if new and volume is not None:
            self.note_new(volume)
            assert volume.size_bytes == self.rounded(name, size_bytes) == self.truth(name)
            whole = kept.written if kept else self.written.get(origin.id, {}) if origin else {}
            self.written[volume.id] = dict(whole)

    def no_clone(self, name: str, source: str, size_bytes: int) -> Refusals:
        kept = self.kept.get(source)
        volume = self.find(kept.volume if kept else source)
        if volume is None or (kept is None and source in SNAPSHOTS):
            return {NotFound}
        refusals: Refusals = set()
        if volume.status not in STEADY or name in self.known:
            refusals.add(InvalidState)
        if volume.backend == "plain":
            refusals.add(NotSupported)
        elif self.rounded(volume.name, size_bytes) > self.world.array.free_bytes:
            refusals.add(NoSpace)
        return refusals

    @rule(
        name=st.sampled_from("abc"),
        snapshot=st.sampled_from(SNAPSHOTS),
        more=st.integers(0, 2),
        fault=reverting,
    )
    def revert_after_all(self, name: str, snapshot: str, more: int, fault: Fault | None) -> None:
        """A detached volume is kept, written, extended, and is again what it was."""
        self.take(name, snapshot, None)
        kept = self.kept.get(snapshot)
        if kept is None:
            return
        for host, instance in sorted(self.known[kept.volume].places, key=lambda place: place[1] is None):
            self.detach(kept.volume, (host, instance), False, None)
        self.write(kept.volume, 0)
        self.extend(kept.volume, more * GRANULE_BYTES, True, None)
        self.revert(snapshot, fault)

    def prefer_kept(self, snapshot: str, *statuses: VolumeStatus) -> str:
        """Take this snapshot if its volume is in one of these states, or another one whose is."""
        fitting = [
            each for each, kept in self.kept.items() if self.engine.volume(kept.volume).status in statuses
        ]
        return snapshot if snapshot in fitting or not fitting else fitting[0]

    def settle(self, name: str) -> None:
        """Heal the world, and end what was begun with snapshots of this volume, or with a copy."""
        if not self.is_unfinished(name):
            return
        struck, self.world.struck = self.world.struck, []
        self.world.heal()
        (resumed,) = self.engine.resume(name)
        # What was refused and could not be undone then is refused again, and undone now.
        assert resumed.error is None or isinstance(resumed.error, NoSpace | NotSupported)
        assert not self.is_unfinished(name)
        self.world.struck = struck

    def is_unfinished(self, name: str) -> bool:
        volume = self.find(name)
        return volume is not None and (
            volume.status in (VolumeStatus.CREATING, VolumeStatus.REVERTING)
            or any(each.status is not SnapshotStatus.AVAILABLE for each in volume.snapshots)
        )

    def take_copies_away(self) -> None:
        for snapshot in list(self.kept):
            self.drop(snapshot, None)
        assert self.kept == {}

    @invariant()
    def snapshots_are_as_they_were_taken(self) -> None:
        array = self.world.array
        recorded = {each.name: (v.name, each) for v in self.engine.volumes() for each in v.snapshots}
        assert recorded.keys() == self.kept.keys()
        assert {each.id for _, each in recorded.values()} == array.snapshots.keys()
        for name, (volume, snapshot) in recorded.items():
            kept, image = self.kept[name], array.snapshots[snapshot.id]
            assert (volume, snapshot.size_bytes) == (kept.volume, kept.size_bytes)
            assert (image.size_bytes, image.written) == (kept.size_bytes, kept.written)

    @invariant()
    def volumes_hold_what_was_written(self) -> None:
        for known in self.known.values():
            if known.id in self.world.array.sizes:
                assert self.world.array.written.get(known.id, {}) == self.written.get(known.id, {})


TestCopyMachine = CopyMachine.TestCase
#: The same way each time but in the full tier.
TestCopyMachine.settings = settings(
    max_examples=50 + settings().max_examples,
    stateful_step_count=30,
    derandomize=settings().max_examples < 1000,
)
