"""What the commands say to people of one extend, one attachment, one ledger."""

from voldrivers.cli.output import table
from voldrivers.extend.site import Progress
from voldrivers.model import Attachment, Extend, Ledger, LedgerRow, Phase, Volume, VolumeStatus
from voldrivers.sizes import format_size

#: The statuses in which nothing is under way and nothing has failed.
STEADY = (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE)


def progress(shown: Progress) -> str:
    """The step at work."""
    return f"{shown.volume.title}: {shown.step} {shown.text} ..."


def attachment(shown: Attachment) -> str:
    """Where a volume is attached, and how."""
    monitor = f", QMP {shown.monitor}" if shown.monitor else ""
    return f"{shown.place}, {shown.state}, {shown.device_path or 'no device'}{monitor}"


def extend(shown: Extend) -> str:
    """From which size to which, and how it ended."""
    start, end = format_size(shown.from_bytes), format_size(shown.to_bytes)
    if shown.phase is Phase.COMPLETED and shown.from_bytes == shown.to_bytes:
        return f"{end}, every layer agrees"
    if shown.phase is Phase.COMPLETED:
        return f"extended from {start} to {end}"
    return f"from {start} to {end}, {shown.phase}" + (f": {shown.reason}" if shown.reason else "")


def ledger(volume: Volume, shown: Ledger) -> str:
    """The size ledger as a table, and below it the command that mends what is stale."""
    rows = [
        (
            row.layer,
            row.place,
            "unreadable" if row.observed_bytes is None else format_size(row.observed_bytes),
            format_size(row.expected_bytes),
            _verdict(row),
            row.note,
        )
        for row in shown
    ]
    lines = [f"{volume.title}, {volume.status}"]
    lines.append(table(("LAYER", "PLACE", "SHOWS", "MUST SHOW", "", "NOTE"), rows))
    mend = f"voldrivers doctor {volume.name} --repair"
    if volume.status is VolumeStatus.ERROR_EXTENDING:
        lines.append(f"its last extend failed; mend it: {mend}")
    elif volume.status not in STEADY:
        mend = f"voldrivers resume {volume.name}"
        lines.append(f"it is {volume.status}; if no process works on it: {mend}")
    lines += [
        f"{row.layer} {row.place} is stale; mend it: {row.repair or mend}" for row in shown if row.stale
    ]
    return "\n".join(lines)


def _verdict(row: LedgerRow) -> str:
    if row.agrees:
        return "ok"
    return "STALE" if row.stale else "differs, not required"
