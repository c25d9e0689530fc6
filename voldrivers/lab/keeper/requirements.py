"""What a computer must have for a lab, looked at before anything is started or downloaded."""

import platform
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from voldrivers.errors import NoSpace, NotSupported
from voldrivers.guests.machine import QEMU
from voldrivers.lab import image, project
from voldrivers.sizes import MiB

#: Programs, and the packages of Debian 12 that they are in.
_TO_RUN: Mapping[str, str] = {
    QEMU: "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
    "flock": "util-linux",
}
_TO_MAKE: Mapping[str, str] = {"apt-get": "apt", "dpkg-deb": "dpkg", "xargs": "findutils"}
#: A saved state of three machines is 440 MiB; making the image as well took 963 MiB at most. Disks grow.
_TO_RUN_BYTES, _TO_MAKE_BYTES = 512 * MiB, 1536 * MiB
_DEBIAN = ("debian", "12")


def check(cache: Path) -> None:
    """Raise NotSupported, which names all that is missing, unless a lab can be started with this cache."""
    if sys.version_info[:2] != project.PYTHON:
        wanted, ours = (".".join(map(str, version)) for version in (project.PYTHON, sys.version_info[:2]))
        reason = f"its machines have Python {wanted}, this is {ours}: they share their libraries"
        raise _refusal(reason, f"run voldrivers with python{wanted}")
    if find_spec("qemu") is None:
        raise _refusal("it needs qemu.qmp, not installed here", "pip install 'voldrivers[host]'")
    programs = dict(_TO_RUN)
    if not _is_made(cache):
        _check_distribution()
        programs.update(_TO_MAKE)
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        packages = " ".join(sorted({programs[program] for program in missing}))
        reason = f"it needs {' and '.join(missing)}, not installed here"
        raise _refusal(reason, f"install Debian's {packages}")


def check_space(cache: Path) -> None:
    """Raise NoSpace for a cache in which a lab could not be started; OSError for one that cannot be asked."""
    needed_bytes = _TO_RUN_BYTES if _is_made(cache) else _TO_MAKE_BYTES
    free_bytes = shutil.disk_usage(cache).free
    if free_bytes < needed_bytes:
        refusal = NoSpace(f"the lab's cache {cache}", needed_bytes, free_bytes)
        refusal.add_note("free some, or name another directory in VOLDRIVERS_CACHE")
        raise refusal


def _is_made(cache: Path) -> bool:
    return image.find(cache) is not None and (cache / "dependencies" / project.dependencies_key()).exists()


def _check_distribution() -> None:
    """The machines are made of what our apt sources offer, and their Python must be that of Debian 12."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:  # it does not say what it is: other than a fresh Debian, which has programs to look for
        release = {}
    if (release.get("ID"), release.get("VERSION_ID")) != _DEBIAN:
        here = release.get("PRETTY_NAME", "something else")
        raise _refusal(
            f"its machines are made of Debian 12's packages, this is {here}",
            "run it on Debian 12, or in a container of it",
        )


def _refusal(reason: str, hint: str) -> NotSupported:
    refusal = NotSupported("the lab", reason)
    refusal.add_note(hint)
    return refusal
