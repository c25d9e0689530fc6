"""Volumes from images and images from volumes, by Cinder's own image code, compared byte by byte."""

import random
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cinderclient import exceptions
from cindersite import Backend, CinderSite, new_guest
from servicesite import SOON_S

from voldrivers.filesystem import image_bytes
from voldrivers.process import run, wait_until
from voldrivers.sizes import GiB, KiB, MiB

pytestmark = [pytest.mark.full, pytest.mark.needs("qemu-img", "qemu-io")]
#: Volume types: the format of the file, and whether it has all its room at once.
KINDS = [("raw", False), ("raw", True), ("qcow2", False), ("qcow2", True)]
#: What one may wait for an image, which several programs handle.
LONG_S = 3 * SOON_S


@dataclass(frozen=True)
class Images:
    """One content, in a file of each format."""

    raw: Path
    qcow2: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CinderSite]:
    made = CinderSite(tmp_path_factory.mktemp("cinder"))
    for image_format, preallocated in KINDS:
        kind = made.client().volume_types.create(type_name(image_format, preallocated))
        kind.set_keys({"voldrivers:format": image_format, "voldrivers:preallocate": f"<is> {preallocated}"})
    yield made
    made.end()


@pytest.fixture(scope="module")
def images(site: CinderSite) -> Images:
    """Data, a hole, zeros that are written, and an end within a sector."""
    made = Images(site.directory / "image.raw", site.directory / "image.qcow2")
    some = random.Random(7).randbytes
    with made.raw.open("wb") as file:
        file.write(some(MiB) + bytes(MiB))
        file.seek(30 * MiB)
        file.write(some(70 * KiB + 77))
    convert(made.raw, "raw", made.qcow2, "qcow2")
    return made


def type_name(image_format: str, preallocated: bool) -> str:
    return f"{image_format}{'-preallocated' if preallocated else ''}"


def convert(path: Path, image_format: str, to: Path, to_format: str) -> None:
    run(["qemu-img", "convert", "-q", "-f", image_format, "-O", to_format, str(path), str(to)], timeout_s=60)


def is_same(path: Path, image_format: str, other: Path, other_format: str) -> bool:
    """Tell whether both show the same bytes; what is beyond the end of one must be zeros in the other."""
    formats = ["-f", image_format, "-F", other_format]
    compared = subprocess.run(
        ["qemu-img", "compare", "-q", *formats, str(path), str(other)], timeout=60, check=False
    )
    return compared.returncode == 0


def begin(site: CinderSite, image_id: str, size_gib: int = 1, **more: object) -> str:
    return str(site.client().volumes.create(size_gib, imageRef=image_id, **more).id)


def file_of(site: CinderSite, volume_id: str) -> Path:
    """The newest of the volume's files: the one that is written to."""
    found = [path for path in site.share().glob(f"volume-{volume_id}*") if path.suffix != ".snapshot"]
    return max(found, key=lambda path: (path.stat().st_mtime, len(path.name)))


def check_volume(
    site: CinderSite, volume_id: str, image: Path, size_gib: int, kind: tuple[str, bool]
) -> None:
    """Compare a volume with the image that it was made of, and its file with its kind."""
    image_format, preallocated = kind
    path = file_of(site, volume_id)
    assert image_bytes(path, image_format) == size_gib * GiB
    assert is_same(image, "raw", path, image_format)
    room_bytes = path.stat().st_blocks * 512
    assert (room_bytes >= size_gib * GiB) if preallocated else (room_bytes < 8 * MiB), (kind, room_bytes)
    run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], timeout_s=60) if path.suffix else None


def upload(site: CinderSite, volume_id: str, disk_format: str, status: str = "available", **more: Any) -> str:
    """Have a volume become an image, whose id is given; wait until the volume has its status again."""
    asked = site.client().volumes.get(volume_id).upload_to_image
    image_id = asked(more.get("force", False), "image", "bare", disk_format)[1]["os-volume_upload_image"]
    wait_until(lambda: status_of(site, volume_id) != "uploading", LONG_S, "the upload")
    assert status_of(site, volume_id) == status
    return str(image_id["image_id"])


