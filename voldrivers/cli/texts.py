"""What the commands say to people of one extend, one attachment, one ledger."""

from collections.abc import Sequence

from voldrivers.cli import failures
from voldrivers.cli.output import table
from voldrivers.extend.resuming import under_way
from voldrivers.extend.site import Progress
from voldrivers.model import (
    Attachment,
    Extend,
    Ledger,
    LedgerRow,
    Phase,
    Snapshot,
    SnapshotStatus,
    Volume,
    VolumeStatus,
)
from voldrivers.sizes import format_size

#: The statuses in which nothing is under way and nothing has failed.
STEADY = (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE)


def progress(shown: Progress) -> str:
    """The step at work."""
    return f"{shown.volume.title}: {shown.step} {shown.text} ..."


def is_steady(volume: Volume) -> bool:
    """Tell whether nothing is under way with a volume and nothing has failed."""
    return volume.status in STEADY and not under_way(volume)


def snapshot(shown: Snapshot) -> str:
    """What it is called, and how large."""
    return f"{shown.name}, {format_size(shown.size_bytes)}, {shown.status}"


def attachment(shown: Attachment) -> str:
    """Where a volume is attached, and how."""
    monitor = f", {_monitor(shown.monitor)}" if shown.monitor else ""
    return f"{shown.place}, {shown.state}, {shown.device_path or 'no device'}{monitor}"


def _monitor(name: str) -> str:
    return name if name.startswith("libvirt:") else f"QMP {name}"


def extend(shown: Extend) -> str:
    """From which size to which, and how it ended."""
    start, end = format_size(shown.from_bytes), format_size(shown.to_bytes)
    if shown.phase is Phase.COMPLETED and shown.from_bytes == shown.to_bytes:
        return f"{end}, every layer agrees"
    if shown.phase is Phase.COMPLETED:
        return f"extended from {start} to {end}"
    return f"from {start} to {end}, {shown.phase}" + (f": {shown.reason}" if shown.reason else "")


def ledger(volume: Volume, shown: Ledger, stopped: Sequence[Attachment]) -> list[str]:
    """The size ledger as a table; below it what cannot be seen and why, and what mends what is stale.

    `stopped` are the attachments whose instances are proved to have stopped.
    """
    rows = [
        (
            row.layer,
            row.place,
            "-" if row.observed_bytes is None else format_size(row.observed_bytes),
            format_size(row.expected_bytes),
            _verdict(row),
            row.note,
        )
        for row in shown
    ]
    lines = [f"{volume.title}, {volume.status}"]
    lines += table(("LAYER", "PLACE", "SHOWS", "MUST SHOW", "", "NOTE"), rows)
    lines += [f"instance {each.place} has stopped: no QEMU has the volume there" for each in stopped]
    if volume.status is VolumeStatus.ERROR_EXTENDING:
        lines.append(f"its last extend failed; mend it: {_repair(volume)}")
    elif not is_steady(volume):
        lines.append(f"it is {doing(volume)}; if no process works on it: {_resume(volume)}")
    return lines + [_trouble(volume, row) for row in shown if row.stale]


def mending(volume: Volume, row: LedgerRow) -> str:
    """The command that mends a stale layer; "" where there is nothing to mend, or nothing is known.

    A layer that cannot be read is mended by what its row names, if by anything.
    """
    if not row.stale or (row.observed_bytes is None and not row.repair):
        return ""
    if volume.status in (*STEADY, VolumeStatus.ERROR_EXTENDING):
        return row.repair or _repair(volume)
    return _resume(volume)


def doing(volume: Volume) -> str:
    """What is under way with a volume."""
    unfinished = [each for each in volume.snapshots if each.status is not SnapshotStatus.AVAILABLE]
    if volume.status in STEADY and unfinished:
        return f"{unfinished[0].status} {unfinished[0].title}"
    return str(volume.status)


def _trouble(volume: Volume, row: LedgerRow) -> str:
    state = "is stale" if row.observed_bytes is not None else "cannot be read"
    if row.observed_bytes is None and row.note:
        state += f": {row.note}"
    lost = [each.host for each in volume.attachments if (row.layer, row.place) == ("host", each.place)]
    if lost:  # the engine's row in place of those of a host that could not be asked
        for_good = failures.LOST_FOR_GOOD.format(volume=volume.name, host=lost[0])
        return f"{row.layer} {row.place} {state}; {for_good}"
    mend = mending(volume, row)
    return f"{row.layer} {row.place} {state}" + (f"; mend it: {mend}" if mend else "")


def _repair(volume: Volume) -> str:
    return f"voldrivers doctor {volume.name} --repair"


def _resume(volume: Volume) -> str:
    return f"voldrivers resume {volume.name}"


def _verdict(row: LedgerRow) -> str:
    if row.agrees:
        return "ok"
    verdict = "unreadable" if row.observed_bytes is None else "STALE" if row.stale else "differs"
    return verdict if row.required else f"{verdict}, not required"
