"""Clones: a file of its own each, copied from what the records say holds a volume or a snapshot."""

from voldrivers.errors import InvalidState
from voldrivers.model import Snapshot, Volume
from voldrivers.nfs import files, qemuimg
from voldrivers.nfs.folder import Folder, Opened
from voldrivers.nfs.image import Image
from voldrivers.nfs.layers import check_settled, layers_of, layers_of_snapshot


def copy(folder: Folder, volume: Volume, image: Image, source: Volume, snapshot: Snapshot | None) -> None:
    """Make the file of `volume`, whole or not at all, as large as that is: see `Clones.clone_volume`."""
    layers = _source(folder, source) if snapshot is None else layers_of_snapshot(folder, source, snapshot)
    path = folder.path / image.file
    with folder.opened_all(layers) as opened:
        if snapshot is None:
            opened[0].check_unheld()
        folder.check_room(volume.title, volume.size_bytes, image)
        with files.new_file(path) as file:
            _fill(folder, Opened(path, file, image), opened, volume.size_bytes)


def _source(folder: Folder, source: Volume) -> tuple[Image, ...]:
    """Give the layers of a volume that nobody has. Raises InvalidState."""
    if source.attachments:
        places = ", ".join(attachment.place for attachment in source.attachments)
        needed = "detached to be copied"
        if all(attachment.instance for attachment in source.attachments):
            needed += "; or take a snapshot and copy that"
        raise InvalidState(source.title, f"attached to {places}", needed)
    check_settled(folder, source)
    return layers_of(folder, source)


def _fill(folder: Folder, made: Opened, source: list[Opened], size_bytes: int) -> None:
    image, copied_bytes = made.image, source[0].size_bytes
    layers = [(each.file, each.image.format) for each in source]
    with files.typed_errors(f"file {made.path}", size_bytes):
        qemuimg.create(folder.run, made.file, image.format, size_bytes, preallocated=image.preallocated)
        qemuimg.convert(folder.run, layers, made.file, image.format, copied_bytes)
    made.check_size(size_bytes)
    if image.format == "qcow2":
        made.check_header()
