"""Where a run took place: this machine's kernel and Python, and the programs that drivers run."""

import platform
from collections.abc import Mapping, Sequence

from voldrivers.base import Run
from voldrivers.errors import VolDriverError
from voldrivers.process import run

_TIMEOUT_S = 5.0
_PROGRAMS: Mapping[str, Sequence[str]] = {
    "qemu": ("qemu-system-x86_64", "--version"),
    "qemu-img": ("qemu-img", "--version"),
    "lvm2": ("lvs", "--version"),
    "open-iscsi": ("iscsiadm", "--version"),
    "nvme-cli": ("nvme", "--version"),
}


def environment(run: Run = run) -> Mapping[str, str]:
    """Look at this machine; a program that is not there, or does not tell, is left out."""
    found = {"python": platform.python_version(), "kernel": platform.release(), "machine": platform.machine()}
    told = {name: _version(argv, run) for name, argv in _PROGRAMS.items()}
    return found | {name: version for name, version in told.items() if version}


def _version(argv: Sequence[str], run: Run) -> str:
    try:
        printed = run(argv, timeout_s=_TIMEOUT_S).stdout
    except VolDriverError:
        return ""
    first = next(iter(printed.split("\n")), "")
    return " ".join("".join(c if c.isprintable() else " " for c in first).split())
