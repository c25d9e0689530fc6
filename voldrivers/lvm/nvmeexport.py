"""Exports over NVMe/TCP: each volume is namespace 1 of a subsystem of its own, in nvmet.

A host is let in by its NQN alone: nvmet of Debian's Linux 6.1 is built without DH-HMAC-CHAP. nvmet
remembers nothing over a reboot: what was exported comes back by `restore`.
"""

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from voldrivers.base import Run
from voldrivers.errors import InvalidInput, InvalidState, NotFound, NotSupported
from voldrivers.lvm import nvmet
from voldrivers.lvm.export import Exports, attached, known
from voldrivers.lvm.portals import parse_portal
from voldrivers.lvm.target import TargetOptions
from voldrivers.lvm.turn import alone
from voldrivers.model import ConnectionInfo, Connector, Volume

_PORT = 4420
_NQN = re.compile(r"nqn\.[0-9]{4}-[01][0-9]\.[A-Za-z0-9.:_-]{1,200}")
_VOLUME_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,99}")
#: The namespace's UUID and the subsystem's serial are made of this and the volume's id.
_UUIDS = uuid.UUID("a0cd7a5e-5ec0-5a8a-8c0a-3f6c1b0f3a52")


class NVMeExports(Exports):
    """Subsystems of nvmet."""

    layer = "namespace"

    def __init__(self, options: TargetOptions, run: Run) -> None:
        """Take the options; nothing is looked at. Raises InvalidInput."""
        self._run = run
        self._prefix = re.sub(r"^iqn\.", "nqn.", options.target_prefix) + "volume-"
        if not _NQN.fullmatch(self._prefix):
            raise InvalidInput(
                f"target prefix {options.target_prefix}", "it must begin a name such as nqn....:"
            )
        self._portals = tuple(parse_portal(text, _PORT) for text in options.portals)

    def check_id(self, volume_id: str) -> None:
        """Refuse what no subsystem can be named after."""
        if not _VOLUME_ID.fullmatch(volume_id):
            raise InvalidInput(f"volume {volume_id}", "its id cannot be in the name of an NVMe subsystem")

    def open(
        self,
        volume_id: str,
        device: Path,
        connector: Connector,
        known: Iterable[ConnectionInfo],  # noqa: ARG002 - there is no secret
    ) -> ConnectionInfo:
        """Make the subsystem whole, and let the host in by its NQN; there is no secret."""
        if connector.nqn is None:
            raise NotSupported(f"host {connector.host}", "it has no NVMe name: install nvme-cli there")
        self._make(volume_id, device, [connector.nqn])
        properties = {
            "target_nqn": self._nqn(volume_id),
            "vol_uuid": _uuid(volume_id),
            "ns_id": str(nvmet.NAMESPACE),
            "transport_type": "tcp",
            "portals": ",".join(map(str, self._portals)),
        }
        return ConnectionInfo("nvmeof", properties)

    def close_to(self, volume_id: str, connector: Connector) -> None:
        """Take the host's NQN out, and end its controllers; hosts that stay connect again."""
        if connector.nqn:
            with self._changing(volume_id) as nqn:
                nvmet.disallow(nqn, connector.nqn)

    def remove(self, volume_id: str) -> None:
        """Remove the subsystem. Raises InvalidState while a host is let in: who is connected, nobody says."""
        with self._changing(volume_id) as nqn:
            if hosts := nvmet.allowed(nqn):
                raise InvalidState(f"NVMe subsystem {nqn}", f"open to {', '.join(hosts)}", "open to nobody")
            if others := nvmet.other_namespaces(nqn):
                state = f"of namespaces {', '.join(others)} too"
                raise InvalidState(f"NVMe subsystem {nqn}", state, "as it was made")
            nvmet.remove(nqn, self._portals)

    def shown_bytes(self, volume_id: str) -> int:
        """Give what nvmet answers to Identify."""
        nqn = self._nqn(volume_id)
        with nvmet.opened(self._run, nqn):
            shown = nvmet.shown_bytes(nqn)
        if shown is None:
            raise NotFound("namespace", f"{nvmet.NAMESPACE} of {nqn}")
        return shown

    def check_open(self, volume: Volume) -> None:
        """Look for the namespace, the portals and the names of the volume's hosts."""
        nqn, told = self._nqn(volume.id), [info.properties.get("portals", "") for info in known(volume)]
        portals = {parse_portal(portal) for text in told for portal in text.split(",") if portal}
        with nvmet.opened(self._run, nqn):
            obstacle = nvmet.obstacle(nqn, sorted(portals, key=str), _hosts(volume))
        if obstacle:
            raise InvalidState(f"NVMe subsystem {nqn}", obstacle, "as its hosts know it")

    def restore(self, volume: Volume, device: Path) -> None:
        """Make whole what is not; then have nvmet look at the size."""
        nqn, hosts = self._nqn(volume.id), _hosts(volume)
        if not hosts:
            return
        with nvmet.opened(self._run, nqn):
            is_whole = nvmet.is_on(nqn, device) and not nvmet.obstacle(nqn, self._portals, hosts)
        if not is_whole:
            self._make(volume.id, device, hosts)
        with nvmet.opened(self._run, nqn):
            nvmet.announce(nqn)

    def _make(self, volume_id: str, device: Path, hosts: Sequence[str]) -> None:
        for host in hosts:
            if not _NQN.fullmatch(host):
                raise InvalidInput(f"host name {host}", "it must be an NVMe name: nqn.")
        with self._changing(volume_id) as nqn:
            nvmet.ensure_subsystem(nqn, uuid.uuid5(_UUIDS, volume_id).hex[:20])
            nvmet.ensure_namespace(nqn, device, _uuid(volume_id))
            for host in hosts:
                nvmet.allow(nqn, host)
            for portal in self._portals:
                nvmet.ensure_linked(nqn, portal)

    @contextmanager
    def _changing(self, volume_id: str) -> Iterator[str]:
        """Give the NQN while no other process of ours changes anything."""
        nqn = self._nqn(volume_id)
        with nvmet.opened(self._run, nqn), alone(f"NVMe subsystem {nqn}"):
            yield nqn

    def _nqn(self, volume_id: str) -> str:
        self.check_id(volume_id)
        return self._prefix + volume_id


def _hosts(volume: Volume) -> list[str]:
    return [each.connector.nqn for each in attached(volume) if each.connector and each.connector.nqn]


def _uuid(volume_id: str) -> str:
    return str(uuid.uuid5(_UUIDS, volume_id))
