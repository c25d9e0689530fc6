"""Removes what is left of a lab whose keeper has ended, however that was. Standard library only.

Waiting for the keeper's lock costs nothing: `flock LOCK python cleaner.py DIRECTORY ...` starts this when it
is free. It stands alone, so that it works whatever happened to the rest of the project meanwhile.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

#: What QEMU is started by, and as; see guests/machine.py.
_STARTED_AS = (b"setpriv", b"qemu-system-x86_64")
#: A QEMU that was being started when the keeper was killed is seen within so long.
_LOOK_S, _LOOKS = 0.05, 3


def remove(directory: Path, *others: Path) -> None:
    """Kill the machines in a lab's directory, which may outlive their keeper; remove all its files."""
    unseen = 0
    while unseen < _LOOKS:
        unseen += 1
        for pid in _machines_in(directory):
            unseen = 0
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_S)
    for path in (directory, *others):
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # it was a directory, or nothing
            path.unlink()


def _machines_in(directory: Path) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            ours = argv[0].endswith(_STARTED_AS)
            if ours and any(b"%b/" % bytes(directory) in argument for argument in argv):
                yield int(entry.name)


if __name__ == "__main__":
    remove(*map(Path, sys.argv[1:]))
