"""The iSCSI target: volumes as LUNs of LIO, one target for each.

A volume has a backstore `volume-ID` and a target with one portal group and LUN 0.
"""

import os
import re
import stat
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from voldrivers.errors import InvalidInput, InvalidState, NotFound
from voldrivers.lvm import lio, saveconfig
from voldrivers.lvm.lio import Chap, Node
from voldrivers.lvm.portals import parse_portal
from voldrivers.lvm.turn import alone

__all__ = ["Chap", "Export", "Target", "TargetOptions"]

_PREFIX = "volume-"
#: What can stand in the name of a target (RFC 3722, as rtslib has it: no underscore) and in a file name.
_VOLUME_ID = re.compile(r"[a-z0-9][a-z0-9.:-]{0,149}")
_INITIATOR = re.compile(
    r"iqn\.[0-9]{4}-[01][0-9]\.[A-Za-z0-9.:-]{1,200}|eui\.[0-9A-Fa-f]{16}|naa\.[0-9A-Fa-f]{16}"
)
#: The unit serial is made of this and the volume's id, and the WWN of the unit serial (LIO: 6001405...).
_SERIALS = uuid.UUID("6e3a0b6a-2f0c-5d0f-9f43-51a1b5c8a7d4")
_SECTOR_BYTES = 512


@dataclass(frozen=True)
class Export:
    """What an initiator needs to log in."""

    iqn: str
    lun: int
    #: Each as IP:PORT, with brackets around an IPv6 address.
    portals: tuple[str, ...]
    chap: Chap


class TargetOptions(Protocol):
    """What of a backend's options the target uses."""

    @property
    def target_prefix(self) -> str:
        """What the names of targets start with: `iqn.2010-10.org.openstack:`."""

    @property
    def portals(self) -> tuple[str, ...]:
        """Where initiators find them: IP or IP:PORT, IPv6 in brackets."""


