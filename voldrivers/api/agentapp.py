"""The web application of a host's agent: our own calls (`wire`), and those of Nova's specs (`compute`).

Each face answers errors in its own form.
"""

import logging
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import anyio
from fastapi import APIRouter, Depends, FastAPI, Header, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import AwareDatetime, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from voldrivers.api import compute, wire
from voldrivers.api.access import PROJECT, Caller, Door
from voldrivers.api.agent import Agent
from voldrivers.api.client import VolumeService
from voldrivers.api.compute import Compute, Order
from voldrivers.api.faults import ASCIIResponse, fault
from voldrivers.api.figures import Figures
from voldrivers.api.guard import Guard
from voldrivers.api.openapi import allowed, complaint, describe
from voldrivers.base import Host
from voldrivers.errors import (
    BackendError,
    InvalidInput,
    NotFound,
    NotSupported,
    VolDriverError,
    to_document,
)

if TYPE_CHECKING:
    from voldrivers.api.placeagent import PlaceAgent

_log = logging.getLogger(__name__)
#: So many looks at once, and so many acts: however many looks hang, on a dead share say, acts have threads.
_THREADS = 40
_PLACE_THREADS = 8
_OPEN = frozenset({"/healthcheck"})
_ServerId = Annotated[str, Path(pattern=r"^[0-9A-Za-z][0-9A-Za-z._+@=:-]{0,127}$")]
_Number: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
_Level: TypeAlias = Annotated[int, Field(ge=1, lt=2**31)]
_TenantId = Annotated[str, Path(pattern=f"^{PROJECT}$")]


