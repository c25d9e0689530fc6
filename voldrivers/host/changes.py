"""Changes of block devices: the kernel's own events wake who waits for one."""

import time
from collections.abc import Callable
from typing import Protocol

from voldrivers.errors import OutcomeUnknown

#: An event can be lost (netlink(7), ENOBUFS), and a container hears none: so one looks in between, too.
_LOOK_S = 0.5


class _Monitor(Protocol):
    def poll(self, timeout: float) -> object: ...


def wait_for_change(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Ask `condition` whenever a block device has changed, until it holds; what it sees is the truth.

    Raises OutcomeUnknown, with `what`, when time is up.
    """
    if not changes_within(condition, timeout_s):
        raise OutcomeUnknown(f"waiting for {what}", f"not so after {timeout_s:g} seconds")


def changes_within(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Tell whether `condition` held before time was up, as `wait_for_change`."""
    if condition():
        return True
    deadline = time.monotonic() + timeout_s
    monitor = _monitor()
    while not condition():  # once more, now that what happens from here on is heard
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        monitor.poll(min(left_s, _LOOK_S))
    return True


def _monitor() -> _Monitor:
    """Give what hears of block devices after udev has made their links; without pyudev, a clock."""
    try:
        import pyudev
    except ImportError:
        return _Clock()
    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="udev")
    monitor.filter_by("block")
    monitor.start()
    woken: _Monitor = monitor
    return woken


class _Clock:
    def poll(self, timeout: float) -> None:
        time.sleep(min(timeout, 0.05))
