"""The player: takes the steps of the stateful machine on a bench, and compares with the model after each."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from voldrivers.conformance.aids import copying
from voldrivers.conformance.aids.blows import check_grown
from voldrivers.conformance.aids.copying import Kept, allowed
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.verdicts import expect
from voldrivers.conformance.walks import rules
from voldrivers.conformance.walks.ground import ground_of
from voldrivers.conformance.walks.model import ITSELF, Model
from voldrivers.conformance.walks.traces import Step
from voldrivers.errors import InvalidState, NoSpace, NotFound
from voldrivers.model import Attachment, Volume
from voldrivers.sizes import MiB

#: A guest cuts the serial of a disk there, by which its volume is found.
_LONGEST_ID = 25
_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"

Act = Callable[["Player", Step], object]


class Player:
    """Has one bench, and the model of what is on it."""

    def __init__(self, bench: Bench) -> None:
        """Begin with nothing."""
        self.bench, self.model = bench, Model(ground_of(bench))
        self.volumes: dict[int, Volume] = {}
        self.kept: dict[tuple[int, int], Kept] = {}
        self.allocated_before = bench.driver.pool().allocated_bytes
        #: How often which rule was taken in which state.
        self.walked: Counter[tuple[str, str]] = Counter()
        #: The number of steps that were begun.
        self.begun = 0
        self._used: set[str] = set()

    def take(self, step: Step) -> bool:
        """Take a step that is one operation, and tell whether it was done."""
        act, known = partial(_ACTS[step.name], self, step), self.model.known(step)
        had_bytes = known.size_bytes if known else 0
        if kinds := rules.refusals(self.model, step):
            self.bench.refused(act, *kinds, invariant="I9")
            return False
        if not self.tried(step, act):
            return False
        rules.RULES[step.name].change(self.model, step)
        if step.name in ("extend", "clone"):
            least_bytes = self.model.source_bytes(step) if step.name == "clone" else had_bytes
            self.check_grown(self.volume(step), least_bytes)
        if (again := _AGAIN.get(step.name)) is not None:
            again(self, step)
        return True

    def tried(self, step: Step, act: Callable[[], object]) -> bool:
        """Do what only a declared condition, or a lack of room, may refuse; tell whether it was done."""
        bench = self.bench
        before, free_bytes, room = bench.everything(), bench.driver.pool().free_bytes, bench.free_bytes()
        try:
            return allowed(bench, act, *rules.RULES[step.name].conditions)
        except NoSpace as full:
            self.check_full(self._needs(step), free_bytes, full)
            expect(bench.everything() == before, "I6", f"there was no room, and something changed: {full}")
            bench.check_room(room)
            return False

    def check_full(self, needed_bytes: int, free_bytes: int, full: NoSpace) -> None:
        """Have there really be no room: what is said to be free can be had (I8), but for what that takes."""
        slack = self.bench.granule + needed_bytes // 32 + free_bytes // 64
        seen = {"needed": needed_bytes, "free": free_bytes}
        expect(needed_bytes + slack > free_bytes, "I8", f"there is room, and yet: {full}", **seen)

    def volume(self, step: Step) -> Volume:
        """Give the volume of a step as it is now."""
        return self.bench.now(self.volumes[step.number("volume")])

    def reads(self, volume: Volume) -> bool:
        """Tell whether the bytes of a volume can be read: a file in layers only by an instance."""
        attachments = self.bench.now(volume).attachments
        first = attachments[0] if attachments else None
        if first is None or first.instance is not None or first.connection_info is None:
            return True
        return first.connection_info.properties.get("format", "raw") == "raw"

    def check_data(self, volume: Volume) -> None:
        """Read back what was stamped, and zeros where nothing was (I4), if it can be read."""
        if self.reads(volume):
            self.bench.check_data(volume)

    def check_grown(self, volume: Volume, old_bytes: int) -> None:
        """Read all that, and zeros where the volume has grown, from its first new byte on."""
        if self.reads(volume):
            check_grown(self.bench, volume, old_bytes)

    def kept_of(self, step: Step) -> Kept:
        """Give the snapshot of a step."""
        return self.kept[step.number("volume"), step.number("snapshot")]

    def attachment(self, step: Step) -> Attachment | None:
        """Give the attachment of a volume where a step names it."""
        place = self.bench.subject.places[step.number("place")]
        for each in self.volume(step).attachments:
            if each.host == place.host.name and (each.instance is not None) == step.flag("instance"):
                return each
        return None

    def forget(self, number: int) -> None:
        """Have a volume be gone; its id may be another one's soon."""
        self.bench.stamps.pop(self.volumes.pop(number).id, None)

    def draw_id(self) -> None:
        """Have the next thing's id begin with that of another volume, where it can: none may be mixed up.

        It has the form of those that `Bench.new_id` draws: an agent's place shows no other's bytes.
        """
        stems = sorted((each.id for each in self.volumes.values()), key=len, reverse=True)
        begins = [each for each in stems if len(each) < _LONGEST_ID] + [f"{self.bench.run_id}-0000-"]
        found = (f"{begin}{letter}" for begin in begins for letter in _LETTERS)
        new = next((each for each in found if each not in self._used), None)
        self._used |= {new} if new else set()
        self.bench.ids = [new] if new else []

    def _needs(self, step: Step) -> int:
        known = self.model.known(step)
        return rules.RULES[step.name].needs(self.model, step) or (known.size_bytes if known else MiB)


