"""The kernel and the initramfs of the Linux guest, made of Debian's packages without root.

Nothing is installed: what the machine does not have is taken out of its package.
"""

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from voldrivers import process
from voldrivers.errors import CommandFailed, NotFound
from voldrivers.guests import debian, initramfs

AGENT_PORT, SHELL_PORT = "org.qemu.guest_agent.0", "voldrivers.shell"
#: The line on the console after which disks may come, and the byte before a shell command's exit code.
READY, END_OF_ANSWER = "voldrivers guest is ready", b"\x04"

_LOCAL_S = 60.0
_MODULES = ("virtio_pci", "virtio_blk", "virtio_console")
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
        read -r command <&3 || {{ usleep 200000; continue; }}
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
    for number, module in enumerate(initramfs.module_closure(modules, _MODULES)):
        files[f"modules/{number:02}.ko"] = module.content
    for installed, package in (("/bin/busybox", "busybox-static"), ("/usr/sbin/qemu-ga", "qemu-guest-agent")):
        program = _program(installed, package, work)
        files[f"bin/{program.name}"] = program.read_bytes()
        files |= {str(library)[1:]: library.read_bytes() for library in _libraries(program)}
    image.joinpath("initramfs").write_bytes(initramfs.archive(files))
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
        packages = debian.Packages(work / "apt")
        depends = debian.field(packages.download("linux-image-cloud-amd64"), "Depends")
        versioned = packages.download(depends.partition(" ")[0])
        root = debian.unpack([versioned], work / "kernel")
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
    packages = debian.Packages(work / "apt")
    return debian.unpack([packages.download(package)], work / package) / installed.lstrip("/")


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
