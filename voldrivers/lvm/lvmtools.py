"""LVM2 as programs: arguments out, JSON in bytes in. Nothing else in voldrivers runs lvm, or dmsetup.

Exit codes tell little: an equal size, a smaller one, a full group and a missing volume are all 5 (lvm2
2.03.16). So nobody reads the words of lvm either: whoever acts looks before and after.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from voldrivers.base import Run
from voldrivers.errors import BackendError, CommandFailed
from voldrivers.lvm.mapping import Device

_REPORT_S, _CHANGE_S = 60.0, 120.0
#: What is asked of groups, volumes and segments (lvmreport(7)).
_VG = ("vg_name", "vg_extent_size", "vg_size", "vg_free", "vg_mda_free", "vg_partial", "vg_exported")
_LV = (
    *("lv_uuid", "lv_name", "lv_dm_path", "lv_size", "lv_role", "lv_tags", "lv_active", "lv_device_open"),
    *("origin", "origin_size", "lv_permissions", "lv_snapshot_invalid"),
    *("pool_lv", "data_percent", "metadata_percent", "lv_health_status", "lv_suspended", "lv_inactive_table"),
)
_SEG = ("lv_uuid", "segtype", "stripes", "zero", "seg_pe_ranges")

Row = Mapping[str, Any]  # Any: what JSON holds


@dataclass(frozen=True)
class LogicalVolume:
    """One logical volume, as a report shows it."""

    name: str
    uuid: str
    path: str
    #: As large as it is for who reads it; a thick snapshot takes other room.
    size_bytes: int
    #: `linear`, `striped`, `thin`, `thin-pool`, `snapshot` and whatever else lvm has.
    kind: str
    stripes: int
    tags: frozenset[str]
    pool: str
    #: What it is a snapshot of, and what are snapshots of it: thick ones need it, thin ones do not.
    origin: str
    snapshots: tuple[str, ...]
    is_writable: bool
    is_active: bool
    is_open: bool
    #: Its device is suspended, or another table waits for it: a change of it has not come to its end. lvm
    #: shows this to nobody while the one who makes the change still holds the lock of the group.
    is_interrupted: bool
    #: A thick snapshot that could not keep what was overwritten: what it shows is worth nothing.
    is_invalid: bool
    #: Of a thin pool: how full its data and its metadata are, and whether it gives out zeroes.
    data_percent: float
    metadata_percent: float
    zeroes: bool
    #: "" when there is nothing to complain of.
    health: str
    #: Its extents, as lvextend(8) takes them: PV:FIRST-LAST.
    extents: tuple[str, ...]

    @property
    def is_thin(self) -> bool:
        """Tell that it has room only where it was written."""
        return self.kind == "thin"


@dataclass(frozen=True)
class VolumeGroup:
    """A volume group and all in it, at one moment."""

    name: str
    extent_bytes: int
    size_bytes: int
    free_bytes: int
    physical_volumes: tuple[str, ...]
    #: How much its description on the disks can grow; without any, nothing can be made or extended.
    metadata_free_bytes: int
    volumes: tuple[LogicalVolume, ...]

    def find(self, name: str) -> LogicalVolume | None:
        """Give a volume; None without it."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> Mapping[str, LogicalVolume]:
        return {volume.name: volume for volume in self.volumes}


