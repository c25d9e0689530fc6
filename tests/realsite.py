"""All of voldrivers on one machine: engine, NFS driver, local host, real files, real QEMUs."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from crashing import CountedStore, Points, counted

from voldrivers import process
from voldrivers.base import Driver, Host, Run
from voldrivers.config import Policy
from voldrivers.errors import BackendError, CommandFailed, VolDriverError
from voldrivers.extend import Engine, Site, Store
from voldrivers.guests.device import SECTOR_BYTES, DeviceGuest, Disk
from voldrivers.guests.machine import Machine
from voldrivers.host.local import LocalHost, LocalOptions
from voldrivers.model import Extend, Ledger, Volume, VolumeStatus
from voldrivers.nfs.driver import NFSDriver
from voldrivers.nfs.options import NFSOptions
from voldrivers.sizes import MiB

#: Names a mounted share, to have the tests run over real NFS.
SHARES = "VOLDRIVERS_TEST_SHARES"
NAME, SMALL, LARGE = "v", 4 * MiB, 8 * MiB
_SOME_SECTORS = 8


@dataclass(frozen=True)
class Kind:
    """How a volume's file is made."""

    name: str
    format: str
    preallocated: bool = False

    @property
    def options(self) -> dict[str, object]:
        return {"format": self.format, "preallocate": self.preallocated}


RAW, QCOW2, FULL = Kind("raw", "raw"), Kind("qcow2", "qcow2"), Kind("preallocated raw", "raw", True)


@dataclass
class RealSite:
    """One controller and its files in `directory`; guests run there as well.

    A test that waits for what never comes makes `answer_s` short.
    """

    directory: Path
    share: Path
    answer_s: float = 10.0
    deadline_s: float = 5.0
    options: dict[str, Any] = field(default_factory=dict)  # Any: of NFSOptions
    #: Another host than this machine seen from this process.
    make_host: Callable[[Run], Host] | None = None

    def engine(self, points: Points | None = None, run: Run = process.run) -> Engine:
        """Start a controller; with `points` its records, driver and host are counted."""
        options = NFSOptions(str(self.share), **self.options)
        limits = LocalOptions(monitor_timeout_s=self.answer_s, resize_timeout_s=self.answer_s)
        driver: Driver = NFSDriver("files", options, run)
        host: Host = LocalHost("here", limits, run) if self.make_host is None else self.make_host(run)
        path = self.directory / "state" / "voldrivers.db"
        store = Store(path) if points is None else CountedStore(path, points)
        if points is not None:
            driver, host = counted(driver, points), counted(host, points)
        policy = Policy(deadline_s=self.deadline_s)
        return Engine(Site(store, {"files": driver}, {"here": host}, self.directory / "locks", policy))

    def create(self, kind: Kind, *, multi_attach: bool = False) -> None:
        with self.engine() as engine:
            engine.create_volume(NAME, SMALL, options=kind.options, multi_attach=multi_attach)

    def attach(self, monitor: Path | None) -> None:
        with self.engine() as engine:
            engine.attach(NAME, monitor=monitor)

    def admit(self, size_bytes: int = LARGE) -> Extend:
        """Admit an extend and leave it to `resume`."""
        with self.engine() as engine:
            return engine.extend(NAME, size_bytes, wait=False)

    def extend(self, size_bytes: int = LARGE) -> Extend:
        with self.engine() as engine:
            return engine.extend(NAME, size_bytes)

    def resume(self) -> Exception | None:
        """Resume everything; give the error with which it did not end well."""
        with self.engine() as engine:
            (resumed,) = engine.resume()
            return resumed.error

    @property
    def volume(self) -> Volume:
        with self.engine() as engine:
            return engine.volume(NAME)

    @property
    def ledger(self) -> Ledger:
        with self.engine() as engine:
            return engine.ledger(NAME)

    @property
    def messages(self) -> str:
        with self.engine() as engine:
            return "\n".join(message.text for message in engine.messages(engine.volume(NAME)))

    @property
    def image_format(self) -> str:
        return str(json.loads(self.volume.provider_data)["format"])

    @property
    def path(self) -> Path:
        return self.share / str(json.loads(self.volume.provider_data)["file"])

    @property
    def file_bytes(self) -> int:
        """What `qemu-img info` says, who looks by itself."""
        found = json.loads(qemu_img("info", self, "--output=json"))
        return int(found["virtual-size"])

    def check_image(self) -> None:
        """Have `qemu-img check` find nothing wrong; a raw file has nothing that could be."""
        if self.image_format == "qcow2":
            found = json.loads(qemu_img("check", self, "--output=json"))
            problems = {"corruptions", "leaks", "check-errors"} & {key for key in found if found[key]}
            assert not problems, found

    def check_steady(self, status: VolumeStatus, size_bytes: int) -> None:
        """Have records, file and every layer agree."""
        volume = self.volume
        shown = (volume.status, volume.size_bytes, volume.backend_bytes, volume.extend_new_size_bytes)
        assert shown == (status, size_bytes, size_bytes, None)
        assert self.file_bytes == size_bytes
        assert [row for row in self.ledger if not row.agrees] == []
        self.check_image()


