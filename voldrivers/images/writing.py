"""Writing an image of any size into a volume, which is extended as the image comes.

The next reads are in flight while a piece is hashed and written. What stands in the volume is recorded before
its first byte is written and called whole after the last one was flushed, never before.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from voldrivers.base import round_size
from voldrivers.errors import BackendError, InvalidInput, InvalidSize, InvalidState, VolDriverError
from voldrivers.extend.catalog import Catalog
from voldrivers.extend.engine import Engine
from voldrivers.extend.site import is_settled
from voldrivers.images.flow import Flow, Limits, Piece
from voldrivers.images.growth import Growth
from voldrivers.images.place import Place
from voldrivers.images.progress import ImageProgress, no_progress
from voldrivers.images.records import ImageRecord, ImageRecords, ImageState
from voldrivers.images.source import Readable, Source
from voldrivers.model import Volume, VolumeStatus
from voldrivers.sizes import LARGEST_BYTES, format_size

_SHA256 = re.compile("[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class WriteOptions:
    """How an image is written.

    `size_bytes` and `sha256` are its size and checksum, if they are known: then it must have them. Without
    either nobody can tell a pipe that is done from one whose writer died. `extend_attached` extends the
    volume where it is attached, else it is detached, extended and attached each time; None is what the policy
    `image_extend_attached` says. `md5` is for stores that still compare it.
    """

    size_bytes: int | None = None
    sha256: str | None = None
    extend_attached: bool | None = None
    growth: Growth = field(default_factory=Growth)
    md5: bool = False
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class WrittenImage:
    """An image that is whole in its volume.

    `left_over_bytes` is what the volume has beyond the size rule's rounding of the image; it keeps what it
    held. `left_out_bytes` were zeros that were there already. `why_not_direct` is empty for direct I/O.
    """

    volume: Volume
    size_bytes: int
    sha256: str
    md5: str
    left_over_bytes: int
    left_out_bytes: int
    extends: int
    attaches: int
    why_not_direct: str


def write_image(
    engine: Engine,
    name: str,
    stream: Readable,
    options: WriteOptions = WriteOptions(),
    progress: Callable[[ImageProgress], None] = no_progress,
) -> WrittenImage:
    """Write a stream, to its end, into a volume that is attached to this machine without an instance.

    It begins at the volume's first byte, whatever the volume held; what lies beyond the image stays. The
    volume is reserved meanwhile: nobody else can extend, detach or delete it. Raises InvalidInput,
    InvalidState, NotSupported, NoSpace before anything was written; afterwards any error says what remains,
    and the records say that the image is not whole. Written again it begins anew.
    """
    with engine.site.reserved(name) as volume:
        allowed = options.extend_attached
        in_place = engine.site.policy.image_extend_attached if allowed is None else allowed
        _check_announced(engine, volume, options)
        _check_writable(engine, volume)
        place = Place(engine, volume, writable=True, in_place=in_place)
        writing = _Writing(engine, place, Source(stream), options, progress)
        try:
            return writing.write()
        except BaseException as error:
            writing.tell_what_remains(error)
            raise
        finally:
            writing.close()


class _Writing:
    """One image on its way into one volume."""

    def __init__(
        self,
        engine: Engine,
        place: Place,
        source: Source,
        options: WriteOptions,
        progress: Callable[[ImageProgress], None],
    ) -> None:
        self._engine, self._place, self._options, self._progress = engine, place, options, progress
        self._records = ImageRecords(engine.store)
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        hashes = [self._sha256.update, *([self._md5.update] if options.md5 else [])]
        self._flow = Flow(source, hashes, options.limits)
        self._has_begun = False

    def write(self) -> WrittenImage:
        """Write all of it."""
        if (self._options.size_bytes or LARGEST_BYTES) > self._place.volume.size_bytes:
            self._place.check_may_grow()
        for piece in self._flow.pieces():
            self._check_not_longer(piece)
            self._make_room(piece)
            self._begin()
            self._flow.put(piece, self._place.target)
            self._tell_progress()
        self._check_not_shorter()
        self._flow.drain()
        self._check_same()
        self._flow.flush(self._place.target)
        self._place.check_settled()
        return self._ended()

    def tell_what_remains(self, error: BaseException) -> None:
        """Record that the image is not whole, and note on the error what is left of it."""
        if not self._has_begun and not self._place.has_changed:
            return
        volume = self._latest()
        remains = f"the volume has {format_size(volume.size_bytes)} and is {volume.status}"
        if not self._has_begun:
            error.add_note(f"no image was written, {remains}")
            return
        written, begun = format_size(self._flow.written_bytes), format_size(self._flow.put_bytes)
        written += "" if written == begun else f", at most {begun},"
        remains = f"the image in it is not whole: its first {written} were written, {remains}"
        remains = f"{remains}; {_again(volume)}"
        why = str(error) or "interrupted"
        error.add_note(remains)
        try:
            self._records.put(volume, ImageRecord(ImageState.BROKEN), f"{remains} ({why})")
        except VolDriverError as another:  # recorded as being written it is not whole either
            error.add_note(f"that could not be recorded: {another}")

    def close(self) -> None:
        """End the threads, and let go of the device unless one still works on it."""
        if self._flow.close():
            self._place.target.close()

    def _latest(self) -> Volume:
        try:
            return self._engine.volume(self._place.volume.id)
        except VolDriverError:  # the records cannot be read
            return self._place.volume

    def _begin(self) -> None:
        if not self._has_begun:
            self._place.check_shown()
            self._has_begun = True
            text = "an image is being written; it is not whole before a later message says so"
            self._records.put(self._place.volume, ImageRecord(ImageState.WRITING), text)

    def _make_room(self, piece: Piece) -> None:
        """Extend a volume that is too small: to the image's end if that is known or in sight, else more."""
        size_bytes = self._options.size_bytes
        if (size_bytes or piece.end_bytes) <= self._place.volume.size_bytes:
            return
        self._flow.drain()
        ahead = self._flow.ahead(piece)
        self._check_not_longer(ahead)
        if not self._place.in_place:
            self._flow.flush(self._place.target)
        if size_bytes is not None:
            sizes: Iterator[int] = iter([size_bytes])
        elif ahead.is_last:
            sizes = iter([ahead.end_bytes])
        else:
            sizes = self._options.growth.sizes(self._place.volume.size_bytes, ahead.end_bytes)
        self._place.grow(sizes)

    def _check_not_longer(self, piece: Piece) -> None:
        size_bytes, limit_bytes = self._options.size_bytes, self._options.growth.limit_bytes
        if size_bytes is not None and piece.end_bytes > size_bytes:
            reason = f"goes on beyond the {format_size(size_bytes)} that were announced"
            raise BackendError(Source.title, reason)
        if size_bytes is None and limit_bytes is not None and piece.end_bytes > limit_bytes:
            raise BackendError(Source.title, f"is larger than its limit, {format_size(limit_bytes)}")

    def _check_not_shorter(self) -> None:
        given_bytes, size_bytes = self._flow.given_bytes, self._options.size_bytes
        if not given_bytes:
            raise InvalidInput(Source.title, "is empty")
        if size_bytes is not None and given_bytes < size_bytes:
            reason = f"ended after {format_size(given_bytes)} of the {format_size(size_bytes)} announced"
            raise BackendError(Source.title, reason)

    def _check_same(self) -> None:
        sha256, announced = self._sha256.hexdigest(), self._options.sha256
        if announced is not None and sha256 != announced.lower():
            given = format_size(self._flow.given_bytes)
            reason = f"its {given} have sha256 {sha256}, not {announced} as announced"
            raise BackendError(Source.title, reason)

    def _tell_progress(self) -> None:
        place, size_bytes = self._place, self._options.size_bytes
        done_bytes = self._flow.written_bytes
        self._progress(ImageProgress(done_bytes, size_bytes, place.volume.size_bytes, place.extends))

    def _ended(self) -> WrittenImage:
        place, size_bytes = self._place, self._flow.given_bytes
        volume, md5 = place.volume, self._md5.hexdigest() if self._options.md5 else ""
        record = ImageRecord(ImageState.WHOLE, size_bytes, self._sha256.hexdigest(), md5)
        text = f"an image of {format_size(size_bytes)} was written and is whole, sha256 {record.sha256}"
        self._records.put(volume, record, text)
        rounded_bytes = round_size(self._engine.site.driver(volume), volume.title, size_bytes)
        return WrittenImage(
            volume=volume,
            size_bytes=size_bytes,
            sha256=record.sha256,
            md5=md5,
            left_over_bytes=volume.size_bytes - rounded_bytes,
            left_out_bytes=place.left_out_bytes,
            extends=place.extends,
            attaches=place.attaches,
            why_not_direct=place.target.why_not_direct,
        )


