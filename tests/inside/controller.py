"""A controller in a lab machine that is told what to do, and what goes wrong meanwhile.

Reads requests as JSON, one a line: what to do, with its arguments. Each is done in a process of its own, with
all imports of this one; its answer is a line of JSON: {"answer": ...}, {"error": [KIND, SENTENCE]} or
{"killed": true}. A request that begins with "start" is answered at once, and "wait" gives its answer.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crashing import CountedStore, Points, counted

from inside import written
from voldrivers import process, registry
from voldrivers.base import Completed
from voldrivers.errors import CommandFailed, VolDriverError
from voldrivers.extend import Engine, Site
from voldrivers.host.qmp import Monitor
from voldrivers.model import Extend

CONFIG = Path("/etc/voldrivers/voldrivers.toml")
PAUSED, GO_ON, PASSED = Path("/run/lab/paused"), Path("/run/lab/go-on"), Path("/run/lab/points")
GUEST = Path("/run/lab/guest.qmp")
NAME = "attached"


@dataclass
class Fault:
    """What goes wrong with the first run of `program`.

    `how`: before and after (it fails, without and with its effect), short (it gets no time), then (another
    program runs after it).
    """

    program: str
    how: str
    argv: Sequence[str] = ()
    happened: bool = False

    def run(self, argv: Sequence[str], timeout_s: float) -> Completed:
        self.happened = True
        if self.how == "before":
            raise CommandFailed(argv[0], "it was made to fail before it did anything")
        done = process.run(argv, timeout_s=1.0 if self.how == "short" else timeout_s)
        if self.how == "after":
            raise CommandFailed(argv[0], "it was made to fail after it had done all")
        process.run(self.argv, timeout_s=30)
        return done


@dataclass
class Disturbed(Points):
    """Points, of which one may be where the process is killed, and one before which it waits.

    They stand in a file as they are passed: who is killed tells nothing any more.
    """

    pause_at: str = ""
    fault: Fault | None = None

    def _die_at(self, moment: int) -> None:
        after = moment % 2
        if not after:
            with PASSED.open("a") as file:
                file.write(f"{self.passed[-1]}\n")
        if moment == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if not after and self.pause_at and self.pause_at in self.passed[-1]:
            self.pause_at = ""
            PAUSED.touch()
            process.wait_until(GO_ON.exists, 200, "the test to go on")
            GO_ON.unlink()

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Run a program as a point, with its fault."""
        with self.point(f"run {argv[0]} {argv[1] if len(argv) > 1 else ''}"):
            if self.fault is not None and not self.fault.happened and self.fault.program == argv[0]:
                return self.fault.run(argv, timeout_s)
            return process.run(argv, timeout_s=timeout_s)


def extend(size_bytes: int, name: str = NAME, **disturbance: Any) -> str:  # Any: as JSON has it
    with _engine(**disturbance) as engine:
        return _ended(engine.extend(name, size_bytes))


def retry(name: str = NAME, **disturbance: Any) -> str:  # Any: as above
    with _engine(**disturbance) as engine:
        return _ended(engine.retry(name))


def repair(name: str = NAME) -> list[str]:
    """Bring all layers up; give those that are stale all the same."""
    with _engine() as engine:
        return [row.layer for row in engine.repair(name) if row.stale]


def resume(**disturbance: Any) -> list[str]:  # Any: as above
    """Resume all; give the errors with which something did not end well."""
    with _engine(**disturbance) as engine:
        return [str(resumed.error) for resumed in engine.resume() if resumed.error is not None]


def attach(name: str = NAME, monitor: str | None = None, **place: str) -> str:
    with _engine() as engine:
        return engine.attach(name, monitor=Path(monitor) if monitor else None, **place).place


def detach(name: str = NAME, *, force: bool = False, **place: str) -> None:
    with _engine() as engine:
        engine.detach(name, force=force, **place)


def create(name: str, size_bytes: int, **more: Any) -> str:  # Any: as above
    with _engine() as engine:
        return engine.create_volume(name, size_bytes, **more).id


def delete(name: str) -> None:
    with _engine() as engine:
        engine.delete_volume(name)


def take_snapshot(snapshot: str, name: str = NAME, **disturbance: Any) -> str:  # Any: as above
    with _engine(**disturbance) as engine:
        return engine.create_snapshot(name, snapshot).id


def delete_snapshot(snapshot: str, **disturbance: Any) -> None:  # Any: as above
    with _engine(**disturbance) as engine:
        engine.delete_snapshot(snapshot)


def revert(snapshot: str) -> int:
    with _engine() as engine:
        return engine.revert_to_snapshot(snapshot).size_bytes


def clone(name: str, **source: Any) -> str:  # Any: as above
    with _engine() as engine:
        return engine.clone_volume(name, **source).id


def manage(name: str, reference: str) -> int:
    with _engine() as engine:
        return engine.manage_volume(name, reference).size_bytes