def attached(site: RealSite, guest: DeviceGuest, kind: Kind) -> None:
    """Give the guest a volume that it has written to."""
    site.create(kind)
    site.attach(guest.qmp_socket)
    fill(disk_of(site, guest), SMALL)


def check_grown(site: RealSite, guest: DeviceGuest, size_bytes: int = LARGE) -> None:
    """Have everybody agree, old content be there and the new range be usable to its end."""
    site.check_steady(VolumeStatus.IN_USE, size_bytes)
    disk = disk_of(site, guest)
    assert disk.capacity_bytes() == size_bytes
    check_filled(disk, SMALL)
    check_new_range(disk, SMALL, size_bytes)
    assert guest.is_running
    site.check_image()


def check_untouched(site: RealSite, guest: DeviceGuest) -> None:
    """Have everybody agree that nothing happened, and the volume usable as before."""
    site.check_steady(VolumeStatus.IN_USE, SMALL)
    disk = disk_of(site, guest)
    assert disk.capacity_bytes() == SMALL
    check_filled(disk, SMALL)
    assert guest.is_running


def qemu_img(command: str, site: RealSite, *options: str) -> str:
    argv = ["qemu-img", command, "--force-share", *options, "-f", site.image_format, str(site.path)]
    return process.run(argv, timeout_s=20).stdout


def disk_of(site: RealSite, guest: DeviceGuest) -> Disk:
    return guest.disk(site.volume.id)


def node_bytes(guest: Machine) -> list[int]:
    """What QEMU shows for every disk."""
    return [entry["inserted"]["image"]["virtual-size"] for entry in guest.execute("query-block")]


def fill(disk: Disk, size_bytes: int) -> None:
    """Write to the first and to the last sectors of a disk of this size."""
    for first in _ends(size_bytes):
        disk.write(first, _pattern(first))


def check_filled(disk: Disk, size_bytes: int) -> None:
    """Read what `fill` wrote."""
    for first in _ends(size_bytes):
        assert disk.read(first, _SOME_SECTORS) == _pattern(first), f"sector {first}"


def check_new_range(disk: Disk, from_bytes: int, to_bytes: int) -> None:
    """Have all that is new read as zeros, be writable to its last sector, and end there."""
    first, end = from_bytes // SECTOR_BYTES, to_bytes // SECTOR_BYTES
    step = MiB // SECTOR_BYTES
    for sector in range(first, end, step):
        length = min(step, end - sector)
        assert disk.read(sector, length) == bytes(length * SECTOR_BYTES), f"from sector {sector}"
    for sector in (first, end - _SOME_SECTORS):
        disk.write(sector, _pattern(sector))
        assert disk.read(sector, _SOME_SECTORS) == _pattern(sector)
    for act in (lambda: disk.read(end), lambda: disk.write(end, bytes(SECTOR_BYTES))):
        assert refused(act)


def refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except BackendError:
        return True
    return False


@contextmanager
def mounted(kind: str, *arguments: str, point: Path) -> Iterator[None]:
    """Mount a file system at `point` and take it away again, whoever still uses it."""
    process.run(["mount", "-t", kind, *arguments, str(point)], timeout_s=10)
    try:
        yield
    finally:
        process.run(["umount", "--lazy", str(point)], timeout_s=10)


def fill_up(share: Path) -> Path:
    """Leave no room in a share; give the file to remove."""
    ballast = share / "ballast"
    with pytest.raises(CommandFailed, match="No space left"):
        process.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=4096"], timeout_s=20)
    return ballast


def allocated_bytes(path: Path) -> int:
    return os.stat(path).st_blocks * 512


def _ends(size_bytes: int) -> tuple[int, int]:
    return 0, size_bytes // SECTOR_BYTES - _SOME_SECTORS


def _pattern(first_sector: int) -> bytes:
    return f"sector {first_sector:09d}".encode().ljust(SECTOR_BYTES, b".") * _SOME_SECTORS


_FORK = multiprocessing.get_context("fork")


class Child:
    """A process of its own that does one thing; all else it has from this one, imports included.

    It must not be made beside threads (they would be missing in it, with the locks they hold).
    """

    def __init__(self, act: Callable[[], object]) -> None:
        self._answers, answers = _FORK.Pipe(duplex=False)
        self._process = _FORK.Process(target=_answer, args=(act, answers))
        self._process.start()
        answers.close()

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()

    def answer(self) -> str:
        """Wait for its end and give the error it ended with; "" for none, "killed" for SIGKILL."""
        try:
            return str(self._answers.recv())
        except EOFError:
            self._process.join()
            assert self._process.exitcode == -signal.SIGKILL, self._process.exitcode
            return "killed"
        finally:
            self._answers.close()
            self._process.join()


def _answer(act: Callable[[], object], answers: Connection) -> None:
    try:
        act()
    except VolDriverError as error:
        answers.send(f"{type(error).__name__}: {error}")
    else:
        answers.send("")
