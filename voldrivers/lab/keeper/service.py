"""What the keeper does for its clients (see `protocol`): a thread for each, and nothing that outlives one."""

import base64
import queue
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from voldrivers.errors import (
    BackendError,
    InvalidInput,
    InvalidState,
    OutcomeUnknown,
    VolDriverError,
    to_document,
)
from voldrivers.lab import levers, project
from voldrivers.lab.channel import RunningCommand, Start
from voldrivers.lab.keeper.progress import Progress
from voldrivers.lab.keeper.protocol import Command, Connection, Frame, LabStatus, Wish
from voldrivers.lab.lab import Lab, Topology, Wanted
from voldrivers.lab.machine import LabMachine

Work = Callable[[Lab], object]
_ASKED_S, _BRING_S, _EMPTY_S, _COLLECT_S = 10.0, 60.0, 30.0, 180.0
_EMPTY = ("bash", "-c", "rm --recursive --force /results && mkdir /results")
#: The format without extensions, which the host need not understand.
_COLLECT = ("tar", "--create", "--format=ustar", "--hard-dereference", "--directory=/results", ".")
#: tar(1): a file changed while it was read; a daemon may still write its log.
_CHANGED = 1


class Service:
    """Requests, answered as far as one thread can; the rest is put into `wishes` and `work`."""

    def __init__(self, subject: str, progress: Progress, status: Callable[[Wanted], LabStatus]) -> None:
        """Take the lab's name in errors, and who knows how it is."""
        self._subject, self._progress, self._status = subject, progress, status
        #: The first wish, for which the lab is started.
        self.wishes = queue.SimpleQueue[Wish]()
        #: What only the thread that started the lab may do, and who waits for its result.
        self.work = queue.SimpleQueue[tuple[Work, Future[object]]]()
        #: Why the lab shall end.
        self.ends = queue.SimpleQueue[str]()
        self._wanted: Wanted | None = None
        self._taking, self._bringing = threading.Lock(), threading.Lock()
        self._results: dict[str, threading.Lock] = {}
        self._requests = {"up": self._up, "run": self._run, "save": self._save, "lever": self._lever}

    def accept(self, listener: socket.socket) -> None:
        """Serve whoever connects, until the listener is closed."""
        with suppress(OSError):
            while True:
                connected, _ = listener.accept()
                threading.Thread(target=self._serve, args=(Connection(connected),), daemon=True).start()

    def _serve(self, client: Connection) -> None:
        try:
            if asked := client.receive(timeout_s=_ASKED_S):
                self._answer(client, asked)
        except VolDriverError as error:
            _send_error(client, error)
        except OSError:
            pass  # the client is gone
        except Exception as error:  # noqa: BLE001 - the border to the clients: they must not wait in vain
            traceback.print_exc()
            _send_error(client, BackendError(self._subject, f"a mistake in voldrivers: {error!r}"))
        finally:
            client.close()

    def _answer(self, client: Connection, asked: Frame) -> None:
        request = str(asked["request"])
        if request == "status":
            client.send({"status": asdict(self._status(self._wanted or Wanted()))})
        elif request == "down":
            client.send({"done": None})
            self.ends.put("asked to end")
        elif request in self._requests:
            with self._progress.counted():
                self._requests[request](client, asked)
        else:
            raise InvalidInput(f"request {request}", "the keeper does not know it; it is of another version")

    def _up(self, client: Connection, asked: Frame) -> None:
        wanted = self._take(Wish(**asked["wish"]))
        self._wait(client)
        client.send({"status": asdict(self._status(wanted))})
        if asked["stays"]:
            client.receive()  # its end
            self.ends.put("the command for which it was started has ended")

    def _take(self, wish: Wish) -> Wanted:
        """Have the lab started by the first wish; refuse a later one that it does not fulfil."""
        with self._taking:
            if self._wanted is None:
                self._wanted = wanted(wish)
                self.wishes.put(wish)
            for name in ("topology", "vg_bytes", "nfs_bytes", "state"):
                have, want = getattr(self._wanted, name), getattr(wish, name)
                if want and want != have:
                    here = f"running with {name} {have or 'of a fresh boot'}"
                    raise InvalidState(self._subject, here, f"down, to be started with {want}")
            return self._wanted

    def _run(self, client: Connection, asked: Frame) -> None:
        lab, command = self._wait(client), Command.read(asked["command"])
        machine = lab.machine(command.machine)
        self._check_libraries(lab, command)
        with self._bringing:
            limit_s = _BRING_S if command.timeout_s is None else min(command.timeout_s, _BRING_S)
            lab.bring_project(machine.name, Path(command.project), limit_s)
        if command.results:
            with self._alone(machine):
                code = _execute_for_results(client, machine, command)
        else:
            code = _execute(client, machine, command)
        client.send({"exit": code})

    def _check_libraries(self, lab: Lab, command: Command) -> None:
        """Refuse who has other libraries than the lab was started with: it would find those."""
        asked = command.libraries
        if asked is None or asked.key == lab.model.dependencies.name:
            return
        here = f"running with the packages in {project.site_packages()}"
        if asked.directory == str(project.site_packages()):
            here += " as they were when it was started"
        raise InvalidState(self._subject, here, f"down, to be started with those in {asked.directory}")

    @contextmanager
    def _alone(self, machine: LabMachine) -> Iterator[None]:
        """Have a machine's /results to oneself. Raises InvalidState."""
        lock = self._results.setdefault(machine.name, threading.Lock())
        if not lock.acquire(blocking=False):
            here = f"running another command with --results on {machine.name}"
            raise InvalidState(self._subject, here, "done with it")
        try:
            yield
        finally:
            lock.release()

    def _save(self, client: Connection, asked: Frame) -> None:
        self._do(client, lambda lab: lab.save(str(asked["name"])))

    def _lever(self, client: Connection, asked: Frame) -> None:
        self._do(client, lambda lab: levers.pull(lab, str(asked["name"]), asked["words"]))

    def _do(self, client: Connection, work: Work) -> None:
        self._wait(client)
        result = Future[object]()
        self.work.put((work, result))
        result.result()
        client.send({"done": None})

    def _wait(self, client: Connection) -> Lab:
        try:
            return self._progress.wait(client)
        finally:
            if self._progress.is_in_vain:
                self.ends.put("nobody waits for it any more")


