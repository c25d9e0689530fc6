"""Walks of the stateful machine, made by hypothesis of what is declared and of the model.

A backend's answers have no say in them, so the same seed is the same walk on any backend.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from voldrivers.conformance.walks.ground import Ground
from voldrivers.conformance.walks.model import ITSELF, SNAPSHOTS, VOLUMES, Model
from voldrivers.conformance.walks.rules import applies, believe, refusals
from voldrivers.conformance.walks.traces import Step, Value

Arguments = Mapping[str, Value]

#: How often each rule is drawn, compared with the others.
_WEIGHTS = {
    "create": 6,
    "attach": 5,
    "write": 5,
    "extend": 6,
    "extend_in_use": 8,
    "interrupt": 4,
    "complete": 8,
    "snapshot": 5,
    "delete_snapshot": 3,
    "revert": 2,
    "clone": 3,
    "extend_clone": 2,
    "detach": 4,
    "delete": 4,
    "reuse": 2,
    "fill": 1,
    "restart": 1,
    "extend_bad": 1,
    "create_again": 1,
    "clone_bad": 1,
}
#: One in so many steps is one that must be refused, where there is such a one.
_REFUSED = 6


def walks(ground: Ground, steps: int) -> st.SearchStrategy[tuple[Step, ...]]:
    """Give walks of so many steps."""

    @st.composite
    def walk(draw: st.DrawFn) -> tuple[Step, ...]:
        model, found = Model(ground), []
        for _ in range(steps):
            step = draw(_step(model))
            believe(model, step)
            found.append(step)
        return tuple(found)

    return walk()


def sample(ground: Ground, *, number: int, steps: int, count: int) -> Sequence[tuple[Step, ...]]:
    """Give `count` walks, the same ones for the same number; nothing is tried and nothing kept."""
    found: list[tuple[Step, ...]] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(walks(ground, steps))
    def collect(walk: tuple[Step, ...]) -> None:
        found.append(walk)

    collect()
    return found[:count]


def _step(model: Model) -> st.SearchStrategy[Step]:
    """Give a step that can be taken now; now and then one that must be refused."""
    by_name: dict[str, list[Step]] = {}
    refused: list[Step] = []
    for step in _candidates(model):
        if applies(model, step):
            (refused if refusals(model, step) else by_name.setdefault(step.name, [])).append(step)
    names = [name for name, weight in _WEIGHTS.items() if name in by_name for _ in range(weight)]
    done = st.sampled_from(names).flatmap(lambda name: st.sampled_from(by_name[name]))
    if not refused:
        return done.flatmap(lambda step: _sized(model, step))
    either = st.integers(0, _REFUSED - 1).flatmap(
        lambda drawn: done if drawn < _REFUSED - 1 else st.sampled_from(refused)
    )
    return either.flatmap(lambda step: _sized(model, step))


def _sized(model: Model, step: Step) -> st.SearchStrategy[Step]:
    """Give a step with its sizes, where it has some."""
    ground, granule = model.ground, model.ground.rule.granularity_bytes
    new, larger = {ground.small_bytes, ground.small_bytes + 1, granule, granule + 1, 1}, ground.step_bytes
    more = [larger, 1, granule, granule + 1, 2 * larger]
    sizes: dict[str, Sequence[int]] = {}
    if step.name in ("create", "reuse"):
        edges = {ground.rule.minimum_bytes, ground.rule.minimum_bytes + 1}
        sizes["size_bytes"] = sorted(new | edges, key=lambda size: (size != ground.small_bytes, size))
    elif step.name in ("extend", "extend_in_use", "interrupt"):
        sizes["more_bytes"] = [*more, 0] if step.name == "extend" else more
    elif step.name in ("clone", "extend_clone"):
        sizes["more_bytes"] = [0, larger, 1]
        sizes |= {"grow_bytes": more} if step.name == "extend_clone" else {}
    drawn = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in sizes.items()})
    return drawn.map(lambda given: Step(step.name, {**step.arguments, **given}))


def _candidates(model: Model) -> Iterator[Step]:
    """Give every step in every place; sizes come later, but those that follow from the room."""
    free = next((number for number in range(VOLUMES) if number not in model.volumes), None)
    yield Step("restart")
    for number in model.volumes:
        yield from (Step(name, {"volume": number, **rest}) for name, rest in _of_volume(model))
    if free is not None:
        yield from (Step(name, {"volume": free, **rest}) for name, rest in _of_new(model))


def _of_volume(model: Model) -> Iterator[tuple[str, Arguments]]:
    yield from (("create_again", {}), ("delete", {}), ("extend", {"more_bytes": 0}))
    yield from (("write", {"where": where}) for where in ("first", "middle", "last"))
    yield from (("extend_bad", {"how": how}) for how in ("zero", "negative", "smaller", "half", "too large"))
    yield from (("complete", {"how": how}) for how in ("done", "failed", "cancel", "nothing"))
    for at in ("before", "after", "asked", "grown"):
        yield "interrupt", {"at": at, "more_bytes": 0}
    for place, how in product(range(2), ("ok", "twice", "error", "grown", "leave", "second")):
        yield "extend_in_use", {"place": place, "how": how, "more_bytes": 0}
    for (place, instance), name in product(model.ground.targets, ("attach", "detach")):
        yield name, {"place": place, "instance": instance}
    for snapshot, name in product(range(SNAPSHOTS), ("snapshot", "delete_snapshot", "revert")):
        yield name, {"snapshot": snapshot}


def _of_new(model: Model) -> Iterator[tuple[str, Arguments]]:
    granule = model.ground.rule.granularity_bytes
    yield from (("create", {"multi": multi, "size_bytes": 1}) for multi in (False, True))
    yield from (("reuse", {"same_id": same, "size_bytes": 1}) for same in (False, True))
    for spare in (0, model.ground.step_bytes):
        size_bytes = (model.free_bytes - spare) // granule * granule
        if size_bytes >= max(granule, model.ground.rule.minimum_bytes):
            yield "fill", {"size_bytes": size_bytes, "more_bytes": spare + 2 * granule}
    for source, snapshot in product(model.volumes, (ITSELF, *range(SNAPSHOTS))):
        copied = {"source": source, "snapshot": snapshot, "more_bytes": 0}
        yield "clone", copied
        yield "clone_bad", copied
        yield "extend_clone", {**copied, "grow_bytes": 0}
