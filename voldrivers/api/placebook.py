"""What an agent has connected itself: the only devices and files whose bytes it shows.

Whoever has the token says what is connected, so its word is not enough: a file must bear the id of its volume
in its name, as drivers name their files, be no link, and be the very file that is read afterwards.
"""

import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from voldrivers.api.wire import Body
from voldrivers.base import Host
from voldrivers.errors import InvalidInput, InvalidState
from voldrivers.guests.device import DeviceGuest
from voldrivers.host import media
from voldrivers.model import Attachment

#: The conformance suite draws ids that begin so; no name in a system's own directories bears one by chance.
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9A-Za-z_-]{1,50}")
_FILES = ("file", "nfs")


class Book:
    """Every attachment that is connected by this agent, as it was connected."""

    def __init__(self, host: Host) -> None:
        """Begin with none: what an earlier agent has connected is not known."""
        self._host = host
        self._connected: dict[tuple[str, str], Attachment] = {}
        self._books = threading.Lock()

    def note(self, name: str, arguments: Body, answer: object) -> None:
        """Take note of a call of the host that was done."""
        if name not in ("connect", "switch", "disconnect"):
            return
        attachment: Attachment = arguments["attachment"]
        key = (attachment.volume_id, attachment.id)
        with self._books:
            if name != "disconnect":
                info = arguments["connection_info"]
                path = str(answer)
                self._connected[key] = replace(attachment, connection_info=info, device_path=path)
                return
            for other in [each for each in self._connected if each[0] == attachment.volume_id]:
                del self._connected[other]  # a host lets go of a volume with the last of its attachments

    @contextmanager
    def pinned(self, volume_id: str, attachment_id: str) -> Iterator[Attachment]:
        """Give an attachment whose path leads to what is checked here, whatever happens to its name.

        Raises InvalidState for a volume that is not connected, or whose share does not answer; InvalidInput
        for what is no volume.
        """
        with self._books:
            kept = self._connected.get((volume_id, attachment_id))
        if kept is None:
            raise InvalidState(f"volume {volume_id}", "not connected by this agent", "attached through it")
        medium = media.medium_of(self._host.run, kept)
        medium.check_answers()
        is_file = isinstance(medium, media.FileMedium)
        opened = _opened(medium.path, follows=not is_file)
        try:
            status = os.fstat(opened)
            if not (_is_of(volume_id, medium.path.name, status) if is_file else stat.S_ISBLK(status.st_mode)):
                reason = "its bytes are not shown: it is no volume whose id is in the name of its file"
                raise InvalidInput(f"volume {volume_id} at {medium.path}", reason)
            # Not by /proc/self: programs that we run are to find it, too.
            yield replace(kept, device_path=f"/proc/{os.getpid()}/fd/{opened}")
        finally:
            os.close(opened)

    def check_guest(self, guest: DeviceGuest) -> None:
        """Refuse a guest that has anything open but volumes that are connected here. Raises InvalidState."""
        with self._books:
            connected = list(self._connected.values())
        ids = {each.volume_id for each in connected}
        devices = {_device(each) for each in connected} - {None}
        for entry in os.scandir(f"/proc/{guest.pid}/fd"):
            try:
                name, status = os.readlink(entry.path), os.stat(entry.path)
            except FileNotFoundError:  # closed meanwhile
                continue
            if stat.S_ISBLK(status.st_mode):
                is_known = status.st_rdev in devices
            elif stat.S_ISREG(status.st_mode):
                name = name.removesuffix(" (deleted)")
                is_known = Path(name) == guest.log.resolve() or any(
                    _is_of(each, os.path.basename(name), status) for each in ids
                )
            else:
                is_known = True
            if not is_known:
                state = f"using {name}, which is no volume that was attached through this agent"
                raise InvalidState(f"guest {guest.name}", state, "used for such volumes only")


def _is_of(volume_id: str, name: str, status: os.stat_result) -> bool:
    return bool(_ID.fullmatch(volume_id)) and volume_id in name and stat.S_ISREG(status.st_mode)


def _opened(path: Path, *, follows: bool) -> int:
    """Take hold of a file without opening it: no pipe keeps us so. Raises InvalidState."""
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follows else os.O_NOFOLLOW))
    except OSError as error:
        raise InvalidState(f"device {path}", f"gone ({error.strerror})", "there") from error


def _device(attachment: Attachment) -> int | None:
    info = attachment.connection_info
    if info is None or info.driver_volume_type in _FILES:
        return None
    try:
        return os.stat(str(attachment.device_path)).st_rdev
    except OSError:
        return None
