"""The engine against a small model: whatever breaks, and wherever, the record tells the truth.

The pool is small, so that it gets full; the volumes are few, so that the rules meet. A calm operation must do
exactly what the model says. A broken one is judged by the truth on the array and by the error that came
out, never by where it broke; `heal_and_finish` then brings everything to an end.
"""

import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from faulty import (
    AFTER,
    CAPACITY_BYTES,
    EVENTS,
    GRANULE_BYTES,
    INSTANCES,
    LEAVES,
    Fault,
    Instance,
    Killed,
    Place,
    World,
)
from hypothesis import settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from voldrivers.config import Policy
from voldrivers.errors import (
    NOTHING_HAPPENED,
    BackendError,
    InvalidInput,
    InvalidSize,
    InvalidState,
    NoSpace,
    NotFound,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.extend.engine import Engine
from voldrivers.extend.site import Site
from voldrivers.extend.store import Store
from voldrivers.locks import exclusive
from voldrivers.model import AttachmentState, Extend, Phase, Volume, VolumeStatus
from voldrivers.sizes import LARGEST_BYTES

Result = TypeVar("Result")
Broken = VolDriverError | Killed

NAMES = ("a", "b", "c", "d")
NO_NAMES = ("", "-a", "../a", "a/b", "a\nb", "a\0", "'a'", "a" * 129, "$(a)", " a", "e\u0301", ".a")
HOSTS = ("h1", "h2")
PLACES: tuple[Place, ...] = tuple((host, name) for host in HOSTS for name in (None, *INSTANCES))
ON_ONE_HOST = [[place for place in PLACES if place[0] == host and place[1]] for host in HOSTS]
GRANULES = {"block": GRANULE_BYTES, "plain": GRANULE_BYTES, "file": 512}
DEADLINE_S = 5.0
STEADY = (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE)

names, places = st.sampled_from(NAMES), st.sampled_from(PLACES)
#: Whether a rule takes a volume that it fits, or just any.
eager = st.sampled_from([True, True, True, False])
instances = st.sampled_from([(host, name) for host in HOSTS for name in INSTANCES])
#: How much more than the published size is asked for: granules, unrounded, nothing, smaller, far too much.
steps = st.sampled_from(
    (
        *(GRANULE_BYTES, GRANULE_BYTES, 1, 2 * GRANULE_BYTES, 0, 511, GRANULE_BYTES + 1, -1, -512),
        *(-GRANULE_BYTES, CAPACITY_BYTES, -LARGEST_BYTES, LARGEST_BYTES),
    )
)


def faults(*calls: str) -> st.SearchStrategy[Fault | None]:
    """Faults at one of these calls, at any call, and often none."""
    by_name = {"call": st.sampled_from(calls), "nth": st.sampled_from([0, 0, 0, 1, 2])}
    by_number = {"call": st.just(""), "nth": st.integers(0, 12) | st.integers(0, 30)}
    acts = st.sampled_from(["kill", "kill-after", "late", "late-kill", "lie", "lazy", "generous", *EVENTS])
    found: list[st.SearchStrategy[Fault | None]] = [st.none()]
    for where in (by_name, by_number):
        lasting = {"forever": st.sampled_from([False, False, False, True]), "instance": instances}
        found += [
            st.builds(Fault, what=st.just("error"), leaf=st.sampled_from(LEAVES), **where, **lasting),
            st.builds(Fault, what=st.just("error-after"), leaf=st.sampled_from(AFTER), **where, **lasting),
            st.builds(Fault, what=acts, **where, **lasting),
        ]
    return st.one_of(found)


creating = st.one_of(
    faults("driver.create_volume", "driver.volume_size", "driver.delete_volume"),
    st.builds(Fault, call=st.just("driver.create_volume"), nth=st.just(0), what=st.just("late")),
)
attaching = faults(
    *("host.find_instance", "driver.initialize_connection", "host.connect", "host.plug", "host.unplug"),
    *("host.connector", "host.disconnect", "driver.terminate_connection"),
)
detaching = faults("host.unplug", "host.disconnect", "host.connector", "driver.terminate_connection")
extending = faults(
    *("driver.extend_volume", "host.assist_extend", "driver.extend_volume", "host.assist_extend"),
    *("driver.volume_size", "driver.check_extend", "driver.probe_locks", "driver.ledger_rows"),
    *("host.rescan", "host.get_blockdev", "host.instance_state", "host.check_extend", "host.hold"),
    *("host.ledger_rows", "host.cancel"),
)
#: These calls undo what could not be finished.
UNDOING = {
    *("driver.delete_volume", "host.unplug", "host.disconnect", "driver.terminate_connection"),
    *("host.connector", "driver.delete_snapshot"),
}
hints = st.sampled_from(["cancel", "cancel", "completion", "earlier", "later", ""])
#: What the world does meanwhile.
changes = st.sampled_from(["nothing", "stop", "vanish", "vanish", "cut off", "grown", "arrive", "late"])


@dataclass(frozen=True)
class Interruption:
    """An extend's process dies, or its requests are lost and may still arrive; then it goes on."""

    where: list[Place]
    fault: Fault
    hint: str
    change: str
    again: Fault | None


interruptions = st.builds(
    Interruption,
    where=st.lists(instances, min_size=1, max_size=2),
    fault=st.builds(
        Fault,
        call=st.sampled_from(
            [
                *("host.assist_extend", "host.assist_extend", "driver.extend_volume", "host.rescan"),
                "host.instance_state",
            ]
        ),
        nth=st.sampled_from([0, 0, 1]),
        what=st.sampled_from(
            ["late", "late", "late", "late-kill", "kill", "kill-after", "vanish", "stop", "lie", "lazy"]
        ),
        forever=st.sampled_from([True, True, False]),
        instance=instances,
    ),
    hint=hints,
    change=changes,
    again=st.one_of(st.none(), extending),
)
resuming = st.one_of(extending, extending, attaching, creating)


@dataclass
class Known:
    """What the model knows of a volume: its published size and where it is attached."""

    id: str
    backend: str
    multi_attach: bool
    size_bytes: int
    places: dict[Place, AttachmentState] = field(default_factory=dict)


class EngineMachine(stateful.RuleBasedStateMachine):
    """Every operation in any order, with any fault."""

    def __init__(self) -> None:
        super().__init__()
        # Ids decide an order here and there: an example that is replayed must draw the same ones.
        self.drawn = random.Random(0)
        self.directory = Path(tempfile.mkdtemp(prefix="vold-", dir="/dev/shm"))
        self.world = World()
        self.world.rival = self.meddle
        self.known: dict[str, Known] = {}
        self.cancelled: set[int] = set()
        self.engine, self.other = self.open(), self.open()
        self.world.store = self.other.store

    def open(self) -> Engine:
        store = Store(self.directory / "voldrivers.db")
        world, policy = self.world, Policy(extend_attached=True, deadline_s=DEADLINE_S)
        locks = self.directory / "locks"
        site = Site(store, world.drivers(), world.hosts(), locks, policy, now=world.now, sleep=world.sleep)
        return Engine(replace(site, new_id=self.draw))

    def draw(self) -> str:
        return str(UUID(int=self.drawn.getrandbits(128), version=4))

    def teardown(self) -> None:
        try:
            if sys.exception() is None:  # else it would hide what failed
                self.end_with_nothing_left()
        finally:
            self.engine.store.close()
            self.other.store.close()
            shutil.rmtree(self.directory)

    def end_with_nothing_left(self) -> None:
        """Give it more room, finish everything, take everything away: nothing is left anywhere."""
        self.world.array.capacity_bytes *= 100
        self.finish()
        self.take_copies_away()
        for name, known in list(self.known.items()):
            # One without an instance cannot be named while its host has others.
            for host, instance in sorted(known.places, key=lambda place: place[1] is None):
                self.detach(name, (host, instance), False, None)
            self.delete(name, None)
        assert self.known == {}
        assert self.world.sizes() == {}
        self.nothing_is_left_behind()

    def take_copies_away(self) -> None:
        """Remove what would keep a volume from being deleted."""

    def note_new(self, volume: Volume) -> None:
        """Tell the model of a volume that was made otherwise than by `create`."""
        self.known[volume.name] = Known(volume.id, volume.backend, volume.multi_attach, volume.size_bytes)

    # --- rules: creating, deleting

    @initialize(backend=st.sampled_from(["block", "file", "plain"]))
    def three_volumes(self, backend: str) -> None:
        self.create("a", "block", 2 * GRANULE_BYTES, True, None)
        self.create("b", "file", 2 * GRANULE_BYTES - 512, True, None)
        self.create("c", backend, GRANULE_BYTES, False, None)

    @rule(
        name=st.one_of(names, names, st.sampled_from(NO_NAMES)),
        backend=st.sampled_from(["block", "file", "plain"]),
        size=st.sampled_from([1, GRANULE_BYTES, 3 * GRANULE_BYTES + 1, 0, CAPACITY_BYTES, LARGEST_BYTES + 1]),
        multi=st.booleans(),
        fault=creating,
        eager=eager,
    )
    def create(
        self, name: str, backend: str, size: int, multi: bool, fault: Fault | None, eager: bool = False
    ) -> None:
        if eager:
            name, size = (
                next((each for each in NAMES if each not in self.known), name),
                max(1, size % GRANULE_BYTES),
            )
        refusals = set(self.no_create(name, backend, size, multi))
        before = self.known.get(name)
        made, error = self.attempt(
            lambda: self.engine.create_volume(name, size, backend, multi_attach=multi), fault, refusals
        )
        volume = self.find(name)
        assert made == (None if error else volume)
        if "driver.create_volume" in self.world.struck and self.one_answer_was_lost(fault) and not refusals:
            assert volume, "a volume that may exist was forgotten"
        if before is None and volume is not None:
            assert volume.status is (VolumeStatus.CREATING if error else VolumeStatus.AVAILABLE)
            assert error is None or unknown(error) or self.fault_lasts(fault)
            self.known[name] = Known(volume.id, backend, multi, volume.size_bytes)
            assert volume.size_bytes == (rounded(backend, size) if error else self.truth(name))

    def no_create(self, name: str, backend: str, size: int, multi: bool) -> Iterator[type[VolDriverError]]:
        if name in NO_NAMES:
            yield InvalidInput
        if not 0 < size <= LARGEST_BYTES:
            yield InvalidSize
        elif rounded(backend, size) > self.world.array.free_bytes:
            yield NoSpace
        if name in self.known:
            yield InvalidState
        if multi and backend == "plain":
            yield NotSupported

    @rule(name=names, fault=faults("driver.delete_volume"))
    def delete(self, name: str, fault: Fault | None) -> None:
        before = self.find(name)
        refusals: set[type[VolDriverError]] = set()
        if before is None:
            refusals.add(NotFound)
        elif (
            before.status not in (VolumeStatus.AVAILABLE, VolumeStatus.ERROR_EXTENDING)
            or before.attachments
            or before.snapshots
        ):
            refusals.add(InvalidState)
        _, error = self.attempt(lambda: self.engine.delete_volume(name), fault, refusals)
        volume = self.find(name)
        if before is not None and volume is None:
            assert error is None
            assert before.id not in self.world.array.sizes
            del self.known[name]
        elif before is not None and volume is not None and not refusals:
            assert error
            kept = before.status if isinstance(error, NOTHING_HAPPENED) else VolumeStatus.DELETING
            assert volume.status is kept

    # --- rules: attaching, detaching

    @rule(name=names, place=places, fault=attaching, eager=eager)
    def attach(self, name: str, place: Place, fault: Fault | None, eager: bool = False) -> None:
        name = self.prefer(name, VolumeStatus.AVAILABLE) if eager else name
        refusals = set(self.no_attach(name, place))
        _, error = self.attempt(lambda: self.engine.attach(name, *place), fault, refusals)
        if name not in self.known or place in self.known[name].places:
            return
        state = self.places(name).get(place)
        if error is None:
            assert state is AttachmentState.ATTACHED
        elif state is not None:
            assert state is AttachmentState.ATTACHING
            assert unknown(error) or self.fault_lasts(fault), f"a failed attach was not undone: {error}"
        self.only_place_changed(name, place, state)

    def no_attach(self, name: str, place: Place) -> Iterator[type[VolDriverError]]:
        volume, machine = self.find(name), self.world.machines[place[0]]
        if volume is None:
            yield NotFound
            return
        free = volume.status is VolumeStatus.AVAILABLE
        if not free and not (volume.multi_attach and volume.status is VolumeStatus.IN_USE):
            yield InvalidState
        if place in self.places(name) or not machine.reachable:
            yield InvalidState
        if place[1] not in (None, *machine.instances):
            yield NotFound

    @rule(
        name=names,
        place=places,
        force=st.sampled_from([False, False, False, True]),
        fault=detaching,
        eager=eager,
    )
    def detach(self, name: str, place: Place, force: bool, fault: Fault | None, eager: bool = False) -> None:
        if eager:
            name = self.prefer(name, VolumeStatus.IN_USE, VolumeStatus.ERROR_EXTENDING)
            known = self.known.get(name)
            place = place if known is None or place in known.places else next(iter(known.places), place)
        refusals = set(self.no_detach(name, place, force))
        host, instance = place
        _, error = self.attempt(
            lambda: self.engine.detach(name, host, instance, force=force), fault, refusals
        )
        if name not in self.known or len(self.fitting(name, place)) != 1:
            return
        chosen = self.fitting(name, place)[0]
        was, state = self.known[name].places[chosen], self.places(name).get(chosen)
        if force and state is not was:
            others = [other for other in self.places(name) if other != chosen]
            self.world.lose(chosen, self.known[name].id, others)
        if error is None:
            assert state is None
        else:
            leaving = AttachmentState.FORGETTING if force else AttachmentState.DETACHING
            kept = refusals or (not force and isinstance(error, InvalidState))
            assert state is leaving or (state is was and kept)
        self.only_place_changed(name, chosen, state)

    def no_detach(self, name: str, place: Place, force: bool) -> Iterator[type[VolDriverError]]:
        volume, machine = self.find(name), self.world.machines[place[0]]
        if volume is None or not self.fitting(name, place):
            yield NotFound
            return
        chosen, *more = self.fitting(name, place)
        if more:
            yield InvalidInput
        if not force:
            if volume.status not in (VolumeStatus.IN_USE, VolumeStatus.ERROR_EXTENDING):
                yield InvalidState
            if not machine.reachable or chosen in self.world.vanished:
                yield InvalidState

    # --- rules: extending

    @rule(
        name=names, step=steps, wait=st.sampled_from([True, True, True, False]), fault=extending, eager=eager
    )
    def extend(self, name: str, step: int, wait: bool, fault: Fault | None, eager: bool = False) -> None:
        name = self.prefer(name, *STEADY) if eager else name
        known = self.known.get(name)
        asked = (known.size_bytes if known else 0) + step
        refusals = set(self.no_extend(name, asked))
        target = max(self.rounded(name, asked), self.truth(name)) if known else 0
        before, had = self.last_extend(name), self.truth(name) if known else 0
        plan, _ = self.attempt(lambda: self.engine.plan(name, asked), None, refusals)
        assert refusals or (plan and plan.to_bytes == target)
        extend, error = self.attempt(lambda: self.engine.extend(name, asked, wait=wait), fault, refusals)
        assert unknown(error) or refusals or not self.one_answer_was_lost(fault)
        newest = self.last_extend(name)
        if newest is None or newest == before:
            assert error, "an extend without a record"
            return
        assert newest.requested_bytes == asked
        assert self.grown_by_others(fault) or newest.from_bytes == had
        assert newest.to_bytes >= target
        assert self.grown_by_others(fault) or newest.to_bytes == target
        assert extend in (None, newest)
        self.judge(name, error, fault, waited=wait)

    def no_extend(self, name: str, asked: int) -> Iterator[type[VolDriverError]]:
        volume = self.find(name)
        if volume is None:
            yield NotFound
            return
        known = self.known[name]
        if volume.status not in STEADY:
            yield InvalidState
            return
        if not 0 < asked <= LARGEST_BYTES or self.rounded(name, asked) < known.size_bytes:
            yield InvalidSize
        elif self.rounded(name, asked) - self.truth(name) > self.world.array.free_bytes:
            yield NoSpace
        if volume.attachments and known.backend == "plain":
            yield NotSupported
        if not self.healthy(name):
            yield InvalidState

    @rule(name=names, fault=extending, eager=eager)
    def retry(self, name: str, fault: Fault | None, eager: bool = False) -> None:
        name = self.prefer(name, VolumeStatus.ERROR_EXTENDING) if eager else name
        volume, before = self.find(name), self.last_extend(name)
        refusals: set[type[VolDriverError]] = set()
        if volume is None:
            refusals.add(NotFound)
        elif volume.status is not VolumeStatus.ERROR_EXTENDING:
            refusals.add(InvalidState)
        calm = not refusals and self.healthy(name) and self.fits(name)
        extend, error = self.attempt(
            lambda: self.engine.retry(name), fault, refusals, sure=bool(refusals) or calm
        )
        newest = self.last_extend(name)
        if newest is None or newest == before:
            assert error
            if volume:
                self.attachments_are_settled(name, error)
        else:
            assert extend in (None, newest)
            assert before
            self.attachments_are_settled(name, error)
            assert (newest.requested_bytes, newest.from_bytes) == (before.requested_bytes, before.from_bytes)
            self.judge(name, error, fault)

    @rule(name=names, fault=extending)
    def repair(self, name: str, fault: Fault | None) -> None:
        """Bring up what is behind; what could be extended now has no stale layer afterwards."""
        if fault and fault.what == "rival":
            return  # its first look needs no lock
        before = self.last_extend(name)
        known, volume = self.known.get(name), self.find(name)
        refusals: set[type[VolDriverError]] = set() if known else {NotFound}
        sure = known is None
        if known and volume and volume.status in STEADY:
            sure = not set(self.no_extend(name, known.size_bytes))
        if volume and volume.status is VolumeStatus.ERROR_EXTENDING:
            sure = self.healthy(name) and self.fits(name)
        rows, error = self.attempt(lambda: self.engine.repair(name), fault, refusals, sure=sure)
        if sure and rows and not self.world.fired:
            assert not [row for row in rows if row.stale]
        if volume and volume.status is VolumeStatus.ERROR_EXTENDING:
            self.attachments_are_settled(name, error)
        if self.last_extend(name) != before:
            self.judge(name, error, fault)

    @rule(name=names, place=places)
    def everything_else_is_refused(self, name: str, place: Place) -> None:
        """While an extend is under way, nothing else is."""
        name = self.prefer(name, VolumeStatus.EXTENDING)
        self.attach(name, place, None)
        for host, instance in list(self.known[name].places) if name in self.known else ():
            self.detach(name, (host, instance), False, None)
        self.delete(name, None)

    @rule(name=names, kind=hints, eager=eager)
    def hint(self, name: str, kind: str, eager: bool = False) -> None:
        """A cancel, or completions of this, an earlier or a later extend, change nothing at once."""
        name = self.prefer(name, VolumeStatus.EXTENDING) if eager else name
        before, extend = self.everything("hints"), self.last_extend(name)
        if kind == "cancel":
            self.cancel(name)
        elif kind:
            refusals: set[type[VolDriverError]] = set() if name in self.known else {NotFound}
            which = {"completion": 0, "earlier": -1, "later": 99}[kind]
            for extend_id in [(extend.id if extend else 0) + which] * 2:
                self.attempt(partial(self.engine.completion, name, extend_id), None, refusals)
        assert before == self.everything("hints")

    def cancel(self, name: str) -> None:
        volume, extend = self.find(name), self.last_extend(name)
        refusals: set[type[VolDriverError]] = {NotFound} if volume is None else set()
        if volume and volume.status is not VolumeStatus.EXTENDING:
            refusals.add(InvalidState)
        self.attempt(lambda: self.engine.cancel(name), None, refusals)
        if extend and not refusals:
            self.cancelled.add(extend.id)

    # --- rules: resuming

    @rule(name=st.one_of(st.none(), names), fault=resuming)
    def resume(self, name: str | None, fault: Fault | None) -> None:
        if name is not None and name not in self.known:
            self.attempt(lambda: self.engine.resume(name), fault, {NotFound})
            return
        chosen = [name] if name else list(self.known)
        before = {each: (self.engine.volume(each), self.last_extend(each)) for each in chosen}
        ends = {each: self.end_of(each, chosen) for each in chosen}
        resumed, killed = self.attempt(lambda: self.engine.resume(name), fault, set())
        errors = {r.volume.name: r.error for r in resumed or ()}
        for each, (volume, extend) in before.items():
            reached = each in errors or killed
            error: Broken | None = errors.get(each) or killed
            if reached and under_way(volume):
                self.judge_resumed(each, volume, extend, error, fault)
                assert self.world.fired or ends[each] in (None, bool(error))

    def end_of(self, name: str, chosen: list[str]) -> bool | None:
        """Tell whether resuming a healthy extend ends with an error; None where the model cannot tell."""
        extend = self.last_extend(name)
        if not extend or not extend.phase.under_way or not self.healthy(name):
            return None
        lacking = max(extend.to_bytes - self.truth(name), 0)
        if lacking and extend.id in self.cancelled:
            return self.truth(name) != extend.from_bytes  # somebody else has let it grow: no way back
        if len(chosen) > 1 and lacking:
            return None if self.world.array.free_bytes < CAPACITY_BYTES // 2 else False
        return lacking > self.world.array.free_bytes

    def judge_resumed(
        self, name: str, before: Volume, extend: Extend | None, error: Broken | None, fault: Fault | None
    ) -> None:
        """What was under way has ended, or still is because its outcome is unknown or it is out of reach."""
        volume = self.find(name)
        if volume is None:
            made_room = before.status is VolumeStatus.CREATING and error
            assert made_room or (before.status is VolumeStatus.DELETING and not error)
            del self.known[name]
            return
        self.attachments_are_settled(name, error)
        if error is None:
            assert not under_way(volume)
        if before.status is VolumeStatus.CREATING and volume.status is VolumeStatus.AVAILABLE:
            self.known[name].size_bytes = self.truth(name)  # somebody may have let it grow meanwhile
        if self.last_extend(name) != extend:
            self.judge(name, error, fault)

    def restart(self) -> None:
        before = self.everything()
        self.engine.store.close()
        self.engine = self.open()
        assert before == self.everything()

    @rule()
    def heal_and_finish(self) -> None:
        """With everything healthy, resume and retry end everything; only room may be missing."""
        self.finish()

    def finish(self) -> None:
        self.world.heal()
        self.restart()
        self.resume(None, None)
        for name in list(self.known):
            volume = self.engine.volume(name)
            assert not under_way(volume)
            if volume.status is VolumeStatus.ERROR_EXTENDING:
                self.retry(name, None)
            if self.engine.volume(name).status in STEADY:
                self.repair(name, None)
                if not set(self.no_extend(name, self.known[name].size_bytes)):
                    self.every_layer_agrees(name)

    # --- rules: the world

    @rule(
        what=st.sampled_from(
            ["stop", "vanish", "start", "cut off", "reached", "grown", "arrive", "late", "restart"]
        ),
        name=names,
        instance=instances,
    )
    def something_happens(self, what: str, name: str, instance: Instance) -> None:
        world = self.world
        machine = world.machines[instance[0]]
        if what in ("stop", "vanish", "start"):
            {"stop": world.stop, "vanish": world.vanish, "start": world.start}[what](instance)
        elif what in ("cut off", "reached"):
            machine.reachable = what == "reached"
        elif what == "grown" and name in self.known:
            world.grow(self.known[name].id)
        elif what == "arrive":
            world.deliver()
        elif what == "restart":
            self.restart()
        elif what == "late":
            world.sleep(10 * DEADLINE_S)

    # --- rules: several steps that must meet

    @rule(
        name=names,
        where=st.lists(places, min_size=1, max_size=2),
        more=st.sampled_from([1, GRANULE_BYTES, 2 * GRANULE_BYTES]),
        stopped=st.sampled_from([False, False, False, True]),
        fault=extending,
    )
    def extend_attached(
        self, name: str, where: list[Place], more: int, stopped: bool, fault: Fault | None
    ) -> None:
        name = self.prefer(name, *STEADY)
        self.world.heal()
        for host, instance in where:
            if instance is not None:
                self.world.start((host, instance))
            self.attach(name, (host, instance), None)
        if stopped and where[0][1] is not None:
            self.world.stop((where[0][0], where[0][1]))
        self.extend(name, more, True, fault)

    @rule(name=st.sampled_from(["a", "b", "b"]), interruption=interruptions)
    def extend_interrupted(self, name: str, interruption: Interruption) -> None:
        """An extend is interrupted, meets a change of the world, and goes on."""
        name, where = self.prefer(name, *STEADY), interruption.where
        self.extend_attached(name, where, GRANULE_BYTES, False, interruption.fault)
        self.go_on(name, interruption.hint, interruption.change, where[0], interruption.again, True)

    @rule(interruption=interruptions)
    def file_interrupted(self, interruption: Interruption) -> None:
        """All rules are taken equally often; this one matters most."""
        self.extend_interrupted("b", interruption)

    @rule(
        name=names,
        kind=hints,
        what=changes,
        instance=instances,
        fault=extending,
        arrive=st.booleans(),
    )
    def go_on(
        self, name: str, kind: str, what: str, instance: Place, fault: Fault | None, arrive: bool
    ) -> None:
        """What is under way gets a hint or none, meets a change of the world, and goes on."""
        name = self.prefer(name, VolumeStatus.EXTENDING)
        self.hint(name, kind)
        taken = [place for place in (self.known[name].places if name in self.known else ()) if place[1]]
        host, used = taken[0] if taken else instance
        self.something_happens(what, name, (host, used or INSTANCES[0]))
        self.resume(name if name in self.known else None, fault)
        if arrive:
            self.world.deliver()

    @rule(
        name=st.sampled_from(["a", "b"]),
        where=st.one_of(st.lists(places, min_size=1, max_size=3), st.sampled_from(ON_ONE_HOST)),
        failed=st.booleans(),
        fault=detaching,
        what=changes,
    )
    def detach_interrupted(
        self, name: str, where: list[Place], failed: bool, fault: Fault | None, what: str
    ) -> None:
        """Attachments, of a failed extend perhaps, are half detached and meet a change of the world."""
        name = self.prefer(name, *STEADY)
        lagging = Fault("host.get_blockdev", 0, "error", BackendError, forever=True) if failed else None
        self.extend_attached(name, where, GRANULE_BYTES, False, lagging)
        for host, instance in where:
            self.detach(name, (host, instance), False, fault)
        host, instance = where[0]
        self.something_happens(what, name, (host, instance or INSTANCES[0]))
        self.resume(None, None)

    @rule(name=names, step=st.sampled_from([0, 1, 512, GRANULE_BYTES, 2 * GRANULE_BYTES]), fault=extending)
    def extend_after_somebody_did(self, name: str, step: int, fault: Fault | None) -> None:
        self.something_happens("grown", self.prefer(name, *STEADY), ("h1", "vm1"))
        self.extend(name, step, True, fault, True)

    # --- what must hold after every step

    @invariant()
    def no_rule_that_keeps_data_alive_was_broken(self) -> None:
        self.world.watch_sizes()
        assert self.world.violations == []
        assert self.world.array.free_bytes >= 0

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        volumes = {volume.name: volume for volume in self.engine.volumes()}
        assert set(volumes) == set(self.known)
        for name, known in self.known.items():
            assert (volumes[name].id, volumes[name].size_bytes) == (known.id, known.size_bytes)
            assert self.places(name) == known.places

    @invariant()
    def every_status_follows(self) -> None:
        for volume in self.engine.volumes():
            extend = self.engine.last_extend(volume)
            phase = extend.phase if extend else None
            assert (volume.status is VolumeStatus.EXTENDING) == bool(phase and phase.under_way)
            failed = volume.status is VolumeStatus.ERROR_EXTENDING
            assert failed == (phase is Phase.FAILED and volume.status is not VolumeStatus.DELETING)
            deferred = extend.to_bytes if extend and extend.deferred and extend.phase.under_way else None
            assert volume.extend_new_size_bytes == deferred
            follows = follow(volume)
            extended = volume.status in (VolumeStatus.EXTENDING, VolumeStatus.ERROR_EXTENDING)
            assert extended or volume.status in follows

    @invariant()
    def nothing_is_left_behind(self) -> None:
        needed, allowed = self.objects({AttachmentState.ATTACHED}), self.objects(set(AttachmentState))
        there: set[tuple[str, ...]] = {("export", *export[::-1]) for export in self.world.array.exports}
        there |= {layer for layer in self.world.sizes() if layer[0] != "array"}
        assert needed <= there <= allowed, f"missing {needed - there}, left behind {there - allowed}"
        assert self.world.array.sizes.keys() <= {known.id for known in self.known.values()}
        for machine in self.world.machines.values():
            assert machine.held == set()
        for volume in self.engine.volumes():
            with exclusive(self.directory / "locks", f"volume-{volume.id}", "a lock left behind"):
                pass

    @invariant()
    def every_failure_left_a_message(self) -> None:
        for volume in self.engine.volumes():
            texts = [message.text for message in self.engine.messages(volume)]
            query = "SELECT reason FROM extends WHERE phase IN ('failed', 'rolled-back') AND volume_id = ?"
            for row in self.engine.store.database.all(query, volume.id):
                assert row["reason"]
                assert row["reason"] in texts

    def objects(self, states: set[AttachmentState]) -> set[tuple[str, ...]]:
        """Exports, devices and nodes of the attachments in these states."""
        found: set[tuple[str, ...]] = set()
        for known in self.known.values():
            for (host, instance), state in known.places.items():
                if state in states:
                    found |= {("export", host, known.id), ("device", host, known.id)}
                    if instance and instance not in self.world.machines[host].stopped:
                        found.add(("node", host, instance, known.id))
        return found

    # --- judging

    def attempt(
        self,
        act: Callable[[], Result],
        fault: Fault | None,
        refusals: set[type[VolDriverError]],
        *,
        sure: bool = True,
    ) -> tuple[Result | None, Broken | None]:
        """Do something; where nothing was broken, it must be refused for one of `refusals`, or succeed.

        What is refused has changed nothing. `sure` says whether the model can tell.
        """
        before, result, error = self.everything(), None, None
        self.world.arm(fault)
        try:
            result = act()
        except (VolDriverError, Killed) as broken:
            error = broken
        self.world.fault = None
        if isinstance(error, Killed):
            self.restart()
        if not self.world.fired and sure:
            assert type(error) in refusals if refusals else error is None, f"{error!r}, expected {refusals}"
        lost = self.world.fired and unknown(error)  # what a backend would have refused, perhaps
        if refusals and sure and not lost and not self.fault_lasts(fault):
            assert error
            assert before == self.everything()
        return result, error

    def judge(self, name: str, error: Broken | None, fault: Fault | None, *, waited: bool = True) -> None:
        """Compare the newest extend with the truth on the array and with the error that came out."""
        volume, extend, truth = self.engine.volume(name), self.last_extend(name), self.truth(name)
        assert extend
        if extend.phase.under_way:
            assert unknown(error) if waited else error is None
            return
        assert volume.backend_bytes == truth or self.world.happened
        if extend.phase is Phase.COMPLETED:
            assert error is None or isinstance(error, Killed), "killed after the end, perhaps"
            assert truth == extend.to_bytes or self.world.happened
            self.known[name].size_bytes = extend.to_bytes
            if not self.world.happened:
                self.every_layer_agrees(name)
                lied = fault is not None and fault.what == "lie"
                assert lied or self.world.allocated[volume.id] >= truth
            return
        rolled_back = extend.phase is Phase.ROLLED_BACK
        assert error or (rolled_back and extend.id in self.cancelled)
        assert not unknown(error)
        assert self.world.happened or rolled_back == (truth == extend.from_bytes)
        struck = self.world.struck[:1] if fault and fault.what == "error" and not fault.forever else []
        alone = struck in (["host.rescan"], ["host.assist_extend"]) and self.healthy(name)
        if not rolled_back and not extend.deferred and alone:
            self.at_most_one_place_is_behind(volume, truth)
        if rolled_back:
            flying = [
                r for r in self.world.requests if r.extend.id == extend.id and r.extend.to_bytes > truth
            ]
            assert not flying, "rolled back while a request may still arrive"

    def at_most_one_place_is_behind(self, volume: Volume, truth: int) -> None:
        """The others go on when one fails."""
        layers = [
            layer for layer, size in self.world.sizes().items() if layer[-1] == volume.id and size != truth
        ]
        assert len({layer[1] for layer in layers}) <= 1
        assert len([layer for layer in layers if layer[0] == "node"]) <= 1

    def every_layer_agrees(self, name: str) -> None:
        known = self.known[name]
        layers = {layer: size for layer, size in self.world.sizes().items() if layer[-1] == known.id}
        seen = {layer for layer in layers if layer[0] != "node" or layer[1:3] not in self.world.vanished}
        assert {layers[layer] for layer in seen} == {known.size_bytes}
        assert not [row for row in self.engine.ledger(name) if row.stale]

    def only_place_changed(self, name: str, place: Place, state: AttachmentState | None) -> None:
        """Tell the model what became of one attachment; the invariants look at the others."""
        self.known[name].places.pop(place, None)
        if state is not None:
            self.known[name].places[place] = state

    def attachments_are_settled(self, name: str, error: Broken | None) -> None:
        """What was begun with an attachment is ended, or goes on; settled ones stay as they were."""
        places, attached = self.places(name), AttachmentState.ATTACHED
        for place, was in list(self.known[name].places.items()):
            state = places.get(place)
            if was is attached:
                assert state is attached
            elif was is AttachmentState.ATTACHING:
                assert error or state is attached
            else:
                assert state is None or error
            self.only_place_changed(name, place, state)

    def fault_lasts(self, fault: Fault | None) -> bool:
        """Tell whether what was broken may also have broken the undoing."""
        if fault is None or not self.world.fired:
            return False
        return fault.forever or fault.what in EVENTS or not UNDOING.isdisjoint(self.world.struck)

    def one_answer_was_lost(self, fault: Fault | None) -> bool:
        """Tell whether exactly one call left its outcome open; what cannot be read is read again."""
        if fault is None or fault.forever or not self.world.fired:
            return False
        if self.world.struck[0] in ("driver.ledger_rows", "host.ledger_rows", *UNDOING):
            return False
        return fault.what == "late" or (fault.what.startswith("error") and fault.leaf is OutcomeUnknown)

    def grown_by_others(self, fault: Fault | None) -> bool:
        return self.world.fired and fault is not None and fault.what in ("grown", "generous")

    # --- looking

    def prefer(self, name: str, *statuses: VolumeStatus) -> str:
        """Take this volume if it is in one of these states, or another one that is."""
        fitting = [each for each in self.known if self.engine.volume(each).status in statuses]
        return name if name in fitting or not fitting else fitting[0]

    def find(self, name: str) -> Volume | None:
        try:
            return self.engine.volume(name)
        except NotFound:
            return None

    def last_extend(self, name: str) -> Extend | None:
        volume = self.find(name)
        return self.engine.last_extend(volume) if volume else None

    def truth(self, name: str) -> int:
        return self.world.array.sizes.get(self.known[name].id, 0)

    def places(self, name: str) -> dict[Place, AttachmentState]:
        return {(a.host, a.instance): a.state for a in self.engine.volume(name).attachments}

    def rounded(self, name: str, asked: int) -> int:
        """Round as the backend does; the size that a volume has already is never rounded."""
        known = self.known[name]
        return asked if asked == known.size_bytes else rounded(known.backend, asked)

    def fitting(self, name: str, place: Place) -> list[Place]:
        host, instance = place
        return [p for p in self.known[name].places if p[0] == host and instance in (None, p[1])]

    def healthy(self, name: str) -> bool:
        """Tell whether all hosts and instances of a volume answer, and all its attachments are settled."""
        return all(
            self.world.machines[place[0]].reachable
            and place not in self.world.vanished
            and state is AttachmentState.ATTACHED
            for place, state in self.known[name].places.items()
        )

    def fits(self, name: str) -> bool:
        extend = self.last_extend(name)
        return not extend or extend.to_bytes - self.truth(name) <= self.world.array.free_bytes

    def everything(self, without: str = "") -> object:
        """All that an operation could change, inside and outside."""
        database = self.engine.store.database
        tables = [
            t for t in ("volumes", "snapshots", "attachments", "extends", "messages", "hints") if t != without
        ]
        rows = [
            [tuple(row) for row in database.all(f"SELECT * FROM {table} ORDER BY rowid")] for table in tables
        ]
        return self.world.snapshot(), rows

    def meddle(self, what: str, volume: Volume) -> None:
        """Be another process that works on the same volume meanwhile."""
        engine, extend = self.other, self.other.store.last_extend(volume)
        if what == "completion":
            engine.completion(volume.id, extend.id if extend else 0)
        elif what == "cancel":
            if extend and extend.phase.under_way:
                self.cancelled.add(engine.cancel(volume.id).id)
        else:
            self.rivals_are_refused(volume)

    def rivals_are_refused(self, volume: Volume) -> None:
        engine, before = self.other, self.everything()
        for act in (
            lambda: engine.extend(volume.id, LARGEST_BYTES),
            lambda: engine.retry(volume.id),
            lambda: engine.detach(volume.id, force=True),
            lambda: engine.attach(volume.id, "h1"),
            lambda: engine.delete_volume(volume.id),
        ):
            try:
                act()
            except InvalidState:
                continue
            self.world.violations.append("two processes worked on one volume")
        if before != self.everything():
            self.world.violations.append("a refused rival changed something")


def rounded(backend: str, asked: int) -> int:
    granule = GRANULES[backend]
    return -(-asked // granule) * granule


def unknown(error: Broken | None) -> bool:
    return isinstance(error, OutcomeUnknown | Killed)


def under_way(volume: Volume) -> bool:
    settled = volume.status in (*STEADY, VolumeStatus.ERROR_EXTENDING)
    return not settled or any(a.state is not AttachmentState.ATTACHED for a in volume.attachments)


def follow(volume: Volume) -> set[VolumeStatus]:
    """The statuses that may follow from a volume's attachments where no extend decides."""
    states = {a.state for a in volume.attachments}
    if AttachmentState.ATTACHING in states:
        return {VolumeStatus.ATTACHING}
    if states & {AttachmentState.DETACHING, AttachmentState.FORGETTING}:
        return {VolumeStatus.DETACHING}
    return (
        {VolumeStatus.IN_USE}
        if states
        else {VolumeStatus.AVAILABLE, VolumeStatus.CREATING, VolumeStatus.DELETING}
    )


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=50 + settings().max_examples, stateful_step_count=30)
