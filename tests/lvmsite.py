"""A storage machine with a controller, a compute machine with an agent, and a guest at work on an LVM volume.

From the lab's state `attached`; see tests/inside/controller.py for what the controller can be told.
"""

import json
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

from inside.written import written_blocks
from labs import CHECKOUT, inside, shell

from voldrivers.errors import BackendError, OutcomeUnknown
from voldrivers.guests.verified import DiskReport, read_report
from voldrivers.lab import levers, project
from voldrivers.lab.channel import RunningCommand, Start
from voldrivers.lab.lab import Lab
from voldrivers.lab.machine import LabMachine
from voldrivers.process import wait_until
from voldrivers.sizes import MiB

NAME, SIZE, STEP = "attached", 64 * MiB, 4 * MiB
#: A pause that is never reached: all points are counted.
NOWHERE = "nowhere"
_START_S, _ANSWER_S = 120.0, 240.0
#: What an attached volume has on storage and on compute, and what must not become more.
_STORAGE = """
lvs --noheadings --options lv_name vg0
dmsetup ls | cut -f 1
cd /sys/kernel/config/target
find core iscsi -maxdepth 4 -type d | sort
! pgrep --list-full '^lv|^blkdiscard'
"""
_COMPUTE = """
ls /sys/class/iscsi_session | wc -l
ls /sys/block | grep --count ^dm- || true
ls /sys/class/scsi_disk | wc -l
"""
# A new agent takes what is meant for it, and listens then.
_ARM = """
echo '{how}' >/run/lab/how
mv /run/lab/how /run/lab/how-the-agent-dies
pkill --signal KILL --parent $(pgrep --oldest --full '[i]nside.dying_agent') || true
while [ -e /run/lab/how-the-agent-dies ]; do sleep 0.1; done
"""
_AGENT_PID = "pgrep --newest --full '[i]nside.dying_agent'"
_AGENT_ANSWERS = "while ! (: >/dev/tcp/127.0.0.1/9871) 2>/dev/null; do sleep 0.1; done"
_MAP = "/dev/disk/by-id/dm-uuid-mpath-*"
#: The guest writes on after its last report.
_UNREPORTED = 1000


class Controller:
    """A controller on a machine that is told what to do; see tests/inside/controller.py."""

    def __init__(self, lab: Lab, place: str = "storage") -> None:
        """Start it."""
        self.lab, self.place = lab, place
        self.restart()

    def restart(self) -> None:
        """Start it, again after a reset; the project is brought as it is now."""
        self.lab.bring_project(self.place, CHECKOUT)
        self._rest, self._lines = b"", queue.SimpleQueue[bytes]()
        start = Start(["python3", "-u", "-m", "inside.controller"], env=project.ENVIRONMENT, has_input=True)
        self._command = self.lab.machine(self.place).channel.start(start, self._printed)
        threading.Thread(target=_to_its_end, args=[self._command], daemon=True).start()
        assert self._answer(_START_S) == {"answer": "ready"}

    def close(self) -> None:
        """End it."""
        self._command.kill()

    def do(self, what: str, **arguments: object) -> Any:  # Any: as JSON has it
        """Have something done, and give its answer; a failure as text, KIND: SENTENCE."""
        began = time.monotonic()
        answer = _plain(self._ask({"do": what, **arguments}))
        print(f"{time.monotonic() - began:6.2f} s {what} {arguments}")
        return answer

    def start(self, what: str, **arguments: object) -> None:
        """Have something begun, to its `pause_at`; `wait` gives its answer, or `kill` ends it."""
        self._ask({"do": what, "start": True, **arguments})
        if arguments.get("pause_at") != NOWHERE:
            wait_until(lambda: "paused" in shell(self.lab, self.place, "ls /run/lab"), 100, "the pause")

    def go_on(self) -> Any:  # Any: as above
        """Let what waits at its pause go on, and give its answer."""
        shell(self.lab, self.place, "touch /run/lab/go-on")
        return self.do("wait")

    def layers(self, *, stale: bool) -> list[str]:
        """The layers that are stale, or those that are not."""
        return [row["layer"] for row in self.do("ledger") if row["agrees"] is not stale]

    def _printed(self, stream: int, content: bytes) -> None:
        if stream == 1:
            *lines, self._rest = (self._rest + content).split(b"\n")
            for line in lines:
                self._lines.put(line)
        else:
            _print(stream, content)

    def _ask(self, request: Mapping[str, object]) -> dict[str, Any]:  # Any: as above
        self._command.write(json.dumps(request).encode() + b"\n")
        return self._answer(_ANSWER_S)

    def _answer(self, limit_s: float) -> dict[str, Any]:  # Any: as above
        answer: dict[str, Any] = json.loads(self._lines.get(timeout=limit_s))
        return answer


