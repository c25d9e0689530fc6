"""The keeper of a lab: the process that owns its QEMUs and does what clients ask (see `protocol`).

It starts the lab in its main thread, as QEMU dies with the thread that started it, and does there too
whatever may start another QEMU. It ends by `down`, without clients for long, when a QEMU ends by itself,
or when nobody waits any more for a lab that is not ready. Run as: python -m voldrivers.lab.keeper NAME
CACHE [private]; what it prints is its log.
"""

import os
import queue
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from voldrivers.errors import CommandFailed, VolDriverError
from voldrivers.lab.cache import Cache
from voldrivers.lab.keeper import runtime
from voldrivers.lab.keeper.progress import Progress
from voldrivers.lab.keeper.protocol import LabStatus, MachineStatus, Wish
from voldrivers.lab.keeper.service import Service, wanted
from voldrivers.lab.lab import Lab, Wanted
from voldrivers.lab.machine import DISKS, LabMachine

#: How long it waits for the first wish, for clients to be told why it ends, and for its own end.
_FIRST_S, _LAST_S, _END_S = 5.0, 2.0, 10.0
#: How often it looks at its QEMUs and its clients.
_LOOK_S = 1.0


class _EndError(BaseException):
    """Raised in the main thread, whatever it does, when the keeper shall end."""


class Keeper:
    """One lab from the first wish for it to its end."""

    def __init__(self, place: runtime.Site) -> None:
        """Take the lab's places; nothing is started yet."""
        self.place = place
        self._progress = Progress()
        self._service = Service(f"lab {place.name}", self._progress, self._status)
        self._since = datetime.now().astimezone().isoformat(timespec="seconds")

    def keep(self) -> None:
        """Serve until the end; nothing is left then. Raises InvalidState when the lab has a keeper."""
        with runtime.held(self.place), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            os.ftruncate(sys.stdout.fileno(), 0)  # the log is ours from now on
            listener.bind(str(self.place.socket))
            listener.listen(64)
            threading.Thread(target=self._service.accept, args=(listener,), daemon=True).start()
            threading.Thread(target=self._end_when_asked, daemon=True).start()
            try:
                self._keep(self._service.wishes.get(timeout=_FIRST_S))
            except queue.Empty:
                _log("nobody asked for the lab")
            except VolDriverError as error:
                _log("\n".join([str(error), *getattr(error, "__notes__", ())]))
                self._progress.fail(_brief(error), _LAST_S)

    def _keep(self, wish: Wish) -> None:
        _log(f"lab {self.place.name}: {wish}")
        cache = Cache(self.place.cache, self._say)
        cache.used(self.place.log)
        lab = Lab(self.place.directory, cache, wanted(wish))
        for place in lab.places:
            for disk in DISKS:  # not where the sockets are: that may be a small file system in RAM
                name = f"{place.name}.{disk}"
                (self.place.directory / name).symlink_to(self.place.disks / name)
        with lab:
            _log("ready")
            self._progress.be_ready(lab)
            off: set[str] = set()
            while (reason := self._reason_to_end(lab, off, wish.idle_s)) is None:
                if self._work(lab):  # which may be to take the power from a machine
                    off = {machine.name for machine in lab.machines.values() if not machine.is_running}
            _log(reason)

    def _say(self, text: str) -> None:
        _log(text)
        self._progress.say(text)

    def _work(self, lab: Lab) -> bool:
        """Do what clients ask of the main thread, or wait a while; tell whether something was done."""
        try:
            work, result = self._service.work.get(timeout=_LOOK_S)
        except queue.Empty:
            return False
        try:
            result.set_result(work(lab))
        except Exception as error:  # noqa: BLE001 - it is raised again in the thread of the client
            result.set_exception(error)
        return True

    def _reason_to_end(self, lab: Lab, off: set[str], idle_s: float) -> str | None:
        for machine in lab.machines.values():
            if not machine.is_running and machine.name not in off:
                return f"the QEMU of {machine.name} ended by itself: {machine.log.read_text()[-500:]}"
        return f"no client for {idle_s:g} seconds" if self._progress.idle_s >= idle_s else None

    def _end_when_asked(self) -> None:
        """End the main thread's work from another one; if it does not end, end without it."""
        _log(self._service.ends.get())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(_END_S)
        os._exit(1)

    def _status(self, wanted: Wanted) -> LabStatus:
        lab = self._progress.lab
        return LabStatus(
            name=self.place.name,
            ready=lab is not None,
            private=self.place.private,
            topology=str(wanted.topology),
            state=wanted.state,
            vg_bytes=wanted.vg_bytes,
            nfs_bytes=wanted.nfs_bytes,
            since=self._since,
            pid=os.getpid(),
            log=str(self.place.log),
            machines=tuple(map(_machine_status, lab.machines.values())) if lab else (),
        )


def main() -> int:
    """Be the keeper of the lab that the arguments name."""
    name, cache, *private = sys.argv[1:]
    os.chdir("/")
    signal.signal(signal.SIGTERM, _end)
    try:
        with suppress(_EndError):
            Keeper(runtime.Site(name, Path(cache), bool(private))).keep()
    except VolDriverError as error:
        _log(str(error))
        return 1
    return 0


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # the end is not interrupted by another one
    raise _EndError


def _brief(error: VolDriverError) -> VolDriverError:
    """Keep the first line of what a program printed: clients are shown the end of the log, which has all."""
    if isinstance(error, CommandFailed):
        return replace(error, reason=error.reason.partition("\n")[0])
    return error


def _log(text: str) -> None:
    with suppress(OSError):  # the machines are worth more than a log on a full disk
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _machine_status(machine: LabMachine) -> MachineStatus:
    place = machine.place
    addresses = tuple(f"10.77.{net}.{place.number}" for net in (1, 2))
    return MachineStatus(place.name, place.roles, addresses, machine.pid, machine.state)


if __name__ == "__main__":
    sys.exit(main())
