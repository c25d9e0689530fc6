"""The NFS driver: volumes are files on an NFS share or in a directory."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from voldrivers import filesystem, mounts
from voldrivers.base import Driver, GrownByHypervisor, Run, round_size
from voldrivers.capabilities import Capabilities, Condition, InUseExtend
from voldrivers.errors import BackendError, InvalidSize, InvalidState, NotSupported
from voldrivers.model import ConnectionInfo, Connector, ExtendReply, Ledger, LedgerRow, Pool, Volume
from voldrivers.nfs import files, imagelocks, qemuimg, share
from voldrivers.nfs.image import FORMATS, Image, file_name, list_images, recorded_image
from voldrivers.nfs.options import NFSOptions, NFSVolumeOptions
from voldrivers.nfs.pool import check_room, pool_of
from voldrivers.sizes import SizeRule, format_size


@dataclass(frozen=True)
class _Opened:
    """A volume's file, held open: its path for people, the path to work with, its record."""

    path: Path
    file: Path
    image: Image

    @property
    def size_bytes(self) -> int:
        """The size of the volume in it, read now."""
        return filesystem.image_bytes(self.file, self.image.format, called=self.path)

    def check_size(self, wanted_bytes: int) -> None:
        """Compare the size with what a program said it made. Raises BackendError."""
        if self.size_bytes != wanted_bytes:
            came_out = f"came out {format_size(self.size_bytes)} large instead of {format_size(wanted_bytes)}"
            raise BackendError(f"file {self.path}", came_out)


