"""BAD: what makes no sense is refused with an error that says why, and nothing has changed."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from voldrivers.abilities import Clones, Snapshots
from voldrivers.conformance.aids import direct
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import check
from voldrivers.conformance.verdicts import Broken, expect
from voldrivers.errors import (
    BackendError,
    InvalidInput,
    InvalidSize,
    InvalidState,
    NoSpace,
    NotFound,
    VolDriverError,
)
from voldrivers.model import Snapshot, Volume
from voldrivers.options import OptionHelp, check_options, explain, read_options

_NAMES = (
    "../../etc/escaped",
    "--force",
    "one\ntwo",
    "one;two",
    "$(touch escaped)",
    "'\"`escaped`",
    "nul\0nul",
    "x" * 255,
)


@check("BAD-001", "a size that is none is refused, and nothing has changed", smoke=True)
def sizes(bench: Bench) -> None:
    """Extend to, and create with, what is no size; extend to a smaller one."""
    volume = bench.create(bench.small + bench.step)
    larger = volume.size_bytes + bench.step
    wrong = (0, -1, -larger, None, "abc", str(larger), float(larger), float("nan"), True, 2**63, 2**64 + 1)
    with bench.unchanged("they were refused"):
        for size in wrong:
            given: int = size  # type: ignore[assignment]  # what callers give in spite of it
            _refused_size(f"an extend to {size!r}", partial(bench.extend, volume, given))
            _refused_size(
                f"a new volume of {size!r}", partial(bench.engine.create_volume, bench.name(), given)
            )
    bench.refused(lambda: bench.extend(volume, volume.size_bytes - bench.granule), InvalidSize)
    bench.check_agreed(volume, volume.size_bytes)


@check(
    "BAD-002",
    "what does not exist is not found, and never made by a look or an extend",
    hint="raise NotFound; only delete_volume and terminate_connection take it for done",
)
def unknown(bench: Bench) -> None:
    """Ask engine and driver for a volume that is gone."""
    volume, driver = direct.gone(bench), bench.driver
    engine, host = bench.engine, bench.subject.places[0].host
    larger = volume.size_bytes + bench.step
    asked: tuple[Callable[[], object], ...] = (
        lambda: driver.volume_size(volume),
        lambda: driver.extend_volume(volume, larger),
        lambda: driver.extend_volume(volume, volume.size_bytes),
        lambda: engine.extend(volume.name, larger),
        lambda: engine.attach(volume.name, host.name),
        lambda: engine.delete_volume(volume.name),
    )
    for ask in asked:
        bench.refused(ask, NotFound)
    with bench.unchanged("nothing was there"):
        driver.terminate_connection(volume, host.connector())
        driver.delete_volume(volume)


@check("BAD-004", "a volume never becomes smaller, not by a byte, not by a granule, not by the driver itself")
def smaller(bench: Bench) -> None:
    """Ask for less: within its last granule that is its size, below it an error."""
    volume = bench.create(bench.small + bench.step)
    bench.stamp(volume)
    if bench.granule > 1:
        bench.extend(volume, volume.size_bytes - 1)
        bench.check_agreed(volume, volume.size_bytes)
    less = volume.size_bytes - bench.granule
    bench.refused(lambda: bench.extend(volume, less), InvalidSize)
    for wanted in (less, bench.rule.round_up(1)):
        with bench.unchanged("a smaller size was asked for"):
            _allow(partial(bench.driver.extend_volume, bench.now(volume), wanted), InvalidInput)
    bench.check_data(volume)


@check(
    "BAD-005",
    "no name reaches a shell, a path or an option",
    hint="name objects on the backend by the volume's id; run programs without a shell",
)
def hostile_names(bench: Bench) -> None:
    """Give hostile names to the engine, to the driver, and as references to take over."""
    for name in ("", *_NAMES):
        bench.refused(partial(bench.engine.create_volume, name, bench.small), InvalidInput)
        if bench.declared.manage and name:
            wrong = (NotFound, InvalidInput, InvalidState)
            bench.refused(partial(bench.engine.manage_volume, bench.name(), name), *wrong)
    before = bench.everything()
    for name in _NAMES:
        volume = direct.blank(bench, name=name)
        _allow(partial(_made_alone, bench, volume), InvalidInput)
        after = bench.everything()
        expect(after == before, "I5", f"the name {name!a} left something", before=before, after=after)


@check("BAD-006", "a snapshot, a source or a reference that does not exist is not found")
def unknown_sources(bench: Bench) -> None:
    """Ask for a snapshot and for copies of what is gone, of the engine and of the driver."""
    engine, volume, name = bench.engine, bench.create(), bench.name()
    lost = _lost_snapshot(bench, volume)
    volume = bench.now(volume)
    asked: list[Callable[[], object]] = [lambda: engine.delete_snapshot(lost.name)]
    if bench.declared.snapshots:
        asked += [lambda: engine.create_snapshot(name, lost.name)]
    if bench.declared.clones:
        asked += [
            lambda: engine.clone_volume(name, source=f"no-{name}"),
            lambda: engine.clone_volume(name, snapshot=lost.name),
            lambda: _clone_of_gone(bench),
        ]
    if bench.declared.manage:
        asked += [lambda: engine.manage_volume(name, f"no-{name}")]
    for ask in asked:
        bench.refused(ask, NotFound)
    if bench.declared.snapshots and bench.declared.clones:
        # The record of a deleted snapshot may name what is the volume's own by now.
        unfit = (NotFound, InvalidState, BackendError)
        bench.refused(lambda: _clone_of_gone(bench, lost, volume), *unfit)
    if isinstance(bench.driver, Snapshots) and bench.declared.snapshots:
        with bench.unchanged("nothing was there"):
            bench.driver.delete_snapshot(volume, lost)


@check(
    "BAD-008",
    "an error says what it is about, with the facts and without a secret",
    hint="fill the fields of the error: people read no log of the driver's",
)
def error_texts(bench: Bench) -> None:
    """Ask for what is gone and for what there is no room for; read the errors."""
    lost, volume = direct.gone(bench), bench.create()
    secrets = direct.secrets(bench, bench.attach(volume, instance=False).connection_info)
    driver = bench.driver
    over_bytes = driver.pool().free_bytes + bench.small + bench.granule
    not_found = bench.refused(lambda: driver.volume_size(lost), NotFound)
    _check_text(not_found, secrets, lost.name, lost.id)
    larger = bench.rule.maximum_bytes + 1
    _check_text(bench.refused(lambda: bench.extend(volume, larger), VolDriverError), secrets, volume.name)
    if over_bytes > bench.rule.maximum_bytes:
        return
    large = direct.blank(bench, bench.rule.round_up(over_bytes))
    full = bench.refused(lambda: direct.make(bench, large), NoSpace)
    _check_text(full, secrets)
    needed = full.needed_bytes if isinstance(full, NoSpace) else 0
    expect(needed > 0, "I11", "NoSpace does not say how much is needed", text=str(full))


@check("BAD-003", "without a name nothing is made, and without a name or id nothing is meant")
def nameless(bench: Bench) -> None:
    """With the only volume there is, create and ask for everything without a name."""
    volume, engine = bench.create(), bench.engine
    host = bench.subject.places[0].host.name
    larger_bytes = volume.size_bytes + bench.step
    asked: list[Callable[[], object]] = [
        lambda: engine.create_volume("", volume.size_bytes),
        lambda: engine.volume(""),
        lambda: engine.extend("", larger_bytes),
        lambda: engine.attach("", host),
        lambda: engine.delete_volume(""),
    ]
    if bench.declared.snapshots:
        asked += [lambda: engine.create_snapshot(volume.id, ""), lambda: engine.delete_snapshot("")]
    if bench.declared.clones:
        asked += [lambda: engine.clone_volume("", volume.id), lambda: engine.clone_volume(bench.name(), "")]
    for act in asked:
        bench.refused(act, InvalidInput, NotFound)


@check(
    "BAD-007",
    "a configuration of garbage is refused with an error that names the option",
    hint="a ValueError of the options class is told; whatever else it raises is not",
)
def garbage(bench: Bench) -> None:
    """Give every option a value of a wrong type, then all of them garbage; have the driver look at that."""
    kind = bench.subject.driver_class
    for options_type in (kind.options_type, kind.volume_options_type):
        for name in (option.name for option in explain(options_type)):
            problems = [str(each) for each in check_options(options_type, {name: []}, "options").problems]
            expect(any(name in each for each in problems), "I11", f"{name} is not named", problems=problems)
        table = {option.name: _garbage(option) for option in explain(options_type)}
        try:
            options: object = read_options(options_type, table, "options")
            if options_type is kind.options_type:
                kind(bench.name(), options, bench.subject.run).check_configuration()
        except VolDriverError:
            continue
        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
            raise Broken("I11", f"no error of voldrivers: {type(error).__name__}: {error}") from error


def _garbage(option: OptionHelp) -> object:
    """Give a value of the type that an option has, which makes no sense."""
    numbers: dict[str, object] = {"a whole number": 7, "a number": 7.5, "true or false": True}
    choices = option.kind.split(" | ")
    if len(choices) > 1:
        return choices[-1]
    return numbers.get(option.kind.partition(",")[0], "512" if "20G" in option.kind else "no such thing #")


def _refused_size(what: str, act: Callable[[], object]) -> None:
    """Have a size refused; a rule of the driver's own may raise anything."""
    try:
        answer = act()
    except InvalidSize:
        return
    except (VolDriverError, TypeError, ArithmeticError) as error:
        raise Broken("I11", f"{what} is {type(error).__name__}: {error}") from error
    raise Broken("I11", f"{what} was not refused", answer=answer)


