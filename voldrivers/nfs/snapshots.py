"""Snapshots in a share: a frozen file each, under the overlay in which the volume went on.

Deleting one has the layer above take in what is frozen, so no other file changes its name or content.
"""

import os

from voldrivers.abilities import Merge, Taken
from voldrivers.errors import BackendError, InvalidState, NotSupported
from voldrivers.model import InstanceState, Snapshot, Volume
from voldrivers.nfs import files, names, qcow2, qemuimg
from voldrivers.nfs.folder import Folder, Opened
from voldrivers.nfs.image import Image, frozen_image, mark_name, overlay_over, recorded_image, spacer_name
from voldrivers.nfs.layers import check_settled, layer_above, layers_of
from voldrivers.sizes import format_size


def take(folder: Folder, volume: Volume, snapshot: Snapshot) -> Taken:
    """Prepare the overlay in which the volume goes on: see `Snapshots.create_snapshot`.

    One that nobody has written is what it lies over, so it may be gone on in at any time.
    """
    image = recorded_image(volume)
    overlay = overlay_over(image, volume, snapshot)
    if image.file == overlay.file:
        return Taken(volume.provider_data, snapshot.provider_data)
    if volume.multi_attach:
        reason = "a volume that can be attached twice has no snapshots: a qcow2 over it has one writer"
        raise NotSupported(volume.title, reason)
    _check_attachments(volume)
    check_settled(folder, volume, but=snapshot)
    with folder.opened(image) as frozen:
        folder.check_attached_from_here(volume, image)
        if not os.path.lexists(folder.path / overlay.file):
            _check_freezable(folder, volume, frozen)
            _lay(folder, frozen, overlay)
        with folder.opened(overlay) as made:
            made.check_header([image])
    _mark(folder, volume, snapshot)
    return Taken(overlay.recorded, image.recorded)


def remove(folder: Folder, volume: Volume, snapshot: Snapshot) -> Merge | None:
    """Merge what is frozen into the layer above and remove it: see `Snapshots.delete_snapshot`."""
    if not snapshot.provider_data:
        _take_back(folder, volume, snapshot)
        return None
    _check_attachments(volume)
    names.clean(volume.id)  # a program may have outlived who started it, and ended well
    frozen = frozen_image(volume, snapshot)
    layers = layers_of(folder, volume, leaving=snapshot)
    if frozen in layers:
        at = layers.index(frozen)
        if not volume.nobody_runs:
            return _merge(folder, volume, snapshot, layers[at - 1 :])
        _merge_here(folder, volume, layers, at)
        layers = layers_of(folder, volume, leaving=snapshot)
        if frozen in layers:
            raise BackendError(f"file {frozen.file}", "is not merged, although qemu-img said so")
    return _drop(folder, volume, snapshot, frozen, layers)


def revert(folder: Folder, volume: Volume, snapshot: Snapshot) -> str:
    """Have the volume go on in a new overlay over the snapshot's file: see `Reverts`."""
    if snapshot.id != volume.snapshots[-1].id:
        reason = (
            "a volume can be reverted to its newest snapshot only; delete the newer ones first, or clone it"
        )
        raise NotSupported(snapshot.title, reason)
    if volume.attachments:
        raise InvalidState(volume.title, "attached", "detached")
    active, frozen = layers_of(folder, volume)[:2]
    with folder.opened(active) as opened, folder.opened(frozen) as below:
        opened.check_unheld()
        size_bytes = below.size_bytes
        with files.replaced_file(opened.path) as file:
            _make_overlay(folder, Opened(opened.path, file, active), frozen, size_bytes)
    return volume.provider_data


def _check_attachments(volume: Volume) -> None:
    for attachment in volume.attachments:
        if attachment.instance is None:
            reason = (
                f"attached to {attachment.place} without an instance, which may write its file: detach it"
            )
            raise NotSupported(volume.title, reason)
        if attachment.instance_state is InstanceState.UNKNOWN:
            state = f"attached to {attachment.place}, of which nobody knows whether it runs"
            raise InvalidState(volume.title, state, "attached to what runs, or is provably gone")


def _check_freezable(folder: Folder, volume: Volume, frozen: Opened) -> None:
    """Refuse a file that is being written by nobody we know, and what there is no room for."""
    layers_of(folder, volume)
    if volume.nobody_runs:
        if volume.attachments:
            folder.check_meaning(frozen.image)
        frozen.check_unheld()
    if frozen.size_bytes % 512:
        raise InvalidState(volume.title, format_size(frozen.size_bytes), "a multiple of 512 bytes")
    folder.check_room(volume.title, frozen.allocated_bytes, Image("qcow2", False, frozen.image.file))