class NFSDriver(Driver, GrownByHypervisor):
    """Volumes are files `volume-ID` (raw) and `volume-ID.qcow2`, readable by their owner alone.

    Format and allocation are recorded in `provider_data` at creation; nothing in a file ever changes
    them. An attached file is grown by the QEMU that holds it: the driver answers DEFERRED until then.
    """

    capabilities = Capabilities(
        in_use_extend=InUseExtend.BY_HYPERVISOR,
        multi_attach=True,
        conditions=(
            Condition(capability="in_use_extend", unless="the volume is a preallocated qcow2"),
            Condition(
                capability="in_use_extend",
                unless="the volume is preallocated and its share has no fallocate, as NFS before 4.2",
            ),
            Condition(capability="multi_attach", unless="the format is qcow2"),
        ),
    )
    options_type = NFSOptions
    volume_options_type = NFSVolumeOptions
    #: A qcow2 must be a multiple of 512; of a raw file that is none, a guest sees more than there is.
    size_rule = SizeRule(granularity_bytes=512, minimum_bytes=512)

    def __init__(self, name: str, options: NFSOptions, run: Run) -> None:
        """Tell an export from a directory; nothing is mounted or opened. Raises InvalidInput."""
        super().__init__(name, options, run)
        self._is_export = share.is_export(options.share)

    def create_volume(self, volume: Volume, options: NFSVolumeOptions) -> str:
        """Make the file, whole or not at all; what an earlier, killed create left is removed."""
        image = self._new_image(volume, options)
        self._check_size(volume, volume.size_bytes)
        path = self._place().path / image.file
        files.clean(path)
        if not _is_made(volume, path, image):
            self._check_room(volume, path, image, volume.size_bytes)
            with files.new_file(path) as file:
                self._make(_Opened(path, file, image), volume.size_bytes)
        return image.recorded

    def delete_volume(self, volume: Volume) -> None:
        """Remove the file, in either format: a create whose answer was lost leaves nothing."""
        directory = self._place().path
        for path in [directory / file_name(volume.id, image_format) for image_format in FORMATS]:
            files.clean(path)
            if os.path.lexists(path):
                with files.opened(path) as file:
                    imagelocks.check_unheld(path, file)
                files.remove(path)

    def list_volumes(self) -> Sequence[str]:
        """Give the ids of our files; links and files with other names are not ours."""
        return sorted(list_images(self._place().path))

    def volume_size(self, volume: Volume) -> int:
        """Read the size of the file; of a qcow2 the one in its header."""
        with self._opened(volume) as opened:
            return opened.size_bytes

    def pool(self) -> Pool:
        """Give the room, less what is promised already; looks at every file of ours."""
        return pool_of(self.run, self._place().path, self.options)

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        """Refuse what could not be done: share away, full or read-only, file gone, no allocation.

        A preallocated volume makes and removes an empty scratch file in the share.
        """
        self._check_size(volume, new_size_bytes)
        with self._opened(volume) as opened:
            self._check_attached_from_here(volume, opened.path)
            if opened.image.format == "qcow2":
                qemuimg.check_header(opened.path, opened.file)
            growth_bytes = new_size_bytes - opened.size_bytes
            if growth_bytes <= 0:
                return
            files.check_writable(opened.path, opened.file)
            if opened.image.preallocated and opened.image.format == "qcow2" and not volume.nobody_runs:
                raise NotSupported(volume.title, "QEMU cannot keep a qcow2 preallocated while it is in use")
            if volume.nobody_runs:
                imagelocks.check_unheld(opened.path, opened.file)
            self._check_room(volume, opened.path, opened.image, growth_bytes)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        """Make the file larger, or leave it to the QEMU that has it open; then allocate what is new.

        Allocation covers the whole file and changes no byte of it, so it may be done again.
        """
        with self._opened(volume) as opened:
            image, observed_bytes = opened.image, opened.size_bytes
            self._check_attached_from_here(volume, opened.path)
            if observed_bytes < new_size_bytes:
                if image.preallocated:  # the room of admission may be gone, and what has grown stays
                    self._check_room(volume, opened.path, image, new_size_bytes - observed_bytes)
                if not volume.nobody_runs:
                    return ExtendReply.DEFERRED
                self._grow(opened, new_size_bytes)
            elif image.preallocated and image.format == "raw":
                with files.typed_errors(f"file {opened.path}", observed_bytes):
                    qemuimg.allocate(self.run, opened.file, observed_bytes)
        return ExtendReply.EXTENDED

    def probe_locks(self, volume: Volume) -> None:
        """Prove that locks on the share mean something and that no QEMU holds the file."""
        place = self._place()
        with self._opened(volume) as opened:
            imagelocks.check_meaning(place.mount, opened.path)
            imagelocks.check_unheld(opened.path, opened.file)

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        """Say which file of which share it is.

        A qcow2 in use elsewhere is refused: two QEMUs would write its tables. Raises InvalidState.
        """
        with self._opened(volume) as opened:
            path, image = opened.path, opened.image
            if image.format == "qcow2":
                _check_alone(volume, connector)
                qemuimg.check_header(path, opened.file)
        if not self._is_export:
            return ConnectionInfo("file", {"path": str(path), "format": image.format})
        properties = {
            "export": self.options.share,
            "name": image.file,
            "format": image.format,
            "options": self.options.mount_options,
            "mount_point_base": str(self.options.mount_point_base),
        }
        return ConnectionInfo("nfs", properties)

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        """Nothing was given that could be taken back."""

    def ledger_rows(self, volume: Volume, expected_bytes: int) -> Ledger:
        """Give one row: the file."""
        with self._opened(volume) as opened:
            size_bytes, note = opened.size_bytes, opened.image.format
            return (LedgerRow("file", str(opened.path), size_bytes, expected_bytes, note=note),)

    def _check_attached_from_here(self, volume: Volume, path: Path) -> None:
        """Refuse a volume that hosts have from another share than the one of today's configuration."""
        for attachment in volume.attachments:
            if attachment.connection_info is None:
                continue
            there = attachment.connection_info.properties
            here = {"export": self.options.share} if self._is_export else {"path": str(path)}
            if any(there.get(key) != value for key, value in here.items()):
                where = f"attached to {attachment.place} from {there.get('export') or there.get('path')}"
                raise InvalidState(volume.title, where, f"attached from {next(iter(here.values()))}")

    @contextmanager
    def _opened(self, volume: Volume) -> Iterator[_Opened]:
        image = recorded_image(volume)
        path = self._place().path / image.file
        with files.opened(path) as file:
            yield _Opened(path, file, image)

    def _place(self) -> mounts.Place:
        """Find the share, mounting it if it is an export. Raises InvalidState when it is not there."""
        options = self.options
        directory = Path(options.share)
        if self._is_export:
            directory = share.mount(self.run, options.share, options.mount_options, options.mount_point_base)
        place = mounts.place_of(directory)
        if not place.mount.is_local:  # a dead server would block whatever comes next
            filesystem.room(self.run, place.path)
        if options.must_be_mounted and place.mount.point != place.path:
            raise InvalidState(f"share {directory}", "not mounted", "mounted")
        if not place.path.is_dir():
            raise InvalidState(f"share {directory}", "not there", "a directory")
        return place

    def _new_image(self, volume: Volume, options: NFSVolumeOptions) -> Image:
        image_format = options.format or self.options.format
        if image_format == "qcow2" and volume.multi_attach:
            raise NotSupported(
                volume.title, "a qcow2 has one writer and cannot be attached twice; choose raw"
            )
        preallocated = self.options.preallocate if options.preallocate is None else options.preallocate
        return Image(image_format, preallocated, file_name(volume.id, image_format))

    def _check_size(self, volume: Volume, size_bytes: int) -> None:
        """Refuse a size that was not rounded by this driver's rule: the caller does that, once."""
        if round_size(self, volume.title, size_bytes) != size_bytes:
            raise InvalidSize(volume.title, "must be a multiple of 512 bytes", format_size(size_bytes))

    def _check_room(self, volume: Volume, path: Path, image: Image, growth_bytes: int) -> None:
        check_room(
            self.run, path.parent, self.options, volume.title, growth_bytes, preallocated=image.preallocated
        )
        if image.preallocated:
            with files.scratch_file(path) as scratch:
                qemuimg.probe_allocation(self.run, f"share {path.parent}", scratch)

    def _make(self, opened: _Opened, size_bytes: int) -> None:
        """Fill a new file and read back what came out."""
        preallocated = opened.image.preallocated
        with files.typed_errors(f"file {opened.path}", size_bytes):
            qemuimg.create(self.run, opened.file, opened.image.format, size_bytes, preallocated=preallocated)
        opened.check_size(size_bytes)

    def _grow(self, opened: _Opened, new_size_bytes: int) -> None:
        """Make a file larger that no QEMU holds, and read back what came out."""
        preallocated = opened.image.preallocated
        with files.typed_errors(f"file {opened.path}", new_size_bytes):
            qemuimg.resize(
                self.run, opened.file, opened.image.format, new_size_bytes, preallocated=preallocated
            )
        opened.check_size(new_size_bytes)


def _is_made(volume: Volume, path: Path, image: Image) -> bool:
    """Tell whether an earlier create made the file. Raises InvalidState, BackendError for a foreign one."""
    for other in (path.with_name(file_name(volume.id, image_format)) for image_format in FORMATS):
        if other != path and os.path.lexists(other):
            raise InvalidState(f"file {other}", "there already", f"absent before {path.name} is made")
    if not os.path.lexists(path):
        return False
    with files.opened(path) as file:
        if image.format == "qcow2":
            qemuimg.check_header(path, file)
        size_bytes = filesystem.image_bytes(file, image.format, called=path)
    if size_bytes != volume.size_bytes:
        needed = f"{format_size(volume.size_bytes)} to be {volume.title}"
        raise InvalidState(f"file {path}", f"{format_size(size_bytes)} large", needed)
    return True


def _check_alone(volume: Volume, connector: Connector) -> None:
    """Refuse a second place for a qcow2; the attachment being made may stand in `volume` already."""
    places = {attachment.place for attachment in volume.attachments}
    if len(places) > 1 or any(a.host != connector.host for a in volume.attachments):
        state = f"attached to {', '.join(sorted(places))}"
        raise InvalidState(volume.title, state, "a raw volume for more than one attachment")