def status_of(site: CinderSite, volume_id: str) -> str:
    return str(site.client().volumes.get(volume_id).status)


def check_image(site: CinderSite, image_id: str, disk_format: str, size_gib: int, of: Path) -> None:
    image = site.glance.images[image_id]
    assert image.record["status"] == "active", site.log[-3000:]
    assert image_bytes(image.path, disk_format) == size_gib * GiB
    assert is_same(image.path, disk_format, of, "qcow2" if of.suffix else "raw")


def check_nothing_left(site: CinderSite) -> None:
    """No file of a copy is left, and nobody has one of the share open."""
    conversion = site.directory / "cinder" / "conversion"
    assert list(conversion.iterdir()) == []
    opened = subprocess.run(
        ["find", "/proc", "-path", "/proc/[0-9]*/fd/*", "-lname", f"{site.share()}/*"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert opened.stdout == ""


def test_an_image_becomes_volumes(site: CinderSite, images: Images) -> None:
    """Two at once: a sparse file, and one that has all its room; both are larger than their image."""
    larger_id = begin(site, site.glance.add(images.raw, "raw"), 2)
    volume_id = begin(site, site.glance.add(images.qcow2, "qcow2"), volume_type=type_name(*KINDS[3]))
    assert site.wait(larger_id, "available", LONG_S).size == 2
    check_volume(site, larger_id, images.raw, 2, KINDS[0])
    assert site.wait(volume_id, "available", LONG_S).bootable == "true"
    check_volume(site, volume_id, images.raw, 1, KINDS[3])
    check_nothing_left(site)
    for each in (larger_id, volume_id):
        site.delete(each)
    assert list(site.share().iterdir()) == []


def test_a_volume_becomes_images(site: CinderSite, images: Images, tier: str) -> None:
    """A raw one, whatever its header says, and one that goes on over what a snapshot froze."""
    cinder, image_id = site.client(), site.glance.add(images.raw, "raw")
    volume_id = begin(site, image_id)
    site.wait(volume_id, "available", LONG_S)
    path = file_of(site, volume_id)
    # A guest may write whatever it likes: a header that would lead qemu-img to another file, say.
    header, leading_away = site.directory / "header", "create -q -f qcow2 -u -b /etc/passwd -F raw"
    run(["qemu-img", *leading_away.split(), str(header), "1G"], timeout_s=60)
    with path.open("r+b") as file:
        file.write(header.read_bytes())
    if tier == "full":  # each of its bytes is sent
        check_image(site, upload(site, volume_id, "raw"), "raw", 1, path)
    check_image(site, upload(site, volume_id, "qcow2"), "qcow2", 1, path)
    snapshot = cinder.volume_snapshots.create(volume_id)
    wait_until(lambda: cinder.volume_snapshots.get(snapshot.id).status == "available", SOON_S, "the snapshot")
    active = file_of(site, volume_id)
    assert active != path
    run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 9 3M 1M", str(active)], timeout_s=60)
    check_image(site, upload(site, volume_id, "qcow2"), "qcow2", 1, active)
    check_nothing_left(site)
    cinder.volume_snapshots.delete(snapshot)
    wait_until(lambda: not cinder.volume_snapshots.list(), SOON_S, "the snapshot to go")
    site.delete(volume_id)
    assert list(site.share().iterdir()) == []


def broken(site: CinderSite, images: Images, how: str) -> str:
    """Give an image that cannot become a volume of 1 GiB."""
    path = site.directory / how
    if how == "too-large":
        run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(GiB + 512)], timeout_s=60)
        return site.glance.add(path, "qcow2")
    if how == "breaks-off":
        return site.glance.add(images.raw, "raw", breaks_off=2 * MiB)
    damaged = bytearray(images.qcow2.read_bytes())
    tables = int.from_bytes(damaged[40:48], "big")  # l1_table_offset (QEMU docs/interop/qcow2.txt)
    damaged[tables + 6] ^= 0x10  # no multiple of a cluster any more
    path.write_bytes(damaged)
    return site.glance.add(path, "qcow2")


