"""Exports over iSCSI: each volume is LUN 0 of a target of its own; who gets in is told a CHAP secret."""

import secrets
from collections.abc import Iterable
from pathlib import Path

from voldrivers.errors import NotFound, NotSupported
from voldrivers.lvm.export import Exports, attached, known
from voldrivers.lvm.target import Chap, Export, Target, TargetOptions
from voldrivers.model import ConnectionInfo, Connector, Volume

_PROTOCOL = "iscsi"


class ISCSIExports(Exports):
    """Targets of LIO: see `Target`."""

    layer = "LUN"

    def __init__(self, options: TargetOptions) -> None:
        """Take the options; nothing is looked at. Raises InvalidInput."""
        self._target = Target(options)

    def check_id(self, volume_id: str) -> None:
        """Refuse what no target can be named after."""
        self._target.check_id(volume_id)

    def open(
        self, volume_id: str, device: Path, connector: Connector, known: Iterable[ConnectionInfo]
    ) -> ConnectionInfo:
        """Make the target whole, with the secret that is known or a new one, and an ACL in it."""
        if connector.initiator is None:
            raise NotSupported(
                f"host {connector.host}", "it has no iSCSI initiator: install open-iscsi there"
            )
        export = self._target.ensure(volume_id, device, _known(known) or self._chap(volume_id))
        self._target.allow(volume_id, connector.initiator)
        return ConnectionInfo(_PROTOCOL, _properties(export))

    def close_to(self, volume_id: str, connector: Connector) -> None:
        """Remove the initiator's ACL, and its session with it."""
        if connector.initiator:
            self._target.disallow(volume_id, connector.initiator)

    def remove(self, volume_id: str) -> None:
        """Remove target and backstore."""
        self._target.remove(volume_id)

    def shown_bytes(self, volume_id: str) -> int:
        """Give what LIO answers to READ CAPACITY."""
        return self._target.lun_bytes(volume_id)

    def check_open(self, volume: Volume) -> None:
        """Look for portals, ACLs and the secret that the volume's hosts were told."""
        chap, initiators = _known(known(volume)), _initiators(volume)
        told = [info.properties.get("target_portals", "") for info in known(volume)]
        portals = {portal for text in told for portal in text.split(",") if portal}
        if chap is not None and initiators:
            self._target.check_open(volume.id, chap, portals, initiators)

    def restore(self, volume: Volume, device: Path) -> None:
        """Make whole what is not, with the secret that the volume's hosts were told."""
        chap, initiators = _known(known(volume)), _initiators(volume)
        if chap is None or not initiators or self._target.is_whole(volume.id, device, chap, initiators):
            return
        self._target.ensure(volume.id, device, chap)
        for initiator in initiators:
            self._target.allow(volume.id, initiator)

    def _chap(self, volume_id: str) -> Chap:
        """Give the secret that the volume's target has, or a new one."""
        try:
            return self._target.export(volume_id).chap
        except NotFound:
            return new_chap()


def new_chap() -> Chap:
    """Draw a name and a secret for CHAP.

    The name begins with a letter: of one that begins with 0b LIO takes the rest for base64, and refuses it
    (Linux 6.1, `extract_param` in drivers/target/iscsi/iscsi_target_nego.c). Initiators take a secret of 12
    to 16 characters.
    """
    return Chap(f"v{secrets.token_hex(10)}", secrets.token_hex(8))


def _initiators(volume: Volume) -> list[str]:
    connectors = [each.connector for each in attached(volume) if each.connector]
    return [each.initiator for each in connectors if each.initiator]


def _known(infos: Iterable[ConnectionInfo]) -> Chap | None:
    """Give the secret that hosts have: they log in again with it, whatever became of the target."""
    for info in infos:
        user, password = (info.properties.get(f"auth_{name}") for name in ("username", "password"))
        if info.driver_volume_type == _PROTOCOL and user and password:
            return Chap(user, password)
    return None


def _properties(export: Export) -> dict[str, str]:
    """Give what os-brick calls the data of the connection."""
    portals = export.portals
    return {
        "target_portals": ",".join(portals),
        "target_iqns": ",".join([export.iqn] * len(portals)),
        "target_luns": ",".join([str(export.lun)] * len(portals)),
        "auth_method": "CHAP",
        "auth_username": export.chap.user,
        "auth_password": export.chap.password,
    }
