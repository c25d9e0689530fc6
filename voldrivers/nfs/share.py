"""Shares: an NFS export that os-brick mounts, or a directory."""

import re
import time
from pathlib import Path

from voldrivers import brick, mounts
from voldrivers.base import Run
from voldrivers.errors import InvalidInput, InvalidState, NotSupported

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
        with brick.without_eventlet():
            from os_brick.remotefs.remotefs import RemoteFsClient  # 130 ms: only who mounts pays
    except ImportError as error:
        raise NotSupported(f"share {export}", "needs the extra: pip install 'voldrivers[nfs]'") from error
    commands = brick.Commands(run, time.monotonic() + timeout_s)
    client = RemoteFsClient(
        "nfs", "", execute=commands, nfs_mount_point_base=str(base), nfs_mount_options=options or None
    )
    mounted = Path(client.get_mount_point(export))
    if not _is_mounted(export, mounted):
        _mount_with(client, commands, export, mounted)
    return mounted


def _mount_with(client: object, commands: brick.Commands, export: str, point: Path) -> None:
    try:
        client.mount(export)  # type: ignore[attr-defined]  # os-brick has no types
    except brick.errors() as error:
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
