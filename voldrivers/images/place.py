"""A volume attached to this machine without an instance: found, opened, made larger in place or not."""

from collections.abc import Iterable
from pathlib import Path

from voldrivers.errors import BackendError, InvalidSize, InvalidState, NoSpace, NotSupported, VolDriverError
from voldrivers.extend.engine import Engine
from voldrivers.extend.site import expect
from voldrivers.host.local import LocalHost
from voldrivers.images.target import Target
from voldrivers.model import Attachment, AttachmentState, Volume, VolumeStatus
from voldrivers.sizes import format_size


class Place:
    """Where an image is written or read: one volume here, opened. Its thread has the volume reserved."""

    def __init__(self, engine: Engine, volume: Volume, *, writable: bool, in_place: bool = False) -> None:
        """Open it. Raises InvalidState, NotSupported, NotFound, BackendError; nothing has changed then."""
        self._engine, self._writable, self.in_place = engine, writable, in_place
        self.volume, self._attachment = volume, attached_here(engine, volume)
        self.extends = self.attaches = self._left_out_bytes = 0
        self.has_changed = False
        self.target = self._opened()

    @property
    def left_out_bytes(self) -> int:
        """So many zeros were not written, because they were there already."""
        return self._left_out_bytes + self.target.left_out_bytes

    def check_may_grow(self) -> None:
        """Refuse at once what could never be extended in place. Raises NotSupported."""
        try:
            if self.in_place:
                self._engine.plan(self.volume.id, self.volume.size_bytes + 1)
        except NotSupported as error:
            error.add_note("with --no-extend-attached it is detached for that and attached again")
            raise
        except VolDriverError:  # no room, say: perhaps none is needed
            return

    def grow(self, sizes: Iterable[int]) -> None:
        """Make it as large as the first of these sizes for which there is room.

        Nothing may be under way with the target; not in place it has been flushed. Then the volume is
        attached again, whatever happens; an error says where it is not.
        """
        self.has_changed = True
        if self.in_place:
            self._extend(sizes)
        else:
            self._extend_detached(sizes)
        self.check_shown()

    def check_shown(self) -> None:
        """Refuse a device that shows less than the volume has. Raises BackendError."""
        if (seen_bytes := self.target.size_bytes) < self.volume.size_bytes:
            seen, wanted = format_size(seen_bytes), format_size(self.volume.size_bytes)
            raise BackendError(self.volume.title, f"{self.target.path} shows {seen} of {wanted}")

    def check_settled(self) -> None:
        """Compare the size that this machine sees with the published one. Raises BackendError."""
        seen_bytes = self.target.size_bytes
        if seen_bytes != self.volume.size_bytes:
            seen, wanted = format_size(seen_bytes), format_size(self.volume.size_bytes)
            raise BackendError(self.volume.title, f"{self.target.path} has {seen} instead of {wanted}")

    def _opened(self) -> Target:
        host = self._engine.site.host(self._attachment.host)
        host.get_blockdev(self.volume, self._attachment)  # within its limit also where a share is away
        return Target(Path(self._attachment.device_path or ""), writable=self._writable)

    def _extend_detached(self, sizes: Iterable[int]) -> None:
        self._left_out_bytes = self.left_out_bytes
        self.target.close()
        self._engine.detach(self.volume.id, self._attachment.host, "")
        try:
            self._extend(sizes)
        except VolDriverError as error:
            self._attach_after(error)
            raise
        self._attach()
        self.target = self._opened()

    def _extend(self, sizes: Iterable[int]) -> None:
        refused: VolDriverError | None = None
        for size_bytes in sizes:
            try:
                self._engine.extend(self.volume.id, size_bytes)
            except (NoSpace, InvalidSize) as error:  # the rule of the backend may have a maximum
                refused = error
                continue
            self.extends += 1
            self.volume = self._engine.volume(self.volume.id)
            return
        if refused is not None:
            raise refused

    def _attach(self) -> None:
        self._attachment = self._engine.attach(self.volume.id, self._attachment.host)
        self.attaches += 1
        self.volume = self._engine.volume(self.volume.id)

    def _attach_after(self, error: VolDriverError) -> None:
        try:
            self._attach()
        except VolDriverError as another:
            error.add_note(f"it could not be attached again: {another}")


def attached_here(engine: Engine, volume: Volume) -> Attachment:
    """Give the attachment by which this machine alone has a volume. Raises InvalidState, NotSupported."""
    if volume.status is not VolumeStatus.AVAILABLE:
        expect(volume, VolumeStatus.IN_USE)
    needed = "attached to this machine without an instance"
    if not volume.attachments:
        error = InvalidState(volume.title, "not attached", needed)
        error.add_note(f"run: voldrivers attach {volume.name}")
        raise error
    attachment = volume.attachments[0]
    if len(volume.attachments) > 1 or attachment.instance is not None:
        places = ", ".join(each.place or each.id for each in volume.attachments)
        raise InvalidState(volume.title, f"attached to {places}", f"{needed}, and nowhere else")
    if attachment.by_client or attachment.state is not AttachmentState.ATTACHED:
        state = "connected by a client of the API" if attachment.by_client else attachment.state
        raise InvalidState(volume.title, state, f"{needed}, by voldrivers")
    if not isinstance(engine.site.host(attachment.host), LocalHost):
        reason = f"host {attachment.host} is another machine, and images are written and read on this one"
        raise NotSupported(volume.title, reason)
    info = attachment.connection_info
    if info is not None and info.properties.get("format", "raw") != "raw":
        reason = (
            f"it is a {info.properties['format']} file here, whose blocks only QEMU knows;"
            " images are for raw files without snapshots, and block devices"
        )
        raise NotSupported(volume.title, reason)
    return attachment
