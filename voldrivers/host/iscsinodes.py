"""The node records of open-iscsi, into which settings are written without a program that shows secrets."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from voldrivers import sysfs
from voldrivers.errors import BackendError, NotFound
from voldrivers.host.blockdev import Portal

SECRET = "node.session.auth.password"  # noqa: S105 - the name of the setting
#: Where open-iscsi keeps them: before and after its version 2.1.9 as Debian builds it, and elsewhere.
_PLACES = (Path("/etc/iscsi"), Path("/var/lib/iscsi"))
_END = "# END RECORD"


def set_value(iqn: str, portal: Portal, name: str, value: str) -> None:
    """Write a setting, such as the CHAP secret, into the records of a target at a portal, for root to read.

    iscsiadm takes it as an argument only, where every user of the machine can read it (proc(5), cmdline).
    May be repeated. Raises NotFound without a record, BackendError when one cannot be written.
    """
    try:
        found = list(_records(iqn, portal))
        for place, record in found:
            _write(place, record, _with(record.read_text(), name, value))
    except OSError as error:
        subject = f"iSCSI node record of {iqn} at {portal}"
        raise BackendError(subject, f"cannot be written: {error.strerror}") from error
    if not found:
        raise NotFound("iSCSI node record", f"{iqn} at {portal}")


def exists(iqn: str, portal: Portal) -> bool:
    """Tell whether there is a record of a target at a portal."""
    return any(True for _ in _records(iqn, portal))


def _records(iqn: str, portal: Portal) -> Iterator[tuple[Path, Path]]:
    """Yield each record and the place it is in: nodes/IQN/ADDRESS,PORT[,GROUP][/INTERFACE] (iscsiadm(8))."""
    wanted = f"{portal.address},{portal.port},"
    for place in _PLACES:
        for entry in sysfs.entries(place / "nodes" / iqn):
            if f"{entry.name},".startswith(wanted):
                yield from ((place, record) for record in (sysfs.entries(entry) or [entry]))


def _with(record: str, name: str, value: str) -> str:
    lines = [line for line in record.splitlines() if line.partition("=")[0].strip() != name]
    end = lines.index(_END) if _END in lines else len(lines)
    return "\n".join([*lines[:end], f"{name} = {value}", *lines[end:], ""])


def _write(place: Path, record: Path, text: str) -> None:
    """Replace a record at once. Its draft lies outside of `nodes`, where iscsiadm would take it for a record.

    Each record has a draft of its own name: a crash leaves no more than the next call replaces.
    """
    draft = place / f".voldrivers-{hashlib.sha256(os.fsencode(record)).hexdigest()[:16]}"
    with suppress(FileNotFoundError):
        draft.unlink()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(record)
