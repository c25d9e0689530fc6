"""The tree of files of a lab machine: what maintainer scripts would have done, and file systems made of it.

Tools come out of the tree itself and run through its own dynamic loader, so that the machine needs none.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from voldrivers import process

_TOOL_S = 120.0
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
#: Accounts that maintainer scripts would have made.
_ACCOUNTS = """statd:x:101:65534::/var/lib/nfs:/usr/sbin/nologin
_rpc:x:102:65534::/run/rpcbind:/usr/sbin/nologin
"""
_GROUPS = "kvm:x:103:\nrender:x:104:\nsgx:x:105:\ninput:x:106:\n"
_HOSTS = """127.0.0.1 localhost
10.77.1.1 storage portal-a
10.77.2.1 portal-b
10.77.1.2 compute
10.77.1.3 compute2
"""
_DIRECTORIES = (
    *("proc", "sys", "dev", "run", "tmp", "mnt", "srv/nfs", "project", "deps", "results", "root", "lab"),
    *("etc/target", "etc/rtslib-fb-target", "etc/iscsi", "etc/nvme", "etc/lvm", "etc/multipath"),
    *("var/lib/nfs/rpc_pipefs", "var/lib/nfs/v4recovery", "var/lib/nfs/nfsdcltrack", "var/lib/voldrivers"),
)
#: Not needed by anything that runs there.
_UNUSED = (
    *("usr/share/man", "usr/share/doc", "usr/share/locale", "usr/share/info", "usr/share/bash-completion"),
    *("usr/share/i18n", "usr/share/lintian", "usr/share/gtk-doc", "usr/share/help", "usr/share/alsa"),
    *("usr/share/icons", "usr/share/applications", "usr/share/doc-base", "usr/share/bug", "usr/include"),
    *(f"{_LIBRARIES}/gconv", "usr/share/qemu/edk2-*", "usr/share/qemu/*.dtb", "usr/share/qemu/opensbi*"),
    *(
        "usr/share/qemu/skiboot*",
        "usr/share/qemu/u-boot*",
        "usr/share/qemu/QEMU*",
        "usr/share/qemu/openbios*",
    ),
)
#: The project's commands, wherever the project is.
_VOLDRIVERS = """#!/usr/bin/python3
import sys

from voldrivers.cli import main

sys.exit(main())
"""


def configure(root: Path, inside: Path) -> None:
    """Do what the packages' scripts would have done, and add what is ours."""
    for pattern in _UNUSED:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in _DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, master, ours in (("passwd", "passwd", _ACCOUNTS), ("group", "group", _GROUPS)):
        (root / "etc" / name).write_text((root / f"usr/share/base-passwd/{master}.master").read_text() + ours)
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    (root / "etc/hosts").write_text(_HOSTS)
    for name in ("etc/fstab", "etc/exports", "etc/machine-id", "var/lib/nfs/etab", "var/lib/nfs/rmtab"):
        (root / name).write_text("")
    for name, target in (
        ("etc/mtab", "/proc/self/mounts"),
        ("var/run", "/run"),
        ("var/lock", "/run/lock"),
        ("usr/bin/sh", "dash"),
        ("usr/bin/awk", "mawk"),
    ):
        _link(root / name, target)
    for name in ("init", "agent.py"):
        shutil.copy(inside / name, root / "lab" / name)
        (root / "lab" / name).chmod(0o755)
    for place in ("etc/lvm/lvmlocal.conf", "etc/multipath.conf", "etc/iscsi/iscsid.conf"):
        shutil.copy(inside / Path(place).name, root / place)
    command = root / "usr/bin/voldrivers"
    command.write_text(_VOLDRIVERS)
    command.chmod(0o755)
    _compile(root)


def index_modules(root: Path, version: str) -> None:
    """Let modprobe find the modules of a kernel (depmod(8))."""
    _run_out_of(root, "usr/bin/kmod", ["--basedir", str(root), version], called="depmod")


def make_read_only(
    directory: Path, image: Path, *, excluded: Sequence[str] = (), tools: Path | None = None
) -> None:
    """Make a read-only file system of a directory, all of root's, with the tools of a tree."""
    options = [f"--exclude-regex={pattern}" for pattern in excluded]
    argv = ["--quiet", "--all-root", *options, str(image), str(directory)]
    _run_out_of(tools or directory, "usr/bin/mkfs.erofs", argv)


def make_file_system(root: Path, image: Path, size_bytes: int) -> None:
    """Make an empty ext4 in a sparse file."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    _run_out_of(root, "usr/sbin/mke2fs", ["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1", str(image)])


def _link(path: Path, target: str) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _compile(root: Path) -> None:
    """Make the byte code that the packages' scripts would have made; only the same Python can."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if (root / "usr/bin" / version).exists():
        where = [str(root / "usr/lib/python3"), str(root / "usr/lib" / version)]
        options = ["-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
        process.run([sys.executable, "-m", "compileall", *options, *where], timeout_s=_TOOL_S)


def _run_out_of(root: Path, program: str, arguments: Sequence[str], called: str = "") -> None:
    loader = root / "usr/lib64/ld-linux-x86-64.so.2"
    how = ["--library-path", str(root / _LIBRARIES), "--argv0", called or Path(program).name]
    process.run([str(loader), *how, str(root / program), *arguments], timeout_s=_TOOL_S)
