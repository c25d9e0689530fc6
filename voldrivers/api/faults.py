"""Errors in the shape that clients of OpenStack's services read (wsgi.Fault of Cinder and Nova)."""

import json
from collections.abc import Mapping

from fastapi.responses import JSONResponse

_NAMES: Mapping[int, str] = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    406: "notAcceptable",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    429: "overLimit",
    501: "notImplemented",
    503: "serviceUnavailable",
}


def fault(status: int, reason: str) -> Mapping[str, object]:
    """Write an error."""
    return {_NAMES.get(status, "computeFault"): {"code": status, "message": reason}}


class ASCIIResponse(JSONResponse):
    """In ASCII: a file name, in an error say, may hold bytes that are not UTF-8."""

    def render(self, content: object) -> bytes:
        """Write the body."""
        return json.dumps(content).encode()
