"""Saved states: the memory and the disks of all machines of a lab at one moment.

A state fits only the very image, QEMU and hardware it was saved with, so it is named by them.
"""

import hashlib
import inspect
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from voldrivers import process
from voldrivers.guests.machine import qemu_version
from voldrivers.lab.cache import Cache
from voldrivers.lab.machine import DISKS, LabMachine, Model, Place

_CONVERT_S = 120.0


@dataclass(frozen=True)
class State:
    """Where a state is; it holds `MACHINE.memory` and `MACHINE.DISK`."""

    directory: Path

    def memory(self, machine: str) -> Path:
        """Give the file with a machine's memory and devices."""
        return self.directory / f"{machine}.memory"


def key(model: Model, places: Sequence[Place], name: str) -> str:
    """Name a state by what it is a state of, and by all that it must fit."""
    needs = [qemu_version(), model.image.digest, model.dependencies.name, model.accelerator.name]
    sizes = [model.memory_mib, model.cpus, model.vg_bytes, model.nfs_bytes]
    # The arguments of QEMU: all that these modules say, rather than too little.
    arguments = [Path(inspect.getfile(kind)).read_text() for kind in LabMachine.mro()[:2]]
    text = json.dumps([name, needs, sizes, arguments, [[p.name, p.number, p.roles, p.links] for p in places]])
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def find(cache: Cache, state_key: str) -> State | None:
    """Give a state that is whole; one that is not is no state: it is removed by the next `save`."""
    directory = cache.directory / "states" / state_key
    try:
        recorded: Mapping[str, str] = json.loads((directory / "files.json").read_text())
        if _hashes(directory, list(recorded)) != recorded:
            raise ValueError("changed since it was saved")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        cache.say(f"the saved state {state_key} cannot be used: {error}")
        return None
    cache.used(directory)
    return State(directory)


def save(cache: Cache, state_key: str, machines: Sequence[LabMachine]) -> State:
    """Stop machines and save them; they stay stopped. An older state of the same name is replaced."""
    states = cache.directory / "states"
    with tempfile.TemporaryDirectory(prefix="making-", dir=states) as made:
        state = Path(made, "state")
        state.mkdir()
        for machine in machines:
            machine.channel.run(["sync"], timeout_s=60)
        for machine in machines:
            machine.save(State(state).memory(machine.name))
        for machine in machines:
            for disk in DISKS:
                _copy_disk(machine.directory / f"{machine.name}.{disk}", state / f"{machine.name}.{disk}")
        names = [path.name for path in state.iterdir()]
        (state / "files.json").write_text(json.dumps(_hashes(state, names)))
        directory = states / state_key
        with cache.alone("states"):
            if directory.exists():
                directory.rename(Path(made, "old"))
            state.rename(directory)
    cache.used(directory)
    return State(directory)


def _copy_disk(disk: Path, copy: Path) -> None:
    """Copy what a machine has written, all layers in one; QEMU has let go of it after a save."""
    argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", str(disk), str(copy)]
    process.run(argv, timeout_s=_CONVERT_S)


def _hashes(directory: Path, names: Sequence[str]) -> dict[str, str]:
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(directory / name), names), strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
