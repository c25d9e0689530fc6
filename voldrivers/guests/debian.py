"""Packages of this machine's own distribution, fetched and unpacked without root and without installing."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from voldrivers import process
from voldrivers.errors import BackendError, CommandFailed, NotSupported

_DOWNLOAD_S, _UNPACK_S, _LOCAL_S = 600.0, 300.0, 60.0
#: Merged directories: what a package puts into /bin is in /usr/bin (Debian's usr-is-merged).
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


class Packages:
    """The packages that this machine's apt sources offer, with lists and downloads in a directory of ours.

    Every call raises BackendError (no network, no such package), NotSupported without apt.
    """

    def __init__(self, directory: Path) -> None:
        """Take the directory; what was downloaded there before is not downloaded again."""
        if shutil.which("apt-get") is None:
            raise NotSupported("apt", "apt-get is not installed: this is no Debian, nor one of its kin")
        self._directory, self._archives = directory.absolute(), directory.absolute() / "archives"
        for needed in ("lists/partial", "archives/partial", "nothing/partial"):
            (directory / needed).mkdir(parents=True, exist_ok=True)
        # Nothing is installed in there, so that everything that is needed is downloaded.
        (directory / "status").touch()

    def download(self, package: str) -> Path:
        """Fetch one package without what it needs."""
        wanted = self._wanted("download", package)
        self._apt("download", package)
        return self._archives / wanted[0]

    def download_all(self, packages: Sequence[str]) -> list[Path]:
        """Fetch packages and everything that they depend on, recommendations left out."""
        wanted = self._wanted("install", *packages)
        self._apt("install", "--yes", "--download-only", *packages)
        return [self._archives / name for name in wanted]

    def _wanted(self, command: str, *packages: str) -> list[str]:
        """Give the names of the files that a command would fetch (apt-get(8), --print-uris)."""
        if not (self._directory / "pkgcache.bin").exists():
            self._update()
        nothing = f"Dir::Cache::archives={self._directory}/nothing"
        printed = self._apt("--option", nothing, command, "--yes", "--print-uris", *packages)
        return re.findall(r"^'\S+' (\S+\.deb) \d+", printed, re.MULTILINE)

    def _update(self) -> None:
        """Fetch the lists; some are enough, as one of many sources may be broken (apt-get(8), --error-on)."""
        try:
            self._apt("--error-on=any", "update")
        except BackendError:
            if not any((self._directory / "lists").glob("*_Packages*")):
                raise

    def _apt(self, *arguments: str) -> str:
        own = {
            "Dir::State": str(self._directory),
            "Dir::State::status": str(self._directory / "status"),
            "Dir::Cache": str(self._directory),
            "APT::Sandbox::User": "",  # the downloads are ours, not those of _apt
            "APT::Install-Recommends": "false",
            "pkgCacheGen::ForceEssential": "no",
            "Debug::NoLocking": "true",
        }
        options = [word for key, value in own.items() for word in ("--option", f"{key}={value}")]
        argv = ["env", f"--chdir={self._archives}", "apt-get", *options, "-qq", *arguments]
        try:
            return process.run(argv, timeout_s=_DOWNLOAD_S).stdout
        except CommandFailed as error:
            reason = error.reason.partition("\n")[0].removeprefix("E: ")
            raise BackendError("apt-get", reason) from error


def field(package: Path, name: str) -> str:
    """Read a field of a package's control file."""
    return process.run(["dpkg-deb", "--field", str(package), name], timeout_s=_LOCAL_S).stdout.strip()


def unpack(packages: Sequence[Path], root: Path) -> Path:
    """Unpack packages into one tree and give it: /bin and its like are links into /usr.

    Nothing of them is run, so what their maintainer scripts would do is not done.
    """
    root.mkdir(parents=True)
    names = root.with_name(f"{root.name}.packages")
    names.write_text("".join(f"{package}\n" for package in packages))
    each = ["dpkg-deb", "--extract", "{}", str(root)]
    at_once = f"--max-procs={os.cpu_count() or 1}"
    argv = ["xargs", f"--arg-file={names}", "--delimiter=\\n", at_once, "--replace={}", *each]
    process.run(argv, timeout_s=_UNPACK_S)
    for name in _MERGED:
        _merge(root / name, root / "usr" / name)
    return root


def _merge(directory: Path, into: Path) -> None:
    """Move all that a directory has to where it belongs, and make it a link."""
    into.mkdir(parents=True, exist_ok=True)
    if directory.exists():
        _move_tree(directory, into)
    directory.symlink_to(Path("usr") / directory.name)


def _move_tree(directory: Path, into: Path) -> None:
    for path in directory.iterdir():
        target = into / path.name
        if path.is_dir() and not path.is_symlink() and target.is_dir():
            _move_tree(path, target)
        else:
            path.replace(target)
    directory.rmdir()