@pytest.mark.parametrize("how", ["too-large", "breaks-off", "damaged"])
def test_an_image_that_cannot_be_copied_ends_in_an_error(site: CinderSite, images: Images, how: str) -> None:
    volume_id = begin(site, broken(site, images, how))
    passing = ("creating", "downloading")
    wait_until(lambda: status_of(site, volume_id) not in passing, LONG_S, "the end of the copy")
    assert status_of(site, volume_id) == "error"
    check_nothing_left(site)
    assert image_bytes(file_of(site, volume_id), "raw") == GiB if how == "damaged" else True
    site.delete(volume_id)
    assert list(site.share().iterdir()) == []


def test_an_image_that_says_that_it_is_too_large_is_refused(site: CinderSite, images: Images) -> None:
    image_id = site.glance.add(images.raw, "raw")
    site.glance.images[image_id].record["size"] = GiB + 1
    with pytest.raises(exceptions.BadRequest, match="2GB is larger than volume size 1GB"):
        begin(site, image_id)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type_name(*kind))
@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_every_kind_from_and_to_every_format(
    site: CinderSite, images: Images, kind: tuple[str, bool], disk_format: str
) -> None:
    image_id = site.glance.add(images.raw if disk_format == "raw" else images.qcow2, disk_format)
    volume_id = begin(site, image_id, volume_type=type_name(*kind))
    site.wait(volume_id, "available", LONG_S)
    check_volume(site, volume_id, images.raw, 1, kind)
    sent_id = upload(site, volume_id, disk_format)
    check_image(site, sent_id, disk_format, 1, file_of(site, volume_id))
    again_id = begin(site, sent_id, 2)
    site.wait(again_id, "available", LONG_S)
    check_volume(site, again_id, images.raw, 2, ("raw", False))
    check_nothing_left(site)
    for each in (volume_id, again_id):
        site.delete(each)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type_name(*kind))
def test_a_volume_is_made_anew_from_an_image(
    site: CinderSite, images: Images, kind: tuple[str, bool]
) -> None:
    """The bytes of before show nowhere, and a snapshot keeps them."""
    cinder, image_id = site.client(), site.glance.add(images.qcow2, "qcow2")
    volume_id = site.create(1, type_name(*kind))
    path = file_of(site, volume_id)
    run(["qemu-io", "-f", kind[0], "-c", "write -q -P 9 0 30M", str(path)], timeout_s=60)
    snapshot = cinder.volume_snapshots.create(volume_id)
    wait_until(lambda: cinder.volume_snapshots.get(snapshot.id).status == "available", SOON_S, "the snapshot")
    before = site.directory / "before.raw"
    convert(path, kind[0], before, "raw")
    cinder.volumes.reimage(volume_id, image_id)
    site.wait(volume_id, "available", LONG_S)
    assert is_same(images.raw, "raw", file_of(site, volume_id), "qcow2")
    assert is_same(before, "raw", path, kind[0])
    cinder.volumes.revert_to_snapshot(cinder.volumes.get(volume_id), snapshot)
    site.wait(volume_id, "available")
    assert is_same(before, "raw", file_of(site, volume_id), "qcow2")
    cinder.volume_snapshots.delete(snapshot)
    wait_until(lambda: not cinder.volume_snapshots.list(), SOON_S, "the snapshot to go")
    site.delete(volume_id)


@pytest.fixture(scope="module")
def busy_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CinderSite]:
    """One with what is off by default: a cache of images, images of what is in use, keys."""
    made = CinderSite(
        tmp_path_factory.mktemp("cinder"),
        {
            "files": Backend(
                section="image_volume_cache_enabled = True\n"
                "[DEFAULT]\nenable_force_upload = True\n"
                f"cinder_internal_tenant_project_id = {'b' * 32}\n"
                f"cinder_internal_tenant_user_id = {'c' * 32}\n"
                "[key_manager]\nbackend = cinder.keymgr.conf_key_mgr.ConfKeyManager\n"
                f"fixed_key = {'0' * 64}\n"
            )
        },
    )
    yield made
    made.end()


