"""Traces: what the stateful machine did, step by step, as plain values that can be kept and played again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from voldrivers.errors import InvalidInput

#: The form of a trace file; a reader refuses a newer one.
SCHEMA = 1

Value = int | str | bool


@dataclass(frozen=True)
class Step:
    """One step of the machine, by the name of its rule."""

    name: str
    arguments: Mapping[str, Value] = field(default_factory=dict)

    def __str__(self) -> str:
        """Write it as a call."""
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"

    def __repr__(self) -> str:
        """Write it as it stands in an exported test."""
        return f"Step({self.name!r}, {dict(self.arguments)!r})"

    def number(self, name: str) -> int:
        """Give an argument that is a number."""
        return int(self.arguments[name])

    def flag(self, name: str) -> bool:
        """Give an argument that is yes or no."""
        return bool(self.arguments.get(name))

    def word(self, name: str) -> str:
        """Give an argument that is a word."""
        return str(self.arguments[name])


@dataclass(frozen=True)
class Trace:
    """A walk that failed: its steps, on which driver, where they came from, and what was broken."""

    id: str
    driver: str
    seed: int
    steps: tuple[Step, ...]
    invariant: str
    text: str
    #: Whether the driver in RAM, which is right, fails on it too: then the driver is not to blame.
    fails_in_ram: bool
    ground: Mapping[str, object] = field(default_factory=dict)

    def document(self) -> Mapping[str, object]:
        """Give it as JSON has it."""
        steps = [{"name": step.name, "arguments": dict(step.arguments)} for step in self.steps]
        return {"schema": SCHEMA, **vars(self), "steps": steps, "ground": dict(self.ground)}

    def test(self, subject: str = "") -> str:
        """Write a plain test that plays it again, without hypothesis.

        `subject` names a function that makes the subject, `package.module:function`; without it the test
        takes one from a fixture of that name.
        """
        module, _, function = subject.partition(":")
        of_vendor = f"from {module} import {function}\n\n" if subject else ""
        steps = "".join(f"    {step!r},\n" for step in self.steps)
        title = f"{self.invariant}: {' '.join(self.text.split())}".replace("\\", "/").replace('"', "'")
        return (
            f'"""{title[:200]}"""\n\n'
            f"{of_vendor}from voldrivers.conformance.walks.machine import replay\n"
            "from voldrivers.conformance.walks.traces import Step\n\n"
            f"STEPS = [\n{steps}]\n\n\n"
            f"def test_{self.id.lower().replace('-', '_')}({'' if subject else 'subject'}):\n"
            f"    result = replay(STEPS, {f'{function}()' if subject else 'subject'})\n"
            "    assert result.verdict == 'PASS', result\n"
        )

    def write(self, directory: Path, subject: str = "") -> tuple[Path, Path]:
        """Write `traces/ID.json` and `repro/test_ID.py`; gives both paths."""
        trace = directory / "traces" / f"{self.id}.json"
        test = directory / "repro" / f"test_{self.id.lower().replace('-', '_')}.py"
        for path, text in ((trace, json.dumps(self.document(), indent=1) + "\n"), (test, self.test(subject))):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return trace, test


def read_trace(path: Path) -> Trace:
    """Read a trace file. Raises InvalidInput."""
    try:
        document = dict(json.loads(path.read_text()))
        schema = document.pop("schema")
        if schema == SCHEMA:
            steps = _steps(document.pop("steps"))
            return Trace(steps=steps, **document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"trace {path}", f"cannot be read: {error!r}") from error
    raise InvalidInput(f"trace {path}", f"is of form {schema}, only {SCHEMA} is known here")


def _steps(documents: Sequence[Mapping[str, object]]) -> tuple[Step, ...]:
    found = []
    for document in documents:
        name, arguments = document["name"], document["arguments"]
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError(f"not a step: {document}")
        if not all(isinstance(value, int | str) for value in arguments.values()):
            raise ValueError(f"not the arguments of a step: {arguments}")
        found.append(Step(name, arguments))
    return tuple(found)