class Target:
    """The iSCSI targets of a backend's volumes. Every method may be repeated, also after a kill.

    A change is in the file that the machine restores at boot, flushed, when a method returns. Targets,
    backstores and saved entries of others are left alone. All raise InvalidInput for a volume's id that
    cannot be in a target's name, NotSupported without the library, BackendError when LIO refuses; those
    that change something InvalidState when another process does so for too long.
    """

    def __init__(self, options: TargetOptions, saved: Path | None = None) -> None:
        """Take the options, and the file for the next boot; None: the machine's own. Raises InvalidInput."""
        if not _INITIATOR.fullmatch(f"{options.target_prefix}x"):
            raise InvalidInput(
                f"target prefix {options.target_prefix}", "it must begin a name such as iqn....:"
            )
        self._prefix = options.target_prefix + _PREFIX
        self._portals = tuple(map(parse_portal, options.portals))
        self._saved = saved

    def ensure(self, volume_id: str, device: Path, chap: Chap) -> Export:
        """Export a block device as LUN 0 of the volume's target; nobody is let in yet.

        What is half there is completed, another CHAP secret is given to all initiators; portals that are
        no longer in the options stay. The WWN follows from the volume's id. Raises NotFound without the
        device; InvalidState when it is mounted or exported otherwise, or when the volume's backstore has
        another device.
        """
        name, iqn, serial = self._names(volume_id)
        number = _device_number(device)
        with self._changing(iqn) as rtslib:
            store = lio.ensure_store(rtslib, name, device, number, serial)
            group = rtslib.TPG(rtslib.Target(rtslib.FabricModule("iscsi"), iqn), 1)
            lio.ensure_closed(group, chap)
            lio.ensure_lun(rtslib, group, store)
            for portal in self._portals:
                lio.ensure_portal(rtslib, group, portal)
            group.enable = True
            self._save(rtslib, name, iqn)
        return Export(iqn, lio.LUN, tuple(map(str, self._portals)), chap)

    def export(self, volume_id: str) -> Export:
        """Give what `ensure` has made, with its CHAP secret. Raises NotFound without all of it."""
        iqn = self._names(volume_id)[1]
        with lio.opened(iqn) as rtslib:
            group = lio.find_group(rtslib, iqn)
            chap = lio.chap_of(group) if group else None
            if group is None or chap is None or lio.find_lun(rtslib, group) is None:
                raise NotFound("iSCSI target", iqn, ", complete as it is made")
            portals = tuple(sorted(f"{one.ip_address}:{one.port}" for one in group.network_portals))
        return Export(iqn, lio.LUN, portals, chap)

    def allow(self, volume_id: str, initiator: str) -> None:
        """Let an initiator log in, with the target's CHAP secret, and use the LUN.

        Raises InvalidInput for a name that is none, NotFound when the volume is not exported.
        """
        if not _INITIATOR.fullmatch(initiator):
            raise InvalidInput(f"initiator {initiator}", "it must be an iSCSI name: iqn., eui. or naa.")
        name, iqn, _ = self._names(volume_id)
        with self._changing(iqn) as rtslib:
            group = lio.find_group(rtslib, iqn)
            lun = lio.find_lun(rtslib, group) if group else None
            chap = lio.chap_of(group) if group else None
            if lun is None or chap is None:
                raise NotFound("iSCSI target", iqn, ", complete as it is made")
            acl = rtslib.NodeACL(group, initiator)
            lio.give_chap(acl, chap)
            lio.ensure_mapped(rtslib, acl, lun)
            self._save(rtslib, name, iqn)

    def is_whole(self, volume_id: str, device: Path, chap: Chap, initiators: Sequence[str]) -> bool:
        """Tell whether all that `ensure` and `allow` make for these is there: one look, without a lock."""
        name, iqn, _ = self._names(volume_id)
        with lio.opened(iqn) as rtslib:
            group, store = lio.find_group(rtslib, iqn), lio.find_store(rtslib, name)
            if group is None or store is None or not lio.is_on(store, _device_number(device)):
                return False
            return not lio.obstacle(rtslib, group, chap, map(str, self._portals), initiators)

    def check_open(
        self, volume_id: str, chap: Chap, portals: Iterable[str], initiators: Sequence[str]
    ) -> None:
        """Refuse a target that does not let all of these initiators in at all of these portals.

        One look, without a lock. Raises InvalidState with the reason; NotFound without a target.
        """
        iqn = self._names(volume_id)[1]
        with lio.opened(iqn) as rtslib:
            group = lio.find_group(rtslib, iqn)
            if group is None:
                raise NotFound("iSCSI target", iqn)
            if obstacle := lio.obstacle(rtslib, group, chap, portals, initiators):
                raise InvalidState(f"iSCSI target {iqn}", obstacle, "as its hosts know it")

    def disallow(self, volume_id: str, initiator: str) -> None:
        """Let an initiator in no more. A session that it has ends now, whatever is under way: a fence."""
        name, iqn, _ = self._names(volume_id)
        with self._changing(iqn) as rtslib:
            group = lio.find_group(rtslib, iqn)
            for acl in group.node_acls if group else ():
                if acl.node_wwn.lower() == initiator.lower():
                    acl.delete()
            self._save(rtslib, name, iqn)

    def remove(self, volume_id: str) -> None:
        """Remove target and backstore, from the saved ones too; the device is free then.

        Raises InvalidState, with nothing changed, while an initiator is logged in or when somebody else
        exports the backstore or it is not ours.
        """
        name, iqn, serial = self._names(volume_id)
        with self._changing(iqn) as rtslib:
            group, store = lio.find_group(rtslib, iqn), lio.find_store(rtslib, name)
            if users := [acl.node_wwn for acl in (group.node_acls if group else ()) if acl.session]:
                state = f"in use by {', '.join(users)}"
                raise InvalidState(f"iSCSI target {iqn}", state, "logged out from by all")
            if store is not None:
                lio.check_ours(store, iqn, serial)
            target = lio.find_target(rtslib, iqn)
            if target is not None:
                target.delete()
            if store is not None:
                store.delete()
            self._save(rtslib, name, iqn)

    def lun_bytes(self, volume_id: str) -> int:
        """Give the size that LIO answers to READ CAPACITY now. Raises NotFound when there is no LUN.

        configfs does not show it. LIO takes it, each time it is asked, from the block device that it
        holds open (drivers/target/target_core_iblock.c, iblock_get_blocks); so this asks that same device,
        by the number that LIO gives, not by its name.
        """
        iqn = self._names(volume_id)[1]
        with lio.opened(iqn) as rtslib:
            group = lio.find_group(rtslib, iqn)
            lun = lio.find_lun(rtslib, group) if group else None
            if lun is None:
                raise NotFound("LUN", f"{lio.LUN} of {iqn}")
            store = lun.storage_object
            sectors = Path(f"/sys/dev/block/{store.major}:{store.minor}/size").read_text()
        return int(sectors) * _SECTOR_BYTES

    def exported(self) -> Sequence[str]:
        """Give the ids of volumes that have a target, half a one too."""
        with lio.opened(self._prefix) as rtslib:
            fabric = rtslib.FabricModule("iscsi")
            names = sorted(os.listdir(fabric.path)) if fabric.exists else []
        return [name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)]

    def check_id(self, volume_id: str) -> None:
        """Refuse an id that cannot be in the name of a target. Raises InvalidInput."""
        if not _VOLUME_ID.fullmatch(volume_id):
            raise InvalidInput(f"volume {volume_id}", "its id cannot be in the name of an iSCSI target")

    def _names(self, volume_id: str) -> tuple[str, str, str]:
        """Give the names of backstore and target, and the unit serial."""
        self.check_id(volume_id)
        return _PREFIX + volume_id, self._prefix + volume_id, str(uuid.uuid5(_SERIALS, volume_id))

    @contextmanager
    def _changing(self, iqn: str) -> Iterator[Node]:
        """Give rtslib while no other process of ours changes anything, and what it remembers is forgotten."""
        with lio.opened(iqn) as rtslib, alone(f"iSCSI target {iqn}"), warnings.catch_warnings():
            # That the kernel keeps the directory for reservations that it has; that pyudev changes some day.
            warnings.simplefilter("ignore")
            # Debian's library and PyPI's differ here; one that is not there is an error in both.
            rtslib.RTSRoot._preferred_dbroot = str(self._file.parent)
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            rtslib.RTSRoot().invalidate_caches()
            yield rtslib

    @property
    def _file(self) -> Path:
        return self._saved or saveconfig.default_file()

    def _save(self, rtslib: Node, name: str, iqn: str) -> None:
        saved = lio.dump(rtslib, name, iqn)
        saveconfig.replace(self._file, name, iqn, store=saved.store, target=saved.target)


def _device_number(device: Path) -> tuple[int, int]:
    try:
        status = device.stat()
    except FileNotFoundError as error:
        raise NotFound("device", str(device)) from error
    if not stat.S_ISBLK(status.st_mode):
        raise InvalidInput(f"device {device}", "it must be a block device")
    return os.major(status.st_rdev), os.minor(status.st_rdev)
