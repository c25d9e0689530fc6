"""A guest without a guest CPU: its virtio disks are driven from Python.

It sees what a driver in a guest sees (the capacity register, the interrupt that announces a new
one, sectors through a virtqueue) and is up in a tenth of a second.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from voldrivers import process
from voldrivers.errors import BackendError, NotFound
from voldrivers.guests.machine import Machine, check_socket, write_rom
from voldrivers.guests.qtest import Bus

SECTOR_BYTES = 512

_SLOTS = range(32)
# PCI: device and vendor of a transitional virtio disk in register 0; enable I/O, memory, bus master.
_VIRTIO_BLK, _PCI_COMMAND, _PCI_BAR0, _PCI_ENABLE_ALL = 0x1001_1AF4, 4, 0x10, 7
# ACPI PCI hot plug of i440fx: docs/specs/acpi_pci_hotplug.rst of QEMU.
_HOTPLUG_DOWN, _HOTPLUG_EJECT, _HOTPLUG_BUS = 0xAE04, 0xAE08, 0xAE10
# Virtio 1.1, 4.1.4.8: the legacy registers in BAR0. The disk's own begin at 20 while MSI-X is off.
_FEATURES, _QUEUE_PAGE, _QUEUE_SIZE, _QUEUE, _NOTIFY = 4, 8, 12, 14, 16
_STATUS, _INTERRUPT, _CAPACITY = 18, 19, 20
_RESET, _DRIVER_KNOWN, _DRIVER_OK, _CONFIG_CHANGED = 0, 3, 7, 2
# Virtio 1.1, 2.6.5 and 5.2.6: flags of a descriptor, types of a request.
_NEXT, _DEVICE_WRITES = 1, 2
_READ, _WRITE, _GET_ID = 0, 1, 8
_SERIAL_BYTES = 20
# The guest's memory: a ring for each slot, then one request at a time.
_RINGS, _RING_BYTES = 1 << 20, 1 << 16
_REQUEST, _ANSWER, _BUFFER, _BUFFER_BYTES = 4 << 20, 5 << 20, 6 << 20, 1 << 20


class DeviceGuest(Machine):
    """A QEMU whose CPU is halted at once, so that its devices can be driven from here.

    Disks are hot-plugged by whoever is tested (`blockdev-add`, then `device_add` of virtio-blk-pci)
    and found here by their serial. QEMU is `running` unless `arguments` say otherwise (`-S`,
    `-incoming defer`).
    """

    def __init__(
        self,
        directory: Path,
        name: str = "guest",
        *,
        arguments: Sequence[str] = (),
        answer_s: float | None = 20.0,
    ) -> None:
        """Start it in `directory`. Raises as `Machine` does.

        A disk, or QEMU itself, may take `answer_s` for a request; None is for as long as it takes.
        """
        rom, self._qtest = directory / f"{name}.rom", directory / f"{name}.qtest"
        write_rom(rom)
        check_socket(self._qtest)
        self._answer_s = answer_s
        driven = ("-qtest", f"unix:{self._qtest},server=on,wait=off", "-qtest-log", "/dev/null")
        super().__init__(directory, name, ["-bios", str(rom), "-m", "16", *driven, *arguments])
        self._connect()

    def start_again(self) -> None:
        """Start it anew, after `kill`, without disks. Raises as the construction does."""
        super().start_again()
        self._connect()

    @property
    def files(self) -> tuple[Path, ...]:
        """What it has in its directory, to be removed when it has ended."""
        own = (self.qmp_socket, self._control_socket, self.log, self._qtest)
        return (*own, self.directory / f"{self.name}.rom")

    def disks(self) -> "list[Disk]":
        """Find every virtio disk on the bus and set up those that are new, as a driver does."""
        slots = [slot for slot in _SLOTS if self._bus.pci(slot, 0) == _VIRTIO_BLK]
        return [Disk(self._bus, slot, self._answer_s) for slot in slots]

    def disk(self, serial: str) -> "Disk":
        """Find the disk with this serial, of which a virtio disk shows 20 bytes. Raises NotFound."""
        wanted = serial.encode()[:_SERIAL_BYTES]
        for disk in self.disks():
            if disk.serial.encode() == wanted:
                return disk
        raise NotFound("disk", serial, f" in guest {self.name}")

    def eject(self, timeout_s: float = 5.0) -> None:
        """Let go of the device that `device_del` asks for, as a guest with ACPI does.

        Waits for the request. Without it a `device_del` never completes, as with a guest that hangs.
        Raises OutcomeUnknown when nothing was asked for in time.
        """
        self._bus.set_port(_HOTPLUG_BUS, 4, 0)
        what = f"device_del in guest {self.name}"
        process.wait_until(lambda: self._bus.port(_HOTPLUG_DOWN, 4) != 0, timeout_s, what)
        asked = self._bus.port(_HOTPLUG_DOWN, 4)
        for slot in _SLOTS:
            if asked & 1 << slot:
                self._bus.set_port(_HOTPLUG_EJECT, 4, 1 << slot)

    def _connect(self) -> None:
        self._bus = Bus(self._qtest, self._answer_s)
        self.connections.callback(self._bus.close)


class Disk:
    """One virtio disk through its legacy interface, as its driver in a guest uses it."""

    def __init__(self, bus: Bus, slot: int, answer_s: float | None) -> None:
        """Take the disk in a PCI slot; set it up unless that was done before."""
        self._bus, self.slot = bus, slot
        self._answer_s = math.inf if answer_s is None else answer_s
        self._registers = 0xC000 + slot * 0x100
        self._ring = _RINGS + slot * _RING_BYTES
        if bus.pci(slot, _PCI_BAR0) != self._registers | 1 or self._read_register(_STATUS, 1) != _DRIVER_OK:
            self._set_up()
        # Virtio 1.1, 2.6.2: descriptors, available ring, on the next page the used ring.
        self._queue_size = self._read_register(_QUEUE_SIZE, 2)
        self._available = self._ring + 16 * self._queue_size
        self._used = -(-(self._available + 6 + 2 * self._queue_size) // 4096) * 4096

    @property
    def serial(self) -> str:
        """What the disk calls itself, cut at 20 bytes by QEMU."""
        return self._request(_GET_ID, 0, _SERIAL_BYTES).partition(b"\0")[0].decode()

    def capacity_bytes(self) -> int:
        """Read the capacity register: the size that a guest sees."""
        sectors = self._read_register(_CAPACITY, 4) | self._read_register(_CAPACITY + 4, 4) << 32
        return sectors * SECTOR_BYTES

    def config_changed(self) -> bool:
        """Tell whether the disk announced a change of its configuration since this was last asked.

        Reading the interrupt register clears it.
        """
        return bool(self._read_register(_INTERRUPT, 1) & _CONFIG_CHANGED)

    def read(self, first_sector: int, sectors: int = 1) -> bytes:
        """Read at most 2048 sectors. Raises BackendError when the disk refuses, beyond its end say."""
        return self._request(_READ, first_sector, sectors * SECTOR_BYTES)

    def write(self, first_sector: int, content: bytes) -> None:
        """Write whole sectors, at most 2048; they are on the disk then (no volatile cache was agreed on).

        Raises BackendError when the disk refuses.
        """
        self._bus.set_memory(_BUFFER, content)
        self._request(_WRITE, first_sector, len(content))

    def _set_up(self) -> None:
        self._bus.set_pci(self.slot, _PCI_BAR0, self._registers)
        self._bus.set_pci(self.slot, _PCI_COMMAND, _PCI_ENABLE_ALL)
        self._bus.set_memory(self._ring, bytes(_RING_BYTES))
        self._write_register(_STATUS, 1, _RESET)
        self._write_register(_STATUS, 1, _DRIVER_KNOWN)
        self._write_register(_FEATURES, 4, 0)
        self._write_register(_QUEUE, 2, 0)
        self._write_register(_QUEUE_PAGE, 4, self._ring // 4096)
        self._write_register(_STATUS, 1, _DRIVER_OK)

    def _request(self, kind: int, first_sector: int, size_bytes: int) -> bytes:
        """Put one request into the virtqueue, wait until the device used it, give the buffer's content."""
        if size_bytes > _BUFFER_BYTES:
            raise ValueError(f"at most {_BUFFER_BYTES} bytes in one request")
        self._bus.set_memory(_REQUEST, struct.pack("<IIQ", kind, 0, first_sector))
        self._bus.set_memory(_ANSWER, b"\xff")
        self._bus.set_memory(self._ring, b"".join(self._descriptors(kind, size_bytes)))
        # Every entry of the available ring is 0, the first descriptor, so only its index moves.
        following = (self._index(self._available) + 1) & 0xFFFF
        self._bus.set_memory(self._available + 2, struct.pack("<H", following))
        self._write_register(_NOTIFY, 2, 0)
        what = f"the disk in slot {self.slot} to answer"
        process.wait_until(lambda: self._index(self._used) == following, self._answer_s, what)
        status = self._bus.memory(_ANSWER, 1)[0]
        if status:
            where = f"{size_bytes} bytes at sector {first_sector}"
            raise BackendError(f"guest disk in slot {self.slot}", f"virtio-blk status {status} for {where}")
        return self._bus.memory(_BUFFER, size_bytes)

    def _descriptors(self, kind: int, size_bytes: int) -> Iterator[bytes]:
        filled_by_device = 0 if kind == _WRITE else _DEVICE_WRITES
        yield struct.pack("<QIHH", _REQUEST, 16, _NEXT, 1)
        yield struct.pack("<QIHH", _BUFFER, size_bytes, _NEXT | filled_by_device, 2)
        yield struct.pack("<QIHH", _ANSWER, 1, _DEVICE_WRITES, 0)

    def _index(self, ring: int) -> int:
        return int(struct.unpack("<H", self._bus.memory(ring + 2, 2))[0])

    def _read_register(self, register: int, width: int) -> int:
        return self._bus.port(self._registers + register, width)

    def _write_register(self, register: int, width: int, value: int) -> None:
        self._bus.set_port(self._registers + register, width, value)
