"""The kernel and the initramfs of the Linux guest, made of Debian's packages without root.

Nothing is installed: what the machine does not have is fetched with `apt-get download`, from
package lists of our own, and unpacked with `dpkg-deb --extract`.
"""

import hashlib
import lzma
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from voldrivers import process
from voldrivers.errors import CommandFailed, NotFound

AGENT_PORT, SHELL_PORT = "org.qemu.guest_agent.0", "voldrivers.shell"
#: The line on the console after which disks may come, and the byte before a shell command's exit code.
READY, END_OF_ANSWER = "voldrivers guest is ready", b"\x04"

_DOWNLOAD_S, _LOCAL_S = 300.0, 60.0
_MODULES = ("virtio_pci", "virtio_blk", "virtio_console")
_DIRECTORIES = ("dev", "proc", "run", "sys", "tmp")
# read(2) on a port without a client at the other end gives end of file, so `serve` comes back to it.
_INIT = rf"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
for module in /modules/*; do insmod $module; done

port() {{
    until name=$(grep -lx $1 /sys/class/virtio-ports/*/name 2>/dev/null); do usleep 10000; done
    name=${{name%/name}}
    echo /dev/${{name##*/}}
}}
serve() {{
    exec 3<>$1
    while :; do
        read -r command <&3 || {{ usleep 20000; continue; }}
        sh -c "$command" </dev/null >/run/answer 2>&1
        printf '\004%s\n' $? >>/run/answer
        cat /run/answer >&3
    done
}}
qemu-ga --method=virtio-serial --path=$(port {AGENT_PORT}) --statedir=/run >/run/agent.log 2>&1 &
serve $(port {SHELL_PORT}) &
echo 7 >/proc/sys/kernel/printk
echo {READY} >/dev/console
while :; do sleep 3600; done
"""


@dataclass(frozen=True)
class GuestImage:
    """What QEMU boots."""

    kernel: Path
    initramfs: Path


def prepare(cache_dir: Path) -> GuestImage:
    """Give the kernel and initramfs in `cache_dir`; make them first if they are not there.

    They are named by what this module says, so that a changed recipe makes new ones. May be called
    by several processes at once. Raises BackendError (no network, no apt), NotFound (a package
    without the file that is needed).
    """
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    cache_dir = cache_dir.absolute()  # apt takes a relative one from its own root
    directory = cache_dir / f"linux-{recipe}"
    if not directory.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="making-", dir=cache_dir) as made:
            _make(Path(made))
            _publish(Path(made, "image"), directory)
    return GuestImage(directory / "vmlinuz", directory / "initramfs")


def _make(work: Path) -> None:
    image = work / "image"
    image.mkdir()
    kernel, modules = _kernel(work)
    files = {"init": _INIT.encode()}
    for number, module in enumerate(_module_closure(modules)):
        files[f"modules/{number:02}.ko"] = module
    for installed, package in (("/bin/busybox", "busybox-static"), ("/usr/sbin/qemu-ga", "qemu-guest-agent")):
        program = _program(installed, package, work)
        files[f"bin/{program.name}"] = program.read_bytes()
        files |= {str(library)[1:]: library.read_bytes() for library in _libraries(program)}
    image.joinpath("initramfs").write_bytes(b"".join(_archive(files)))
    image.joinpath("vmlinuz").write_bytes(kernel.read_bytes())


def _publish(image: Path, directory: Path) -> None:
    """Move what was made into its place, unless another process was faster."""
    try:
        image.rename(directory)
    except OSError:
        if not directory.exists():
            raise


def _kernel(work: Path) -> tuple[Path, Path]:
    """Find Debian's kernel and its modules: the installed one that can be read, else the cloud kernel."""
    root = Path("/")
    if not _kernels(root):
        depends = _field(_download("linux-image-cloud-amd64", work), "Depends")
        versioned = depends.partition(" ")[0]
        root = _unpack(_download(versioned, work))
    if not _kernels(root):
        raise NotFound("kernel", "/boot/vmlinuz-*", f" in {root}")
    kernel = _kernels(root)[-1]
    return kernel, root / "lib/modules" / kernel.name.removeprefix("vmlinuz-")


