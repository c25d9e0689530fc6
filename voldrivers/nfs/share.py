"""Shares: an NFS export that os-brick mounts, or a directory."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voldrivers import mounts
from voldrivers.base import Run
from voldrivers.errors import (
    InvalidInput,
    InvalidState,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)

_MOUNT_S = 30.0
#: server:/export, the server a name, an IPv4 or a bracketed IPv6 address.
_EXPORT = re.compile(r"(?:[0-9A-Za-z][\w.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\]):(?P<path>/[^\0\s]*)", re.ASCII)
_MOUNT_OPTIONS = re.compile(r"[\w.,:=/@%+-]*", re.ASCII)


def is_export(share: str) -> bool:
    """Tell an NFS export (`server:/export`) from an absolute directory. Raises InvalidInput for neither."""
    if share.startswith("/") and "\0" not in share:
        return False
    match = _EXPORT.fullmatch(share)
    if match is None or ".." in match["path"].split("/"):
        raise InvalidInput(f"share {share!r}", "must be server:/export or an absolute path")
    return True


def mount(run: Run, export: str, options: str, base: Path, *, timeout_s: float = _MOUNT_S) -> Path:
    """Mount an export below `base`, as os-brick does, and give the mount point; one mounted is left alone.

    Needs root. Without a version in `options` NFS 4.2, 4.1 and what the server has are tried in turn.
    Raises InvalidInput, InvalidState (it cannot be mounted, with mount's words), NotSupported (no os-brick).
    """
    if not is_export(export):
        raise InvalidInput(f"share {export!r}", "must be server:/export")
    if not _MOUNT_OPTIONS.fullmatch(options):
        raise InvalidInput(f"mount options {options!r}", "must be name or name=value, separated by commas")
    if point := mounts.point_below(base, export):
        return point
    try:
        with _without_eventlet():
            from os_brick.remotefs.remotefs import RemoteFsClient  # 130 ms: only who mounts pays
    except ImportError as error:
        raise NotSupported(f"share {export}", "needs the extra: pip install 'voldrivers[nfs]'") from error
    commands = _Commands(run, time.monotonic() + timeout_s)
    client = RemoteFsClient(
        "nfs", "", execute=commands, nfs_mount_point_base=str(base), nfs_mount_options=options or None
    )
    mounted = Path(client.get_mount_point(export))
    if not _is_mounted(export, mounted):
        _mount_with(client, commands, export, mounted)
    return mounted


@contextmanager
def _without_eventlet() -> Iterator[None]:
    """Let oslo.privsep do without eventlet, which it imports if it can and we have no use for.

    Once imported it warns at every fork, that is at every program we start (eventlet 0.41).
    """
    if "eventlet" in sys.modules:
        yield
        return
    sys.modules["eventlet"] = None  # type: ignore[assignment]  # how import is told that there is none
    try:
        yield
    finally:
        del sys.modules["eventlet"]


class _Commands:
    """What os-brick calls to run a program: ours, so that every one ends in time and needs no sudo.

    os-brick tries the versions in turn and keeps only a text of each failure, so they are kept here.
    """

    def __init__(self, run: Run, deadline: float) -> None:
        self.run, self.deadline, self.failures = run, deadline, list[VolDriverError]()

    def __call__(self, *argv: str, **_options: object) -> tuple[str, str]:
        """Run it within what is left of the time."""
        left_s = self.deadline - time.monotonic()
        try:
            if left_s <= 0:
                raise OutcomeUnknown(" ".join(argv), "no time was left to try it")
            answer = self.run(argv, timeout_s=left_s)
        except VolDriverError as error:
            self.failures.append(error)
            raise
        return answer.stdout, answer.stderr


def _mount_with(client: object, commands: _Commands, export: str, point: Path) -> None:
    from os_brick.exception import BrickException

    try:
        client.mount(export)  # type: ignore[attr-defined]  # os-brick has no types
    except (BrickException, VolDriverError) as error:
        if _is_mounted(export, point):  # by somebody else at the same moment
            return
        reason = " ".join(str(commands.failures[0] if commands.failures else error).split())
        raise InvalidState(f"share {export}", f"not mountable ({reason})", "reachable") from error
    if not _is_mounted(export, point):
        raise InvalidState(f"share {export}", f"not mounted at {point}", "mounted there")


def _is_mounted(export: str, point: Path) -> bool:
    """Tell whether `export` is mounted at `point`. Raises InvalidState when something else is."""
    found = mounts.place_of(point)
    if found.mount.point != found.path:
        return False
    if found.mount.source.rstrip("/") != export.rstrip("/"):
        raise InvalidState(f"mount point {point}", f"taken by {found.mount.source}", f"free for {export}")
    return True
