"""Cutting a walk that fails down to the steps that it takes, with as few tries as it can be done."""

from collections.abc import Callable
from typing import TypeVar

from voldrivers.conformance.walks.traces import Step

Found = TypeVar("Found")
Walk = tuple[Step, ...]


def shrunk(
    steps: Walk, breaks: Callable[[Walk], tuple[Walk, Found] | None], is_late: Callable[[], bool]
) -> tuple[Walk, Found] | None:
    """Give the shortest walk that was found to break the same, with what was found; None if none was.

    `breaks` walks, and gives the steps that it took until it broke. Parts are left out, half of all at first
    and one step at last (delta debugging); whatever is left out, the rest can be walked.
    """
    best: tuple[Walk, Found] | None = None
    size = max(1, len(steps) // 2)
    while not is_late():
        found = _without_some(steps, size, breaks, is_late)
        if found is not None:
            best, steps = found, found[0]
            size = min(size, max(1, len(steps) // 2))
        elif size == 1:
            break
        else:
            size //= 2
    return best


def _without_some(
    steps: Walk,
    size: int,
    breaks: Callable[[Walk], tuple[Walk, Found] | None],
    is_late: Callable[[], bool],
) -> tuple[Walk, Found] | None:
    """Leave out so many steps, the last ones first; give the first part that breaks."""
    for end in range(len(steps), 0, -size):
        if is_late():
            return None
        found = breaks(steps[: max(0, end - size)] + steps[end:])
        if found is not None:
            return found
    return None
