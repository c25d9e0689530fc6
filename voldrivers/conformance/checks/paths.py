"""EXI and ATT: a volume with several paths grows on each of them, or names the one that is lost."""

from collections.abc import Mapping
from contextlib import ExitStack

from voldrivers.conformance.aids.blows import bring_to
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import Broken, NotRun, expect
from voldrivers.errors import InvalidState, VolDriverError
from voldrivers.model import Volume

_BY_BACKEND = "in_use_extend=by-backend"


@check(
    "EXI-005",
    "every path to a volume shows the new size, and while one of them is lost an extend is refused",
    level=Level.EXTENDED,
    capability=_BY_BACKEND,
    hint="a map is as large as its smallest path; look at each of them before and after",
)
def every_path(bench: Bench) -> None:
    """Extend, compare all paths; lose one, ask for an extend, compare; have it back, extend."""
    volume = bench.in_use()
    names = _paths(bench, volume).keys()
    target_bytes = bench.rule.round_up(volume.size_bytes + bench.step)
    bench.extend(volume, target_bytes)
    _check_paths(bench, volume, target_bytes)
    larger_bytes = target_bytes + bench.step
    with bench.subject.places[0].lost(sorted(names)[0]):
        bench.refused(lambda: bench.extend(volume, larger_bytes), InvalidState, invariant="I1")
    bench.extend(volume, larger_bytes)
    _check_paths(bench, volume, larger_bytes)


@check(
    "ATT-011",
    "when a path is lost in the middle of an extend the volume goes on, and the extend names the path",
    level=Level.EXTENDED,
    capability=_BY_BACKEND,
    hint="a path that could not be read anew is an error; a map over it must not be called grown",
)
def path_lost(bench: Bench) -> None:
    """Lose a path when the backend has grown; read and write; have it back, retry, compare all paths."""
    volume = bench.in_use()
    bench.stamp(volume)
    place, lost = bench.subject.places[0], sorted(_paths(bench, volume))[-1]
    target_bytes = bench.rule.round_up(volume.size_bytes + bench.step)
    with ExitStack() as while_lost:

        def lose(_number: int, name: str, before: bool) -> None:
            if (name, before) == ("extend_volume", False):
                while_lost.enter_context(place.lost(lost))

        with bench.watch.struck(lose):
            _check_named(bench, volume, target_bytes, lost)
        bench.check_data(volume)
        bench.stamp(volume)
    bring_to(bench, volume, target_bytes)
    _check_paths(bench, volume, target_bytes)
    bench.check_data(volume)


def _check_named(bench: Bench, volume: Volume, size_bytes: int, path: str) -> None:
    try:
        bench.extend(volume, size_bytes)
    except VolDriverError as error:
        expect(path in str(error), "I11", f"{path} is lost, and it is not named: {error}")
        return
    raise Broken("I1", f"{path} was lost, and the extend was called a success")


def _paths(bench: Bench, volume: Volume) -> Mapping[str, int]:
    attachment = bench.now(volume).attachments[0]
    found = bench.place(attachment).paths(volume, attachment)
    if len(found) < 2:
        raise NotRun(f"the volume has one path only: {', '.join(found)}")
    return found


def _check_paths(bench: Bench, volume: Volume, size_bytes: int) -> None:
    read = _paths(bench, volume)
    expect(set(read.values()) == {size_bytes}, "I1", f"not all paths are {size_bytes}", **read)
    bench.check_agreed(volume, size_bytes)
