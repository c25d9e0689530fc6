"""DEC: what a driver declares is whole, stays the same, and gives nothing away."""

import inspect
import pickle
from dataclasses import fields

from voldrivers.capabilities import Capabilities, Condition
from voldrivers.conformance import direct
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import check
from voldrivers.conformance.verdicts import Broken, expect
from voldrivers.options import explain
from voldrivers.sizes import LARGEST_BYTES, SizeRule


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