def wanted(wish: Wish) -> Wanted:
    """Give the lab that is wished for."""
    given = {name: getattr(wish, name) for name in ("vg_bytes", "nfs_bytes", "state") if getattr(wish, name)}
    return Wanted(Topology(wish.topology or Wanted.topology), **given)


def _execute(client: Connection, machine: LabMachine, command: Command) -> int:
    env = {**project.ENVIRONMENT, **command.env}
    start = Start(command.argv, "/project", env, command.terminal, command.has_input)
    running = machine.channel.start(start, client.send_output, lambda taken: client.send({"taken": taken}))
    threading.Thread(target=_pass_on, args=(client, running), daemon=True).start()
    return running.wait(command.timeout_s)


def _execute_for_results(client: Connection, machine: LabMachine, command: Command) -> int:
    """Empty /results, run a command, and send what it left there, if it was killed too."""
    machine.channel.run(_EMPTY, timeout_s=_EMPTY_S)
    client.send_results(b"")  # so that it knows that nothing refuses its command any more
    try:
        code = _execute(client, machine, command)
    except OutcomeUnknown:
        if machine.channel.answers():
            with suppress(VolDriverError):
                _send_results(client, machine)
        raise
    try:
        _send_results(client, machine)
    except VolDriverError as error:
        error.add_note(f"the command itself ended with exit code {code}")
        raise
    return code


def _send_results(client: Connection, machine: LabMachine) -> None:
    complaints: list[bytes] = []

    def printed(stream: int, content: bytes) -> None:
        if stream == 1:
            client.send_results(content)
        else:
            complaints.append(content)

    code = machine.channel.start(Start(_COLLECT), printed).wait(_COLLECT_S)
    if code not in (0, _CHANGED):
        reason = b"".join(complaints).decode(errors="replace").strip()
        raise BackendError(f"the results of the command on {machine.name}", f"not all came: {reason}")


def _pass_on(client: Connection, running: RunningCommand) -> None:
    """Pass on to a command what its client sends; kill it with its client."""
    with suppress(VolDriverError, OSError, ValueError):
        for frame in client.frames():
            if "input" in frame:
                running.write(None if frame["input"] is None else base64.b64decode(frame["input"]))
            elif "signal" in frame:
                running.signal(frame["signal"])
            elif "terminal" in frame:
                running.resize(*frame["terminal"])
    running.kill()


def _send_error(client: Connection, error: VolDriverError) -> None:
    with suppress(OSError):
        client.send({"error": to_document(error)})
