"""Taking over files that are in a share already, and giving volumes up, byte for byte."""

import os
import stat
from dataclasses import replace

from voldrivers.errors import BackendError, InvalidInput, InvalidSize, InvalidState, NotSupported
from voldrivers.model import Volume
from voldrivers.nfs import files
from voldrivers.nfs.folder import Folder, Opened
from voldrivers.nfs.image import Image, is_ours, recorded_image
from voldrivers.sizes import format_size

#: What a guest may have written to the beginning of its disk; every other format is not to be read as raw.
#: NAME_MAX (limits.h).
_LONGEST_NAME = 255
_RAW_CONTENT = ("raw", "gpt", "iso")


def size_of(folder: Folder, image: Image, *, is_said: bool) -> int:
    """Give the size of what could become a volume: see `Manages.existing_size`.

    One that `is_said` to be raw may begin like another format: its guest writes there what it likes.
    """
    _check_name(image.file)
    path = folder.path / image.file
    with files.typed_errors(f"file {path}"):
        status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidState(f"file {path}", "no regular file", "one")
    if status.st_nlink != 1:
        raise InvalidState(f"file {path}", f"known by {status.st_nlink} names (hard links)", "known by one")
    with folder.opened(image) as opened:
        files.check_writable(path, opened.file)
        opened.check_unheld()
        _check_content(opened, is_said=is_said)
        size_bytes = opened.size_bytes
    if size_bytes % 512 or not size_bytes:
        reason = "a volume is a multiple of 512 bytes: make the file larger first (truncate, qemu-img resize)"
        raise InvalidSize(f"file {path}", reason, format_size(size_bytes))
    return size_bytes


def take_over(folder: Folder, volume: Volume, reference: str, image: Image, *, is_said: bool) -> None:
    """Make a file the one of `volume`: see `Manages.manage_existing`."""
    _check_name(reference)
    path, new_path = folder.path / reference, folder.path / image.file
    if not os.path.lexists(new_path):
        size_bytes = size_of(folder, replace(image, file=reference), is_said=is_said)
        if size_bytes != volume.size_bytes:
            state = f"{format_size(size_bytes)} large"
            raise InvalidState(
                f"file {path}", state, f"{format_size(volume.size_bytes)}, as when it was asked"
            )
        files.rename(path, new_path)
    elif files.is_same(path, new_path):  # killed between its two names
        files.rename(path, new_path)
    with files.opened(new_path) as file, files.typed_errors(f"file {new_path}"):
        os.chmod(file, 0o600)


def give_up(folder: Folder, volume: Volume) -> str:
    """Give a volume's file a name that is none of ours: see `Manages.unmanage`."""
    image = recorded_image(volume)
    reference = f"unmanaged-{volume.id}" + (".qcow2" if image.format == "qcow2" else "")
    path, new_path = folder.path / image.file, folder.path / reference
    if volume.attachments or volume.snapshots:
        raise InvalidState(volume.title, "attached, or with snapshots", "detached and without snapshots")
    if not os.path.lexists(path) and os.path.lexists(new_path):
        return reference
    with folder.opened(image) as opened:
        opened.check_unheld()
        if image.format == "qcow2":
            opened.check_header()
    files.rename(path, new_path)
    return reference


def _check_name(reference: str) -> None:
    subject = f"file name {reference!r}"
    if "/" in reference or "\0" in reference or reference in ("", ".", ".."):
        raise InvalidInput(subject, "must name a file in the share itself")
    if len(os.fsencode(reference)) > _LONGEST_NAME:
        raise InvalidInput(subject, f"is longer than {_LONGEST_NAME} bytes")
    if is_ours(files.meant_by(reference)):
        raise InvalidInput(subject, "is a name of a volume of this backend, or of a part of one")


def _check_content(opened: Opened, *, is_said: bool) -> None:
    """Refuse what is not what it is said to be. Raises InvalidState."""
    subject, image_format = f"file {opened.path}", opened.image.format
    if image_format == "raw":
        if not is_said and (found := _found_format(opened)) not in _RAW_CONTENT:
            needed = "raw, or said to be: --format qcow2, or --format raw if only its guest wrote that"
            raise InvalidState(subject, f"beginning like {found}", needed)
        return
    try:
        header = opened.check_header()
    except BackendError as error:
        raise InvalidState(
            subject, f"no qcow2 to take over ({error.reason})", "one that stands alone"
        ) from error
    if header.corrupt or header.internal_snapshots:
        state = "marked as corrupt" if header.corrupt else "holding internal snapshots"
        raise InvalidState(subject, state, "mended, and without snapshots of its own (qemu-img)")


def _found_format(opened: Opened) -> str:
    """Tell what a file begins like; what fits several formats is named as all of them."""
    try:
        from oslo_utils.imageutils import format_inspector
    except ImportError as error:
        raise NotSupported("taking over a file", "needs the extra: pip install 'voldrivers[nfs]'") from error
    try:
        return str(format_inspector.detect_file_format(str(opened.file)) or "raw")
    except format_inspector.ImageFormatError as error:
        return str(error)
