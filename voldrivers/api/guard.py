"""What every request passes first: who sends it, how often, how long it is; and what is noted of it."""

import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import anyio

from voldrivers.api import tracing
from voldrivers.api.access import Caller, Door, is_loopback
from voldrivers.api.figures import Figures

_log = logging.getLogger(__name__)
_TOO_MANY_CALLERS = 1000
#: The whole body of a request must have come by then.
_BODY_S = 60.0
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Scope = MutableMapping[str, Any]  # Any: as ASGI has it
Message = MutableMapping[str, Any]  # Any: as ASGI has it
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
#: Writes an error as the face that is asked would: status, reason.
Fault = Callable[[int, str], Mapping[str, object]]


class Guard:
    """An ASGI application before another one. It answers strangers before their body is read."""

    def __init__(
        self,
        app: App,
        door: Door,
        fault: Fault,
        figures: Figures,
        *,
        open_paths: frozenset[str] = frozenset(),
        longest_body: int = 2**20,
        per_second: float = 500.0,
    ) -> None:
        """Guard `app`. Who is refused learns it as `fault` writes it; `open_paths` need no token."""
        self.app, self.door, self.fault, self.figures = app, door, fault, figures
        self.open_paths, self.longest_body, self.rate = open_paths, longest_body, Rate(per_second)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        given = tracing.request_id.set(tracing.take(headers.get(tracing.HEADER.lower())))
        began, noted = time.monotonic(), _Noted(send)
        try:
            refusal = self._refusal(scope, headers)
            if refusal is None:
                await self.app(scope, _Limited(receive, self.longest_body, noted, self.fault), noted)
            else:
                await noted.refuse(*refusal, self.fault)
        finally:
            self._note(scope, noted.status, time.monotonic() - began)
            tracing.request_id.reset(given)

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str] | None:
        caller = self.door.caller(headers)
        scope["caller"] = caller
        if self.door.is_open and not _is_here(headers.get("host", "")):
            return 403, "without tokens only this machine is answered, by a name of its own in Host"
        who = caller.name if caller else (scope.get("client") or "?")[0]
        if not self.rate.allows(who):
            return 429, "too many requests in a second"
        if caller is None and scope["path"] not in self.open_paths:
            _log.warning("a request from %s: the token is missing or wrong", who)
            return 401, "the token is missing or wrong"
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdecimal():
            return 400, "the length of the request makes no sense"
        if int(length) > self.longest_body:
            return 413, f"the request is longer than {self.longest_body} bytes"
        return None

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self.figures.requests.labels(method, route, str(status)).inc()
        self.figures.request_seconds.labels(method, route).observe(seconds)
        caller: Caller | None = scope.get("caller")
        who = caller.name if caller else "nobody"
        _log.info("%s %.200r by %s: %s in %.3f s", method, scope["path"], who, status, seconds)


def _is_here(host: str) -> bool:
    """Tell whether a request was meant for loopback: a page of another site has its own name there."""
    return is_loopback(host.partition("]")[0].strip("[") if host.startswith("[") else host.partition(":")[0])


class Rate:
    """So many requests in a second for each caller, and as many again at once."""

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._left: dict[str, tuple[float, float]] = {}
        self._books = threading.Lock()

    def allows(self, caller: str) -> bool:
        """Count a request; tell whether it is one too many."""
        with self._books:
            now = time.monotonic()
            if len(self._left) > _TOO_MANY_CALLERS:
                self._left.clear()
            left, since = self._left.get(caller, (2 * self.per_second, now))
            left = min(2 * self.per_second, left + (now - since) * self.per_second)
            self._left[caller] = (left - 1 if left >= 1 else left, now)
            return left >= 1


class _Noted:
    """Sends an answer, with the request's id, and remembers its status."""

    def __init__(self, send: Send) -> None:
        self._send, self.status, self.has_begun, self.is_over = send, 500, False, False

    async def __call__(self, message: Message) -> None:
        if self.is_over:  # of a request that was refused while its body came
            return
        if message["type"] == "http.response.start":
            self.status, self.has_begun = message["status"], True
            own = (tracing.HEADER.lower().encode(), tracing.request_id.get().encode())
            message["headers"] = [*message.get("headers", []), own]
        await self._send(message)

    async def refuse(self, status: int, reason: str, fault: Fault) -> None:
        """Answer with an error."""
        body = json.dumps(fault(status, reason)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 429:
            headers.append((b"retry-after", b"1"))
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self({"type": "http.response.body", "body": body})
        self.is_over = True


class _Limited:
    """Receives a body, but no more of it than is allowed."""

    def __init__(self, receive: Receive, longest: int, noted: _Noted, fault: Fault) -> None:
        self._receive, self._left, self._noted, self._fault = receive, longest, noted, fault
        self._until, self._is_whole = anyio.current_time() + _BODY_S, False

    async def __call__(self) -> Message:
        if self._is_whole:  # what comes now is the end of the connection, in its own time
            return await self._receive()
        message: Message | None = None
        with anyio.move_on_after(self._until - anyio.current_time()):
            message = await self._receive()
        if message is None:
            return await self._refused(408, "the request did not come to its end in time")
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            return await self._refused(413, "the request is too long")
        self._is_whole = not message.get("more_body", False)
        return message

    async def _refused(self, status: int, reason: str) -> Message:
        if not self._noted.has_begun:
            await self._noted.refuse(status, reason, self._fault)
        return {"type": "http.disconnect"}
