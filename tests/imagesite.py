"""One controller whose volumes are plain files, or loop devices over them, that fail on demand."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voldrivers import process
from voldrivers.base import Driver
from voldrivers.capabilities import Capabilities, InUseExtend
from voldrivers.config import Policy
from voldrivers.errors import NoSpace, NotFound, VolDriverError
from voldrivers.extend import Engine, Site, Store
from voldrivers.host.local import LocalHost, LocalOptions
from voldrivers.images.records import ImageRecord, ImageRecords
from voldrivers.model import (
    Attachment,
    ConnectionInfo,
    Connector,
    ExtendReply,
    Ledger,
    LedgerRow,
    Pool,
    Volume,
)
from voldrivers.options import NoOptions
from voldrivers.sizes import KiB, MiB, SizeRule, TiB

NAME, SMALL = "v", MiB


class PlainDriver(Driver):
    """Files that the backend grows, attached or not; `room_bytes` is for all of them."""

    capabilities = Capabilities(in_use_extend=InUseExtend.BY_BACKEND)
    volume_type = "file"

    def __init__(self, directory: Path, rule: SizeRule) -> None:
        """Take a directory."""
        super().__init__("plain", NoOptions(), process.run)
        self.directory, self.size_rule, self.room_bytes = directory, rule, TiB
        #: Raised by the next extend, before the file grows or after it.
        self.before: VolDriverError | None = None
        self.after: VolDriverError | None = None
        self.asked: list[int] = []

    def create_volume(self, volume: Volume, options: object) -> str:
        self.path(volume).touch(0o600)
        os.truncate(self.path(volume), volume.size_bytes)
        return ""

    def delete_volume(self, volume: Volume) -> None:
        self.path(volume).unlink(missing_ok=True)

    def list_volumes(self) -> Sequence[str]:
        return sorted(os.listdir(self.directory))

    def volume_size(self, volume: Volume) -> int:
        if not self.path(volume).exists():
            raise NotFound("volume", volume.name)
        return self.path(volume).stat().st_size

    def pool(self) -> Pool:
        return Pool(self.room_bytes, self.room_bytes, 0)

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        self.asked.append(new_size_bytes)
        if new_size_bytes > self.room_bytes:
            raise NoSpace(volume.title, new_size_bytes, self.room_bytes)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if self.before is not None:
            raise self.before
        if self.volume_size(volume) < new_size_bytes:
            os.truncate(self.path(volume), new_size_bytes)
        if self.after is not None:
            raise self.after
        return ExtendReply.EXTENDED

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        return ConnectionInfo(self.volume_type, {"path": str(self.path(volume)), "format": "raw"})

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        pass

    def path(self, volume: Volume) -> Path:
        return self.directory / volume.id


class LoopDriver(PlainDriver):
    """The same files, which its host has as loop devices."""

    volume_type = "loop"


class LoopHost(LocalHost):
    """This machine, with loop devices in the place of iSCSI disks: the kernel learns a size by a rescan."""

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        path = connection_info.properties["path"]
        if (device := _loop_over(path)) is None:
            argv = ["losetup", "--find", "--show", "--direct-io=on", path]
            device = process.run(argv, timeout_s=10).stdout.strip()
        return device

    def disconnect(self, volume: Volume, attachment: Attachment) -> None:
        info = attachment.connection_info
        if info is not None and (device := _loop_over(info.properties["path"])):
            process.run(["losetup", "--detach", device], timeout_s=10)

    def check_extend(self, volume: Volume, attachment: Attachment) -> None:
        self.get_blockdev(volume, attachment)

    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        process.run(["losetup", "--set-capacity", str(attachment.device_path)], timeout_s=10)

    def get_blockdev(self, volume: Volume, attachment: Attachment) -> int:
        name = Path(str(attachment.device_path)).name
        return int(Path("/sys/block", name, "size").read_text()) * 512

    def ledger_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        return (LedgerRow("path", self.name, self.get_blockdev(volume, attachment), expected_bytes),)


@dataclass
class ImageSite:
    """One volume, attached here; the driver outlives the engines."""

    directory: Path
    rule: SizeRule = SizeRule(4 * KiB)  # noqa: RUF009 - frozen
    loops: bool = False
    share: Path = field(default=Path())
    driver: PlainDriver = field(init=False)
    policy: Policy = field(default_factory=lambda: Policy(deadline_s=2.0))

    def __post_init__(self) -> None:
        if self.share == Path():
            self.share = self.directory / "share"
            self.share.mkdir()
        self.driver = (LoopDriver if self.loops else PlainDriver)(self.share, self.rule)

    def engine(self) -> Engine:
        """Start a controller."""
        host = (LoopHost if self.loops else LocalHost)("here", LocalOptions(), process.run)
        store = Store(self.directory / "state" / "voldrivers.db")
        drivers: Mapping[str, Any] = {"plain": self.driver}  # Any: one kind of driver, as many
        return Engine(Site(store, drivers, {"here": host}, self.directory / "locks", self.policy))

    def make(self, size_bytes: int = SMALL, fill: int = 0) -> Path:
        """Make the volume with one byte all over, attach it, and give its file."""
        with self.engine() as engine:
            path = self.driver.path(engine.create_volume(NAME, size_bytes))
            if fill:
                path.write_bytes(bytes([fill]) * path.stat().st_size)
            engine.attach(NAME)
        return path

    def remove(self) -> None:
        """Take it away again."""
        with self.engine() as engine:
            if engine.volume(NAME).attachments:
                engine.detach(NAME)
            engine.delete_volume(NAME)

    @property
    def volume(self) -> Volume:
        with self.engine() as engine:
            return engine.volume(NAME)

    @property
    def path(self) -> Path:
        return self.driver.path(self.volume)

    @property
    def record(self) -> ImageRecord | None:
        with self.engine() as engine:
            return ImageRecords(engine.store).get(engine.volume(NAME))

    @property
    def messages(self) -> list[str]:
        with self.engine() as engine:
            return [message.text for message in engine.messages(engine.volume(NAME))]


@contextmanager
def detached_afterwards(site: ImageSite) -> Iterator[ImageSite]:
    """Leave no loop device behind, whatever happened."""
    with ExitStack() as after:
        after.callback(_detach_all, site.share)
        yield site


def _detach_all(share: Path) -> None:
    for path in filter(Path.is_file, share.iterdir()):
        if device := _loop_over(str(path)):
            process.run(["losetup", "--detach", device], timeout_s=10)


def _loop_over(path: str) -> str | None:
    found = process.run(["losetup", "--noheadings", "--output", "NAME", "--associated", path], timeout_s=10)
    return found.stdout.split()[0] if found.stdout.split() else None
