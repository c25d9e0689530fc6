"""A guest at work on compute, and a controller that takes snapshots of one of its volumes, on either driver.

From the lab's state `attached`: volume `attached` over iSCSI, told on storage what to do; `data` over NFS,
told on compute. See tests/inside/controller.py for what a controller can be told.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from labs import shell
from lvmsite import SIZE, STEP, Controller, belongings
from replay import Contents, Replay

from voldrivers.guests.verified import DiskReport, Report, read_report
from voldrivers.lab import project
from voldrivers.lab.lab import Lab
from voldrivers.process import wait_until

_CLI_S = 120.0
#: What a volume has in the share, and on compute, which must not become more.
_SHARE = "ls -A /srv/nfs | sed 's/volume-.*/a volume/' | sort"
_OPEN = """
ls -A /tmp
grep --count ' nfs4 ' /proc/mounts
readlink /proc/$(pgrep qemu-system)/fd/* | grep --count /volume- || true
! pgrep --list-full '^qemu-img|^qemu-io'
"""


class SnapshotSite(Controller, ABC):
    """A controller, and a guest that has worked on a volume from the volume's first moment on."""

    #: The machine of the controller, its volume, how the guest gets that, its layers.
    controller: str
    name: str
    title: str
    guest: Mapping[str, str]
    layers_seen: tuple[str, ...]
    #: Whether it can be extended in use with a snapshot.
    extends = True

    def __init__(self, lab: Lab) -> None:
        """Start the controller."""
        super().__init__(lab, self.controller)
        self._ids: dict[str, str] = {}
        self.prepare()
        self.size_bytes = SIZE
        self.serial = self.id_of(self.name)[:20]
        self.replay = Replay(self.serial, SIZE)
        self.before = self.belongings()

    def prepare(self) -> None:
        """Make what the state does not have."""

    @abstractmethod
    def belongings(self) -> list[str]:
        """What there is of volumes on both machines."""

    @abstractmethod
    def path(self, name: str) -> str:
        """Where the content of a volume that nobody uses is, on the controller's machine."""

    @abstractmethod
    def stored(self, name: str) -> Contents:
        """Read a volume that nobody uses."""

    @abstractmethod
    def kept(self, snapshot: str) -> Contents:
        """Read a snapshot by a side door."""

    # --- looking

    def report(self, *, fresh: bool = False) -> Report:
        """What the guest saw until now; `fresh`: until some moment after this call."""
        seen = self._report()
        if fresh:
            wait_until(lambda: self._report().written_at > seen.written_at, 60, "another report")
            return self._report()
        return seen

    def disk(self, *, fresh: bool = False) -> DiskReport:
        """What the guest saw of the volume."""
        return [each for each in self.report(fresh=fresh).disks if each.serial == self.serial][-1]

    def _had(self) -> int:
        """How often the guest has got the volume."""
        return len([disk for disk in self.report().disks if disk.serial == self.serial])

    def contents(self, path: str, *, direct: bool = True) -> Contents:
        """Read a file or a device."""
        read = self.do("contents", path=path, direct=direct)
        assert isinstance(read, dict), read
        return {int(block): told for block, told in read.items()}

    def cli(self, command: str) -> Any:  # Any: a JSON document
        """Run `voldrivers` where the controller is; fails when it does not succeed."""
        argv = ["voldrivers", *command.split(), "--json"]
        channel = self.lab.machine(self.controller).channel
        return json.loads(channel.run(argv, timeout_s=_CLI_S, env=project.ENVIRONMENT).stdout)

    def observed_bytes(self, name: str) -> int:
        """The size that the backend has of a volume."""
        rows = self.do("ledger", name=name)
        size_bytes: int = rows[0]["observed_bytes"]
        return size_bytes

    def id_of(self, name: str) -> str:
        """The id of a volume, which stays the same."""
        if name not in self._ids:
            self._ids[name] = self.do("volume", name=name)["id"]
        return self._ids[name]

    def snapshots(self) -> dict[str, dict[str, Any]]:  # Any: as JSON has it
        """The recorded snapshots, by their names."""
        found: dict[str, dict[str, Any]] = self.do("snapshots", name=self.name)  # Any: as above
        return found

    # --- acting

    def take(self, snapshot: str, **disturbance: object) -> Contents:
        """Take a snapshot, and have it hold one moment of the guest's work between before and after.

        That moment has everything in it that was acknowledged before, and nothing that came later.
        """
        least = self.disk().writes
        answer = self.do("take_snapshot", snapshot=snapshot, name=self.name, **disturbance)
        self._end(answer, disturbance)
        if snapshot not in self.snapshots():  # killed before it was recorded
            answer = self.do("take_snapshot", snapshot=snapshot, name=self.name)
            self._end(answer, {})
        most = self.disk(fresh=True).writes
        kept = self.kept(snapshot)
        moment = self.replay.moment(kept, least, most)
        print(f"{snapshot} holds what the guest had after {moment} writes, of {least} to {most}")
        found = self.snapshots()[snapshot]
        assert (found["status"], found["size_bytes"]) == ("available", self.size_bytes), found
        self.check_works()
        return kept

    def delete(self, snapshot: str, **disturbance: object) -> None:
        """Delete a snapshot; the guest goes on."""
        self._end(self.do("delete_snapshot", snapshot=snapshot, **disturbance), disturbance)
        if snapshot in self.snapshots():  # killed before it was recorded
            self._end(self.do("delete_snapshot", snapshot=snapshot), {})
        assert snapshot not in self.snapshots()
        self.check_works()

    def extend(self) -> None:
        """Extend the volume in use."""
        least = self.disk().writes
        larger_bytes = self.size_bytes + STEP
        assert self.do("extend", name=self.name, size_bytes=larger_bytes) == "completed"
        wait_until(lambda: self.disk().capacity_bytes == larger_bytes, 20, "the guest to see it")
        self.replay.grow(larger_bytes, least, self.disk().writes)
        self.size_bytes = larger_bytes
        self.check_works()

    def attach(self) -> None:
        """Give the volume to the guest again, which knows nothing of what is on it."""
        had = self._had()
        answer = self.do("attach", name=self.name, **self.guest)
        assert answer.endswith("/guest"), answer
        wait_until(lambda: self._had() > had, 60, "the guest to have it anew")

    # --- checking

    def check_works(self) -> None:
        """Have the guest write again, everything it read until now having been right, nothing refused."""
        writes = self.disk().writes
        wait_until(lambda: self.disk().writes > writes + 3, 60, "the guest to write")
        seen = self.disk()
        assert (seen.problems, seen.errors) == ([], 0), seen

    def check_agreed(self) -> None:
        """Have records, every layer and the guest agree on the size."""
        found, rows = self.do("volume", name=self.name), self.do("ledger", name=self.name)
        assert (found["status"], found["size_bytes"]) == ("in-use", self.size_bytes), found
        assert [row for row in rows if not row["agrees"]] == []
        assert tuple(row["layer"] for row in rows) == self.layers_seen
        wait_until(lambda: self.disk().capacity_bytes == self.size_bytes, 20, "the guest to see it")
        self.check_works()

    def check_nothing_left(self) -> None:
        """Have no more on either machine than in the beginning."""
        assert self.belongings() == self.before

    def _end(self, answer: Any, disturbance: Mapping[str, object]) -> None:  # Any: as Controller.do
        """Have an operation have succeeded, or resume one that was killed."""
        if answer == "killed":
            assert self.do("resume") == [], disturbance
        else:
            assert answer is None or ": " not in answer, (answer, disturbance)

    def _report(self) -> Report:
        return read_report(shell(self.lab, "compute", "cat /run/lab/guest.report"))


class OverISCSI(SnapshotSite):
    """A thick LVM volume."""

    controller, name, title = "storage", "attached", "over iSCSI"
    guest = MappingProxyType({"host": "compute", "instance": "guest"})
    layers_seen = ("LV", "LUN", "path", "path", "multipath", "QEMU node")
    extends = False

    def belongings(self) -> list[str]:
        return belongings(self.lab)

    def path(self, name: str) -> str:
        return f"/dev/vg0/volume-{self.id_of(name)}"

    def stored(self, name: str) -> Contents:
        return self.contents(self.path(name))

    def kept(self, snapshot: str) -> Contents:
        return self.contents(f"/dev/vg0/snap-{self.snapshots()[snapshot]['id']}")


class Thin(OverISCSI):
    """A thin LVM volume; its snapshots are not active."""

    name, title, extends = "thin", "thin, over iSCSI", True

    def prepare(self) -> None:
        shell(self.lab, "storage", "lvcreate --quiet --size 1g --thinpool vg0-pool vg0")
        self.do("create", name=self.name, size_bytes=SIZE, options={"lvm_type": "thin"})
        assert self.do("attach", name=self.name, **self.guest) == "compute/guest"
        serial = self.id_of(self.name)[:20]
        wait_until(
            lambda: serial in {disk.serial for disk in self.report().disks}, 60, "the guest to have it"
        )

    def kept(self, snapshot: str) -> Contents:
        with self._active(f"vg0/snap-{self.snapshots()[snapshot]['id']}") as path:
            return self.contents(path)

    @contextmanager
    def _active(self, volume: str) -> Iterator[str]:
        shell(self.lab, "storage", f"lvchange --activate y --ignoreactivationskip {volume}")
        try:
            yield f"/dev/{volume}"
        finally:
            shell(self.lab, "storage", f"lvchange --activate n {volume}")


class OverNFS(SnapshotSite):
    """A raw file, and the overlays that it gets."""

    controller, name, title = "compute", "data", "over NFS"
    guest = MappingProxyType({"monitor": "/run/lab/guest.qmp"})
    layers_seen = ("file", "QEMU node")

    def belongings(self) -> list[str]:
        kinds = ["format" if kind in ("raw", "qcow2") else kind for kind in self.do("nodes")]
        return [shell(self.lab, "storage", _SHARE), shell(self.lab, "compute", _OPEN), *kinds]

    def path(self, name: str) -> str:
        """Name the file: of a volume with snapshots an overlay, else one that has the volume's id."""
        if name == self.name:
            path: str = self.do("ledger", name=name)[0]["place"]
            return path
        return str(self._directory / f"volume-{self.id_of(name)}")

    def stored(self, name: str) -> Contents:
        path = Path(self.path(name))
        return self._read(path, "qcow2" if path.suffix else "raw")

    def kept(self, snapshot: str) -> Contents:
        record = json.loads(self.snapshots()[snapshot]["provider_data"])
        return self._read(self._directory / record["file"], record["format"])

    @cached_property
    def _directory(self) -> Path:
        return Path(self.path(self.name)).parent

    def _read(self, path: Path, image_format: str) -> Contents:
        if image_format == "raw":
            return self.contents(str(path))
        argv = f"qemu-img convert --force-share -f {image_format} -O raw {path} /var/tmp/read"
        shell(self.lab, "compute", argv)
        try:
            return self.contents("/var/tmp/read", direct=False)
        finally:
            shell(self.lab, "compute", "rm /var/tmp/read")