class LVM:
    """The programs, for one volume group. What they raise: CommandFailed, BackendError, OutcomeUnknown."""

    def __init__(self, run: Run, group: str) -> None:
        """Take the way to run programs and the name of the group."""
        self._run, self.group = run, group

    def report(self) -> VolumeGroup:
        """Look at the group: one program, however many volumes it has.

        Raises BackendError for a group that lvm does not know: its volumes may be there, on disks that cannot
        be read.
        """
        fields = {"vg": _VG, "pv": ("pv_name",), "lv": _LV, "pvseg": ("pv_uuid",), "seg": _SEG}
        chosen = [
            word
            for report, names in fields.items()
            for word in ("--configreport", report, "--options", ",".join(names))
        ]
        try:
            printed = self._run(
                ["lvm", "fullreport", *_UNITS, *chosen, self.group], timeout_s=_REPORT_S
            ).stdout
        except CommandFailed as error:
            if self._is_missing():
                reason = "lvm finds none: there is none of that name, or its disks cannot be read"
                raise BackendError(f"volume group {self.group}", reason) from error
            raise
        return _group(self.group, json.loads(printed)["report"])

    def create(self, name: str, extents: int, *, stripes: int, tags: Sequence[str]) -> None:
        """Make a volume with extents of its own; what they hold is still there."""
        layout = ["--extents", str(extents), "--stripes", str(stripes)]
        self._change(["lvcreate", *_YES, *_NO_TOUCH, "--name", name, *layout, *_tagged(tags), self.group])

    def create_thin(self, name: str, size_bytes: int, *, pool: str, tags: Sequence[str]) -> None:
        """Make a thin volume in a pool."""
        where = ["--virtualsize", f"{size_bytes}b", "--thin", f"{self.group}/{pool}"]
        self._change(["lvcreate", *_YES, "--name", name, *_tagged(tags), *where])

    def snapshot(self, name: str, origin: str, extents: int, *, tags: Sequence[str]) -> None:
        """Make a thick snapshot, read-only, with so many extents for what is overwritten in its origin."""
        kept = ["--permission", "r", "--chunksize", f"{COW_CHUNK_BYTES}b", "--extents", str(extents)]
        named = ["--name", name, *_tagged(tags), f"{self.group}/{origin}"]
        self._change(["lvcreate", *_YES, "--snapshot", *kept, *named])

    def snapshot_thin(self, name: str, origin: str, *, tags: Sequence[str], active: bool) -> None:
        """Make a thin snapshot, writable; one that is not `active` becomes so only by `activate`."""
        state = ["--setactivationskip", "n" if active else "y", "--activate", "y" if active else "n"]
        named = ["--name", name, *_tagged(tags), f"{self.group}/{origin}"]
        self._change(["lvcreate", *_YES, "--snapshot", *state, *named])

    def split(self, name: str) -> None:
        """Make a thick snapshot an ordinary volume that holds what it has kept of its origin.

        The origin may be open; the snapshot not, lvm refuses that.
        """
        self._change(["lvconvert", *_YES, "--splitsnapshot", f"{self.group}/{name}"])

    def extend(self, name: str, extents: int, onto: Sequence[str] = ()) -> None:
        """Make a volume so many extents large, if so said of these (PV:FIRST-LAST). It stays active and open.

        Equal or less is an error of lvm's: look first.
        """
        self._change(["lvextend", *_YES, "--extents", str(extents), f"{self.group}/{name}", *onto])

    def remove(self, name: str) -> None:
        """Remove a volume; one that is open is refused by lvm."""
        self._change(["lvremove", *_YES, f"{self.group}/{name}"])

    def rename(self, name: str, new_name: str) -> None:
        """Give a volume another name, open or not; a name that is taken is an error of lvm's."""
        self._change(["lvrename", *_YES, self.group, name, new_name])

    def tag(self, name: str, tag: str) -> None:
        """Give a volume a tag. May be repeated."""
        self._change(["lvchange", *_YES, "--addtag", tag, f"{self.group}/{name}"])

    def untag(self, name: str, tag: str) -> None:
        """Take a tag from a volume. May be repeated."""
        self._change(["lvchange", *_YES, "--deltag", tag, f"{self.group}/{name}"])

    def make_writable(self, name: str) -> None:
        """Let a volume be written. lvm refuses that of one that is so already: look first."""
        self._change(["lvchange", *_YES, "--permission", "rw", f"{self.group}/{name}"])

    def keep_active(self, name: str) -> None:
        """Let a thin volume be activated like all others. May be repeated."""
        self._change(["lvchange", *_YES, "--setactivationskip", "n", f"{self.group}/{name}"])

    def activate(self, name: str) -> None:
        """Make a volume's device appear, a snapshot's too. May be repeated."""
        skipped = ["--activate", "y", "--ignoreactivationskip"]
        self._change(["lvchange", *_YES, *skipped, f"{self.group}/{name}"])

    def deactivate(self, name: str) -> None:
        """Have a volume's device go, with those of its thick snapshots. May be repeated.

        lvm refuses that while one of them is open.
        """
        self._change(["lvchange", *_YES, "--activate", "n", f"{self.group}/{name}"])

    def end_change(self, name: str, device: Device) -> None:
        """Bring a volume's device, active and perhaps open, to what the metadata says, its name too.

        May be repeated.         Only for a volume whose change nobody is at work on any more.
        """
        # The pool first. Its suspension counts on every table of a thin device, the one that waits too; when
        # that is dropped meanwhile, the count never ends and the device hangs until the machine is booted
        # (6.1, drivers/md/dm-thin.c, pool_suspend_active_thins).
        for below in device.suspended_below:
            self._change(["dmsetup", "resume", below])
        # lvchange would take the table that waits, whatever the metadata says.
        self.drop_table(device)
        self._change(["lvchange", *_YES, "--refresh", f"{self.group}/{name}"])

    def drop_table(self, device: Device) -> None:
        """Forget the table that waits for a device, if any, and need no more what it needs."""
        self._change(["dmsetup", "clear", device.name])

    def flush(self, group: VolumeGroup) -> None:
        """Have the disks keep what was changed through a power cut: lvm leaves it in their caches."""
        self._run(["sync", *group.physical_volumes], timeout_s=_CHANGE_S)

    def _is_missing(self) -> bool:
        """Tell from a list of all groups, which succeeds, that ours is not among them."""
        printed = self._run(["vgs", *_UNITS, "--options", "vg_name"], timeout_s=_REPORT_S).stdout
        rows = json.loads(printed)["report"][0]["vg"]
        return self.group not in {row["vg_name"] for row in rows}

    def _change(self, argv: Sequence[str]) -> None:
        self._run(argv, timeout_s=_CHANGE_S)


