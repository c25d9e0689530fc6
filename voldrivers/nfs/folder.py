"""The directory of a share: found, answering, with the files of volumes opened in it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from voldrivers import filesystem, mounts
from voldrivers.base import Run
from voldrivers.errors import BackendError, InvalidState
from voldrivers.model import Volume
from voldrivers.nfs import files, imagelocks, qcow2, qemuimg, share
from voldrivers.nfs.image import Image
from voldrivers.nfs.options import NFSOptions
from voldrivers.nfs.pool import check_room
from voldrivers.sizes import format_size


@dataclass(frozen=True)
class Opened:
    """A file held open: its path for people, the path to work with, its record."""

    path: Path
    file: Path
    image: Image

    @property
    def size_bytes(self) -> int:
        """The size of the volume in it, read now."""
        return filesystem.image_bytes(self.file, self.image.format, called=self.path)

    @property
    def allocated_bytes(self) -> int:
        """The room that it takes now."""
        return self.file.stat().st_blocks * 512

    def check_size(self, wanted_bytes: int) -> None:
        """Compare the size with what a program said it made. Raises BackendError."""
        if self.size_bytes != wanted_bytes:
            came_out = f"came out {format_size(self.size_bytes)} large instead of {format_size(wanted_bytes)}"
            raise BackendError(f"file {self.path}", came_out)

    def check_header(self, allowed: Sequence[Image | None] = (None,)) -> qcow2.Header:
        """Refuse a qcow2 that lies on anything else than what is recorded. Raises BackendError."""
        names = [None if each is None else (each.file, each.format) for each in allowed]
        return qcow2.check_header(self.path, self.file, names)

    def check_unheld(self) -> None:
        """Refuse one that a QEMU holds. Raises InvalidState."""
        imagelocks.check_unheld(self.path, self.file)


@dataclass(frozen=True)
class Folder:
    """A share that was there a moment ago, and how its programs are run."""

    run: Run
    options: NFSOptions
    place: mounts.Place
    is_export: bool

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.place.path

    @contextmanager
    def opened(self, image: Image) -> Iterator[Opened]:
        """Hold a file. Raises as `files.opened`."""
        path = self.path / image.file
        with files.opened(path) as file:
            yield Opened(path, file, image)

    @contextmanager
    def opened_all(self, images: Sequence[Image]) -> Iterator[list[Opened]]:
        """Hold several files, in their order."""
        with ExitStack() as held:
            yield [held.enter_context(self.opened(image)) for image in images]

    def check_room(self, subject: str, growth_bytes: int, image: Image) -> None:
        """Refuse what there is no room for, or no way to allocate. Raises NoSpace, NotSupported."""
        preallocated = image.preallocated
        check_room(self.run, self.path, self.options, subject, growth_bytes, preallocated=preallocated)
        if preallocated:
            with files.scratch_file(self.path / image.file) as scratch:
                qemuimg.probe_allocation(self.run, f"share {self.path}", scratch)

    def check_meaning(self, image: Image) -> None:
        """Refuse a share whose locks mean nothing. Raises InvalidState."""
        imagelocks.check_meaning(self.place.mount, self.path / image.file)

    def check_attached_from_here(self, volume: Volume, image: Image) -> None:
        """Refuse a volume that hosts have from another share than the one of today's configuration."""
        for attachment in volume.attachments:
            if attachment.connection_info is None:
                continue
            there = attachment.connection_info.properties
            path = str(self.path / image.file)
            here = {"export": self.options.share} if self.is_export else {"path": path}
            if any(there.get(key) != value for key, value in here.items()):
                where = f"attached to {attachment.place} from {there.get('export') or there.get('path')}"
                raise InvalidState(volume.title, where, f"attached from {next(iter(here.values()))}")


def find(run: Run, options: NFSOptions, *, is_export: bool) -> Folder:
    """Find the share, mounting it if it is an export. Raises InvalidState when it is not there."""
    directory = Path(options.share)
    if is_export:
        directory = share.mount(run, options.share, options.mount_options, options.mount_point_base)
    place = mounts.place_of(directory)
    if not place.mount.is_local:  # a dead server would block whatever comes next
        filesystem.room(run, place.path)
    if options.must_be_mounted and place.mount.point != place.path:
        raise InvalidState(f"share {directory}", "not mounted", "mounted")
    if not place.path.is_dir():
        raise InvalidState(f"share {directory}", "not there", "a directory")
    return Folder(run, options, place, is_export)
