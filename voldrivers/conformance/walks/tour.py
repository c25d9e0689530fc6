"""The first walk: what a driver declares, each operation at least once, in an order in which it can be done.

A slow backend may have time for no other, and those that are drawn may never come to a clone.
"""

from collections.abc import Iterator

from voldrivers.conformance.walks.ground import Ground
from voldrivers.conformance.walks.model import ITSELF, Model, Target
from voldrivers.conformance.walks.rules import applies, believe, has_room, refusals
from voldrivers.conformance.walks.traces import Step

_SOURCE, _COPY = 0, 1
_DETACHED, _IN_USE = 0, 1


def tour(ground: Ground) -> tuple[Step, ...]:
    """Give the walk: of all that is wished for, what the model says can be done."""
    model, found = Model(ground), []
    for step in _wished(ground):
        if applies(model, step) and has_room(model, step) and not refusals(model, step):
            believe(model, step)
            found.append(step)
    return tuple(found)


def _wished(ground: Ground) -> Iterator[Step]:
    more = {"more_bytes": ground.step_bytes}
    of_places = [next(each for each in ground.targets if each[0] == n) for n in range(len(ground.instances))]
    yield Step("create", {"volume": _SOURCE, "multi": False, "size_bytes": ground.small_bytes})
    for target in of_places[:1]:
        yield from _used(ground, target)
    yield _of_source("snapshot", snapshot=_DETACHED)
    for snapshot in (ITSELF, _DETACHED):
        yield Step("clone", {"volume": _COPY, "source": _SOURCE, "snapshot": snapshot, "more_bytes": 0})
        yield Step("extend", {"volume": _COPY, **more})
        yield Step("delete", {"volume": _COPY})
    yield _of_source("extend", **more)
    yield _of_source("revert", snapshot=_DETACHED)
    yield _of_source("delete_snapshot", snapshot=_DETACHED)
    for target in of_places[1:]:
        yield from _used(ground, target)
    yield _of_source("interrupt", at="before", **more)
    yield _of_source("complete", how="nothing")
    yield _of_source("delete")
    yield Step("reuse", {"volume": _SOURCE, "same_id": False, "size_bytes": ground.small_bytes})
    yield Step("restart")


def _used(ground: Ground, target: Target) -> Iterator[Step]:
    """Attach, write, grow, keep a snapshot meanwhile, write again, detach."""
    place, instance = target
    where = {"place": place, "instance": instance}
    yield _of_source("attach", **where)
    yield _of_source("write", where="last")
    yield _of_source("extend_in_use", place=place, how="ok", more_bytes=ground.step_bytes)
    yield _of_source("snapshot", snapshot=_IN_USE)
    yield _of_source("write", where="first")
    yield _of_source("delete_snapshot", snapshot=_IN_USE)
    yield _of_source("detach", **where)


def _of_source(name: str, **arguments: int | str) -> Step:
    return Step(name, {"volume": _SOURCE, **arguments})
