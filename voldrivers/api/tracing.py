"""The id of the request that is being answered, from the first machine to the last, and log lines with it."""

import json
import logging
import re
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime

#: As OpenStack's services name it, in requests and in answers.
HEADER = "X-Openstack-Request-Id"
_ID = re.compile(r"req-[0-9A-Za-z-]{1,64}")

request_id: ContextVar[str] = ContextVar("request_id", default="")


def take(given: str | None) -> str:
    """Go on with the id that another service gave, or begin a new one."""
    return given if given and _ID.fullmatch(given) else f"req-{uuid.uuid4()}"


class JSONLines(logging.Formatter):
    """One JSON object a line: at, level, logger, request_id, message. Never a traceback's values."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "request_id": request_id.get(),
            "message": record.getMessage(),
        }
        return json.dumps(line)
