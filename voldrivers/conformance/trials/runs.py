"""Runs on disk: what a run is about to make is written down first, so that a killed one can be swept up.

    RUNS/ID/run.json        the driver, the file of the run, its process
    RUNS/ID/intents.jsonl   what the driver was asked to make, a line each before it was asked
    RUNS/ID/CHECK/          the engine's records of a check that has not come to its end

A run that has come to its end leaves nothing here.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from voldrivers import process
from voldrivers.errors import InvalidInput, InvalidState, NotFound
from voldrivers.model import Connector, Snapshot, Volume, utc_now

#: What makes something, by the driver's method, and what is made.
_MAKES = {
    "create_volume": "volume",
    "clone_volume": "volume",
    "manage_existing": "volume",
    "create_snapshot": "snapshot",
    "initialize_connection": "connection",
}
_OF_VOLUME = ("id", "name", "backend", "size_bytes", "provider_data")
_OF_SNAPSHOT = ("id", "name", "volume_id", "size_bytes", "provider_data")
_KNOWN = (Volume, Snapshot, Connector)


def default_runs(environ: Mapping[str, str] = os.environ) -> Path:
    """Where runs are written down (XDG Base Directory Specification)."""
    state = environ.get("XDG_STATE_HOME") or f"{environ.get('HOME', '/var/lib')}/.local/state"
    return Path(state) / "voldrivers" / "runs"


@dataclass(frozen=True)
class Intent:
    """Something that the driver was about to make."""

    kind: str
    volume: Volume
    snapshot: Snapshot | None = None
    connector: Connector | None = None


@dataclass(frozen=True)
class Run:
    """One run."""

    directory: Path

    @property
    def id(self) -> str:
        """What the ids of all that it makes begin with."""
        return self.directory.name

    @property
    def facts(self) -> Mapping[str, str]:
        """What it said of itself when it began. Raises InvalidInput for a damaged file."""
        path = self.directory / "run.json"
        try:
            found: Mapping[str, str] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InvalidInput(f"file {path}", f"cannot be read: {error}") from error
        return found

    @property
    def began(self) -> datetime:
        """When it began."""
        return datetime.fromisoformat(self.facts["began"])

    @property
    def is_running(self) -> bool:
        """Tell whether its process is there still."""
        return not process.is_gone(self.facts["process"])

    @property
    def checks(self) -> Sequence[Path]:
        """The records of the checks that have not come to their end, the newest first."""
        found = [path for path in self.directory.iterdir() if (path / "records.db").exists()]
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)

    @property
    def intents(self) -> Sequence[Intent]:
        """What was about to be made, the newest first. A line that was cut off is none."""
        path = self.directory / "intents.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [_intent(json.loads(line)) for line in reversed(lines) if line.endswith("\n")]

    def intend(self, call: str, things: Sequence[object]) -> None:
        """Write down what is about to be made; it is on disk before it is made."""
        if call not in _MAKES:
            return
        known = {type(each).__name__.lower(): _kept(each) for each in things[:2] if isinstance(each, _KNOWN)}
        line = {"kind": _MAKES[call], **known}
        with (self.directory / "intents.jsonl").open("a") as file:
            file.write(f"{json.dumps(line)}\n")
            file.flush()
            os.fsync(file.fileno())

    def forget(self) -> None:
        """Remove what is written down: nothing is left of what the run made."""
        shutil.rmtree(self.directory)


@contextmanager
def begun(runs: Path, run_id: str, facts: Mapping[str, str]) -> Iterator[Run]:
    """Write down a run. In the end it is forgotten, unless records of a check are left."""
    run = Run(runs / run_id)
    run.directory.mkdir(parents=True, mode=0o700)
    said = {"began": utc_now().isoformat(), "process": process.identity(os.getpid())}
    (run.directory / "run.json").write_text(json.dumps({**facts, **said}, indent=1))
    try:
        yield run
    except BaseException as error:
        left = f"take away what it has left: voldrivers sweep --run {run.id}"
        error.add_note(left if run.checks else "nothing is left of it")
        raise
    finally:
        if not run.checks:
            run.forget()


def runs_in(runs: Path) -> Sequence[Run]:
    """Give the runs that have left something, the oldest first."""
    found = [Run(path.parent) for path in runs.glob("*/run.json")]
    return sorted(found, key=lambda run: run.began)


def one_of(runs: Path, run_id: str) -> Run:
    """Find a run that has ended by the beginning of its id, 8 characters. Raises NotFound, InvalidState."""
    for run in runs_in(runs):
        if len(run_id) >= 8 and run.id.startswith(run_id):
            if run.is_running:
                raise InvalidState(f"run {run.id}", "still running", "ended")
            return run
    raise NotFound("run", run_id, f" in {runs}")


def _kept(thing: Volume | Snapshot | Connector) -> Mapping[str, object]:
    if isinstance(thing, Connector):
        return asdict(thing)
    names = _OF_VOLUME if isinstance(thing, Volume) else _OF_SNAPSHOT
    return {name: getattr(thing, name) for name in names}


def _intent(line: Mapping[str, dict[str, object]]) -> Intent:
    snapshot, connector = line.get("snapshot"), line.get("connector")
    return Intent(
        str(line["kind"]),
        Volume(**line["volume"]),  # type: ignore[arg-type]  # as it was written
        Snapshot(**snapshot) if snapshot else None,  # type: ignore[arg-type]  # as it was written
        Connector(**connector) if connector else None,  # type: ignore[arg-type]  # as it was written
    )
