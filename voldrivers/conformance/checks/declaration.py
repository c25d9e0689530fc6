"""DEC: what a driver declares is whole, stays the same, and gives nothing away."""

import inspect
import pickle
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from voldrivers.capabilities import Capabilities, Condition
from voldrivers.conformance.aids import direct
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import check
from voldrivers.conformance.hiding import SECRET
from voldrivers.conformance.verdicts import Broken, expect
from voldrivers.conformance.watch import methods
from voldrivers.options import check_options, explain
from voldrivers.sizes import LARGEST_BYTES, SizeRule


@check(
    "DEC-001",
    "every method of the interfaces is there, and can be called as they say",
    smoke=True,
    hint="take the parameters of the interface, by its names where they have a default",
)
def complete(bench: Bench) -> None:
    """Compare each method with its interface: what may be given, what must be, what only by its name."""
    kind = bench.subject.driver_class
    for name, asked in methods(kind).items():
        method = getattr(kind, name)
        plain = inspect.isfunction(method) and not inspect.iscoroutinefunction(method)
        expect(plain and not inspect.isgeneratorfunction(method), "I9", f"{name} is no plain method")
        wrong = _cannot_be_called(method, inspect.signature(asked))
        expect(not wrong, "I9", f"{name} cannot be called as its interface says: {wrong}")


@check(
    "DEC-002",
    "every capability is declared, by a value of its own type",
    smoke=True,
    hint="a text such as 'no' counts as yes; give True, False or an InUseExtend",
)
def declares(bench: Bench) -> None:
    """Look at every field of the declaration."""
    declared = bench.driver.capabilities
    expect(isinstance(declared, Capabilities), "I9", "it is no Capabilities", declared=declared)
    for field in fields(Capabilities):
        value, kind = getattr(declared, field.name), type(field.default)
        expect(type(value) is kind, "I9", f"{field.name} is no {kind.__name__}", value=repr(value))
    for condition in declared.conditions:
        said = isinstance(condition, Condition) and condition.unless.strip()
        expect(said, "I9", "a condition does not say when it holds", found=condition)


@check(
    "DEC-003", "the sizes that the rule gives keep to its own granularity, minimum and maximum", smoke=True
)
def size_rule(bench: Bench) -> None:
    """Ask the rule for its smallest and its largest size, and beyond both."""
    rule, granule = bench.rule, bench.granule
    expect(isinstance(rule, SizeRule), "I3", "size_rule is no SizeRule", rule=rule)
    expect(rule.maximum_bytes <= LARGEST_BYTES, "I3", "no system call takes its maximum", rule=rule)
    least, most = rule.round_up(1), rule.maximum_bytes // granule * granule
    for size_bytes in (least, rule.round_up(rule.minimum_bytes), rule.round_up(most)):
        inside = rule.minimum_bytes <= size_bytes <= rule.maximum_bytes and not size_bytes % granule
        expect(inside, "I3", "the rule gives a size that it does not allow", rule=rule, size=size_bytes)
    expect(rule.round_up(most) == most, "I3", "the largest size is not itself", rule=rule)
    for wrong in (rule.maximum_bytes + 1, 0, -1):
        try:
            given = rule.round_up(wrong)
        except ValueError:
            continue
        raise Broken("I3", f"the rule allows {wrong} bytes", rule=rule, given=given)
    bench.restart()
    expect(bench.rule == rule, "I3", "a new driver object has another rule", before=rule, now=bench.rule)


@check("DEC-004", "what is declared does not change, whatever happens and whoever is started anew")
def constant(bench: Bench) -> None:
    """Compare the declaration before and after a volume is created, and of a new driver object."""
    declared = bench.declared
    expect(bench.driver.capabilities == declared, "I9", "an object declares something else than its class")
    volume = bench.create()
    expect(bench.driver.capabilities == declared, "I9", "it changed when a volume was created")
    bench.restart()
    now = bench.driver.capabilities
    expect(now == declared, "I9", "it changed with a restart", before=declared, now=now)
    bench.engine.delete_volume(volume.id)
    expect(bench.driver.capabilities == declared, "I9", "it changed when a volume was deleted")


@check(
    "DEC-005",
    "options are known by name and type, others are refused, and those that are secret are marked",
    smoke=True,
    hint="make each of them with option(); secret=True keeps it out of every text",
)
def options_are_typed(bench: Bench) -> None:
    """Look at every option of the backend and of a volume; give one that does not exist."""
    kind = bench.subject.driver_class
    for options_type in (kind.options_type, kind.volume_options_type):
        name = options_type.__name__
        expect(is_dataclass(options_type), "I9", f"{name} is no dataclass")
        hints = get_type_hints(options_type)
        for field in fields(options_type):
            expect("meaning" in field.metadata, "I9", f"{name}.{field.name} was not made by option()")
            looks_secret = SECRET.search(field.name) and hints[field.name] in (str, str | None)
            hidden = field.metadata["secret"] and not field.repr
            expect(hidden or not looks_secret, "I11", f"{name}.{field.name} is not marked as secret")
        problems = check_options(options_type, {"no_such_option": 1}, name).problems
        refused = any("no_such_option" in str(problem) for problem in problems)
        expect(refused, "I9", f"{name} takes an option that does not exist")


@check("DEC-007", "the driver and each of its options is explained to operators")
def documented(bench: Bench) -> None:
    """Read the docstring of the class and the meaning of every option."""
    kind = bench.subject.driver_class
    expect(inspect.cleandoc(kind.__doc__ or ""), "I9", f"{kind.__name__} has no docstring")
    for options_type in (kind.options_type, kind.volume_options_type):
        for option in explain(options_type):
            expect(option.meaning.strip(), "I9", f"the option {option.name} is not explained")


@check(
    "DEC-008",
    "what is declared can be pickled, and nothing that people get to see shows a secret",
    hint="secrets belong into ConnectionInfo.properties, which is never shown",
)
def no_secrets(bench: Bench) -> None:
    """Attach a volume; look for the secrets of its connection wherever text comes from."""
    for thing in (bench.driver.capabilities, bench.rule):
        copied = pickle.loads(pickle.dumps(thing))  # noqa: S301 - what was written right here
        expect(copied == thing, "I9", "another process would get something else", thing=thing)
    volume = bench.create()
    info = bench.attach(volume, instance=False).connection_info
    secrets = direct.secrets(bench, info)
    for where, text in _shown(bench, volume.id, info).items():
        expect(not any(secret in text for secret in secrets), "I11", f"a secret is in {where}")


def _cannot_be_called(method: Callable[..., Any], asked: inspect.Signature) -> str:  # Any: of any kind
    """Say why a method does not take what the interface lets a caller give; nothing if it does."""
    every = list(asked.parameters.values())
    needed = [each for each in every if each.default is each.empty]
    named = {each.name: None for each in every if each not in needed}
    given = inspect.signature(method)
    for by_place, by_name in ((every, {}), (needed, {}), (needed, named)):
        try:
            given.bind(*[None] * len(by_place), **by_name)
        except TypeError as error:
            return str(error)
    return ""


def _shown(bench: Bench, volume_id: str, info: object) -> dict[str, str]:
    volume, driver = bench.engine.volume(volume_id), bench.driver
    return {
        "repr of the driver": f"{driver!r} {driver}",
        "repr of its options": repr(driver.options),
        "repr of the connection_info": f"{info!r} {info}",
        "repr of the volume": repr(volume),
        "the size ledger": repr(bench.engine.ledger(volume_id)),
        "the messages": repr(bench.engine.messages(volume)),
        "the trace of calls": " ".join(map(str, bench.watch.calls)),
    }
