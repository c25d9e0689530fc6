"""The rules of the code that a program can check; each checker is shown a snippet that it must refuse.

A checker takes one module, read once, and yields what is wrong with it.
"""

import ast
import dataclasses
import doctest
import importlib
import io
import os
import pkgutil
import re
import shutil
import statistics
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import voldrivers
from voldrivers import errors, process
from voldrivers.errors import CommandFailed, VolDriverError

ROOT = Path(voldrivers.__file__).parent
CHECKOUT = ROOT.parent

#: docs/architecture.md: lower never imports higher; in a row, the left may be imported by the right.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("sizes", "errors"),
    ("capabilities", "options", "model"),
    ("abilities", "base"),
    ("process", "locks", "mounts", "filesystem", "sysfs", "brick", "plugins", "config", "registry", "memory"),
    ("lvm", "nfs", "host"),
    ("extend", "guests"),
    ("images", "conformance", "lab"),
    ("api", "integrations"),
    ("cli",),
)
LIGHT_LAYERS = 3

#: One home per foreign library, and per part of the standard library that must not spread.
HOMES: Mapping[str, tuple[str, ...]] = {
    "oslo_utils": ("sizes", "nfs"),
    "oslo_concurrency": ("locks", "brick"),
    "os_brick": ("brick", "nfs.share", "host.login"),
    "pyudev": ("host.changes",),
    "rtslib_fb": ("lvm.lio",),
    "qemu": ("host.qmp",),
    "hypothesis": ("conformance.walks.moves",),
    "libvirt": ("host.libvirt",),
    "libvirt_qemu": ("host.libvirt",),
    "anyio": ("api",),
    "fastapi": ("api",),
    "pytest": ("cli.pytestplugin", "conformance.test_driver"),
    "oslo_config": ("api.policy", "integrations.cinderoptions"),
    "oslo_policy": ("api.policy",),
    "prometheus_client": ("api.figures",),
    "starlette": ("api",),
    "uvicorn": ("api",),
    "httpx": ("api",),
    "pydantic": ("api", "integrations.dialog"),
    "pydantic_core": ("integrations.dialog",),
    "cinder": (
        "integrations.cinder",
        "integrations.cinderbackups",
        "integrations.cinderextend",
        "integrations.cinderfaults",
        "integrations.cinderimages",
    ),
    "oslo_db": ("integrations.cinderextend",),
    "oslo_log": (
        "integrations.cinder",
        "integrations.cinderextend",
        "integrations.cinderfaults",
        "integrations.cinderoptions",
    ),
    "asyncio": ("host.qmp", "api.server", "api.volume.asked"),
    "threading": (
        "host.qmp",
        "host.limited",
        "api.agent",
        "api.guard",
        "api.placeagent",
        "api.placebook",
        "api.volume.desk",
        "conformance.aids.beside",
        "images.workers",
        "integrations",
        "lab.channel",
        "lab.keeper",
    ),
    "concurrent": (
        "host.qmp",
        "host.limited",
        "api.compute",
        "api.placeagent",
        "api.volume.desk",
        "conformance.places",
        "conformance.aids.beside",
        "images",
        "lab.states",
        "lab.keeper.service",
    ),
    "sqlite3": ("extend",),
    "tomllib": ("registry",),
    "subprocess": ("process", "lab.inside.agent"),
    "multiprocessing": (),
    "pty": ("lab.inside.agent",),
}
STARTS_PROGRAMS = re.compile(r"os\.(system|popen|exec[lv]\w*|fork\w*|spawn\w+|posix_spawnp?)")

#: Where whatever is left may be caught: the last door to a person or to the network.
BORDERS = {
    "api.agentapp",
    "api.volume.desk",
    "cli",
    "conformance.runner",
    "images.workers",
    "integrations.worker",
    "lab.keeper.service",
    "lab.keeper.__main__",
}