def make_app(
    host: Host,
    token: str,
    service: VolumeService | None = None,
    requests_per_second: float = 500.0,
    place: "PlaceAgent | None" = None,
) -> Guard:
    """Make the application of a host's agent; who has the token may do all, at `place` too."""
    agent, figures = Agent(host, done=place.book.note if place else None), Figures()
    app = FastAPI(
        title="voldrivers host agent",
        summary="os-online_extend_volume and os-server-external-events for the instances of one host",
        version=str(host.version),
        default_response_class=ASCIIResponse,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(_place(agent, place))
    app.include_router(_calls(agent))
    router = _nova(Compute(agent, service))
    for version in ("v2", "v2.1"):
        app.include_router(router, prefix=f"/{version}/{{tenant_id}}", dependencies=[Depends(_tenant)])
    app.include_router(_figures(figures))
    _answer_failures(app)
    describe(app, _FAILURES)
    door = Door([(token, Caller("controller", "admin"))])
    return Guard(app, door, fault, figures, open_paths=_OPEN, per_second=requests_per_second)


def _calls(agent: Agent) -> APIRouter:
    """Answer our own controllers."""
    looking, acting = anyio.CapacityLimiter(_THREADS), anyio.CapacityLimiter(_THREADS)
    router = APIRouter(include_in_schema=False)

    @router.get(wire.PATH)
    async def describe_host() -> Response:  # answered however many calls hang
        return ASCIIResponse({"name": agent.host.name, "version": agent.host.version})

    @router.post(f"{wire.PATH}/{{name}}")
    async def call(name: str, request: Request) -> Response:
        try:
            body, expires_at = await _asked(agent.host, name, request)
        except VolDriverError as error:
            return _failure(error)
        threads = acting if name in wire.ACTS else looking
        work = partial(agent.answer, name, body, expires_at)
        return await anyio.to_thread.run_sync(partial(_answered, agent.host, name, work), limiter=threads)

    return router


def _place(agent: Agent, place: "PlaceAgent | None") -> APIRouter:
    """Answer the conformance suite, which reads and writes devices here, if the operator lets it."""
    router, threads = APIRouter(include_in_schema=False), anyio.CapacityLimiter(_PLACE_THREADS)

    @router.post(f"{wire.PATH}/place/{{name}}")
    async def call(name: str, request: Request) -> Response:
        if place is None:
            why = ": its agent's table has no key `conformance`"
            return _failure(NotFound("place of host", agent.host.name, why))
        try:
            body, expires_at = await _asked(agent.host, f"place/{name}", request)
        except VolDriverError as error:
            return _failure(error)

        def work() -> object:
            agent.refuse_late(name, expires_at)
            return place.answer(name, body)

        return await anyio.to_thread.run_sync(partial(_answered, agent.host, name, work), limiter=threads)

    return router


async def _asked(host: Host, name: str, request: Request) -> tuple[wire.Body, datetime]:
    """Read a request of ours: its arguments, and when it is too late. Raises InvalidInput, NotSupported."""
    try:
        body = await request.json()
        expires_at = _time(request.headers[wire.EXPIRES])
        level = int(request.headers.get(wire.LEVEL, "1"))
        if not isinstance(body, dict):
            raise ValueError(name)
    except (ValueError, KeyError, RecursionError, OverflowError, ClientDisconnect) as error:
        reason = f"needs a JSON object and {wire.EXPIRES}"
        raise InvalidInput(f"request {name[:40]}", reason) from error
    _check_level(host, level)
    return body, expires_at


def _nova(computing: Compute) -> APIRouter:
    """Answer what Nova would."""
    looking, acting = anyio.CapacityLimiter(_THREADS), anyio.CapacityLimiter(_THREADS)
    router = APIRouter(tags=["servers"])
    path = "/servers/{server_id}/os-online_extend_volume"

    async def order(
        extend: Annotated[_Number | SkipJsonSchema[None], Header(alias=wire.EXTEND)] = None,
        expires: Annotated[AwareDatetime | SkipJsonSchema[None], Header(alias=wire.EXPIRES)] = None,
        level: Annotated[_Level | SkipJsonSchema[None], Header(alias=wire.LEVEL)] = None,
    ) -> Order:
        _check_level(computing.host, level)
        return Order(extend, expires)

    Ordered = Annotated[Order, Depends(order)]  # noqa: N806 - a type

    @router.put(path, status_code=202)
    async def rescan(server_id: _ServerId, body: compute.Rescan, order: Ordered) -> None:
        """Rescan a volume, so that the host gets its new size."""
        work = partial(computing.rescan, server_id, body.online.volume_id, order)
        await _in_thread(work, acting)

    @router.get(f"{path}/{{volume_id}}")
    async def get_blockdev(server_id: _ServerId, volume_id: _ServerId) -> Any:  # Any: what JSON holds
        """Tell the size of a volume that the host really sees."""
        seen = await _in_thread(partial(computing.get_blockdev, server_id, volume_id), looking)
        return {"volume_blockdev": {"id": volume_id, "bytes": seen}}

    @router.post(f"{path}/{{volume_id}}")
    async def assist_extend(
        server_id: _ServerId,
        volume_id: _ServerId,
        body: compute.Assist,
        order: Ordered,
    ) -> None:
        """Have the hypervisor show the size to the guest."""
        size = body.online.new_size_bytes
        await _in_thread(partial(computing.assist_extend, server_id, volume_id, size, order), acting)

    @router.post("/os-server-external-events", responses={207: {"description": "some were not taken"}})
    async def events(body: compute.Events, _order: Ordered) -> Response:
        """Take events that volumes were extended."""
        said = await _in_thread(partial(computing.take, body), looking)
        codes = {each["code"] for each in said}
        status = 200 if codes == {200} else 404 if codes == {404} else 207
        return ASCIIResponse({"events": said} if status != 404 else fault(404, "No instances found"), status)

    return router


def _figures(figures: Figures) -> APIRouter:
    router = APIRouter(tags=["agent"])

    @router.get("/healthcheck")
    async def healthcheck() -> dict[str, str]:
        """Tell that the agent answers."""
        return {"status": "ok"}

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Give the figures for Prometheus."""
        return Response(figures.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _answer_failures(app: FastAPI) -> None:
    @app.exception_handler(VolDriverError)
    async def failed(_request: Request, error: VolDriverError) -> Response:
        return ASCIIResponse(fault(wire.status(error), str(error)), wire.status(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        return ASCIIResponse(fault(400, complaint(error)), 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = allowed(app, request.url.path)
        return ASCIIResponse(fault(error.status_code, str(error.detail)), error.status_code, headers)

    @app.exception_handler(Exception)
    async def mistake(_request: Request, error: Exception) -> Response:
        return ASCIIResponse(fault(500, _mistake("a request", error)), 500)


async def _tenant(tenant_id: _TenantId) -> str:
    """Take it: who has the token may reach every instance of this host."""
    return tenant_id


async def _in_thread(work: Callable[[], Any], limiter: anyio.CapacityLimiter) -> Any:  # Any: what work gives
    return await anyio.to_thread.run_sync(work, limiter=limiter)


def _answered(host: Host, name: str, work: Callable[[], object]) -> Response:
    try:
        return ASCIIResponse({"answer": work()})
    except VolDriverError as error:
        _log.warning("%.40r: %s", name, error)
        return _failure(error)
    except Exception as error:  # noqa: BLE001 - a server's border: who asked learns that we failed, and it is logged
        return _failure(BackendError(f"host {host.name}", _mistake(name, error)))


def _mistake(name: str, error: Exception) -> str:
    """Log and give where it is; without its text, in which there could be anything."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    what = f"a mistake in voldrivers: {type(error).__name__} at {where.filename}:{where.lineno}"
    _log.error("%s: %s", name, what)
    return what


def _failure(error: VolDriverError) -> Response:
    return ASCIIResponse({"error": to_document(error)}, wire.status(error))


def _check_level(host: Host, needed: int | None) -> None:
    """Refuse what a younger agent would understand, before anything is begun. Raises NotSupported."""
    if needed is not None and needed > host.version:
        reason = f"speaks protocol {host.version}, the request needs {needed}"
        raise NotSupported(f"host {host.name}", reason)


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(text)
    return at.astimezone(UTC)


_FAILURES = {
    "400": "the request is wrong: the message says how",
    "401": "the token is missing or wrong",
    "404": "there is no such instance here, or the volume is not attached to it",
    "405": "there is no such method",
    "409": "the state of the instance forbids it, or the request is too late",
    "413": "the request is too long",
    "429": "too many requests",
    "500": "the extend failed for another reason",
    "501": "the instance has no monitor that could be asked",
}
