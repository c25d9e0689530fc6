"""Calls of the host's iSCSI functions in a lab machine, for test_blockdev_lab.py: each tells what it ran."""

import faulthandler
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from voldrivers import process
from voldrivers.base import Completed
from voldrivers.errors import VolDriverError
from voldrivers.host import blockdev, iscsi
from voldrivers.host.connection import read_properties

Properties = Mapping[str, Any]

argvs: list[list[str]] = []
logged: list[str] = []


class Logged(logging.Handler):
    """Everything that anybody logs, os-brick included."""

    def emit(self, record: logging.LogRecord) -> None:
        logged.append(self.format(record))


def recorded_run(argv: Sequence[str], *, timeout_s: float) -> Completed:
    argvs.append(list(argv))
    return process.run(argv, timeout_s=timeout_s)


def call(name: str, properties: Properties, path: str = "", *more: Any) -> dict[str, Any]:
    """Do one thing; give its answer or error, what was run and logged, and how long it took."""
    faulthandler.dump_traceback_later(55, exit=True)
    logging.getLogger().addHandler(Logged())
    logging.getLogger().setLevel(logging.DEBUG)
    began = time.monotonic()
    result: dict[str, Any] = {}
    try:
        result["answer"] = ACTIONS[name](properties, path, *more)
    except VolDriverError as error:
        notes = getattr(error, "__notes__", [])
        result |= {"error": type(error).__name__, "text": " ".join([str(error), *notes]), "repr": repr(error)}
    return {**result, "argvs": argvs, "logged": logged, "seconds": time.monotonic() - began}


def connect(properties: Properties, _path: str) -> str:
    return iscsi.connect(recorded_run, properties)


def disconnect(properties: Properties, path: str) -> None:
    iscsi.disconnect(recorded_run, properties, path)


def look(_properties: Properties, path: str) -> dict[str, Any]:
    return asdict(blockdev.look(path))


def check(properties: Properties, path: str) -> None:
    blockdev.check_paths(path, read_properties(properties).luns)


def rescan(properties: Properties, path: str) -> None:
    blockdev.rescan(recorded_run, path, read_properties(properties).luns)


def wait_for(properties: Properties, path: str, wanted_bytes: int, timeout_s: float) -> int:
    blockdev.wait_for_bytes(path, wanted_bytes, timeout_s=timeout_s)
    return blockdev.device_bytes(path)


ACTIONS: Mapping[str, Callable[..., Any]] = {
    action.__name__: action for action in (connect, disconnect, look, check, rescan, wait_for)
}