#: The tables from an error to what an edge makes of it.
EDGES = (
    "voldrivers.cli:EXIT_CODES",
    "voldrivers.cli:HINTS",
    "voldrivers.api.wire:STATUS",
    "voldrivers.api.volume.faults:STATUS",
    "voldrivers.integrations.translation:EXCEPTIONS",
)

LONGEST_MODULE, LONGEST_FUNCTION, LONG_BODY, LONG_BODIES = 350, 70, 24, 0.1

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One module, by its name below `voldrivers`, "" for the package itself."""

    name: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def comments(self) -> dict[int, str]:
        tokens = tokenize.generate_tokens(io.StringIO(self.source).readline)
        return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in self.nodes if isinstance(node, Function)]

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """Line and full name of everything imported, in functions too."""
        found: list[tuple[int, str]] = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, "relative imports hide the layer"
                found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        return found


def read_modules() -> list[Module]:
    return [
        Module(
            ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."),
            path.read_text(),
        )
        for path in sorted(ROOT.rglob("*.py"))
    ]


MODULES = read_modules()


def check_layers(module: Module) -> Iterator[str]:
    mine = place(module.name)
    if mine is None:
        yield f"{module.name} stands in no layer"
        return
    for line, name in module.imports:
        top, _, below = name.partition(".")
        theirs = place(below) if top == "voldrivers" else None
        if top == "voldrivers" and module.name and theirs is None:
            yield f"line {line}: {name} is not imported from its home"
        elif module.name and theirs and theirs >= mine and first(below) != first(module.name):
            yield f"line {line}: {module.name} must not import {name}"


def place(name: str) -> tuple[int, int] | None:
    """Row and column of a module; the package itself stands above the libraries it shows."""
    if not name:
        return (len(LAYERS), 0)
    rows = [(row, layer.index(first(name))) for row, layer in enumerate(LAYERS) if first(name) in layer]
    return rows[0] if rows else None


def first(name: str) -> str:
    return name.partition(".")[0]


def check_homes(module: Module) -> Iterator[str]:
    row = place(module.name)
    for line, name in module.imports:
        library = first(name)
        foreign = library not in sys.stdlib_module_names and library != "voldrivers"
        at_home = any(f"{module.name}.".startswith(f"{home}.") for home in HOMES.get(library, ()))
        if (foreign or library in HOMES) and not at_home:
            yield f"line {line}: {library} is at home in {HOMES.get(library) or 'no module'}"
        if foreign and library != "oslo_utils" and row is not None and row[0] < LIGHT_LAYERS:
            yield f"line {line}: the lowest layers stand on the standard library and oslo.utils"


def check_programs(module: Module) -> Iterator[str]:
    for node in module.nodes:
        if isinstance(node, ast.Attribute) and STARTS_PROGRAMS.fullmatch(ast.unparse(node)):
            yield f"line {node.lineno}: only process.py starts programs"
    for line, name in module.imports:
        if STARTS_PROGRAMS.fullmatch(name):
            yield f"line {line}: only process.py starts programs"


def check_length(module: Module) -> Iterator[str]:
    lines = module.source.count("\n")
    if lines > LONGEST_MODULE:
        yield f"{lines} lines; a module has at most {LONGEST_MODULE}"
    for function in module.functions:
        assert function.end_lineno
        if (length := function.end_lineno - function.lineno + 1) > LONGEST_FUNCTION:
            yield f"line {function.lineno}: {function.name} has {length} lines"


def check_excepts(module: Module) -> Iterator[str]:
    for node in module.nodes:
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = {ast.unparse(part) for part in ast.walk(node.type)} if node.type else {"BaseException"}
        last = node.body[-1]
        cleans_up = isinstance(last, ast.Raise) and last.exc is None
        if caught & {"Exception", "BaseException"} and not cleans_up and module.name not in BORDERS:
            yield f"line {node.lineno}: catches everything"


def check_finally(module: Module) -> Iterator[str]:
    for node in module.nodes:
        for statement in node.finalbody if isinstance(node, ast.Try | ast.TryStar) else ():
            for inner in ast.walk(statement):
                if isinstance(inner, ast.Return | ast.Break | ast.Continue):
                    yield f"line {inner.lineno}: leaves a finally and loses the error"


def check_reasons(module: Module) -> Iterator[str]:
    for line, comment in module.comments.items():
        if re.search(r"TODO|FIXME|XXX", comment):
            yield f"line {line}: an issue, not a comment"
        if re.search(r"#\s*noqa(?!: [A-Z]+\d+(, ?[A-Z]+\d+)* +\S)", comment):
            yield f"line {line}: a noqa names its rule and its reason"
        if re.search(r"#\s*type: ignore(?!\[[\w, -]+\] +# \S)", comment):
            yield f"line {line}: a type: ignore names its rule and its reason"
    for statement in module.nodes:
        if not isinstance(statement, ast.stmt) or isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        if not any(line in module.comments for line in header_lines(statement)):
            yield from (
                f"line {name.lineno}: {name.id} without a reason on the line"
                for name in header_names(statement)
                if name.id in ("Any", "cast")
            )


def header_lines(statement: ast.stmt) -> range:
    """The lines of a statement without the statements in it."""
    body = getattr(statement, "body", None)
    assert statement.end_lineno
    return range(statement.lineno, body[0].lineno if body else statement.end_lineno + 1)


def header_names(statement: ast.AST) -> Iterator[ast.Name]:
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.Name):
            yield child
        if not isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from header_names(child)


CHECKERS = (
    check_layers,
    check_homes,
    check_programs,
    check_length,
    check_excepts,
    check_finally,
    check_reasons,
)

Checker = Callable[[Module], Iterator[str]]


@pytest.mark.parametrize("checker", CHECKERS, ids=lambda checker: checker.__name__)
def test_the_code_keeps_the_rule(checker: Checker) -> None:
    assert [f"{module.name}: {wrong}" for module in MODULES for wrong in checker(module)] == []


@pytest.mark.parametrize(
    ("checker", "name", "source"),
    [
        (check_layers, "sizes", "from voldrivers.errors import InvalidSize"),
        (check_layers, "errors", "def f():\n    from voldrivers import model"),
        (check_layers, "nfs.driver", "import voldrivers.host.qmp"),
        (check_layers, "extend.engine", "from voldrivers.cli import main"),
        (check_layers, "cli", "from voldrivers import Driver"),
        (check_layers, "shiny", ""),
        (check_homes, "extend.store", "import requests"),
        (check_homes, "nfs.shares", "import os_brick"),
        (check_homes, "host.local", "from qemu.qmp import QMPClient"),
        (check_homes, "extend.engine", "import threading"),
        (check_homes, "base", "def f():\n    import oslo_concurrency"),
        (check_homes, "model", "import sqlite3"),
        (check_homes, "host.domain", "import libvirt"),
        (check_homes, "host.local", "import subprocess"),
        (check_programs, "host.local", "import os\nos.execvp('a', ['a'])"),
        (check_programs, "host.local", "from os import fork"),
        (check_length, "model", "\n" * 400),
        (check_length, "model", "def f():\n" + "    g()\n" * 70),
        (check_excepts, "cli.commands", "try:\n    f()\nexcept:\n    pass"),
        (check_excepts, "model", "try:\n    f()\nexcept (OSError, Exception) as e:\n    print(e)"),
        (check_finally, "model", "def f():\n    try:\n        g()\n    finally:\n        return 1"),
        (check_reasons, "model", "# TODO later"),
        (check_reasons, "model", "x = 1  # noqa"),
        (check_reasons, "model", "x = 1  # noqa: E501"),
        (check_reasons, "model", "x = 1  # type: ignore[arg-type]"),
        (check_reasons, "model", "x = 1  # type: ignore # because"),
        (check_reasons, "model", "def f(x: Any) -> None:\n    pass  # Any: elsewhere"),
        (check_reasons, "model", "x = cast(int, y)"),
    ],
)
def test_a_checker_refuses(checker: Checker, name: str, source: str) -> None:
    assert list(checker(Module(name, source + "\n")))


@pytest.mark.parametrize(
    ("checker", "name", "source"),
    [
        (check_layers, "host.local", "from voldrivers.nfs import share\nfrom voldrivers.host import qmp"),
        (check_excepts, "model", "try:\n    f()\nexcept BaseException:\n    g()\n    raise"),
        (check_excepts, "cli", "try:\n    f()\nexcept Exception:\n    g()"),
        (check_reasons, "model", "x = 1  # noqa: E501 - a reason"),
        (check_reasons, "model", "x = 1  # type: ignore[arg-type]  # a reason"),
        (check_reasons, "model", "def f(\n    x: Any,  # Any: a reason\n) -> None:\n    pass"),
    ],
)
def test_a_checker_allows(checker: Checker, name: str, source: str) -> None:
    assert not list(checker(Module(name, source + "\n")))


def test_most_functions_are_short() -> None:
    lengths = [body_lines(function) for module in MODULES for function in module.functions]
    long = sum(length >= LONG_BODY for length in lengths)
    print(f"{len(lengths)} functions, median {statistics.median(lengths):g} lines, {long} long ones")
    assert long <= LONG_BODIES * len(lengths)


def body_lines(function: Function) -> int:
    """Lines of a body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    assert function.end_lineno
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_every_error_is_built_printed_and_known_at_every_edge() -> None:
    import_all()
    ours = [leaf for leaf in errors.leaves() if leaf.__module__.startswith("voldrivers.")]
    assert {leaf.__module__ for leaf in ours} == {"voldrivers.errors"}
    assert CommandFailed in ours
    for leaf in ours:
        sentence = str(sample(leaf))
        assert "sample" in sentence
        assert "{" not in sentence, sentence
    for edge in EDGES:
        where, _, name = edge.partition(":")
        assert [
            leaf.__name__ for leaf in ours if leaf not in getattr(importlib.import_module(where), name)
        ] == []