@pytest.mark.full
def test_the_second_volume_of_an_image_is_a_clone_of_the_cached_one(
    busy_site: CinderSite, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(random.Random(8).randbytes(3 * MiB + 5))
    image_id = busy_site.glance.add(image, "raw")
    for size_gib in (2, 3):
        volume_id = begin(busy_site, image_id, size_gib)
        assert busy_site.wait(volume_id, "available", LONG_S).size == size_gib
        check_volume(busy_site, volume_id, image, size_gib, ("raw", False))
    assert len(list(busy_site.share().iterdir())) == 3
    busy_site.glance.images[image_id].breaks_off = 0  # what is cached is not fetched
    volume_id = begin(busy_site, image_id, 1)
    busy_site.wait(volume_id, "available", LONG_S)
    check_volume(busy_site, volume_id, image, 1, ("raw", False))


@pytest.mark.full
@pytest.mark.needs("qemu-system-x86_64")
def test_a_volume_in_use_becomes_an_image_where_it_is_raw(busy_site: CinderSite) -> None:
    volume_id = busy_site.create(1)
    with new_guest(busy_site.directory) as guest, busy_site.attached(volume_id, guest):
        guest.disk(volume_id).write(0, b"7" * 512)
        image_id = upload(busy_site, volume_id, "raw", "in-use", force=True)
        check_image(busy_site, image_id, "raw", 1, file_of(busy_site, volume_id))
        # qemu-img does not read what a QEMU may be changing.
        image_id = upload(busy_site, volume_id, "qcow2", "in-use", force=True)
        assert image_id not in busy_site.glance.images
    check_nothing_left(busy_site)


@pytest.mark.full
def test_an_image_that_the_service_does_not_take_is_removed(busy_site: CinderSite) -> None:
    volume_id = busy_site.create(1)
    busy_site.glance.is_full = True
    for disk_format in ("raw", "qcow2"):
        assert upload(busy_site, volume_id, disk_format) not in busy_site.glance.images
    busy_site.glance.is_full = False
    check_nothing_left(busy_site)
    told = [each.user_message for each in busy_site.client().messages.list()]
    assert sum("copy volume to image" in each for each in told) >= 2, told


@pytest.mark.full
def test_an_encrypted_volume_becomes_an_image_and_is_made_of_none(
    busy_site: CinderSite, images: Images
) -> None:
    cinder = busy_site.client()
    kind = cinder.volume_types.create("encrypted")
    specs = {
        "provider": "luks",
        "cipher": "aes-xts-plain64",
        "key_size": 256,
        "control_location": "front-end",
    }
    cinder.volume_encryption_types.create(kind, specs)
    image_id = busy_site.glance.add(images.raw, "raw")
    volume_id = begin(busy_site, image_id, volume_type="encrypted")
    wait_until(lambda: status_of(busy_site, volume_id) not in ("creating", "downloading"), LONG_S, "an end")
    assert status_of(busy_site, volume_id) == "error"
    assert "is encrypted: writing an image into it is not built yet" in busy_site.log
    busy_site.delete(volume_id)
    volume_id = busy_site.create(1, "encrypted")
    path = file_of(busy_site, volume_id)
    run(["qemu-io", "-f", "raw", "-c", "write -q -P 9 3M 1M", str(path)], timeout_s=60)
    check_image(busy_site, upload(busy_site, volume_id, "raw"), "raw", 1, path)
    connector = {"host": "compute.example.org", "ip": "127.0.0.1", "multipath": False}
    made = cinder.attachments.create(volume_id, connector, str(uuid.uuid4()))
    assert made["connection_info"]["encrypted"] is True
    cinder.attachments.delete(made["id"])