# --- operations


def _create(player: Player, step: Step) -> None:
    bench = player.bench
    player.draw_id()
    size_bytes = step.number("size_bytes")
    volume = bench.create(size_bytes, multi_attach=step.flag("multi"))
    player.volumes[step.number("volume")] = volume
    wanted = bench.rule.round_up(size_bytes)
    expect(volume.size_bytes == wanted, "I3", "not what the rule says", wanted=wanted, got=volume.size_bytes)


def _create_again(player: Player, step: Step) -> None:
    volume = player.volume(step)
    player.bench.engine.create_volume(volume.name, volume.size_bytes + player.bench.granule)


def _delete(player: Player, step: Step) -> None:
    player.bench.engine.delete_volume(player.volume(step).id)


def _attach(player: Player, step: Step) -> None:
    place = player.bench.subject.places[step.number("place")]
    player.bench.attach(player.volume(step), place, instance=step.flag("instance"))


def _detach(player: Player, step: Step) -> None:
    attachment, volume = player.attachment(step), player.volume(step)
    if attachment is not None and not player.model.volume(step).pending_bytes:
        player.bench.detach(volume, attachment)
        return
    place = player.bench.subject.places[step.number("place")]
    instance = place.instance if step.flag("instance") else ""
    player.bench.engine.detach(volume.id, place.host.name, instance)


def _write(player: Player, step: Step) -> None:
    volume = player.volume(step)
    if player.reads(volume):
        with player.bench.opened(volume) as disk:
            disk.stamp_at(step.word("where"))


def _extend(player: Player, step: Step) -> None:
    known = player.model.volume(step)
    more_bytes = step.number("more_bytes")
    player.bench.extend(player.volume(step), known.size_bytes + more_bytes)


def _extend_bad(player: Player, step: Step) -> None:
    size_bytes, rule, how = player.model.volume(step).size_bytes, player.bench.rule, step.word("how")
    asked = {"zero": 0, "negative": -size_bytes, "too large": rule.maximum_bytes + 1}
    if how in rules.SMALLER:
        asked[how] = rules.SMALLER[how](size_bytes, rule.granularity_bytes)
    player.bench.extend(player.volume(step), asked[how])


def _snapshot(player: Player, step: Step) -> None:
    key = step.number("volume"), step.number("snapshot")
    player.kept[key] = copying.take(player.bench, player.volume(step))


def _delete_snapshot(player: Player, step: Step) -> None:
    player.bench.engine.delete_snapshot(player.kept_of(step).snapshot.id)


def _revert(player: Player, step: Step) -> None:
    copying.revert(player.bench, player.kept_of(step))


def _clone(player: Player, step: Step) -> None:
    source, snapshot = step.number("source"), step.number("snapshot")
    kept = None if snapshot == ITSELF else player.kept[source, snapshot]
    size_bytes = player.model.source_bytes(step) + step.number("more_bytes")
    player.draw_id()
    made = copying.clone(player.bench, player.volumes[source], kept, size_bytes)
    player.volumes[step.number("volume")] = made


def _clone_bad(player: Player, step: Step) -> None:
    """Ask for a copy that is smaller than its source."""
    source, snapshot = step.number("source"), step.number("snapshot")
    kept = None if snapshot == ITSELF else player.kept[source, snapshot]
    size_bytes = rules.SMALLER["smaller"](player.model.source_bytes(step), player.bench.granule)
    copying.clone(player.bench, player.volumes[source], kept, size_bytes)


_ACTS: Mapping[str, Act] = {
    "create": _create,
    "create_again": _create_again,
    "delete": _delete,
    "attach": _attach,
    "detach": _detach,
    "write": _write,
    "extend": _extend,
    "extend_bad": _extend_bad,
    "snapshot": _snapshot,
    "delete_snapshot": _delete_snapshot,
    "revert": _revert,
    "clone": _clone,
    "clone_bad": _clone_bad,
}

# --- and again: doing it once more changes nothing, or is refused


def _attach_again(player: Player, step: Step) -> None:
    bench, place = player.bench, player.bench.subject.places[step.number("place")]
    bench.refused(partial(_attach, player, step), InvalidState, invariant="I7")
    with bench.unchanged("it was exported already"):
        bench.driver.initialize_connection(player.volume(step), place.host.connector())


def _detach_again(player: Player, step: Step) -> None:
    bench, place = player.bench, player.bench.subject.places[step.number("place")]
    bench.refused(partial(_detach, player, step), NotFound, invariant="I7")
    with bench.unchanged("it was let go of already"):
        bench.driver.terminate_connection(player.volume(step), place.host.connector())


def _extend_again(player: Player, step: Step) -> None:
    bench, volume = player.bench, player.volume(step)
    before, room = bench.sizes(volume), bench.free_bytes()
    bench.extend(volume, volume.size_bytes)
    read = bench.sizes(volume)
    expect(read == before, "I7", "extended to the same size once more, it has changed", **read)
    bench.check_room(room)


def _gone(player: Player, step: Step) -> None:
    player.forget(step.number("volume"))


def _dropped(player: Player, step: Step) -> None:
    del player.kept[step.number("volume"), step.number("snapshot")]


_AGAIN: Mapping[str, Act] = {
    "attach": _attach_again,
    "detach": _detach_again,
    "extend": _extend_again,
    "delete": _gone,
    "delete_snapshot": _dropped,
}