def test_an_error_whose_message_lacks_a_field_is_noticed() -> None:
    @dataclass(eq=False)
    class Broken(VolDriverError):
        message = "{subject} and {nobody}"
        subject: str

    with pytest.raises(KeyError):
        str(sample(Broken))


def sample(leaf: type[VolDriverError]) -> VolDriverError:
    samples: dict[object, Any] = {str: "sample", int: 4096, int | None: 4096, tuple[str, ...]: ("sample",)}
    return leaf(**{field.name: samples[field.type] for field in dataclasses.fields(leaf)})


def import_all() -> list[str]:
    names = [found.name for found in pkgutil.walk_packages(voldrivers.__path__, "voldrivers.")]
    for name in names:
        # What stands in Cinder's process needs Cinder, which has an environment of its own (test_cinder.py).
        if not name.endswith("__main__") and not name.startswith("voldrivers.integrations.cinder"):
            importlib.import_module(name)
    return names


def test_importing_is_light() -> None:
    heavy = ["os_brick", "eventlet", "qemu", "libvirt", "oslo_concurrency", "sqlite3", "asyncio"]
    heavy += ["subprocess"]
    code = "import sys, voldrivers; print(*sorted(sys.modules))"
    loaded = process.run([sys.executable, "-c", code], timeout_s=20).stdout.split()
    assert "voldrivers.base" in loaded
    assert [name for name in heavy if name in loaded] == []


