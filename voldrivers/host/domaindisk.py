"""The disks of a libvirt domain, as its XML has them: reading those that are there, writing a new one."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from voldrivers.errors import InvalidState
from voldrivers.host import hotplug
from voldrivers.host.blocknode import is_same_file
from voldrivers.host.media import FileMedium, Medium
from voldrivers.model import Volume

_TARGETS = re.compile(r"vd([a-z]+)")
_AGENT_PORT = "org.qemu.guest_agent.0"


@dataclass(frozen=True)
class DomainDisk:
    """One disk of a domain: `target` is libvirt's name of it, `job` what copies it elsewhere, or ""."""

    target: str
    source: str
    format: str
    serial: str
    read_only: bool
    job: str
    xml: str

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"disk {self.target}"


def read(domain_xml: str) -> list[DomainDisk]:
    """Give the disks that have a file or a device in this host's file system."""
    found = []
    for disk in _root(domain_xml).iterfind("./devices/disk"):
        source = disk.find("source")
        name = None if source is None else source.get("file") or source.get("dev")
        if name and disk.get("device") in ("disk", "lun"):
            found.append(_disk(disk, name))
    return found


def has_agent(domain_xml: str) -> bool:
    """Tell whether the domain has a channel for the agent in its guest."""
    targets = _root(domain_xml).iterfind("./devices/channel/target")
    return any(target.get("name") == _AGENT_PORT for target in targets)


def with_volume(disks: Sequence[DomainDisk], volume: Volume, path: Path) -> list[DomainDisk]:
    """Choose the disks with a volume: first ours, by their serial, then others that have its file.

    Raises InvalidState when ours has its blocks elsewhere by now (a snapshot or a copy of somebody's).
    """
    ours = [disk for disk in disks if hotplug.serial(disk.serial) == hotplug.serial(volume.id)]
    for disk in ours:
        if not is_same_file(disk.source, path):
            raise InvalidState(disk.title, f"stored in {disk.source}", f"stored in {path}")
    return ours + [disk for disk in disks if disk not in ours and is_same_file(disk.source, path)]


def write(domain_xml: str, volume: Volume, medium: Medium) -> str:
    """Describe a volume as a new disk of a domain.

    Every layer is named with its format, the last one by an empty `backingStore`: else libvirt would look
    into the headers for what lies below.
    """
    disk = ET.Element("disk", type=_kind(medium), device="disk")
    io = "threads" if isinstance(medium, FileMedium) else "native"
    ET.SubElement(disk, "driver", name="qemu", type=medium.format, cache="none", io=io)
    _add_source(disk, medium)
    below = disk
    for layer in medium.lower():
        below = ET.SubElement(below, "backingStore", type=_kind(layer))
        ET.SubElement(below, "format", type=layer.format)
        _add_source(below, layer)
    ET.SubElement(below, "backingStore")
    ET.SubElement(disk, "target", dev=_free_target(domain_xml), bus="virtio")
    ET.SubElement(disk, "serial").text = hotplug.serial(volume.id)
    if volume.multi_attach:
        ET.SubElement(disk, "shareable")
    return ET.tostring(disk, encoding="unicode")


def write_overlay(disks: Sequence[DomainDisk], chosen: DomainDisk, overlay: Medium) -> str:
    """Describe a snapshot by which one disk goes on in an overlay, and every other one stays as it is."""
    snapshot = ET.Element("domainsnapshot")
    listed = ET.SubElement(snapshot, "disks")
    for disk in disks:
        if disk.target != chosen.target:
            ET.SubElement(listed, "disk", name=disk.target, snapshot="no")
    wanted = ET.SubElement(listed, "disk", name=chosen.target, snapshot="external", type=_kind(overlay))
    ET.SubElement(wanted, "driver", type=overlay.format)
    _add_source(wanted, overlay)
    return ET.tostring(snapshot, encoding="unicode")


def _disk(disk: ET.Element, source: str) -> DomainDisk:
    driver, target, mirror = disk.find("driver"), disk.find("target"), disk.find("mirror")
    return DomainDisk(
        target="" if target is None else target.get("dev", ""),
        source=source,
        format="" if driver is None else driver.get("type", ""),
        serial=(disk.findtext("serial") or "").strip(),
        read_only=disk.find("readonly") is not None,
        job="" if mirror is None else f"{mirror.get('job', 'copy')} job",
        xml=ET.tostring(disk, encoding="unicode"),
    )


def _kind(medium: Medium) -> str:
    return "file" if isinstance(medium, FileMedium) else "block"


def _add_source(parent: ET.Element, medium: Medium) -> None:
    name = "file" if isinstance(medium, FileMedium) else "dev"
    ET.SubElement(parent, "source", {name: str(medium.path)})


def _free_target(domain_xml: str) -> str:
    """Choose the first name that no disk has; it says nothing of what the guest calls it."""
    targets = (target.get("dev", "") for target in _root(domain_xml).iterfind("./devices/disk/target"))
    taken = {match[1] for target in targets if (match := _TARGETS.fullmatch(target))}
    return next(f"vd{letters}" for letters in _letters() if letters not in taken)


def _letters() -> Iterator[str]:
    """Give a to z, then aa, ab and so on, as the kernel counts disks."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    yield from alphabet
    yield from (f"{first}{second}" for first in alphabet for second in alphabet)


def _root(domain_xml: str) -> ET.Element:
    return ET.fromstring(domain_xml)  # noqa: S314 - libvirtd is trusted with more
