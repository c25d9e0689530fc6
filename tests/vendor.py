"""A vendor's package, seen from outside: a driver over plain files, a host that sees what it rescanned.

`install` writes its distribution, as pip would. The option `trouble` of a new volume, and the files
`broken`, `hang`, `hang-extend` (in the driver's directory) and `deaf`, `blind`, `stopped` (in the host's),
make things go wrong.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voldrivers.base import Driver, Host
from voldrivers.capabilities import Capabilities, Condition, InUseExtend
from voldrivers.errors import BackendError, CommandFailed, NoSpace, OutcomeUnknown
from voldrivers.model import (
    Attachment,
    ConnectionInfo,
    Connector,
    Extend,
    ExtendReply,
    InstanceState,
    Ledger,
    LedgerRow,
    Pool,
    Volume,
)
from voldrivers.options import SizeBytes, option
from voldrivers.sizes import KiB, SizeRule

ENTRY_POINTS = """
[voldrivers.drivers]
acme = vendor:AcmeDriver
shared = vendor:SharedDriver
abstract = vendor:Unfinished
absent = vendor:NoSuchDriver
foreign = vendor:ENTRY_POINTS
gone = vendor_without_library:Driver
[voldrivers.hosts]
acme = vendor:AcmeHost
"""
METADATA = """Metadata-Version: 2.1
Name: acme
Version: 1.0
Provides-Extra: array
Requires-Dist: acme-array.client (>=2) ; extra == 'array'
"""


def install(directory: Path) -> None:
    """Write the distribution into a directory of sys.path."""
    described = directory / "acme-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(METADATA)
    (described / "entry_points.txt").write_text(ENTRY_POINTS)
    (directory / "vendor_without_library.py").write_text("import acme_array\n")


@dataclass(frozen=True)
class AcmeOptions:
    directory: Path = option("where the files are")
    mode: str = option("how fast", "slow", choices=("slow", "quick"))
    window: SizeBytes = option("how much at once", SizeBytes(64 * KiB))


@dataclass(frozen=True)
class AcmeVolumeOptions:
    trouble: str = option("what goes wrong", "")
    shards: int = option("how many", 1)
    preallocate: bool = option("allocate", False)
    format: str = option("format", "raw", choices=("raw", "qcow2"))


class AcmeDriver(Driver):
    """Files that the backend grows, in whole KiB."""

    capabilities = Capabilities(
        in_use_extend=InUseExtend.BY_BACKEND,
        conditions=(Condition(capability="in_use_extend", unless="the moon is full"),),
    )
    options_type = AcmeOptions
    volume_options_type = AcmeVolumeOptions
    size_rule = SizeRule(granularity_bytes=KiB)

    def _file(self, volume: Volume) -> Path:
        directory: Path = self.options.directory
        return directory / volume.id

    def create_volume(self, volume: Volume, options: AcmeVolumeOptions) -> str:
        if options.trouble == "wait" and not (self.options.directory / "waiting").exists():
            (self.options.directory / "waiting").touch()
            time.sleep(600)
        if options.trouble == "library":
            import no_such_library  # type: ignore[import-not-found]  # noqa: F401 - it is there to be missing
        if options.trouble in TROUBLES:
            raise TROUBLES[options.trouble]
        self._grow(volume, volume.size_bytes)
        return f"{options.shards} shards, {options.format}, {options.preallocate}"

    def delete_volume(self, volume: Volume) -> None:
        self._file(volume).unlink(missing_ok=True)

    def list_volumes(self) -> tuple[str, ...]:
        return tuple(os.listdir(self.options.directory))

    def volume_size(self, volume: Volume) -> int:
        self._hang("hang")
        return self._file(volume).stat().st_size

    def pool(self) -> Pool:
        return Pool(0, 0, 0)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if (self.options.directory / "broken").exists():
            raise BackendError(volume.title, "the array is broken")
        self._hang("hang-extend")
        self._grow(volume, new_size_bytes)
        return ExtendReply.EXTENDED

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        return ConnectionInfo("acme", {"path": str(self._file(volume)), "password": "s3cret"})

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        return

    def _grow(self, volume: Volume, size_bytes: int) -> None:
        with self._file(volume).open("ab") as file:
            file.truncate(max(size_bytes, file.tell()))

    def _hang(self, name: str) -> None:
        """Wait, once, to be interrupted."""
        wish: Path = self.options.directory / name
        if wish.exists():
            wish.rename(wish.with_name("waiting"))
            time.sleep(600)


class SharedDriver(AcmeDriver):
    """The same, for several hosts."""

    capabilities = Capabilities(in_use_extend=InUseExtend.BY_BACKEND, multi_attach=True)


class Unfinished(Driver):
    capabilities = Capabilities()


@dataclass(frozen=True)
class AcmeHostOptions:
    directory: Path = option("what its kernel sees")


class AcmeHost(Host):
    """Its kernel sees a size when it rescans, unless it is deaf."""

    options_type = AcmeHostOptions

    def connector(self) -> Connector:
        return Connector(self.name)

    def find_instance(self, attachment: Attachment) -> Attachment:
        return attachment

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        self._seen(volume).write_text(connection_info.properties["path"])
        self.rescan(volume, attachment)
        return str(self._seen(volume))

    def disconnect(self, volume: Volume, attachment: Attachment) -> None:
        self._seen(volume).unlink(missing_ok=True)

    def plug(self, volume: Volume, attachment: Attachment) -> None:
        return

    def unplug(self, volume: Volume, attachment: Attachment) -> None:
        return

    def ledger_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        if (self.options.directory / "blind").exists():
            raise BackendError(f"host {self.name}", "sees nothing")
        seen, repair = self.get_blockdev(volume, attachment), f"voldrivers doctor {volume.name} --repair"
        return (LedgerRow("device", self.name, seen, expected_bytes, repair=repair),)

    def instance_state(self, attachment: Attachment) -> InstanceState:
        stopped = (self.options.directory / "stopped").exists()
        return InstanceState.STOPPED if stopped else InstanceState.UNKNOWN

    @contextmanager
    def hold(self, attachment: Attachment) -> Iterator[None]:
        yield

    def check_extend(self, volume: Volume, attachment: Attachment) -> None:
        return

    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        if (self.options.directory / "deaf").exists():
            raise BackendError(f"host {self.name}", "does not\n rescan")
        path = self._seen(volume).read_text().split("\n")[0]
        self._seen(volume).write_text(f"{path}\n{Path(path).stat().st_size}")

    def get_blockdev(self, volume: Volume, attachment: Attachment) -> int:
        return int(self._seen(volume).read_text().split("\n")[1])

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        return

    def cancel(self, extend: Extend, attachment: Attachment) -> None:
        return

    def _seen(self, volume: Volume) -> Path:
        directory: Path = self.options.directory
        return directory / f"seen-{volume.id}"


class AcmeError(BackendError):
    """A vendor's own error."""


TROUBLES: dict[str, Any] = {  # Any: exceptions of many kinds
    "bug": RuntimeError("lost\x1b[2J"),
    "space": NoSpace("the array", 2 * KiB, KiB),
    "unknown": OutcomeUnknown("the creation", "the array did not answer"),
    "command": CommandFailed("arrayctl", "no\nway", argv=("arrayctl", "make"), exit_code=3),
    "own": AcmeError("the array", "is on fire"),
}