def unmanage(name: str) -> str:
    with _engine() as engine:
        return engine.unmanage_volume(name)


def snapshots(name: str = NAME) -> dict[str, dict[str, Any]]:  # Any: as above
    """Give the snapshots of a volume by their names, oldest first."""
    with _engine() as engine:
        return {each.name: asdict(each) for each in engine.volume(name).snapshots}


def volume(name: str = NAME) -> dict[str, Any]:  # Any: as above
    """Give status, sizes and the last message."""
    with _engine() as engine:
        found = engine.volume(name)
        messages = [message.text for message in engine.messages(found)]
        sizes = {"size_bytes": found.size_bytes, "backend_bytes": found.backend_bytes}
        return {"id": found.id, "status": found.status, **sizes, "messages": messages}


def ledger(name: str = NAME) -> list[dict[str, Any]]:  # Any: as above
    with _engine() as engine:
        return [asdict(row) | {"agrees": row.agrees} for row in engine.ledger(name)]


def contents(path: str, *, direct: bool = True) -> dict[int, list[str]]:
    """Read a file or device: see `written.contents`."""
    return written.contents(path, direct=direct)


def nodes() -> list[str]:
    """Give the jobs of the QEMU on this machine, and the kinds of its block nodes."""
    with Monitor(GUEST) as guest:
        jobs = [f"job {job['id']}" for job in guest.execute("query-jobs")]
        return sorted(
            jobs + [node["drv"] for node in guest.execute("query-named-block-nodes", {"flat": True})]
        )


def passed() -> list[str]:
    """Give the points that the last disturbed operation passed."""
    return PASSED.read_text().splitlines()


def count_monitor(points: Points) -> None:
    """Make all that this process asks of a QEMU a point."""
    execute, enter = Monitor.execute, Monitor.__enter__

    def counted_execute(self: Monitor, command: str, *arguments: Any) -> Any:  # Any: as of execute
        if points.passed[-1:] == [f"QMP {command}"]:  # how often it looks until it sees something changes
            return execute(self, command, *arguments)
        with points.point(f"QMP {command}"):
            return execute(self, command, *arguments)

    def counted_enter(self: Monitor) -> Monitor:
        with points.point("QMP connection"):
            return enter(self)

    for name, counted_method in (("execute", counted_execute), ("__enter__", counted_enter)):
        setattr(Monitor, name, counted_method)


def _engine(**disturbance: Any) -> Engine:  # Any: as above
    """Start a controller; who only looks is not counted."""
    config = registry.load(CONFIG)
    if not disturbance:
        return Engine.open(config)
    for file in (PASSED, PAUSED, GO_ON):
        file.unlink(missing_ok=True)
    fault = Fault(**disturbance.pop("fault")) if disturbance.get("fault") else None
    points = Disturbed(fault=fault, **disturbance)
    count_monitor(points)
    store = CountedStore(config.state_dir / "voldrivers.db", points)
    drivers = {n: counted(registry.make_driver(e, points.run), points) for n, e in config.backends.items()}
    hosts = {n: counted(registry.make_host(e, points.run), points) for n, e in config.hosts.items()}
    return Engine(Site(store, drivers, hosts, config.state_dir / "locks", config.policy))


def _ended(extend: Extend) -> str:
    return str(extend.phase)


class Request:
    """A process that does what was asked for."""

    def __init__(self, request: dict[str, Any]) -> None:  # Any: as JSON has it
        self._reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reading)
            with os.fdopen(writing, "w") as answers:
                answers.write(json.dumps(_done(request)))
            os._exit(0)
        os.close(writing)

    def answer(self) -> str:
        with os.fdopen(self._reading) as answers:
            text = answers.read()
        os.waitpid(self.pid, 0)
        return text or json.dumps({"killed": True})


def _done(request: dict[str, Any]) -> dict[str, Any]:  # Any: as above
    act: Callable[..., object] = globals()[request.pop("do")]
    try:
        return {"answer": act(**request)}
    except VolDriverError as error:
        return {"error": [type(error).__name__, str(error)]}
    except Exception as error:  # noqa: BLE001 - whoever waits for the answer must get one
        return {"error": [type(error).__name__, repr(error)]}


def main() -> None:
    """Serve until standard input ends."""
    with _engine() as engine:
        for known in engine.volumes():
            engine.ledger(known.name)  # what is imported late, too
    running: Request | None = None
    print(json.dumps({"answer": "ready"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request.pop("start", False):
            running = Request(request)
            print(json.dumps({"answer": running.pid}), flush=True)
        elif request["do"] == "wait":
            assert running is not None
            print(running.answer(), flush=True)
        elif request["do"] == "kill":
            assert running is not None
            os.kill(running.pid, signal.SIGKILL)
            print(running.answer(), flush=True)
        else:
            print(Request(request).answer(), flush=True)


if __name__ == "__main__":
    main()
