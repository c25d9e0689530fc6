"""A guest at work (`voldrivers.guests.verified`) in a process of its own, as an operator would start it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

from voldrivers import process
from voldrivers.guests.verified import DiskReport, Report, read_report
from voldrivers.host.qmp import Monitor
from voldrivers.sizes import MiB

Node = dict[str, object]

WAIT_S = 20.0


class Working:
    """A guest in a process of its own, with one disk at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.image = directory, directory / "disk.raw"
        argv = [sys.executable, "-m", "voldrivers.guests.verified", str(directory), "guest"]
        self.process: Popen[bytes] = process.start(argv, output=directory / "printed")
        process.wait_until((directory / "guest.report").exists, WAIT_S, "the guest")

    def ask(self, command: str, arguments: dict[str, object]) -> object:
        with Monitor(self.directory / "guest.qmp") as monitor:
            return monitor.execute(command, arguments)

    def plug(self, over: Callable[[Node], Node] = lambda file: file) -> None:
        self.image.touch()
        os.truncate(self.image, MiB)
        file = over({"driver": "file", "filename": str(self.image)})
        self.ask("blockdev-add", {"node-name": "n", "driver": "raw", "file": file})
        self.ask("device_add", {"driver": "virtio-blk-pci", "id": "d", "drive": "n", "serial": "vol-1"})
        self.wait_for_work()

    def report(self) -> Report:
        return read_report((self.directory / "guest.report").read_text())

    def disk(self) -> DiskReport:
        return self.report().disks[-1]

    def wait_for_work(self, turns: int = 3) -> None:
        """Wait until the disk is there and so many more turns are done."""
        process.wait_until(lambda: bool(self.report().disks), WAIT_S, "the disk")
        until = self.report().turns + turns
        process.wait_until(lambda: self.report().turns >= until, WAIT_S, "work")

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(WAIT_S)
