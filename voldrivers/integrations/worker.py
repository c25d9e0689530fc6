"""The process that does a platform's work with one backend.

    python -m voldrivers.integrations.worker CONFIG BACKEND SOCKET

It says `ready` once it answers at SOCKET, and ends with the end of its input: with its platform. Whatever it
was doing then is found half done, as after a crash, by who asks for it again.
"""

import inspect
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingUnixStreamServer

from voldrivers.errors import BackendError, OutcomeUnknown, VolDriverError, to_document
from voldrivers.integrations.dialog import BEAT_S, Dialog, Line, log_of, read_arguments
from voldrivers.integrations.duties import Duties
from voldrivers.model import Extend
from voldrivers.registry import load

_log = logging.getLogger(__name__)


class Server(ThreadingUnixStreamServer):
    """Answers at a socket, each connection in a thread."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: str, duties: Duties) -> None:
        """Bind the socket."""
        self.duties = duties
        super().__init__(path, _Asked)


class _Asked(BaseRequestHandler):
    """One connection: a duty, and how it ended."""

    server: Server

    def handle(self) -> None:
        """Do what is asked."""
        dialog = Dialog(self.request)
        with suppress(EOFError, OSError, ValueError):
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
                f"{duty}, done by the worker", f"an unexpected {type(error).__name__}; see its log"
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
    with Server(path, Duties(load(Path(config)), backend)) as server:
        os.chmod(path, 0o600 if os.stat(os.path.dirname(path)).st_uid == os.getuid() else 0o666)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print("ready", flush=True)
        sys.stdin.read()
        _tidy_up(Path(path))
        os._exit(0)


def _tidy_up(path: Path) -> None:
    """Leave nothing behind: a platform that was killed does not come back for it."""
    for each in (path, log_of(path)):
        each.unlink(missing_ok=True)
    with suppress(OSError):  # somebody else's directory, with other things in it
        path.parent.rmdir()


if __name__ == "__main__":
    main()
