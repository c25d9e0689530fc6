"""Another process: the driver in a Python that has just been started, to be asked once.

    python -m voldrivers.conformance.elsewhere    {"path": [...], "asked": PICKLE} on stdin, PICKLE on stdout

Both are lines, the pickles in base64: what the driver was configured with is nobody else's to read.
"""

import base64
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from voldrivers.base import Driver
from voldrivers.conformance.subject import Elsewhere
from voldrivers.errors import VolDriverError
from voldrivers.process import talk

_LIMIT_S, _END_S = 120.0, 2.0


def in_another_process(make: Callable[[], Driver]) -> Elsewhere:
    """Give what calls a method of a driver there. All that goes there and back is pickled."""

    def call(method: str, *things: object) -> object:
        asked = base64.b64encode(pickle.dumps((make, method, things))).decode()
        argv = (sys.executable, "-m", __name__)
        with (
            TemporaryDirectory(prefix="voldrivers-elsewhere-") as directory,
            talk(argv, log=Path(directory) / "log", end_s=_END_S) as other,
        ):
            other.say(json.dumps({"path": sys.path, "asked": asked}) + "\n")
            answer = pickle.loads(base64.b64decode(other.hear(_LIMIT_S)))  # noqa: S301 - of our own child
        if isinstance(answer, VolDriverError):
            raise answer
        return answer

    return call


def main() -> None:
    """Answer one question; an error that is not voldrivers' own ends the process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a driver prints is no answer
    question = json.loads(sys.stdin.readline())
    sys.path[:] = question["path"]
    make, method, things = pickle.loads(base64.b64decode(question["asked"]))  # noqa: S301 - of our own parent
    try:
        answer = getattr(make(), method)(*things)
    except VolDriverError as error:
        answer = error
    print(base64.b64encode(pickle.dumps(answer)).decode(), file=answers, flush=True)


if __name__ == "__main__":
    main()
