"""The process that does a platform's work with one backend.

    python -I -m voldrivers.integrations.worker CONFIG BACKEND SOCKET

It says `ready` once it answers at SOCKET, and ends with the end of its input: with its platform. Whatever it
was doing then is found half done, as after a crash, by who asks for it again. It may be root by sudo: the
socket is bound only in a directory of its own user's, or of who asked sudo, that is closed to all others.
"""

import inspect
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingUnixStreamServer

from voldrivers.errors import BackendError, InvalidInput, OutcomeUnknown, VolDriverError, to_document
from voldrivers.integrations.dialog import BEAT_S, READY, Dialog, Line, log_of, read_arguments
from voldrivers.integrations.duties import Duties
from voldrivers.model import Extend
from voldrivers.registry import load

_log = logging.getLogger(__name__)


class Server(ThreadingUnixStreamServer):
    """Answers at a socket, each connection in a thread."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: str, duties: Duties, log: Path) -> None:
        """Bind the socket."""
        self.duties, self.log = duties, log
        super().__init__(path, _Asked)


class _Asked(BaseRequestHandler):
    """One connection: a duty, and how it ended."""

    server: Server

    def handle(self) -> None:
        """Do what is asked."""
        with closing(Dialog(self.request)) as dialog, suppress(EOFError, OSError, ValueError):
            line = dialog.hear()
            with _alive(dialog):
                said = self._done(dialog, str(line["do"]), line["with"])
            dialog.say(**said)

    def _done(self, dialog: Dialog, duty: str, given: Line) -> Mapping[str, object]:
        def record(extend: Extend) -> None:
            try:
                dialog.say(record=extend)
                recorded = dialog.hear().get("recorded") is True
            except (EOFError, OSError, ValueError):
                recorded = False
            if not recorded:
                raise OutcomeUnknown(f"extend {extend.id}", "its phase was not recorded by the platform")

        method = getattr(self.server.duties, duty)
        try:
            arguments = dict(read_arguments(duty, given))
            if "record" in inspect.signature(method).parameters:
                arguments["record"] = record
            return {"answer": method(**arguments)}
        except VolDriverError as error:
            _log.info("%s: %s", duty, error)
            return {"error": to_document(error)}
        except Exception as error:  # noqa: BLE001 - whatever it is, who asked must not wait in vain
            _log.exception("%s failed", duty)
            fault = BackendError(
                f"{duty}, done by the worker", f"an unexpected {type(error).__name__}; see {self.server.log}"
            )
            return {"error": to_document(fault)}


@contextmanager
def _alive(dialog: Dialog) -> Iterator[None]:
    """Say so, again and again, as long as the context is."""
    ended = threading.Event()

    def beat() -> None:
        with suppress(OSError):
            while not ended.wait(BEAT_S):
                dialog.say(alive=True)

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()


def main() -> None:
    """Answer until the input ends."""
    config, backend, path = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        directory = _opened(Path(path).parent)
        duties = Duties(load(Path(config)), backend)
    except VolDriverError as error:
        print(json.dumps({"error": to_document(error)}), flush=True)
        sys.exit(1)
    with _bound(directory, Path(path), duties) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(READY, flush=True)
        sys.stdin.read()
        _tidy_up(directory, Path(path))
        os._exit(0)


def _opened(path: Path) -> int:
    """Take hold of a directory that is closed to all but us, or who asked sudo. Raises InvalidInput."""
    try:
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise InvalidInput(f"directory {path}", f"cannot be used for a socket: {error.strerror}") from error
    status, asked_by = os.fstat(directory), os.environ.get("SUDO_UID", "")
    ours = {os.getuid(), int(asked_by) if asked_by.isdecimal() else os.getuid()}
    if status.st_uid not in ours or status.st_mode & 0o077:
        raise InvalidInput(
            f"directory {path}", "must belong to who starts the worker, and be closed to others"
        )
    return directory


def _bound(directory: int, path: Path, duties: Duties) -> Server:
    """Bind the socket in that very directory, which is what keeps others from it."""
    before = os.umask(0)
    try:
        return Server(f"/proc/self/fd/{directory}/{path.name}", duties, log_of(path))
    finally:
        os.umask(before)


def _tidy_up(directory: int, path: Path) -> None:
    """Leave nothing behind: a platform that was killed does not come back for it."""
    for each in (path, log_of(path)):
        with suppress(FileNotFoundError):
            os.unlink(each.name, dir_fd=directory)
    with suppress(OSError):  # somebody else's directory, with other things in it
        path.parent.rmdir()


if __name__ == "__main__":
    main()