class MortalAgent:
    """The agent of compute, kept running as systemd would, which can be made to die; ends with the lab.

    See tests/inside/dying_agent.py.
    """

    def __init__(self, lab: Lab) -> None:
        """Put it in place of the agent that runs."""
        self._lab = lab
        lab.bring_project("compute", CHECKOUT)
        shell(lab, "compute", "pkill -9 --full '[v]oldrivers agent'")
        start = Start(["python3", "-u", "-m", "inside.dying_agent"], env=project.ENVIRONMENT)
        command = lab.machine("compute").channel.start(start, _print)
        threading.Thread(target=_to_its_end, args=[command], daemon=True).start()
        self._pid = shell(lab, "compute", f"{_AGENT_ANSWERS}; {_AGENT_PID}", _START_S)

    def arm(self, **how: object) -> None:
        """Have a new one count its points from here on, and what the fields of `Deadly` say happen to it."""
        arm = _ARM.format(how=json.dumps(how))
        self._pid = shell(self._lab, "compute", f"{arm}{_AGENT_ANSWERS}; {_AGENT_PID}")

    @property
    def has_died(self) -> bool:
        """Tell whether the one that was armed has; the next one answers then."""
        return shell(self._lab, "compute", f"{_AGENT_ANSWERS}; {_AGENT_PID}") != self._pid

    @property
    def passed(self) -> list[str]:
        """The points that the one that was armed has passed."""
        return shell(self._lab, "compute", "cat /run/lab/points").splitlines()


class Site(Controller):
    """A controller, and a guest at work on compute."""

    def __init__(self, lab: Lab) -> None:
        """Start the controller."""
        super().__init__(lab)
        self.size_bytes, self.is_agreed = SIZE, True
        self.before = self.belongings()

    @property
    def machines(self) -> Mapping[str, LabMachine]:
        """The lab's, for the logs of a test that failed."""
        return self.lab.machines

    @property
    def larger_bytes(self) -> int:
        """The next size."""
        return self.size_bytes + STEP

    def check_extended(self) -> None:
        """Have everybody agree on the next size."""
        self.size_bytes = self.larger_bytes
        self.check_agreed()

    def end_extend(self, where: str) -> None:
        """Go on with an extend that was disturbed as its record says, until everybody has the next size."""
        mend = "retry" if self.do("volume")["status"] == "error_extending" else "resume"
        assert self.do(mend) in ("completed", []), where
        if self.do("volume")["size_bytes"] == self.size_bytes:  # it was not admitted, or rolled back
            assert self.do("extend", size_bytes=self.larger_bytes) == "completed", where
        self.size_bytes = self.larger_bytes
        found = self.do("volume")
        assert (found["status"], found["size_bytes"]) == ("in-use", self.size_bytes), where

    def check_agreed(self) -> None:
        """Have records and every layer agree, the guest with its own look too, and nothing be left over."""
        found, rows = self.do("volume"), self.do("ledger")
        assert (found["status"], found["size_bytes"]) == ("in-use", self.size_bytes), found
        assert [row for row in rows if not row["agrees"]] == []
        assert [row["layer"] for row in rows] == ["LV", "LUN", "path", "path", "multipath", "QEMU node"]
        wait_until(lambda: self.disk().capacity_bytes == self.size_bytes, 20, "the guest to see it")
        self.check_guest_works()
        assert self.belongings() == self.before
        self.is_agreed = True

    def check_guest_works(self) -> None:
        """Have it write again, everything it read until now having been right."""
        writes = self.disk().writes
        wait_until(lambda: self.disk().writes > writes + 3, 60, "the guest to write")
        assert self.disk().problems == []

    def check_gone(self) -> None:
        """Have nothing be left of the volume on either machine."""
        on_storage, on_compute = self.belongings()
        assert "volume-" not in on_storage
        assert on_compute.split() == ["0", "0", "0"]

    def disk(self) -> DiskReport:
        """What the guest saw of the volume."""
        report = read_report(shell(self.lab, "compute", "cat /run/lab/guest.report"))
        return [disk for disk in report.disks if disk.serial == self._serial][-1]

    def written_blocks(self) -> list[int]:
        """Where the guest has written, whether it runs or not; fails for a block that holds anything else."""
        device, writes = shell(self.lab, "compute", f"echo {_MAP}"), self.disk().writes + _UNREPORTED
        return inside(self.lab, "compute", written_blocks, device, self._serial, writes)

    def belongings(self) -> list[str]:
        """What there is of volumes on both machines."""
        return belongings(self.lab)

    @contextmanager
    def slow_disk(self, delay_ms: int) -> Iterator[None]:
        """Let every request to the disk under the volume group take so long."""
        levers.pv_delay(self.lab, delay_ms)
        try:
            yield
        finally:
            levers.pv_mend(self.lab)

    @cached_property
    def agent(self) -> MortalAgent:
        """The agent of compute, from the first time on one that can be made to die."""
        return MortalAgent(self.lab)

    @cached_property
    def _serial(self) -> str:
        volume_id: str = self.do("volume")["id"]
        return volume_id[:20]  # virtio has room for no more


def belongings(lab: Lab) -> list[str]:
    """Give what there is of volumes over iSCSI on both machines."""
    return [shell(lab, "storage", _STORAGE), shell(lab, "compute", _COMPUTE)]


def _print(_stream: int, content: bytes) -> None:
    print(content.decode(errors="backslashreplace"), end="")


def _to_its_end(command: RunningCommand) -> None:
    with suppress(OutcomeUnknown, BackendError):  # it was killed, or the machine reset
        command.wait()


def _plain(answer: dict[str, Any]) -> Any:  # Any: as above
    if "error" in answer:
        return ": ".join(answer["error"])
    return "killed" if answer.get("killed") else answer["answer"]
