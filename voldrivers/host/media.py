"""What lies behind an attachment on this host: a file on a share, or a block device."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voldrivers import filesystem
from voldrivers.base import Run
from voldrivers.errors import InvalidInput, InvalidState, NotFound, NotSupported
from voldrivers.host import blockdev, iscsi, nvme, nvmepaths
from voldrivers.host.connection import read_properties
from voldrivers.model import Attachment, ConnectionInfo, Ledger, LedgerRow


@dataclass(frozen=True)
class Medium(ABC):
    """A connected volume: its path, and the format that its driver recorded."""

    run: Run
    path: Path
    format: str

    @abstractmethod
    def check_answers(self) -> None:
        """Refuse where a look at the medium would block whoever looks, a QEMU say. Raises InvalidState."""

    @abstractmethod
    def check_works(self) -> None:
        """Refuse what could not be extended here. Raises InvalidState, NotFound; changes nothing."""

    @abstractmethod
    def size_bytes(self) -> int:
        """Give the size of the volume that this host sees, looked up now."""

    @abstractmethod
    def rescan(self) -> None:
        """Let the kernel read the size anew."""

    @abstractmethod
    def node(self) -> Mapping[str, object]:
        """Give QEMU's options for what stores the blocks (blockdev-add)."""

    def lower(self) -> Sequence["Medium"]:
        """Give what this lies on, if it lies on others: the topmost of them first."""
        return ()

    @abstractmethod
    def rows(self, place: str, expected_bytes: int) -> Ledger:
        """Give this host's own layers of the size ledger."""


@dataclass(frozen=True)
class FileMedium(Medium):
    """A file; whoever opens it sees its size. It lies on `below`, files beside it with their formats."""

    below: tuple[tuple[str, str], ...] = ()

    def check_answers(self) -> None:
        filesystem.room(self.run, self.path.parent)

    def check_works(self) -> None:
        self.size_bytes()

    def size_bytes(self) -> int:
        self.check_answers()
        return filesystem.image_bytes(self.path, self.format)

    def rescan(self) -> None:
        self.check_answers()

    def node(self) -> Mapping[str, object]:
        return {"driver": "file", "filename": str(self.path), "locking": "on"}

    def lower(self) -> Sequence[Medium]:
        """Give every file below with its format, so that QEMU believes no header."""
        return [
            replace(self, path=self.path.with_name(name), format=image_format, below=())
            for name, image_format in self.below
        ]

    def rows(self, place: str, expected_bytes: int) -> Ledger:
        """Give none: the file itself is a row of its driver."""
        return ()


class DeviceMedium(Medium):
    """A block device, whatever it is reached by."""

    def check_answers(self) -> None:
        """Nothing: sysfs answers however dead a path is, and QEMU asks the kernel for a size."""

    def node(self) -> Mapping[str, object]:
        # Direct: what the page cache of this host holds, another host that has the volume would not see.
        return {"driver": "host_device", "filename": str(self.path), "cache": {"direct": True}}


@dataclass(frozen=True)
class BlockMedium(DeviceMedium):
    """A SCSI disk, or the multipath map of several."""

    luns: tuple[blockdev.LUN, ...] = ()

    def check_works(self) -> None:
        blockdev.check_paths(str(self.path), self.luns)

    def size_bytes(self) -> int:
        return blockdev.device_bytes(str(self.path))

    def rescan(self) -> None:
        blockdev.rescan(self.run, str(self.path), self.luns)

    def rows(self, place: str, expected_bytes: int) -> Ledger:
        device = blockdev.look(str(self.path))
        rows = [
            LedgerRow("path", f"{place} {each.name}", each.size_bytes, expected_bytes, note=_note(each))
            for each in device.paths
        ]
        if device.map_name:
            rows.append(
                LedgerRow("multipath", f"{place} {device.map_name}", device.size_bytes, expected_bytes)
            )
        return tuple(rows)


