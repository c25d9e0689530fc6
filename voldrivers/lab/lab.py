"""A lab: machines that make up one site, booted from nothing or restored from a saved state."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from voldrivers.errors import BackendError, InvalidInput, NotFound, OutcomeUnknown
from voldrivers.lab import prepared, project, states
from voldrivers.lab.cache import SAVED, Cache
from voldrivers.lab.machine import BOOT_S, LabMachine, Model, Place, create_disks
from voldrivers.lab.prepared import PREPARED
from voldrivers.lab.states import State
from voldrivers.sizes import format_size

_BRING_S = 60.0


class Topology(StrEnum):
    """Which machines a lab has."""

    ONE_HOST = "one-host"
    TWO_HOSTS = "two-hosts"
    THREE_HOSTS = "three-hosts"


#: Card 0 of a compute host is on portal A, card 1 on portal B; of storage 0 and 1 lead to compute, 2 and
#: 3 to compute2.
PLACES: Mapping[Topology, tuple[Place, ...]] = {
    Topology.ONE_HOST: (Place("storage", 1, ("storage", "compute"), ()),),
    Topology.TWO_HOSTS: (
        Place("storage", 1, ("storage",), (("compute", 0), ("compute", 1))),
        Place("compute", 2, ("compute",), (("storage", 0), ("storage", 1))),
    ),
    Topology.THREE_HOSTS: (
        Place("storage", 1, ("storage",), (("compute", 0), ("compute", 1), ("compute2", 0), ("compute2", 1))),
        Place("compute", 2, ("compute",), (("storage", 0), ("storage", 1))),
        Place("compute2", 3, ("compute",), (("storage", 2), ("storage", 3))),
    ),
}


@dataclass(frozen=True)
class Wanted:
    """What a lab shall be like."""

    topology: Topology = Topology.TWO_HOSTS
    vg_bytes: int = 8 * 2**30
    nfs_bytes: int = 4 * 2**30
    #: The name of a state that was saved with `Lab.save`, or of one in `PREPARED`; without one a fresh boot.
    state: str = ""


class Lab:
    """A running lab in a directory of its own, until its `with` block ends; then nothing is left of it.

    QEMU dies with the thread that started it, so start a lab in a thread that lives as long.
    """

    def __init__(self, directory: Path, cache: Cache, wanted: Wanted) -> None:
        """Take the directory, which is there and short, as sockets are in it; nothing is started yet."""
        self.directory, self.cache, self.wanted = directory, cache, wanted
        self.places = PLACES[wanted.topology]
        self.machines: dict[str, LabMachine] = {}
        self._running = ExitStack()
        self._synced: dict[str, project.Files] = {}

    def __enter__(self) -> Self:
        """Start all machines; give the lab when they are ready. Raises as `LabMachine` does, and NotFound."""
        self.model = self._model()
        try:
            self._start()
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all machines."""
        self._running.close()

    def machine(self, name: str) -> LabMachine:
        """Give a machine by its name or by the role that only it has. Raises NotFound."""
        for place in self.places:
            if name == place.name or (name in place.roles and name not in self.machines):
                return self.machines[place.name]
        raise NotFound("machine", name, f", there are {', '.join(self.machines)}")

    def reset(self, name: str, timeout_s: float = BOOT_S) -> None:
        """Reset a machine, frozen or hanging too, and wait until it is ready. Raises as `power_on`.

        It gets a new QEMU. After QMP's `system_reset` a kernel takes up to 36 s to unpack itself, 3 times in
        12: it lands on code that TCG (QEMU 7.2) has translated, and each write to that is slow.
        """
        if self.machine(name).is_running:
            self.machine(name).execute("stop")  # QEMU flushes the disks
        self.power_off(name)
        self.power_on(name, timeout_s)

    def power_off(self, name: str) -> None:
        """Take the power from a machine: what it has not flushed to its disks is lost. May be repeated."""
        self.machine(name).kill()

    def power_on(self, name: str, timeout_s: float = BOOT_S) -> None:
        """Boot a machine that has no power, from its disks; one that runs is left alone.

        The thread must live as long as the lab. Raises as `LabMachine.wait_until_ready`.
        """
        machine = self.machine(name)
        if machine.is_running:
            return
        # The files of the project were perhaps never flushed, so they are brought again.
        self._synced.pop(machine.name, None)
        booted = LabMachine(self.directory, self.model, machine.place)
        self.machines[machine.name] = self._running.enter_context(booted)
        booted.wait_until_ready(timeout_s)

    def save(self, name: str) -> State:
        """Save all machines as a state that `Wanted.state` names, then let them go on."""
        if not name.replace("-", "").replace("_", "").isalnum():
            raise InvalidInput(f"state {name!r}", "a name has letters, digits, - and _")
        if name in PREPARED:
            raise InvalidInput(f"state {name!r}", f"{', '.join(PREPARED)} are made by the lab itself")
        return self._save(name)

    def bring_project(self, name: str, directory: Path, timeout_s: float = _BRING_S) -> None:
        """Bring what has changed of a project's files since the last time to /project of a machine.

        Raises NotFound without the directory; OutcomeUnknown when the machine does not take them.
        """
        files, before = project.look(directory), self._synced.get(name, {})
        changed = (path for path, stamp in files.items() if before.get(path) != stamp)
        removed = [path for path in before if path not in files]
        if files != before:
            self.machine(name).channel.unpack(
                "/project", project.archive(directory, changed), removed, timeout_s
            )
            self._synced[name] = files

    def _model(self) -> Model:
        chosen = self.cache.accelerator()
        self.cache.say(f"CPUs by {chosen.name}: {chosen.reason}")
        sizes = {"vg_bytes": self.wanted.vg_bytes, "nfs_bytes": self.wanted.nfs_bytes}
        return Model(self.cache.image(), self.cache.dependencies(), chosen, **sizes)

    def _start(self) -> None:
        name = self.wanted.state
        if self._restore(name):
            return
        if name and name not in PREPARED:
            vg, nfs = format_size(self.wanted.vg_bytes), format_size(self.wanted.nfs_bytes)
            where = f" of a lab with {self.wanted.topology}, vg0 of {vg}, /srv/nfs of {nfs}"
            raise NotFound("state", name, where)
        if not name or not self._restore(""):
            self.cache.say(f"booting {len(self.places)} machine{'s' if self.places[1:] else ''}")
            self._run(None)
            self._save("")
        if name:
            self.cache.say(f"preparing the state {name}")
            PREPARED[name].prepare(self.cache, self.machine)
            self._save(name)

    def _restore(self, name: str) -> bool:
        """Start from a saved state; tell whether there was a good one. Raises for one that a person saved."""
        state = states.find(self.cache, self._key(name))
        if state is None:
            return False
        try:
            self._run(state)
        except (BackendError, OutcomeUnknown) as error:
            if name and name not in PREPARED:
                raise
            self.cache.say(f"the saved state cannot be used, it is made anew: {error}")
            self._running.close()
            return False
        return True

    def _run(self, state: State | None) -> None:
        for place in self.places:
            create_disks(self.directory, self.model, place, state.directory if state else None)
        for place in self.places:
            memory = state.memory(place.name) if state else None
            machine = LabMachine(self.directory, self.model, place, state=memory)
            self.machines[place.name] = self._running.enter_context(machine)
        for machine in self.machines.values():
            machine.wait_until_ready()

    def _save(self, name: str) -> State:
        machines: Sequence[LabMachine] = list(self.machines.values())
        self.cache.say("saving the state")
        try:
            return states.save(self.cache, self._key(name), machines)
        finally:
            for machine in machines:
                if machine.is_running:
                    machine.execute("cont")

    def _key(self, name: str) -> str:
        if name in PREPARED:
            name = f"{name}-{prepared.version(name)}"
        elif name:
            name = f"{SAVED}{name}"
        return states.key(self.model, self.places, name or "fresh")
