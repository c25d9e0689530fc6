"""The disk image of the lab's machines: Debian's packages, put together without root.

Nothing of the packages is run but their own tools on our own files. What their maintainer scripts would
have done is done in `tree`.
"""

import hashlib
import inspect
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from voldrivers.guests import debian, initramfs
from voldrivers.lab import tree

INSIDE = Path(__file__).parent / "inside"
#: The disk that takes what a machine changes outside its volumes; sparse.
OWN_DISK_BYTES = 4 * 2**30

_FIRST_MODULES = ("virtio_pci", "virtio_blk", "erofs", "overlay", "ext4", "crc32c_generic")


@dataclass(frozen=True)
class LabImage:
    """What a machine boots from, and the hash of all of it, by which saved states know it."""

    directory: Path
    digest: str

    @property
    def kernel(self) -> Path:
        """The kernel, as QEMU boots it."""
        return self.directory / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        """What finds the root disk."""
        return self.directory / "initramfs"

    @property
    def root(self) -> Path:
        """The root disk, read-only."""
        return self.directory / "root.erofs"

    @property
    def own_disk(self) -> Path:
        """An empty file system, over which each machine has a layer of its own."""
        return self.directory / "own.ext4"


def recipe() -> str:
    """Name what the image is made of here, before it is made: package list, module list, our own files."""
    digest = hashlib.sha256()
    modules = (tree, debian, initramfs, sys.modules[__name__])
    ours = [*INSIDE.iterdir(), *(Path(inspect.getfile(module)) for module in modules)]
    for path in sorted(path for path in ours if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def find(cache: Path) -> LabImage | None:
    """Give the image of today's recipe if it has been made."""
    directory = cache / "images" / recipe()
    manifest = directory / "manifest.json"
    if not manifest.exists():
        return None
    return LabImage(directory, json.loads(manifest.read_text())["digest"])


def make(cache: Path) -> LabImage:
    """Make the image of today's recipe, from packages that are downloaded unless they were before.

    Raises BackendError (no network, no space), NotSupported (no apt). Nothing is left behind on failure.
    """
    images = cache / "images"
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=images) as name:
        work = Path(name)
        packages = debian.Packages(cache / "packages").download_all(_wanted())
        root = debian.unpack([package for package in packages if not _is_dropped(package)], work / "root")
        image = work / "image"
        image.mkdir()
        _add_kernel(root, image)
        tree.configure(root, INSIDE)
        tree.make_read_only(root, image / "root.erofs")
        tree.make_file_system(root, image / "own.ext4", OWN_DISK_BYTES)
        manifest = {"packages": {package.name: _sha256(package) for package in packages}}
        made = {path.name: _sha256(path) for path in image.iterdir() if path.name != "own.ext4"}
        digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
        text = json.dumps({"digest": digest, "files": made, **manifest}, indent=1)
        (image / "manifest.json").write_text(text)
        directory = images / recipe()
        shutil.rmtree(directory, ignore_errors=True)
        image.rename(directory)
    return LabImage(directory, digest)


def _wanted() -> list[str]:
    return [word for word in _words("packages.txt") if not word.startswith("-")]


def _is_dropped(package: Path) -> bool:
    patterns = [word[1:] for word in _words("packages.txt") if word.startswith("-")]
    return any(fnmatch(package.name.partition("_")[0], pattern) for pattern in patterns)


def _words(name: str) -> list[str]:
    lines = (INSIDE / name).read_text().splitlines()
    return [word for line in lines if not line.startswith("#") for word in line.split()]


def _add_kernel(root: Path, image: Path) -> None:
    """Take the kernel out of the tree; of its modules leave there what is used."""
    kernel = next((root / "boot").glob("vmlinuz-*"))
    version = kernel.name.removeprefix("vmlinuz-")
    installed = root / "usr/lib/modules" / version
    everything = root.parent / "modules"
    installed.rename(everything)
    kernel.rename(image / "vmlinuz")
    shutil.rmtree(root / "boot")
    for module in initramfs.module_closure(everything, _words("modules.txt")):
        copy = (
            installed / module.file.with_suffix("")
            if module.file.suffix == ".xz"
            else installed / module.file
        )
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(module.content)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(everything / name, installed / name)
    tree.index_modules(root, version)
    files = {
        "init": (INSIDE / "initramfs").read_bytes(),
        "bin/busybox": (root / "usr/bin/busybox").read_bytes(),
    }
    for number, module in enumerate(initramfs.module_closure(everything, _FIRST_MODULES)):
        files[f"modules/{number:02}.ko"] = module.content
    (image / "initramfs").write_bytes(initramfs.archive(files))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