@dataclass(frozen=True)
class NVMeMedium(DeviceMedium):
    """An NVMe namespace, whose paths the kernel joins."""

    subsystem: nvmepaths.Subsystem

    def check_works(self) -> None:
        nvmepaths.check_paths(self.subsystem)

    def size_bytes(self) -> int:
        return nvmepaths.size_bytes(self.subsystem)

    def rescan(self) -> None:
        nvmepaths.rescan(self.run, self.subsystem)

    def rows(self, place: str, expected_bytes: int) -> Ledger:
        """Give a row for each controller, and one for the device over them."""
        paths = (
            LedgerRow("path", f"{place} {each.name}", each.size_bytes, expected_bytes, note=_note(each))
            for each in nvmepaths.controllers(self.subsystem)
        )
        device = blockdev.look(str(self.path))
        return (*paths, LedgerRow("multipath", f"{place} {device.name}", device.size_bytes, expected_bytes))


def initiator() -> str | None:
    """Give the name of this host's iSCSI initiator; None without open-iscsi."""
    try:
        return iscsi.initiator_name()
    except NotSupported:
        return None


def nqn() -> str | None:
    """Give the name of this host for NVMe; None without nvme-cli."""
    return nvme.host_nqn()


def connect(run: Run, host: str, connection_info: ConnectionInfo) -> Path:
    """Make a volume appear, and give its path. Takes `file`, `nfs`, `iscsi` and `nvmeof`.

    Raises NotFound, InvalidInput, NotSupported, and what mounting or logging in does.
    """
    properties = connection_info.properties
    if connection_info.encrypted:
        raise NotSupported(f"host {host}", "cannot connect an encrypted volume: decrypting is not built yet")
    if connection_info.driver_volume_type == "iscsi":
        return Path(iscsi.connect(run, properties))
    if connection_info.driver_volume_type == "nvmeof":
        return Path(nvme.connect(run, properties))
    path = _file(run, host, connection_info)
    filesystem.room(run, path.parent)
    if not path.is_file():
        raise NotFound("file", str(path), f" on host {host}")
    return path


def disconnect(run: Run, attachment: Attachment) -> None:
    """Take a volume off this host; a share stays mounted, others use it too. May be repeated."""
    info = attachment.connection_info
    if info is not None and info.driver_volume_type == "iscsi":
        iscsi.disconnect(run, info.properties, attachment.device_path or "")
    if info is not None and info.driver_volume_type == "nvmeof":
        nvme.disconnect(run, info.properties)


def medium_of(run: Run, attachment: Attachment) -> Medium:
    """Give what an attachment was connected to. Raises InvalidState for one that was not."""
    info, path = attachment.connection_info, attachment.device_path
    if path is None or info is None:
        raise InvalidState(f"attachment {attachment.id} on {attachment.place}", "not connected", "connected")
    if info.driver_volume_type == "iscsi":
        return BlockMedium(run, Path(path), "raw", read_properties(info.properties).luns)
    if info.driver_volume_type == "nvmeof":
        return NVMeMedium(run, Path(path), "raw", nvmepaths.read_properties(info.properties))
    return FileMedium(run, Path(path), info.properties["format"], _below(info))


def _file(run: Run, host: str, connection_info: ConnectionInfo) -> Path:
    properties = connection_info.properties
    if connection_info.driver_volume_type == "file":
        return Path(properties["path"])
    if connection_info.driver_volume_type != "nfs":
        reason = f"cannot connect a volume of type {connection_info.driver_volume_type}"
        raise NotSupported(f"host {host}", reason)
    from voldrivers.nfs import share

    name, base = properties["name"], Path(properties["mount_point_base"])
    _check_name(name)
    return share.mount(run, properties["export"], properties["options"], base) / name


def _below(connection_info: ConnectionInfo) -> tuple[tuple[str, str], ...]:
    """Read `layers`: names in the same share with their formats, the uppermost first. Raises InvalidInput."""
    given = connection_info.properties.get("layers", "[]")
    try:
        layers = tuple((str(name), str(image_format)) for name, image_format in json.loads(given))
    except (ValueError, TypeError) as error:
        raise InvalidInput("layers of a volume", f"must be names with formats, not {given}") from error
    for name, _ in layers:
        _check_name(name)
    return layers


def _check_name(name: str) -> None:
    if "/" in name or name in ("", ".", ".."):
        raise InvalidInput(f"file name {name!r}", "must name a file in its share")


def _note(path: blockdev.DevicePath | nvmepaths.Controller) -> str:
    return str(path.trouble) if path.trouble else path.state