def _check_text(error: VolDriverError, secrets: set[str], *names: str) -> None:
    """Have an error name its subject, by one of its names, and no secret."""
    told = str(error)
    named = any(name in told for name in names) or not names
    expect(told.strip() and named, "I11", "the error does not say what it is about", text=told)
    shown = f"{told} {error!r} {error.__cause__!r}"
    expect(not any(secret in shown for secret in secrets), "I11", f"{type(error).__name__} has a secret")


def _allow(act: Callable[[], object], *kinds: type[VolDriverError]) -> None:
    """Act; a refusal is as good."""
    with suppress(*kinds):
        act()


def _made_alone(bench: Bench, volume: Volume) -> None:
    """Have the driver make a volume; nothing else may be new."""
    before = bench.everything()
    with direct.made(bench, volume) as there:
        read = bench.driver.volume_size(there)
        expect(read == volume.size_bytes, "I1", "its size is wrong", name=ascii(volume.name), read=read)
        after = bench.everything()
        new = after.listed - before.listed
        expect(new == {volume.id}, "I5", f"the name {volume.name!a} made more than itself", new=new)
        kept = {name: after.objects.get(name) for name in before.objects}
        expect(kept == before.objects, "I5", f"the name {volume.name!a} changed something else")


def _lost_snapshot(bench: Bench, volume: Volume) -> Snapshot:
    """Give a snapshot that was there, if that can be, and is not any more."""
    if not bench.declared.snapshots:
        return Snapshot(bench.new_id(), bench.name(), volume.id, volume.size_bytes)
    snapshot = bench.engine.create_snapshot(volume.id, bench.name())
    bench.engine.delete_snapshot(snapshot.id)
    return snapshot


def _clone_of_gone(bench: Bench, snapshot: Snapshot | None = None, source: Volume | None = None) -> None:
    source = source or direct.gone(bench)
    if not isinstance(bench.driver, Clones):
        raise Broken("I9", "clones are declared and cannot be made")
    bench.driver.clone_volume(direct.blank(bench), direct.options(bench), source, snapshot)
