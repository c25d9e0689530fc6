"""The NFS driver: volumes are files on an NFS share or in a directory."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace

from voldrivers.abilities import Clones, GrownByHypervisor, Manages, Merge, Reverts, Snapshots, Taken
from voldrivers.base import Driver, Run, round_size
from voldrivers.capabilities import Capabilities, Condition, InUseExtend
from voldrivers.errors import InvalidSize, InvalidState, NotSupported
from voldrivers.model import (
    ConnectionInfo,
    Connector,
    ExtendReply,
    Ledger,
    LedgerRow,
    Pool,
    Snapshot,
    Volume,
)
from voldrivers.nfs import copies, existing, files, imagelocks, qemuimg, share, snapshots
from voldrivers.nfs.folder import Folder, Opened, find
from voldrivers.nfs.image import (
    FORMATS,
    Image,
    file_name,
    frozen_image,
    list_images,
    list_marks,
    names_of,
    recorded_image,
)
from voldrivers.nfs.layers import check_settled, layers_of
from voldrivers.nfs.options import NFSOptions, NFSVolumeOptions
from voldrivers.nfs.pool import pool_of
from voldrivers.sizes import SizeRule, format_size


class NFSDriver(Driver, GrownByHypervisor, Snapshots, Reverts, Clones, Manages):
    """Volumes are files `volume-ID` (raw) and `volume-ID.qcow2`, readable by their owner alone.

    Format and allocation are recorded in `provider_data`; nothing in a file ever changes them. An attached
    file is grown by the QEMU that holds it: the driver answers DEFERRED until then. A snapshot freezes the
    file, and the volume goes on in a qcow2 over it.
    """

    capabilities = Capabilities(
        in_use_extend=InUseExtend.BY_HYPERVISOR,
        multi_attach=True,
        snapshots=True,
        revert=True,
        clones=True,
        manage=True,
        conditions=(
            Condition(capability="in_use_extend", unless="the volume is a preallocated qcow2"),
            Condition(
                capability="in_use_extend",
                unless="the volume is preallocated and its share has no fallocate, as NFS before 4.2",
            ),
            Condition(capability="multi_attach", unless="the format is qcow2"),
            Condition(capability="snapshots", unless="the volume can be attached more than once"),
            Condition(capability="snapshots", unless="the volume is attached without an instance"),
            Condition(capability="revert", unless="the snapshot is not the newest"),
            Condition(
                capability="clones", unless="the source is an attached volume and not a snapshot of it"
            ),
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
        image, folder = self._new_image(volume, options), self._folder()
        self._check_size(volume, volume.size_bytes)
        if not _is_made(folder, volume, image):
            folder.check_room(volume.title, volume.size_bytes, image)
            with files.new_file(folder.path / image.file) as file:
                self._make(Opened(folder.path / image.file, file, image), volume.size_bytes)
        return image.recorded

    def delete_volume(self, volume: Volume) -> None:
        """Remove all its files, in either format: a create whose answer was lost leaves nothing."""
        if volume.attachments:
            raise InvalidState(volume.title, f"attached to {volume.attachments[0].place}", "detached")
        directory = self._folder().path
        paths = [directory / name for name in names_of(directory, volume.id)]
        for path in paths:
            files.clean(path)
            if os.path.lexists(path):
                with files.opened(path) as file:
                    imagelocks.check_unheld(path, file)
        for path in paths:
            files.remove(path)

    def list_volumes(self) -> Sequence[str]:
        """Give the ids of our volumes; links and files with other names are not ours."""
        return sorted(list_images(self._folder().path))

    def volume_size(self, volume: Volume) -> int:
        """Read the size of the file; of a qcow2 the one in its header."""
        with self._folder().opened(recorded_image(volume)) as opened:
            return opened.size_bytes

    def pool(self) -> Pool:
        """Give the room, less what is promised already; looks at every file of ours.

        A volume promises its size, and its snapshots what their frozen files take.
        """
        return pool_of(self.run, self._folder().path, self.options)

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        """Refuse what could not be done: share away, full or read-only, file gone, no allocation.

        A preallocated volume makes and removes an empty scratch file in the share.
        """
        self._check_size(volume, new_size_bytes)
        folder, image = self._folder(), recorded_image(volume)
        with folder.opened(image) as opened:
            folder.check_attached_from_here(volume, image)
            check_settled(folder, volume)
            layers_of(folder, volume)
            growth_bytes = new_size_bytes - opened.size_bytes
            if growth_bytes <= 0:
                return
            files.check_writable(opened.path, opened.file)
            if image.preallocated and image.format == "qcow2" and not volume.nobody_runs:
                raise NotSupported(volume.title, "QEMU cannot keep a qcow2 preallocated while it is in use")
            if volume.nobody_runs:
                opened.check_unheld()
            folder.check_room(volume.title, growth_bytes, image)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        """Make the file larger, or leave it to the QEMU that has it open; then allocate what is new.

        Allocation covers the whole file and changes no byte of it, so it may be done again. Of a volume with
        snapshots only the file that is written to grows.
        """
        folder, image = self._folder(), recorded_image(volume)
        with folder.opened(image) as opened:
            observed_bytes = opened.size_bytes
            folder.check_attached_from_here(volume, image)
            if observed_bytes < new_size_bytes:
                if image.preallocated:  # the room of admission may be gone, and what has grown stays
                    folder.check_room(volume.title, new_size_bytes - observed_bytes, image)
                if not volume.nobody_runs:
                    return ExtendReply.DEFERRED
                check_settled(folder, volume)
                self._grow(folder, volume, opened, new_size_bytes)
            elif image.preallocated and image.format == "raw":
                with files.typed_errors(f"file {opened.path}", observed_bytes):
                    qemuimg.allocate(self.run, opened.file, observed_bytes)
        return ExtendReply.EXTENDED

    def probe_locks(self, volume: Volume) -> None:
        """Prove that locks on the share mean something and that no QEMU holds the file."""
        folder, image = self._folder(), recorded_image(volume)
        with folder.opened(image) as opened:
            folder.check_meaning(image)
            opened.check_unheld()

    def create_snapshot(self, volume: Volume, snapshot: Snapshot) -> Taken:
        """Prepare a qcow2 over the file, in which the volume goes on; a snapshot takes room as it does so."""
        return snapshots.take(self._folder(), volume, snapshot)

    def delete_snapshot(self, volume: Volume, snapshot: Snapshot) -> Merge | None:
        """Have what was frozen taken in by the layer above it, and remove it."""
        return snapshots.remove(self._folder(), volume, snapshot)

    def list_snapshots(self) -> Sequence[str]:
        """Give the ids of our snapshots."""
        return sorted(list_marks(self._folder().path))

    def snapshot_size(self, volume: Volume, snapshot: Snapshot) -> int:
        """Read the size of the frozen file."""
        with self._folder().opened(frozen_image(volume, snapshot)) as opened:
            return opened.size_bytes

    def revert_to_snapshot(self, volume: Volume, snapshot: Snapshot) -> str:
        """Drop what was written since the newest snapshot."""
        return snapshots.revert(self._folder(), volume, snapshot)

    def clone_volume(
        self, volume: Volume, options: NFSVolumeOptions, source: Volume, snapshot: Snapshot | None = None
    ) -> str:
        """Copy what the source shows into a file of its own, in the backend's format or the given one."""
        image, folder = self._new_image(volume, options), self._folder()
        self._check_size(volume, volume.size_bytes)
        if not _is_made(folder, volume, image):
            copies.copy(folder, volume, image, source, snapshot)
        return image.recorded

    def existing_size(self, reference: str, options: NFSVolumeOptions) -> int:
        """Give the size of a file in the share, raw unless a format is given."""
        image = Image(options.format or "raw", False, reference)
        return existing.size_of(self._folder(), image, is_said=bool(options.format))

    def manage_existing(self, volume: Volume, reference: str, options: NFSVolumeOptions) -> str:
        """Give a file in the share the name of the volume, for its owner alone to read and write."""
        given = replace(options, format=options.format or "raw", preallocate=bool(options.preallocate))
        image = self._new_image(volume, given)
        existing.take_over(self._folder(), volume, reference, image, is_said=bool(options.format))
        return image.recorded

    def unmanage(self, volume: Volume) -> str:
        """Give the file the name `unmanaged-ID` or `unmanaged-ID.qcow2`, which is the reference then."""
        return existing.give_up(self._folder(), volume)

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        """Say which file of which share it is, and which other ones it lies on.

        A qcow2 in use elsewhere is refused: two QEMUs would write its tables. Raises InvalidState.
        """
        folder, image = self._folder(), recorded_image(volume)
        check_settled(folder, volume)
        if image.format == "qcow2":
            _check_alone(volume, connector)
        layers = layers_of(folder, volume)
        with folder.opened(image) as opened:
            path = opened.path
        below = [[each.file, each.format] for each in layers[1:]]
        layered = {"layers": json.dumps(below)} if below else {}
        if not self._is_export:
            return ConnectionInfo("file", {"path": str(path), "format": image.format, **layered})
        properties = {
            "export": self.options.share,
            "name": image.file,
            "format": image.format,
            "options": self.options.mount_options,
            "mount_point_base": str(self.options.mount_point_base),
            **layered,
        }
        return ConnectionInfo("nfs", properties)

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        """Nothing was given that could be taken back."""

    def ledger_rows(self, volume: Volume, expected_bytes: int) -> Ledger:
        """Give one row: the file. Raises BackendError where it lies on others than recorded, NotFound."""
        folder, image = self._folder(), recorded_image(volume)
        layers_of(folder, volume)
        with folder.opened(image) as opened:
            size_bytes, path = opened.size_bytes, str(opened.path)
        return (LedgerRow("file", path, size_bytes, expected_bytes, note=image.format),)

    def _folder(self) -> Folder:
        return find(self.run, self.options, is_export=self._is_export)

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

    def _make(self, opened: Opened, size_bytes: int) -> None:
        """Fill a new file and read back what came out."""
        preallocated = opened.image.preallocated
        with files.typed_errors(f"file {opened.path}", size_bytes):
            qemuimg.create(self.run, opened.file, opened.image.format, size_bytes, preallocated=preallocated)
        opened.check_size(size_bytes)

    def _grow(self, folder: Folder, volume: Volume, opened: Opened, new_size_bytes: int) -> None:
        """Make a file larger that no QEMU holds, and read back what came out."""
        image, below = opened.image, layers_of(folder, volume)[1:]
        with folder.opened_all(below) as others, files.typed_errors(f"file {opened.path}", new_size_bytes):
            if others:
                layers = [(each.file, each.image.format) for each in (opened, *others)]
                qemuimg.resize_overlay(self.run, layers, new_size_bytes)
            else:
                qemuimg.resize(
                    self.run, opened.file, image.format, new_size_bytes, preallocated=image.preallocated
                )
        opened.check_size(new_size_bytes)


def _is_made(folder: Folder, volume: Volume, image: Image) -> bool:
    """Tell whether an earlier create made the file. Raises InvalidState, BackendError for a foreign one.

    What an earlier one left that was killed is removed.
    """
    path = folder.path / image.file
    files.clean(path)
    for other in (path.with_name(file_name(volume.id, image_format)) for image_format in FORMATS):
        if other != path and os.path.lexists(other):
            raise InvalidState(f"file {other}", "there already", f"absent before {path.name} is made")
    if not os.path.lexists(path):
        return False
    with folder.opened(image) as opened:
        if image.format == "qcow2":
            opened.check_header()
        size_bytes = opened.size_bytes
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
