"""The layers of a volume: its active file over what its snapshots froze.

They are those that are recorded, compared with the headers: one that says something else is refused. Only of
a snapshot that is being deleted both is right: that the layer above it lies on it still, or on what was
below it.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from voldrivers.errors import BackendError, InvalidState
from voldrivers.model import Snapshot, SnapshotStatus, Volume
from voldrivers.nfs.folder import Folder
from voldrivers.nfs.image import Image, frozen_image, image_below, overlay_over, recorded_image


@dataclass(frozen=True)
class _Recorded:
    """A layer; one that is `leaving` may have been merged into the one above it."""

    image: Image
    leaving: bool = False


def layers_of(folder: Folder, volume: Volume, leaving: Snapshot | None = None) -> tuple[Image, ...]:
    """Give the files that hold a volume: the active one, then what lies below, as it is now.

    A snapshot that is `leaving` may have been merged. Raises BackendError where the headers do not say what
    is recorded.
    """
    return _compared(folder, list(_recorded(volume, leaving)))


def layers_of_snapshot(folder: Folder, volume: Volume, snapshot: Snapshot) -> tuple[Image, ...]:
    """Give the files that hold a snapshot, in the same way."""
    frozen = frozen_image(volume, snapshot)
    recorded = list(_recorded(volume, None))
    first = next((n for n, each in enumerate(recorded) if each.image.file == frozen.file), None)
    if first is None:
        raise BackendError(snapshot.title, f"its file {frozen.file} is none of {volume.title}")
    return _compared(folder, recorded[first:])


def layer_above(volume: Volume, frozen: Image) -> Image:
    """Give the layer that is recorded right above one."""
    recorded = [each.image for each in _recorded(volume, None)]
    at = [each.file for each in recorded].index(frozen.file)
    return recorded[at - 1]


def check_settled(folder: Folder, volume: Volume, but: Snapshot | None = None) -> None:
    """Refuse a volume that may have gone on in an overlay that is not recorded. Raises InvalidState."""
    image = recorded_image(volume)
    for snapshot in volume.snapshots:
        overlay = overlay_over(image, volume, snapshot)
        if snapshot.provider_data or overlay.file == image.file or (but and but.id == snapshot.id):
            continue
        if os.path.lexists(folder.path / overlay.file):
            raise InvalidState(volume.title, f"without an end of its {snapshot.title}", "resumed first")


def _recorded(volume: Volume, leaving: Snapshot | None) -> Iterator[_Recorded]:
    active = recorded_image(volume)
    yield _Recorded(active)
    if below := image_below(volume, active):
        yield _Recorded(below)
    for snapshot in reversed(volume.snapshots):
        if snapshot.provider_data:
            is_leaving = snapshot.status is SnapshotStatus.DELETING or snapshot.id == getattr(
                leaving, "id", ""
            )
            yield _Recorded(frozen_image(volume, snapshot), is_leaving)


def _compared(folder: Folder, recorded: Sequence[_Recorded]) -> tuple[Image, ...]:
    """Walk down by the headers, each allowed to lead only where the records do."""
    found, rest = [recorded[0].image], list(recorded[1:])
    while found[-1].format == "qcow2":
        below = _below(folder, found[-1], rest)
        if below is None:
            return tuple(found)
        rest = rest[[each.image for each in rest].index(below) + 1 :]
        found.append(below)
    if not all(each.leaving for each in rest):
        raise BackendError(
            f"file {folder.path / found[-1].file}", "is raw and recorded as lying on another one"
        )
    return tuple(found)


def _below(folder: Folder, image: Image, rest: Sequence[_Recorded]) -> Image | None:
    """Give which of what is recorded below a qcow2 it lies on: the first that stays, or one before it."""
    stays = next((n for n, each in enumerate(rest) if not each.leaving), None)
    allowed: list[Image | None] = [each.image for each in (rest if stays is None else rest[: stays + 1])]
    with folder.opened(image) as opened:
        header = opened.check_header(allowed if stays is not None else [*allowed, None])
    return next((each for each in allowed if each and each.file == header.backing), None)