def _kernels(root: Path) -> list[Path]:
    found = (root / "boot").glob("vmlinuz-*-amd64")
    return sorted(kernel for kernel in found if os.access(kernel, os.R_OK))


def _program(installed: str, package: str, work: Path) -> Path:
    """Give the installed program, else the one out of its package."""
    if Path(installed).exists():
        return Path(installed)
    return _unpack(_download(package, work)) / installed.lstrip("/")


def _download(package: str, work: Path) -> Path:
    """Fetch one package of this machine's own distribution, with package lists of our own: no root."""
    lists, target = work / "apt", work / package
    own = ["-o", f"Dir::State={lists}", "-o", f"Dir::Cache={lists}", "-o", "APT::Sandbox::User="]
    if not lists.exists():
        lists.joinpath("lists/partial").mkdir(parents=True)
        lists.joinpath("archives/partial").mkdir(parents=True)
        process.run(["apt-get", *own, "-qq", "update"], timeout_s=_DOWNLOAD_S)
    target.mkdir()
    argv = ["env", f"--chdir={target}", "apt-get", *own, "-qq", "download", package]
    process.run(argv, timeout_s=_DOWNLOAD_S)
    return next(target.glob("*.deb"))


def _field(package: Path, name: str) -> str:
    return process.run(["dpkg-deb", "--field", str(package), name], timeout_s=_LOCAL_S).stdout.strip()


def _unpack(package: Path) -> Path:
    root = package.parent / "root"
    process.run(["dpkg-deb", "--extract", str(package), str(root)], timeout_s=_LOCAL_S)
    return root


def _module_closure(modules: Path) -> Iterator[bytes]:
    """Give our modules and what they need, in the order in which they must be inserted.

    What a module needs stands in itself (`depends=` in its section .modinfo), so depmod is not needed.
    """
    files = {_module_name(file): file for file in modules.glob("kernel/**/*.ko*")}
    inserted: set[str] = set()

    def with_needs(name: str) -> Iterator[bytes]:
        if name in inserted or name not in files:  # not there: built into the kernel
            return
        inserted.add(name)
        module = _read_module(files[name])
        for needed in _needs(module):
            yield from with_needs(needed)
        yield module

    for name in _MODULES:
        yield from with_needs(name)


def _module_name(file: Path) -> str:
    return file.name.partition(".")[0].replace("-", "_")


def _read_module(file: Path) -> bytes:
    content = file.read_bytes()
    return lzma.decompress(content) if file.suffix == ".xz" else content


def _needs(module: bytes) -> list[str]:
    depends = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name for name in depends[1].decode().split(",") if name] if depends else []


def _libraries(program: Path) -> list[Path]:
    """Find the shared libraries of a program on this machine: ldd has no output made for machines."""
    try:
        printed = process.run(["ldd", str(program)], timeout_s=_LOCAL_S).stdout
    except CommandFailed as error:
        if "not a dynamic executable" in error.reason:
            return []
        raise
    if missing := re.findall(r"(\S+) => not found", printed):
        raise NotFound("shared library", ", ".join(missing), f", which {program.name} needs")
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", printed)]


def _archive(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """Write an initramfs: a cpio archive in the new format, all of root's and executable.

    Source: Documentation/driver-api/early-userspace/buffer-format.rst of Linux.
    """
    parents = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    for name in sorted(parents | set(_DIRECTORIES)):
        yield _member(name, 0o040755)
    for name, content in files.items():
        yield _member(name, 0o100755, content)
    yield _member("TRAILER!!!", 0)


def _member(name: str, mode: int, content: bytes = b"") -> bytes:
    encoded = name.encode() + b"\0"
    #         inode, mode, uid, gid, links, mtime, size, 4 device numbers, name's size, checksum
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % number for number in numbers)
    return _padded(header + encoded) + _padded(content)


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)
