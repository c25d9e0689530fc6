"""The web application of the volume service."""

import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from voldrivers.api.access import Caller, Door
from voldrivers.api.faults import ASCIIResponse, fault
from voldrivers.api.figures import Figures
from voldrivers.api.guard import App, Guard
from voldrivers.api.openapi import allowed, complaint, describe
from voldrivers.api.policy import Policy
from voldrivers.api.volume import actions, attachments, backends, snapshots, versions, volumes
from voldrivers.api.volume.desk import Desk
from voldrivers.api.volume.faults import Refused
from voldrivers.config import Config
from voldrivers.errors import VolDriverError, to_document

_log = logging.getLogger(__name__)
#: These answer everybody: what a client must know before it has a token, and whether the service lives.
_OPEN = frozenset({"/", "/v3", "/v3/", "/healthcheck"})


def make_app(config: Config, door: Door, policy: Policy) -> App:
    """Make the service of a configuration; it works as long as its server does."""
    figures = Figures()
    desk = Desk(config, figures)

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        desk.start()
        yield
        desk.stop()

    app = FastAPI(
        title="voldrivers volume service",
        summary="A subset of the Block Storage API v3, with an extend of volumes in use that is verified",
        version=str(versions.NEWEST),
        lifespan=life,
        default_response_class=ASCIIResponse,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.desk, app.state.policy = desk, policy
    for module in (volumes, actions, snapshots, attachments, backends):
        app.include_router(module.router, prefix="/v3/{project_id}")
    app.include_router(_discovery(figures, policy))
    _answer_failures(app)
    describe(app, _FAILURES)
    service = config.service
    assert service is not None
    return Guard(app, door, fault, figures, open_paths=_OPEN, per_second=service.requests_per_second)


def _discovery(figures: Figures, policy: Policy) -> APIRouter:
    router = APIRouter(tags=["service"])

    @router.get("/", status_code=300)
    async def list_versions(request: Request) -> dict[str, Any]:  # Any: what JSON holds
        """List the versions of the API."""
        return {"versions": [versions.document(str(request.base_url).rstrip("/"))]}

    @router.get("/v3")
    @router.get("/v3/")
    async def show_version(request: Request) -> dict[str, Any]:  # Any: what JSON holds
        """Show the version of the API."""
        return {"versions": [versions.document(str(request.base_url).rstrip("/"))]}

    @router.get("/healthcheck")
    async def healthcheck() -> dict[str, str]:
        """Tell that the service answers."""
        return {"status": "ok"}

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(request: Request) -> Response:
        """Give the figures for Prometheus."""
        caller: Caller = request.scope["caller"]
        if not policy.allows("voldrivers:metrics", caller, caller.project):
            raise Refused(403, "Policy doesn't allow voldrivers:metrics to be performed.")
        return Response(figures.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _answer_failures(app: FastAPI) -> None:
    """Write every failure as the field's clients read it, in the version that was asked for."""

    def answer(request: Request, status: int, reason: str, error: VolDriverError | None = None) -> Response:
        version = getattr(request.state, "version", versions.LEAST)
        headers = dict(versions.answered(version)) | ({"Retry-After": "0"} if status == 413 else {})
        body = dict(fault(status, reason))
        if error is not None:  # for our own client, which raises it again
            for said in body.values():
                assert isinstance(said, dict)
                said["voldrivers:error"] = to_document(error)
        return ASCIIResponse(body, status, headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return answer(request, error.status, error.reason, error.error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(request, 400, complaint(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        said = answer(request, error.status_code, str(error.detail))
        said.headers.update(error.headers or {})
        if error.status_code == 405:
            said.headers["Allow"] = allowed(app, request.url.path)
        return said

    @app.exception_handler(Exception)
    async def mistake(request: Request, error: Exception) -> Response:
        # Without its text, in which there could be anything.
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"a mistake in voldrivers: {type(error).__name__} at {where.filename}:{where.lineno}"
        _log.error("%s", what)
        return answer(request, 500, what)


_FAILURES = {
    "400": "the request is wrong, or the state of the volume forbids it: the message says which",
    "401": "the token is missing or wrong",
    "403": "the policy does not allow it",
    "404": "there is no such thing, or not in the version of the API that was asked for",
    "406": "the version of the API is none of ours",
    "409": "something else is under way",
    "413": "there is no room, or the request is too long",
    "429": "too many requests",
    "500": "the backend or a host has failed: the message says how",
}