def _lay(folder: Folder, frozen: Opened, overlay: Image) -> None:
    path = folder.path / overlay.file
    with files.new_file(path) as file:
        _make_overlay(folder, Opened(path, file, overlay), frozen.image, frozen.size_bytes)


def _make_overlay(folder: Folder, made: Opened, below: Image, size_bytes: int) -> None:
    with files.typed_errors(f"file {made.path}", size_bytes):
        qemuimg.create_overlay(folder.run, made.file, size_bytes, below.file, below.format)
    made.check_size(size_bytes)
    made.check_header([below])


def _mark(folder: Folder, volume: Volume, snapshot: Snapshot) -> None:
    """Say that a snapshot is there."""
    path = folder.path / mark_name(volume, snapshot)
    files.clean(path)
    if not os.path.lexists(path):
        with files.new_file(path):
            """It stays empty."""


def _merge(folder: Folder, volume: Volume, snapshot: Snapshot, layers: tuple[Image, ...]) -> Merge:
    """Ask for the second of some layers to be merged into the first; make what that needs in between."""
    above, frozen, *below = layers
    base, base_format = (below[0].file, below[0].format) if below else (None, None)
    with folder.opened(above) as opened, folder.opened(frozen) as smaller:
        size_bytes = opened.size_bytes
        if smaller.size_bytes == size_bytes:
            return Merge(above.file, frozen.file, base, base_format)
    name = spacer_name(volume, snapshot)
    path = folder.path / name
    if not os.path.lexists(path):
        with files.new_file(path) as file:
            _make_overlay(folder, Opened(path, file, Image("qcow2", False, name)), frozen, size_bytes)
    return Merge(above.file, frozen.file, base, base_format, name)


def _merge_here(folder: Folder, volume: Volume, layers: tuple[Image, ...], at: int) -> None:
    """Have the layer above take in what is frozen, nobody else having either open."""
    with folder.opened_all(layers[at - 1 :]) as opened:
        above, frozen = opened[:2]
        if volume.attachments:
            folder.check_meaning(above.image)
        above.check_unheld()
        frozen.check_unheld()
        base = (opened[2].image.file, opened[2].image.format) if len(opened) > 2 else None
        copied_bytes = frozen.size_bytes if base is None else frozen.allocated_bytes
        by_name = {each.image.file: each.file for each in opened}
        with names.named(volume.id, by_name) as place, files.typed_errors(f"file {above.path}", copied_bytes):
            qemuimg.take_in(folder.run, place / above.image.file, base, copied_bytes)


def _drop(
    folder: Folder, volume: Volume, snapshot: Snapshot, frozen: Image, layers: tuple[Image, ...]
) -> Merge | None:
    """Remove a file that nothing lies on any more, once every QEMU has let go of it."""
    path = folder.path / frozen.file
    if os.path.lexists(path):
        for layer in layers:
            with folder.opened(layer) as above, files.typed_errors(f"file {above.path}"):
                files.sync(above.file)
        with folder.opened(frozen) as opened:
            try:
                opened.check_unheld()
            except InvalidState:
                if volume.nobody_runs:
                    raise
                return _held(folder, volume, snapshot, layers)
        files.remove(path)
    for name in (spacer_name(volume, snapshot), mark_name(volume, snapshot)):
        files.clean(folder.path / name)
        files.remove(folder.path / name)
    return None


def _held(folder: Folder, volume: Volume, snapshot: Snapshot, layers: tuple[Image, ...]) -> Merge:
    """Ask once more for a merge that is done, so that the QEMU lets go of what it merged."""
    frozen = frozen_image(volume, snapshot)
    above = layer_above(volume, frozen)
    if above not in layers:
        raise BackendError(f"file {frozen.file}", f"is held by a QEMU, and {above.file} over it is gone")
    return _merge(folder, volume, snapshot, (above, frozen, *layers[layers.index(above) + 1 :]))


def _take_back(folder: Folder, volume: Volume, snapshot: Snapshot) -> None:
    """Remove what a failed snapshot left, if the volume was never written there."""
    image = recorded_image(volume)
    overlay = overlay_over(image, volume, snapshot)
    path = folder.path / overlay.file
    files.clean(path)
    if overlay.file == image.file:
        raise InvalidState(volume.title, f"in use through {snapshot.title}", "resumed first")
    if os.path.lexists(path):
        with folder.opened(overlay) as opened:
            if volume.attachments:
                folder.check_meaning(overlay)
            opened.check_unheld()
            if qcow2.is_written(opened.path, opened.file):
                raise InvalidState(f"file {path}", "written to already", f"resumed, for {snapshot.title}")
        files.remove(path)
    mark = folder.path / mark_name(volume, snapshot)
    files.clean(mark)
    files.remove(mark)
