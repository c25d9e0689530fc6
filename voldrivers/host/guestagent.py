"""The guest's own view of a disk, through the agent of QEMU in the guest: shown, never required.

A guest is not trusted: it may be silent, late or lie, so every wait has a limit and every answer is checked.
"""

import base64
import binascii
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voldrivers.errors import BackendError, InvalidState, NotFound
from voldrivers.host.qmp import Monitor

_DISKS_AT_MOST = 64
_ANSWER_BYTES = 4096
#: The unit of /sys/class/block/*/size, whatever the disk's own sectors are (block/genhd.c).
_SECTOR_BYTES = 512

#: Run one command of the agent within what is left of the time.
Ask = Callable[[str, dict[str, object]], Any]  # Any: each command has its own reply


def disk_bytes(agent: Path, serial: str, timeout_s: float = 2.0) -> int:
    """Ask the guest's kernel for the size of the disk with `serial`, looked up now.

    Raises InvalidState when no agent answers within `timeout_s`, NotFound when it has no such disk,
    BackendError for an answer that makes no sense, OutcomeUnknown when it falls silent half-way.
    """
    deadline = time.monotonic() + timeout_s
    with Monitor(agent, timeout_s, greeting=False) as monitor:

        def ask(command: str, arguments: dict[str, object]) -> Any:  # Any: as above
            return monitor.execute(command, arguments, max(deadline - time.monotonic(), 0.001))

        _synchronise(ask, agent)
        return disk_bytes_by(ask, f"guest agent {agent}", serial)


def disk_bytes_by(ask: Ask, title: str, serial: str) -> int:
    """Ask by any way that reaches the agent. Raises NotFound, BackendError, and what `ask` does."""
    try:
        return _disk_bytes(ask, title, serial)
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error) as error:
        raise BackendError(title, f"gave an answer that makes no sense: {error!r}") from error


def _synchronise(ask: Ask, agent: Path) -> None:
    """Make sure that answers belong to us, not to a client before us (docs/interop/qemu-ga-ref)."""
    token = secrets.randbelow(2**31)
    if ask("guest-sync", {"id": token}) != token:
        raise InvalidState(f"guest agent {agent}", "answering somebody else", "free")


def _disk_bytes(ask: Ask, title: str, serial: str) -> int:
    disks = [entry for entry in ask("guest-get-disks", {}) if not entry["partition"]]
    for name in (Path(entry["name"]).name for entry in disks[:_DISKS_AT_MOST]):
        if _read(ask, f"/sys/class/block/{name}/serial") == serial:
            return int(_read(ask, f"/sys/class/block/{name}/size")) * _SECTOR_BYTES
    raise NotFound("disk", serial, f" in the guest behind {title}")


def _read(ask: Ask, path: str) -> str:
    """Read a small file of the guest; one that is not there reads as empty: most disks have no serial."""
    try:
        handle = ask("guest-file-open", {"path": path, "mode": "r"})
    except BackendError:
        return ""
    content = ask("guest-file-read", {"handle": handle, "count": _ANSWER_BYTES})["buf-b64"]
    ask("guest-file-close", {"handle": handle})
    return base64.b64decode(content, validate=True).decode().strip()
