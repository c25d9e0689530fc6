"""Lies about who reaches a volume, and what is seen there."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from liars.liar import Liar, lying_driver
from voldrivers.errors import BackendError, NoSpace, NotFound
from voldrivers.extend import lifecycle
from voldrivers.extend.engine import Engine
from voldrivers.memory import MemoryArray, MemoryDriver, MemoryHost, MemoryMachine
from voldrivers.model import Attachment, ConnectionInfo, Connector, Volume

_LOG = logging.getLogger(__name__)
_SECRET = "correct horse battery staple"
_CHAP = {"auth_username": "acme", "auth_password": _SECRET}


class LeavesExport(MemoryDriver):
    """The export is left behind after the last detach."""

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        """Nothing is taken back."""

    def delete_volume(self, volume: Volume) -> None:
        self.array.exports = {each for each in self.array.exports if each[0] != volume.id}
        super().delete_volume(volume)


class LeavesDevice(MemoryHost):
    """The device stays on the host after a detach."""

    def disconnect(self, volume: Volume, attachment: Attachment) -> None:
        """Nothing is taken away."""


class SaysNothing(MemoryDriver):
    """connection_info does not say where the volume is."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        super().initialize_connection(volume, connector)
        return ConnectionInfo("memory", {})


class RunsOut(MemoryDriver):
    """Has eight LUN numbers and gives none back."""

    given = 0

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        self.given += 1
        if self.given > 8:
            raise NoSpace(volume.title, 1, 0)
        return super().initialize_connection(volume, connector)


class AnswersAnew(MemoryDriver):
    """Draws a new password each time it is asked for a connection, and shuts the old one out."""

    given = 0

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        self.given += 1
        info = super().initialize_connection(volume, connector)
        return ConnectionInfo("memory", {**info.properties, "auth_password": f"{_SECRET} {self.given}"})


class ShutsAllOut(MemoryDriver):
    """A detach takes the access of another host too."""

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        self.array.exports = {each for each in self.array.exports if each[0] != volume.id}


class ShutsTheHostOut(MemoryDriver):
    """A detach takes the access of a host that has the volume attached once more."""

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        self.array.exports.discard((volume.id, connector.host))


class WantsToHaveGiven(MemoryDriver):
    """Fails to take back what it has not given."""

    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        if (volume.id, connector.host) not in self.array.exports:
            raise NotFound("export", volume.name)
        super().terminate_connection(volume, connector)


class Obeys(MemoryDriver):
    """Deletes an attached volume when told to."""

    def delete_volume(self, volume: Volume) -> None:
        self.array.exports = {each for each in self.array.exports if each[0] != volume.id}
        super().delete_volume(volume)


class SecondWriter(Engine):
    """Lets a second writer in, whatever the volume and its driver say."""

    def attach(
        self, name: str, host: str | None = None, instance: str | None = None, monitor: Path | None = None
    ) -> Attachment:
        volume = self.volume(name)
        if not volume.attachments:
            return super().attach(name, host, instance, monitor)
        attachment = Attachment(self.site.new_id(), volume.id, self.site.host(host).name)
        self.store.add_attachment(volume, attachment)
        return lifecycle.finish_attach(self.site, volume, attachment)


class KeepsTheSize(MemoryHost):
    """A device keeps the size of the volume that had its LUN before."""

    left_bytes = 0

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        path = super().connect(volume, attachment, connection_info)
        if self.left_bytes:
            self.machine.devices[volume.id] = self.left_bytes
        return path

    def disconnect(self, volume: Volume, attachment: Attachment) -> None:
        self.left_bytes = self.machine.devices.get(volume.id, 0)
        super().disconnect(volume, attachment)


class CachesTheContent(MemoryHost):
    """Reads a volume when it is attached, and writes it back when it is detached: nothing is shared."""

    def __init__(self, name: str, array: MemoryArray, machine: MemoryMachine | None = None) -> None:
        super().__init__(name, replace(array, written={}), machine)
        self.shared = array

    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        self.array.written[volume.id] = dict(self.shared.written.get(volume.id, {}))
        return super().connect(volume, attachment, connection_info)

    def disconnect(self, volume: Volume, attachment: Attachment) -> None:
        super().disconnect(volume, attachment)
        self.shared.written.setdefault(volume.id, {}).update(self.array.written.pop(volume.id, {}))


@dataclass(frozen=True, repr=False)
class Chatty(ConnectionInfo):
    """A connection_info that shows everything."""

    def __repr__(self) -> str:
        return f"Chatty({self.driver_volume_type}, {dict(self.properties)})"


class ShowsInRepr(MemoryDriver):
    """The repr of connection_info shows the password."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        super().initialize_connection(volume, connector)
        return Chatty("memory", {"volume_id": volume.id, **_CHAP})


class _WithPassword(MemoryDriver):
    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        super().initialize_connection(volume, connector)
        return ConnectionInfo("memory", {"volume_id": volume.id, **_CHAP})


class ShowsInErrors(_WithPassword):
    """An error shows the password."""

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        try:
            super().check_extend(volume, new_size_bytes)
        except NoSpace as error:
            raise BackendError(volume.title, f"the array refuses {_CHAP}: {error}") from error


class ShowsInLogs(_WithPassword):
    """The log shows the password."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        _LOG.debug("letting %s in with %s", connector.host, _CHAP)
        return super().initialize_connection(volume, connector)


class ShowsInProcesses(_WithPassword):
    """The list of processes shows the password."""

    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        self.run(["true", "--password", _SECRET], timeout_s=60)
        return super().initialize_connection(volume, connector)


LIARS = [
    lying_driver(LeavesExport, "ATT-001"),
    Liar(LeavesDevice, "ATT-001", host=LeavesDevice),
    lying_driver(SaysNothing, "ATT-001"),
    lying_driver(RunsOut, "ATT-002"),
    lying_driver(AnswersAnew, "ATT-002"),
    lying_driver(ShutsAllOut, "ATT-003"),
    lying_driver(ShutsTheHostOut, "ATT-003"),
    lying_driver(WantsToHaveGiven, "ATT-004"),
    lying_driver(Obeys, "ATT-005"),
    Liar(SecondWriter, "ATT-007", engine=SecondWriter),
    Liar(KeepsTheSize, "ATT-009", host=KeepsTheSize),
    Liar(CachesTheContent, "ATT-013", host=CachesTheContent),
    lying_driver(ShowsInRepr, "ATT-010"),
    lying_driver(ShowsInErrors, "ATT-010"),
    lying_driver(ShowsInLogs, "ATT-010"),
    lying_driver(ShowsInProcesses, "ATT-010"),
]
