"""A small Glance: what Cinder asks of an image service, with images as files in a directory."""

import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_PIECE_BYTES = 1 << 16
_ZEROS = bytes(_PIECE_BYTES)
_TEXTS = "id", "name", "status", "disk_format", "container_format", "visibility", "created_at", "updated_at"
_NUMBERS = "size", "virtual_size", "min_disk", "min_ram"
_SCHEMA = {
    "name": "image",
    "properties": {
        **{name: {"type": ["null", "string"]} for name in _TEXTS},
        **{name: {"type": ["null", "integer"]} for name in _NUMBERS},
        "protected": {"type": "boolean"},
    },
    "additionalProperties": {"type": "string"},
}


@dataclass
class Image:
    """An image with its record; `breaks_off` ends each answer with its content after so many bytes."""

    path: Path
    record: dict[str, Any]  # Any: what JSON holds
    breaks_off: int | None = None


class Glance(ThreadingHTTPServer):
    """The image service."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.images: dict[str, Image] = {}
        #: Whether what is sent breaks off.
        self.is_full = False
        directory.mkdir()
        super().__init__(("127.0.0.1", 0), _Asked)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def add(self, path: Path, disk_format: str, breaks_off: int | None = None) -> str:
        """Have the content of a file as an image; give its id."""
        made = self.new({"name": path.name, "disk_format": disk_format, "container_format": "bare"})
        made.record |= {"status": "active", "size": path.stat().st_size}
        made.path, made.breaks_off = path, breaks_off
        return str(made.record["id"])

    def new(self, wanted: dict[str, Any]) -> Image:  # Any: as above
        image_id = str(uuid.uuid4())
        given = {"id": image_id, "status": "queued", "size": None, "min_disk": 0, "min_ram": 0}
        given |= {"visibility": "public", "protected": False}
        given |= dict.fromkeys(("created_at", "updated_at"), "2026-01-01T00:00:00Z")
        self.images[image_id] = Image(self.directory / image_id, {**given, **wanted})
        return self.images[image_id]


class _Asked(BaseHTTPRequestHandler):
    server: Glance
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/versions":
            return self._answer(200, {"versions": [{"id": "v2.9", "status": "CURRENT"}]})
        if self.path == "/v2/schemas/image":
            return self._answer(200, _SCHEMA)
        image = self._image()
        if image is None:
            return self._answer(404, {})
        if self.path.endswith("/file"):
            return self._send(image)
        return self._answer(200, image.record)

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(201, self.server.new(wanted).record)

    def do_PUT(self) -> None:
        image = self._image()
        assert image is not None
        if self.server.is_full:
            self.close_connection = True
            return self._answer(507, {})
        with image.path.open("wb") as file:
            for piece in self._pieces():
                if piece == _ZEROS[: len(piece)]:
                    file.seek(len(piece), 1)
                else:
                    file.write(piece)
            file.truncate()
        image.record |= {"status": "active", "size": image.path.stat().st_size}
        return self._answer(204, None)

    def do_DELETE(self) -> None:
        found = self._image()
        if found is not None:
            del self.server.images[found.record["id"]]
        self._answer(404 if found is None else 204, None)

    def _image(self) -> Image | None:
        return self.server.images.get(self.path.split("/")[3])

    def _pieces(self) -> Iterator[bytes]:
        """Read a body that comes in chunks (RFC 9112, 7.1)."""
        while length := int(self.rfile.readline(), 16):
            yield self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, image: Image) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(image.path.stat().st_size))
        self.end_headers()
        with image.path.open("rb") as file:
            self.wfile.write(file.read() if image.breaks_off is None else file.read(image.breaks_off))
        self.close_connection = image.breaks_off is not None

    def _answer(self, status: int, body: object) -> None:
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        if text:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""