@pytest.mark.parametrize("name", [module.name for module in MODULES if ">>>" in module.source])
def test_examples_in_docstrings_work(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"voldrivers.{name}"))
    assert result.attempted
    assert not result.failed


@pytest.fixture
def inner_run(tmp_path: Path) -> Callable[..., str]:
    """Run pytest with our conftest and settings on a test file; give what it printed."""
    for name in ("pyproject.toml", "tests/conftest.py", "tests/labs.py", "tests/sweeps.py"):
        shutil.copy(CHECKOUT / name, tmp_path)

    def inner(source: str, *options: str, ci: str = "false", exit_code: int = 1) -> str:
        (tmp_path / "test_inner.py").write_text(source)
        chosen = ["--rootdir", ".", "-o", "timeout=1", *options, "test_inner.py"]
        environment = [f"--chdir={tmp_path}", "-u", "PYTEST_ADDOPTS", f"CI={ci}"]
        argv = ["env", *environment, sys.executable, "-m", "pytest", *chosen]
        done = process.run(["sh", "-c", '"$@"; echo "exit code $?"', "sh", *argv], timeout_s=60)
        assert f"exit code {exit_code}" in done.stdout, done.stdout + done.stderr
        return done.stdout

    return inner


def test_a_skip_prints_why_and_fails_in_ci(inner_run: Callable[..., str]) -> None:
    source = "import pytest\n@pytest.mark.needs('nosuchtool')\ndef test_tool(): pass\n"
    assert "not installed: nosuchtool" in inner_run(source, ci="false", exit_code=0)
    assert "a skip is a failure in CI" in inner_run(source, ci="true")
    whole = "import pytest\npytest.skip('no module', allow_module_level=True)\n"
    assert "a skip is a failure in CI: Skipped: no module" in inner_run(whole, ci="true", exit_code=2)


