"""One machine of the lab: a QEMU with disks of its own, links to others, and an agent that runs commands."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voldrivers import process
from voldrivers.errors import BackendError, OutcomeUnknown
from voldrivers.guests.machine import Accelerator, Machine, incoming, server
from voldrivers.lab.channel import Channel
from voldrivers.lab.image import LabImage

#: How long a boot may take, on a busy computer too.
BOOT_S = 120.0
_COMMAND_LINE = "console=ttyS0 quiet panic=1 mitigations=off net.ifnames=0"
#: The disks that a machine writes to; thrown away when it ends, kept by `save`.
DISKS = ("own", "vg", "nfs")
NICS = 4


@dataclass(frozen=True)
class Model:
    """What every machine of a lab has; a saved state fits only the same model."""

    image: LabImage
    dependencies: Path
    accelerator: Accelerator
    memory_mib: int = 768
    cpus: int = 1
    vg_bytes: int = 8 * 2**30
    nfs_bytes: int = 4 * 2**30


@dataclass(frozen=True)
class Place:
    """Which machine it is: its name, its number on the networks, its roles, and where its links end."""

    name: str
    number: int
    roles: tuple[str, ...]
    #: For each of its links: the other machine and the number of that one's link.
    links: tuple[tuple[str, int] | None, ...]


class LabMachine(Machine):
    """A running lab machine. Its files are in a directory of its lab's; the disks `DISKS` are there too."""

    def __init__(self, directory: Path, model: Model, place: Place, *, state: Path | None = None) -> None:
        """Boot it, or restore it from a state; its disks are there (see `states`).

        It is not ready then: `wait_until_ready`. Raises as `Machine` does.
        """
        self.place = place
        self._agent_socket = directory / f"{place.name}.agent"
        self._console = directory / f"{place.name}.console"
        for left_over in (self._agent_socket, self._console):
            left_over.unlink(missing_ok=True)
        arguments = [
            *_boot(model, place),
            *_hardware(model),
            *_disks(directory, model, place),
            *_links(directory, place),
            *("-serial", f"file:{self._console}", "-device", "virtio-serial-pci,addr=0x8"),
            *("-chardev", server("agent", self._agent_socket)),
            *("-device", "virtserialport,chardev=agent,name=lab.agent"),
        ]
        if state is not None:
            arguments += incoming(state)
        super().__init__(directory, place.name, arguments, accel=model.accelerator.name)
        self.restored = state is not None
        self.channel = Channel(self._agent_socket, f"lab machine {place.name}")
        self.connections.callback(self.channel.close)

    def wait_until_ready(self, timeout_s: float = BOOT_S) -> None:
        """Wait until it has booted, or has come back from its state with the time of now.

        Raises OutcomeUnknown or BackendError, with the end of its console, when it does not come; it is
        killed then.
        """
        try:
            if self.restored:
                self.resume()
                self.channel.renew()
            else:
                ready = ["bash", "-c", "until [ -e /run/lab/ready ]; do sleep 0.05; done"]
                self.wait_until(self.channel.answers, timeout_s, "the agent")
                self.channel.run(ready, timeout_s=timeout_s)
        except (OutcomeUnknown, BackendError) as error:
            self.kill()
            error.add_note(f"the console of {self.name} ends with:\n{self.console_text()[-2000:]}")
            raise

    @property
    def state(self) -> str:
        """Tell whether it is `running`, `frozen` or `off`."""
        if not self.is_running:
            return "off"
        return "running" if self.execute("query-status")["running"] else "frozen"

    def console_text(self) -> str:
        """Give what its kernel and its init wrote to the serial console until now."""
        return self._console.read_text(errors="replace") if self._console.exists() else ""


def create_disks(directory: Path, model: Model, place: Place, state: Path | None) -> None:
    """Make the disks of a machine: layers over those of a state, or over the image and empty ones."""
    for disk in DISKS:
        layer = str(directory / f"{place.name}.{disk}")
        if state is not None:
            below = ["-b", str(state / f"{place.name}.{disk}"), "-F", "qcow2"]
        elif disk == "own":
            below = ["-b", str(model.image.own_disk), "-F", "raw"]
        else:
            below = []
        size = [] if below else [str(model.vg_bytes if disk == "vg" else model.nfs_bytes)]
        process.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, layer, *size], timeout_s=20)


def _boot(model: Model, place: Place) -> list[str]:
    words = f"lab.name={place.name} lab.number={place.number} lab.roles={','.join(place.roles)}"
    image = model.image
    return [
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", f"{_COMMAND_LINE} {words}"),
    ]


def _hardware(model: Model) -> list[str]:
    return ["-cpu", "max", "-smp", str(model.cpus), "-m", str(model.memory_mib)]


def _disks(directory: Path, model: Model, place: Place) -> list[str]:
    drives = [
        f"id=root,file={model.image.root},format=raw,readonly=on",
        *(f"id={disk},file={directory / place.name}.{disk},format=qcow2,discard=unmap" for disk in DISKS),
        f"id=deps,file={model.dependencies},format=raw,readonly=on",
    ]
    arguments: list[str] = []
    for slot, drive in enumerate(drives, start=3):
        name = drive.partition(",")[0].partition("=")[2]
        arguments += ["-drive", f"if=none,{drive}", "-device", f"virtio-blk-pci,drive={name},addr={slot:#x}"]
    return arguments


def _links(directory: Path, place: Place) -> Sequence[str]:
    """Give the network cards; each is one end of a cable between two sockets of ours, and reaches no more."""
    arguments: list[str] = []
    for card in range(NICS):
        link = place.links[card] if card < len(place.links) else None
        peer = directory / (f"{link[0]}.link{link[1]}" if link else f"{place.name}.nowhere{card}")
        here = directory / f"{place.name}.link{card}"
        here.unlink(missing_ok=True)
        cable = f"local.type=unix,local.path={here},remote.type=unix,remote.path={peer}"
        mac = f"52:54:00:77:{place.number:02x}:{card:02x}"
        arguments += ["-netdev", f"dgram,id=link{card},{cable}"]
        arguments += [
            "-device",
            f"virtio-net-pci,id=nic{card},netdev=link{card},addr={9 + card:#x},mac={mac},romfile=",
        ]
    return arguments
