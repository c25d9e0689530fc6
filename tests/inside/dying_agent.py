"""The agent of a lab machine, kept running as systemd would, which dies when a test wants it to.

Each is a process of its own, with all imports of this one. It is what `voldrivers agent` runs. One that finds
the file `HOW` removes it, counts the programs that it runs and what it asks of QEMU (the points stand in
`inside.controller.PASSED`) and has happen what the file says: the fields of `Deadly`, as JSON.
"""

import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from inside.controller import PASSED, Disturbed, count_monitor
from voldrivers import cli, process, registry
from voldrivers.api import agentapp, wire
from voldrivers.cli import serving
from voldrivers.host.qmp import Monitor

CONFIG, HOW = Path("/etc/voldrivers/agent.toml"), Path("/run/lab/how-the-agent-dies")
#: RestartSec= of systemd.service(5).
_RESTART_S = 0.1
#: What an agent sends is with a QEMU that reads nothing long before.
_SENT_S = 1.0


@dataclass
class Deadly(Disturbed):
    """Points, at one of which this process is killed, or the QEMU with this number has yet to answer.

    It is stopped right before it is sent block_resize, and killed while its answer is waited for.
    """

    qemu: int = 0

    def _die_at(self, moment: int) -> None:
        if self.qemu and self.passed[-1] == "QMP block_resize":
            qemu, self.qemu = self.qemu, 0
            os.kill(qemu, signal.SIGSTOP)
            threading.Timer(_SENT_S, os.kill, [qemu, signal.SIGKILL]).start()
        super()._die_at(moment)


def serve() -> int:
    """Serve as `voldrivers agent` does, until a signal comes or the time to die."""
    if HOW.exists():
        points = Deadly(**json.loads(HOW.read_text()))
        PASSED.write_text("")
        HOW.unlink()
        _count(points)
    return cli.main(["agent", "--config", str(CONFIG)])


def main() -> None:
    """Keep one running."""
    # What is imported or made late, too: it would be so for each anew.
    assert agentapp
    config = registry.load_agent(CONFIG)
    registry.make_host(config.host, process.run)
    Monitor(Path())
    process.run(["true"], timeout_s=60)
    for name in (*wire.LOOKS, *wire.ACTS):
        wire.call(name)
    assert not list(serving.check(config))
    while True:
        child = os.fork()
        if child == 0:
            os._exit(serve())
        os.waitpid(child, 0)
        time.sleep(_RESTART_S)


def _count(points: Deadly) -> None:
    """Make every program of this process, and all that it asks of a QEMU, a point."""
    count_monitor(points)
    setattr(serving, "run", points.run)  # noqa: B010 - mypy allows no other way


if __name__ == "__main__":
    main()
