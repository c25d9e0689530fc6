"""Images into volumes and out of them: Cinder's own image code, for volumes that are files as well.

Cinder takes every volume for a block device. Of a file `qemu-img convert` would make another one: as large as
the image, sparse, and no layer over what snapshots froze. And it would guess the format of what it reads, and
believe a header that a guest has written into a raw disk.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cinder import exception
from cinder.image import image_utils
from cinder.volume import driver as cinder_driver
from cinder.volume import volume_utils

from voldrivers.sizes import GiB

Theirs = Any  # Any: Cinder's own objects, which have no types
Properties = Mapping[str, Any]  # Any: what the image service says of an image
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system (stat(2))


@dataclass(frozen=True)
class Place:
    """A volume on this machine: a file of a format, or a block device."""

    path: str
    format: str
    is_file: bool

    @property
    def needs_root(self) -> bool:
        """Tell whether Cinder's user may not open it; on some shares root may not."""
        return not os.access(self.path, os.R_OK | os.W_OK)

    def is_allocated(self, size_bytes: int) -> bool:
        """Tell whether a volume of that size has all its room on the backend already."""
        return os.stat(self.path).st_blocks * _BLOCK_BYTES >= size_bytes


class Images(cinder_driver.VolumeDriver):  # type: ignore[misc]  # Cinder has no types
    """The part of a driver that copies between volumes and the image service."""

    def copy_image_to_volume(
        self,
        context: Theirs,
        volume: Theirs,
        image_service: Theirs,
        image_id: str,
        disable_sparse: bool = False,
    ) -> None:
        """Write an image into a volume, which keeps its size, its format and its room."""
        fetched = {"blocksize": self.configuration.volume_dd_blocksize, "size": volume.size}
        with self._connected(context, volume) as place:
            if not place.is_file:
                fetched |= {"run_as_root": place.needs_root, "disable_sparse": disable_sparse}
                image_utils.fetch_to_raw(context, image_service, image_id, place.path, **fetched)
                return
            with _temporary_file(volume) as raw:
                image_utils.fetch_to_raw(context, image_service, image_id, raw, run_as_root=False, **fetched)
                _write(raw, place, volume, image_id)

    def copy_image_to_encrypted_volume(
        self, _context: Theirs, volume: Theirs, *_more: object, **_most: object
    ) -> None:
        """Refuse: what os-brick encrypts with puts a link in the place of the path that it is given."""
        reason = f"volume {volume.name} is encrypted: writing an image into it is not built yet"
        raise exception.VolumeDriverException(message=reason)

    def copy_volume_to_image(
        self, context: Theirs, volume: Theirs, image_service: Theirs, image_meta: Properties
    ) -> None:
        """Send what a volume shows as an image of the format that is wanted."""
        wanted, image_id = image_meta["disk_format"], image_meta["id"]
        with self._connected(context, volume, ignore_errors=True) as place:
            image_utils.check_image_conversion_disable(wanted, place.format, image_id, upload=True)
            sent = (context, image_service, image_meta)
            if wanted == place.format == "raw":
                volume_utils.upload_volume(*sent, place.path, volume, run_as_root=place.needs_root)
                return
            with _temporary_file(volume) as copy:
                _read(place, copy, wanted, image_id)
                volume_utils.upload_volume(*sent, copy, volume, volume_format=wanted, run_as_root=False)

    @contextmanager
    def _connected(self, context: Theirs, volume: Theirs, *, ignore_errors: bool = False) -> Iterator[Place]:
        """Have a volume here; what goes wrong at letting go may be ignored where nothing was written."""
        config = self.configuration
        properties = volume_utils.brick_get_connector_properties(
            config.use_multipath_for_image_xfer, config.enforce_multipath_for_image_xfer
        )
        attached, volume = self._attach_volume(context, volume, properties)
        try:
            image_format = attached["conn"]["data"].get("format")
            yield Place(attached["device"]["path"], image_format or "raw", is_file=image_format is not None)
        finally:
            ending = {"force": True, "ignore_errors": ignore_errors}
            self._detach_volume(context, attached, volume, properties, **ending)


@contextmanager
def _temporary_file(volume: Theirs) -> Iterator[str]:
    """Give a file in `image_conversion_dir`; by its name Cinder removes what a killed process left."""
    backend = volume_utils.extract_host(volume.service_topic_queue)
    with image_utils.temporary_file(prefix=f"volume_{volume.id}_", suffix=backend) as path:
        yield path


def _write(raw: str, place: Place, volume: Theirs, image_id: str) -> None:
    """Write into the file that is there; zeros are left out or freed unless it has all its room."""
    image_utils.convert_image(
        raw,
        place.path,
        place.format,
        src_format="raw",
        run_as_root=place.needs_root,
        image_id=image_id,
        data=image_utils.qemu_img_info(raw, run_as_root=False, img_format="raw"),
        disable_sparse=place.is_allocated(volume.size * GiB),
        skip_create=True,
    )


def _read(place: Place, copy: str, wanted: str, image_id: str) -> None:
    """Copy a volume, with the layers below it, into an image that stands alone."""
    as_root = place.needs_root
    image_utils.convert_image(
        place.path,
        copy,
        image_utils.fixup_disk_format(wanted),
        src_format=place.format,
        run_as_root=as_root,
        compress=True,
        image_id=image_id,
        data=image_utils.qemu_img_info(
            place.path, run_as_root=as_root, allow_qcow2_backing_file=True, img_format=place.format
        ),
    )
