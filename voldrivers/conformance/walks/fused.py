"""Steps of the stateful machine that are several operations in a row, where they must meet to tell a lie."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace

from voldrivers.conformance.aids.blows import bring_to, check_halfway
from voldrivers.conformance.aids.pending import answering, asked, leave_pending, say
from voldrivers.conformance.verdicts import Broken, expect
from voldrivers.conformance.walks.comparing import check_all, check_end
from voldrivers.conformance.walks.player import Act, Player
from voldrivers.conformance.walks.rules import RULES, applies
from voldrivers.conformance.walks.traces import Step
from voldrivers.conformance.watch import Killed
from voldrivers.errors import BackendError, InvalidInput, InvalidState, NoSpace, VolDriverError
from voldrivers.model import Volume, VolumeStatus


def walk(player: Player, steps: Sequence[Step], is_late: Callable[[], bool]) -> None:
    """Take all steps, or as many as there is time for; then end what is pending, and look at everything.

    Raises Broken.
    """
    for step in steps:
        if is_late():
            break
        player.begun += 1
        play(player, step)
    for number, known in player.model.volumes.items():
        if known.pending_bytes:
            complete(player, Step("complete", {"volume": number, "how": "nothing"}))
    check_end(player)


def play(player: Player, step: Step) -> None:
    """Take one step and compare. Raises Broken.

    A step that the model does not allow is passed over, so any part of a walk can be walked.
    """
    if not applies(player.model, step):
        return
    player.walked[step.name, player.model.state(step)] += 1
    FUSED.get(step.name, Player.take)(player, step)
    check_all(player, step)


def restart(player: Player, _step: Step) -> None:
    """Go on with new objects of everything."""
    with player.bench.unchanged("it was only started anew"):
        player.bench.restart()


def reuse(player: Player, step: Step) -> None:
    """Create, write, delete, create under the same name, under the same id too perhaps: all is zeros."""
    bench, number = player.bench, step.number("volume")
    if not player.take(_part(step, "create", multi=False)):
        return
    first = player.volumes[number]
    bench.stamp(first)
    player.take(_part(step, "delete"))
    again_id = first.id if step.flag("same_id") else bench.new_id()

    def create() -> None:
        bench.ids = [again_id]
        options = bench.subject.volume_options
        player.volumes[number] = bench.engine.create_volume(first.name, first.size_bytes, options=options)

    if player.tried(step, create):
        RULES["reuse"].change(player.model, step)
        try:
            bench.check_data(player.volumes[number])
        except Broken as broken:
            raise Broken("I13", f"after a volume was deleted: {broken.text}", **broken.readings) from broken


def fill(player: Player, step: Step) -> None:
    """Take nearly all the room, then extend beyond it: refused, or done where the room is thin."""
    if player.take(_part(step, "create", multi=False)):
        player.take(_part(step, "extend"))


def extend_clone(player: Player, step: Step) -> None:
    """Make a copy, extend it, write to it: its source stays as it is."""
    bench = player.bench
    if player.take(_part(step, "clone")):
        player.take(_part(step, "extend", more_bytes=step.number("grow_bytes")))
        bench.stamp(player.volume(step))
        bench.check_data(player.volume(step))


def interrupt(player: Player, step: Step) -> None:
    """Kill who extends: before or after the driver was asked, or the hypervisor."""
    known = player.model.volume(step)
    target_bytes = player.model.target_bytes(known, step.number("more_bytes"))
    if _is_admitted(player, step, target_bytes):
        _interrupted(player, player.volume(step), target_bytes, step.word("at"))
        RULES["interrupt"].change(player.model, step)


def complete(player: Player, step: Step) -> None:
    """Give hints, which are never evidence; then go on with what was interrupted, to its one end."""
    bench, known, volume = player.bench, player.model.volume(step), player.volume(step)
    _hint(player, volume, step.word("how"))
    now = bench.now(volume)
    expect(now.size_bytes == known.size_bytes, "I14", "a mere hint has published a size", size=now.size_bytes)
    expect(now.status is VolumeStatus.EXTENDING, "I14", "a mere hint has ended it", status=now.status)
    had_bytes, free_bytes = bench.driver.volume_size(now), bench.driver.pool().free_bytes
    resumed = bench.engine.resume(volume.id)
    expect(resumed, "I14", "an extend that was interrupted is forgotten")
    rolled_back = step.word("how") == "cancel" and had_bytes == known.size_bytes
    for error in (each.error for each in resumed if each.error is not None):
        if not isinstance(error, NoSpace):
            raise Broken("I7", f"what was interrupted cannot be ended: {type(error).__name__}: {error}")
        player.check_full(known.pending_bytes - had_bytes, free_bytes, error)
        rolled_back = True
    known.size_bytes = known.size_bytes if rolled_back else known.pending_bytes
    known.pending_bytes = 0


def extend_in_use(player: Player, step: Step) -> None:
    """Attach, write to the last block, extend in use: well, twice, failing, with a second one, or left."""
    bench, known, place = player.bench, player.model.volume(step), step.number("place")
    old_bytes = known.size_bytes
    target_bytes = player.model.target_bytes(known, step.number("more_bytes"))
    has_instance = player.model.ground.instances[place]
    if not known.targets and not player.take(_part(step, "attach", instance=has_instance)):
        return
    with bench.opened(player.volume(step)) as disk:
        disk.stamp_at("last")
    if _is_admitted(player, step, target_bytes):
        _HOW[step.word("how")](player, player.volume(step), old_bytes, target_bytes)
        RULES["extend_in_use"].change(player.model, step)


def _well(player: Player, volume: Volume, old_bytes: int, target_bytes: int) -> None:
    """Until the hypervisor has done its part the old size is published; its guest writes at once."""
    bench = player.bench

    def look() -> None:
        now, read = bench.now(volume), bench.sizes(volume)
        expect(now.size_bytes == old_bytes, "I14", "published before it is true", size=now.size_bytes)
        expect(now.status is VolumeStatus.EXTENDING, "I14", "it is not extending", status=now.status)
        as_before = set(read.values()) == {old_bytes} or not player.model.ground.by_hypervisor
        expect(as_before, "I9", "it was left to the hypervisor, and grew before that was asked", **read)

    with asked(bench, before=look, after=lambda: bench.stamp(volume)):
        bench.extend(volume, target_bytes)
    bench.check_agreed(volume, target_bytes)
    player.check_grown(volume, old_bytes)


def _twice(player: Player, volume: Volume, _old_bytes: int, target_bytes: int) -> None:
    bench = player.bench
    bench.extend(volume, target_bytes)
    read, room = bench.sizes(volume), bench.free_bytes()
    bench.extend(volume, target_bytes)
    again = bench.sizes(volume)
    expect(again == read, "I7", "extended twice, it is not the same", **again)
    bench.check_room(room)


def _failing(player: Player, volume: Volume, old_bytes: int, target_bytes: int) -> None:
    """Its hypervisor does nothing, and says that it failed."""
    failing = answering(player.bench, BackendError("hypervisor", "the suite had it fail"))
    _mended(player, volume, old_bytes, target_bytes, failing)


def _grown(player: Player, volume: Volume, old_bytes: int, target_bytes: int) -> None:
    """Its hypervisor does all of it, and says that it failed."""
    saying = asked(player.bench, after=lambda: say(BackendError))
    _mended(player, volume, old_bytes, target_bytes, saying)


def _mended(
    player: Player, volume: Volume, old_bytes: int, target_bytes: int, failing: AbstractContextManager[None]
) -> None:
    bench = player.bench
    try:
        with failing:
            bench.extend(volume, target_bytes)
    except VolDriverError:
        check_halfway(bench, volume, old_bytes, target_bytes)
        bring_to(bench, volume, target_bytes)
        return
    raise Broken("I1", "an extend that failed at the hypervisor was called a success")


def _left(player: Player, volume: Volume, _old_bytes: int, target_bytes: int) -> None:
    leave_pending(player.bench, volume, target_bytes)


def _second(player: Player, volume: Volume, _old_bytes: int, target_bytes: int) -> None:
    bench = player.bench
    leave_pending(bench, volume, target_bytes)
    larger_bytes = target_bytes + bench.step
    bench.refused(lambda: bench.extend(volume, larger_bytes), InvalidState, invariant="I14")
    bring_to(bench, volume, target_bytes)


_HOW: Mapping[str, Callable[[Player, Volume, int, int], None]] = {
    "ok": _well,
    "twice": _twice,
    "error": _failing,
    "grown": _grown,
    "leave": _left,
    "second": _second,
}

FUSED: Mapping[str, Act] = {
    "restart": restart,
    "reuse": reuse,
    "fill": fill,
    "extend_clone": extend_clone,
    "interrupt": interrupt,
    "complete": complete,
    "extend_in_use": extend_in_use,
}


def _part(step: Step, name: str, **more: int) -> Step:
    """Give one operation of several, with the arguments of all and more."""
    return replace(step, name=name, arguments={**step.arguments, **more})


def _is_admitted(player: Player, step: Step, target_bytes: int) -> bool:
    """Tell whether an extend is let in; a declared condition or the room may refuse it."""
    return player.tried(step, lambda: player.bench.engine.plan(player.volume(step).id, target_bytes))


def _interrupted(player: Player, volume: Volume, target_bytes: int, at: str) -> None:
    bench = player.bench
    if at in ("asked", "grown"):
        leave_pending(bench, volume, target_bytes, grown=at == "grown")
        return

    def strike(_number: int, name: str, before: bool) -> None:
        if name == "extend_volume" and before is (at == "before"):
            raise Killed

    with bench.watch.struck(strike), suppress(Killed):
        bench.extend(volume, target_bytes)
    bench.restart()
    status = bench.now(volume).status
    expect(status is VolumeStatus.EXTENDING, "I14", "its extend was forgotten", status=status)


def _hint(player: Player, volume: Volume, how: str) -> None:
    """Tell of completions, of this extend and of the one before, or ask to cancel."""
    engine, extend = player.bench.engine, player.bench.engine.last_extend(volume)
    if extend is None:
        raise Broken("I14", "an extend left no record")
    if how == "cancel":
        engine.cancel(volume.id)
    elif how != "nothing":
        for extend_id in (extend.id - 1, extend.id, extend.id):
            with suppress(InvalidState, InvalidInput):
                engine.completion(volume.id, extend_id, error=how == "failed")