def test_a_hang_is_killed_with_all_stacks_and_the_seed_is_printed(inner_run: Callable[..., str]) -> None:
    source = (
        "import threading, time\n"
        "def nap(): time.sleep(30)\n"
        "def test_hang():\n"
        "    threading.Thread(target=nap, daemon=True).start()\n"
        "    time.sleep(30)\n"
    )
    printed = inner_run(source)
    assert "Timeout (>1.0s)" in printed
    assert "in nap" in printed
    assert re.search(r"tier quick, seed \d+; again: --tier quick --hypothesis-seed=\d+", printed)


def test_processes_side_by_side_have_one_seed_and_print_the_sum_of_what_their_sweeps_covered(
    inner_run: Callable[..., str], tmp_path: Path
) -> None:
    source = (
        "import pytest, sweeps\n"
        "from pathlib import Path\n"
        "@pytest.mark.parametrize('number', range(8))\n"
        "def test_it(number, request, pytestconfig, worker_id):\n"
        "    Path(f'seed-{worker_id}').write_text(pytestconfig.getoption('hypothesis_seed'))\n"
        "    sweeps.count(request, sweeps.Figures('of numbers', f'number {number}', number, 10))\n"
        "    assert number != 7\n"
    )
    printed = inner_run(source, "--numprocesses=2", "--dist=worksteal")
    (seed,) = re.findall(r"tier quick, seed (\d+);", printed)
    assert [path.read_text() for path in sorted(tmp_path.glob("seed-gw?"))] == [seed, seed]
    assert len(re.findall(r"7 scenarios: 21 of 70 points", printed)) == 1
    lines = (tmp_path / "build" / "crash-sweep-of-numbers.txt").read_text().splitlines()
    assert (len(lines), lines[3]) == (8, "number 3: 3 of 10 points")


def test_a_warning_is_an_error(inner_run: Callable[..., str]) -> None:
    assert "DeprecationWarning: old" in inner_run(
        "import warnings\ndef test_old(): warnings.warn('old', DeprecationWarning)\n"
    )


def test_scripts_can_be_run() -> None:
    scripts = [".ci/run", *(f"tools/{path.name}" for path in (CHECKOUT / "tools").iterdir())]
    assert [name for name in scripts if not os.access(CHECKOUT / name, os.X_OK)] == []
