"""The rules of the stateful machine: when each can be taken, what it takes, what refuses it, what it changes.

All of it follows from the model. A rule that the model refuses is asked for all the same: it must be refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from voldrivers.conformance.walks import refusing
from voldrivers.conformance.walks.model import ITSELF, Known, Model
from voldrivers.conformance.walks.refusing import Refusals
from voldrivers.conformance.walks.traces import Step

#: Makes a smaller size of a size and the granule.
Smaller = Callable[[int, int], int]
SMALLER: Mapping[str, Smaller] = {
    "smaller": lambda size_bytes, granule: size_bytes - granule,
    "half": lambda size_bytes, granule: (size_bytes - granule) // 2,
}


def _no_change(_model: Model, _step: Step) -> None:
    """Leave everything as it is."""


def _nothing(_model: Model, _step: Step) -> int:
    """Take no room."""
    return 0


@dataclass(frozen=True)
class Rule:
    """One rule.

    `fits`: whether it can be taken, be it to be refused. `refusals`: the errors of which it must get one,
    none where it must be carried out. `needs`: the room that it takes if nothing is thin. `conditions`: the
    capabilities whose declared conditions may refuse it.
    """

    fits: Callable[[Model, Step], bool]
    change: Callable[[Model, Step], None] = _no_change
    refusals: Callable[[Model, Step], Refusals] = refusing.never
    needs: Callable[[Model, Step], int] = _nothing
    conditions: tuple[str, ...] = ()


def applies(model: Model, step: Step) -> bool:
    """Tell whether a step can be taken; where a pool is larger than what may be used of it, room counts."""
    rule = RULES[step.name]
    return rule.fits(model, step) and (model.ground.fills or has_room(model, step))


def has_room(model: Model, step: Step) -> bool:
    """Tell whether there is room for a step, if nothing is thin."""
    return RULES[step.name].needs(model, step) <= model.free_bytes


def refusals(model: Model, step: Step) -> Refusals:
    """Name the errors of which a step must get one; none where it must be carried out."""
    return RULES[step.name].refusals(model, step)


def believe(model: Model, step: Step) -> None:
    """Have a step have ended as the model says."""
    if not refusals(model, step) and has_room(model, step):
        RULES[step.name].change(model, step)


def is_less(model: Model, smaller: Smaller, size_bytes: int) -> bool:
    """Tell whether the rule makes less than a size of a smaller one."""
    asked_bytes = smaller(size_bytes, model.ground.rule.granularity_bytes)
    return asked_bytes < 1 or model.ground.round_up(asked_bytes) < size_bytes


# --- when


def _anytime(_model: Model, _step: Step) -> bool:
    return True


def _exists(model: Model, step: Step) -> bool:
    return model.known(step) is not None


def _is_free(model: Model, step: Step) -> bool:
    return model.known(step) is None


def _can_fill(model: Model, step: Step) -> bool:
    return _is_free(model, step) and model.ground.fills


def _is_attached(model: Model, step: Step) -> bool:
    known = model.known(step)
    return known is not None and bool(known.targets)


def _is_pending(model: Model, step: Step) -> bool:
    known = model.known(step)
    return known is not None and bool(known.pending_bytes)


def _is_extensible(model: Model, step: Step) -> bool:
    return _exists(model, step) and not refusing.no_extend(model, step)


def _can_be_interrupted(model: Model, step: Step) -> bool:
    """Tell whether it is asked where the interruption comes: a hypervisor on the first host, or anywhere."""
    by_hypervisor = step.word("at") in ("asked", "grown")
    known = model.known(step)
    asked = known is not None and known.targets == {(0, True)}
    return _is_extensible(model, step) and (asked or not by_hypervisor)


def _can_extend_in_use(model: Model, step: Step) -> bool:
    known, instances, place = model.known(step), model.ground.instances, step.number("place")
    if known is None or known.pending_bytes or not model.ground.declared.declares("in_use_extend"):
        return False
    if place >= len(instances) or known.targets not in (set(), {(place, instances[place])}):
        return False
    watched = place == 0 and instances[0]
    return watched or (step.word("how") in ("ok", "twice") and not model.ground.by_hypervisor)


def _has_place(model: Model, step: Step) -> bool:
    return _exists(model, step) and refusing.target(step) in model.ground.targets


def _lacks_snapshot(model: Model, step: Step) -> bool:
    known = model.known(step)
    return known is not None and step.number("snapshot") not in known.snapshots


def _has_snapshot(model: Model, step: Step) -> bool:
    return _exists(model, step) and not _lacks_snapshot(model, step)


def _has_source(model: Model, step: Step) -> bool:
    source, snapshot = model.volumes.get(step.number("source")), step.number("snapshot")
    return _is_free(model, step) and source is not None and snapshot in (ITSELF, *source.snapshots)


def _can_be_bad(model: Model, step: Step) -> bool:
    """Tell whether what is asked for is wrong: what is smaller may be rounded up to what there is."""
    known, how = model.known(step), step.word("how")
    return known is not None and (how not in SMALLER or is_less(model, SMALLER[how], known.size_bytes))


def _can_clone_bad(model: Model, step: Step) -> bool:
    return _has_source(model, step) and is_less(model, SMALLER["smaller"], model.source_bytes(step))


def _can_clone(model: Model, step: Step) -> bool:
    return _has_source(model, step) and not refusing.no_clone(model, step)


# --- what it takes


def _new_bytes(model: Model, step: Step) -> int:
    return model.ground.round_up(step.number("size_bytes"))


def _more_bytes(model: Model, step: Step) -> int:
    known = model.volume(step)
    return model.target_bytes(known, step.number("more_bytes")) - known.size_bytes


def _kept_bytes(model: Model, step: Step) -> int:
    return model.volume(step).size_bytes


def _reverted_bytes(model: Model, step: Step) -> int:
    known = model.volume(step)
    return max(0, known.snapshots[step.number("snapshot")] - known.size_bytes)


def _copied_bytes(model: Model, step: Step) -> int:
    return model.ground.round_up(model.source_bytes(step) + step.number("more_bytes"))


def _copied_and_extended_bytes(model: Model, step: Step) -> int:
    return model.target_bytes(Known(_copied_bytes(model, step)), step.number("grow_bytes"))


# --- what it changes


def _removed(model: Model, step: Step) -> None:
    del model.volumes[step.number("volume")]


def _attached(model: Model, step: Step) -> None:
    model.volume(step).targets.add(refusing.target(step))


def _detached(model: Model, step: Step) -> None:
    model.volume(step).targets.discard(refusing.target(step))


def _extended(model: Model, step: Step) -> None:
    known = model.volume(step)
    known.size_bytes = model.target_bytes(known, step.number("more_bytes"))


def _extended_in_use(model: Model, step: Step) -> None:
    place = step.number("place")
    model.volume(step).targets.add((place, model.ground.instances[place]))
    (_interrupted if step.word("how") == "leave" else _extended)(model, step)


def _interrupted(model: Model, step: Step) -> None:
    known = model.volume(step)
    known.pending_bytes = model.target_bytes(known, step.number("more_bytes"))


def _completed(model: Model, step: Step) -> None:
    known = model.volume(step)
    known.size_bytes = known.size_bytes if step.word("how") == "cancel" else known.pending_bytes
    known.pending_bytes = 0


def _kept(model: Model, step: Step) -> None:
    known = model.volume(step)
    known.snapshots[step.number("snapshot")] = known.size_bytes


def _dropped(model: Model, step: Step) -> None:
    del model.volume(step).snapshots[step.number("snapshot")]


def _reverted(model: Model, step: Step) -> None:
    known = model.volume(step)
    known.size_bytes = known.snapshots[step.number("snapshot")]


def _copied(model: Model, step: Step) -> None:
    model.volumes[step.number("volume")] = Known(_copied_bytes(model, step))


def _copied_and_extended(model: Model, step: Step) -> None:
    model.volumes[step.number("volume")] = Known(_copied_and_extended_bytes(model, step))


_SNAPSHOTS, _IN_USE, _SHARED = "snapshots", "in_use_extend", "multi_attach"
_EXTENDING = (_IN_USE, _SNAPSHOTS, _SHARED)

RULES: Mapping[str, Rule] = {
    "create": Rule(_is_free, Model.add, refusing.no_create, _new_bytes, (_SHARED,)),
    "create_again": Rule(_exists, refusals=refusing.always),
    "reuse": Rule(_is_free, Model.add, needs=_new_bytes),
    "fill": Rule(_can_fill, Model.add, needs=_new_bytes),
    "delete": Rule(_exists, _removed, refusing.no_delete),
    "attach": Rule(_has_place, _attached, refusing.no_attach, conditions=(_SHARED, _SNAPSHOTS)),
    "detach": Rule(_has_place, _detached, refusing.no_detach),
    "write": Rule(_is_attached),
    "extend": Rule(_exists, _extended, refusing.no_extend, _more_bytes, _EXTENDING),
    "extend_bad": Rule(_can_be_bad, refusals=refusing.no_bad_extend),
    "extend_in_use": Rule(_can_extend_in_use, _extended_in_use, needs=_more_bytes, conditions=_EXTENDING),
    "interrupt": Rule(_can_be_interrupted, _interrupted, needs=_more_bytes, conditions=_EXTENDING),
    "complete": Rule(_is_pending, _completed),
    "snapshot": Rule(_lacks_snapshot, _kept, refusing.no_snapshot, _kept_bytes, (_SNAPSHOTS,)),
    "delete_snapshot": Rule(_has_snapshot, _dropped, refusing.no_snapshot_removal, conditions=(_SNAPSHOTS,)),
    "revert": Rule(_has_snapshot, _reverted, refusing.no_revert, _reverted_bytes, ("revert",)),
    "clone": Rule(_has_source, _copied, refusing.no_clone, _copied_bytes, ("clones", _SNAPSHOTS)),
    "clone_bad": Rule(_can_clone_bad, refusals=refusing.no_bad_clone),
    "extend_clone": Rule(
        _can_clone,
        _copied_and_extended,
        needs=_copied_and_extended_bytes,
        conditions=("clones", _SNAPSHOTS),
    ),
    "restart": Rule(_anytime),
}