def _check_writable(engine: Engine, volume: Volume) -> None:
    """Refuse a volume that a client of the service keeps for reading. Raises InvalidState."""
    said = Catalog(engine.store.database).get(volume.id)
    if said is not None and said.read_only:
        needed = "writable (`os-update_readonly_flag`)"
        raise InvalidState(volume.title, "for reading only, as a client of the service said", needed)


def _again(volume: Volume) -> str:
    """Say what comes before the image can be written again."""
    is_behind, is_left = volume.status is VolumeStatus.ERROR_EXTENDING, not is_settled(volume)
    steps = {"retry": is_behind, "resume": is_left, "attach": not volume.attachments}
    commands = [f"voldrivers {step} {volume.name}" for step, is_needed in steps.items() if is_needed]
    return ", then ".join([*commands, "write the image again"])


def _check_announced(engine: Engine, volume: Volume, options: WriteOptions) -> None:
    """Refuse what is no checksum, and a size no volume here can have. Raises InvalidInput, InvalidSize."""
    size_bytes, limit_bytes = options.size_bytes, options.growth.limit_bytes
    if options.sha256 is not None and not _SHA256.fullmatch(options.sha256):
        raise InvalidInput(f"sha256 {options.sha256!r}", "must be 64 hexadecimal digits")
    if size_bytes is None:
        return
    round_size(engine.site.driver(volume), volume.title, size_bytes, volume.size_bytes)
    if limit_bytes is not None and size_bytes > limit_bytes:
        reason = f"the limit is {format_size(limit_bytes)}"
        raise InvalidSize(volume.title, reason, format_size(size_bytes), volume.size_bytes)
