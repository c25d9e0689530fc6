"""Somebody between two services, who loses, doubles, delays or answers what is sent."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

#: What happens to a request: it gives status and body of the answer, None for a connection that breaks.
Meddle = Callable[["Passing"], tuple[int, bytes] | None]


@dataclass
class Passing:
    """One request on its way."""

    url: str
    method: str
    headers: dict[str, str]
    body: bytes

    def forward(self) -> tuple[int, bytes]:
        """Send it on, and give the answer."""
        kept = {
            k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length", "connection")
        }
        answer = httpx.request(self.method, self.url, headers=kept, content=self.body, timeout=60)
        return answer.status_code, answer.content


def forward(passing: Passing) -> tuple[int, bytes]:
    return passing.forward()


def twice(passing: Passing) -> tuple[int, bytes]:
    passing.forward()
    return passing.forward()


def lost(_passing: Passing) -> None:
    return None


def answer_lost(passing: Passing) -> None:
    passing.forward()


def late(by_s: float) -> Meddle:
    """Answer at once that it was taken, and forward it later."""

    def arrive(passing: Passing) -> None:
        with suppress(httpx.HTTPError):  # whoever it is for may have been killed
            passing.forward()

    def meddle(passing: Passing) -> tuple[int, bytes]:
        timer = threading.Timer(by_s, arrive, [passing])
        timer.daemon = True
        timer.start()
        return 200, b'{"events": [{"code": 200}]}'

    return meddle


def refused(status: int) -> Meddle:
    return lambda _passing: (status, b'{"refused": {"code": 0, "message": "in between"}}')


def refused_after_all(status: int) -> Meddle:
    """Forward it, and say that it was refused."""

    def meddle(passing: Passing) -> tuple[int, bytes]:
        passing.forward()
        return status, b"{}"

    return meddle


def per_event(code: int) -> Meddle:
    return lambda _passing: (207, f'{{"events": [{{"code": {code}}}]}}'.encode())


@dataclass
class Between:
    """Stands on a port of its own before `target`; `meddle` gets the requests whose path ends in `path`."""

    path: str
    target: str = ""
    meddle: Meddle = forward
    seen: list[Passing] = field(default_factory=list)
    port: int = 0
    also_looks: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self, count: int, limit_s: float = 30.0) -> None:
        """Wait until so many requests were meddled with."""
        until = time.monotonic() + limit_s
        while len(self.seen) < count:
            assert time.monotonic() < until, f"only {len(self.seen)} requests to {self.path}"
            time.sleep(0.05)


@contextmanager
def standing(path: str) -> Iterator[Between]:
    """Stand between; `target` is said before the first request."""
    between = Between(path)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            passing = Passing(between.target + self.path, self.command, dict(self.headers), body)
            meddled = self.path.endswith(between.path) and (between.also_looks or self.command != "GET")
            if meddled:
                between.seen.append(passing)
            answer = between.meddle(passing) if meddled else passing.forward()
            if answer is None:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(answer[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer[1])))
            self.end_headers()
            self.wfile.write(answer[1])

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - as http.server names them

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        between.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield between
        server.shutdown()
        thread.join()
