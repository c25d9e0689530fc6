"""The OpenAPI document of an application: with the failures that there are, not those FastAPI would send."""

import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi

Document = dict[str, Any]  # Any: what JSON holds
_CONTENT = {"application/json": {"schema": {"type": "object", "minProperties": 1, "maxProperties": 1}}}


def describe(app: FastAPI, failures: Mapping[str, str]) -> None:
    """Have an application describe itself, each operation with all `failures`, status by status."""

    def document() -> Document:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            for path in made["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
                    for status, meaning in failures.items():
                        operation["responses"][status] = {"description": meaning, "content": _CONTENT}
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI's documentation has it


def allowed(app: FastAPI, path: str) -> str:
    """Give the methods that a path has, for `Allow`: several routes may share it."""
    for template, operations in app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\\{.*?\\}", "[^/]+", re.escape(template)), path):
            return ", ".join(sorted(method.upper() for method in operations))
    return ""


def complaint(error: RequestValidationError) -> str:
    """Say what is wrong first, and where; not with the value, which may be a secret."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return f"Invalid input for {where or 'the request'}: {first['msg'].removeprefix('Value error, ')}."