_UNITS = ("--reportformat", "json", "--units", "b", "--nosuffix")
_YES = ("--quiet", "--yes")
#: In what pieces a thick snapshot keeps what is overwritten: lvm's default, on which its room depends.
COW_CHUNK_BYTES = 4096
#: Nothing is written to a new volume: clearing is done by who knows what must be cleared.
_NO_TOUCH = ("--wipesignatures", "n", "--zero", "n")


#: What lvm says of a volume without a table that waits; "unknown" of one that is not active.
_NO_TABLE = ("", "unknown")


def _tagged(tags: Sequence[str]) -> Iterator[str]:
    for tag in tags:
        yield from ("--addtag", tag)


def _group(name: str, reports: Sequence[Row]) -> VolumeGroup:
    try:
        (report,) = reports
        (group,) = report["vg"]
        return VolumeGroup(
            name=name,
            extent_bytes=int(group["vg_extent_size"]),
            size_bytes=int(group["vg_size"]),
            free_bytes=int(group["vg_free"]),
            physical_volumes=tuple(row["pv_name"] for row in report["pv"]),
            metadata_free_bytes=int(group["vg_mda_free"]),
            volumes=tuple(_volumes(report["lv"], report["seg"])),
        )
    except (KeyError, ValueError) as error:
        raise BackendError(f"volume group {name}", f"its report makes no sense: {error!r}") from error


def _volumes(rows: Sequence[Row], segments: Sequence[Row]) -> Iterator[LogicalVolume]:
    by_uuid: dict[str, list[Row]] = {}
    for segment in segments:
        by_uuid.setdefault(segment["lv_uuid"], []).append(segment)
    snapshots: dict[str, list[str]] = {}
    for row in rows:
        snapshots.setdefault(row["origin"], []).append(row["lv_name"])
    for row in rows:
        yield _volume(row, by_uuid.get(row["lv_uuid"], []), snapshots.get(row["lv_name"], []))


def _volume(row: Row, segments: Sequence[Row], snapshots: Sequence[str]) -> LogicalVolume:
    last: Row = segments[-1] if segments else {"segtype": "", "stripes": 0, "zero": ""}
    is_snapshot = "thicksnapshot" in row["lv_role"].split(",")
    return LogicalVolume(
        name=row["lv_name"],
        uuid=row["lv_uuid"],
        path=row["lv_dm_path"],
        size_bytes=int(row["origin_size"] if is_snapshot else row["lv_size"]),
        kind="snapshot" if is_snapshot else last["segtype"],
        stripes=int(last["stripes"]),
        tags=frozenset(filter(None, row["lv_tags"].split(","))),
        pool=row["pool_lv"],
        origin=row["origin"],
        snapshots=tuple(snapshots),
        # "unknown" of one that may be written and is not active.
        is_writable=not row["lv_permissions"].startswith("read-only"),
        # A device that never got a table is "active" too, after a kill; lvm knows no more of it, nobody can
        # open it, and `activate` makes it whole.
        is_active=row["lv_active"] == "active" and row["lv_suspended"] != "unknown",
        is_open=row["lv_device_open"] == "open",
        is_interrupted=row["lv_suspended"] == "suspended" or row["lv_inactive_table"] not in _NO_TABLE,
        is_invalid=row["lv_snapshot_invalid"] == "snapshot invalid",
        data_percent=float(row["data_percent"] or 0),
        metadata_percent=float(row["metadata_percent"] or 0),
        zeroes=last["zero"] == "zero",
        health=row["lv_health_status"],
        extents=tuple(word for one in segments for word in one["seg_pe_ranges"].split()),
    )
