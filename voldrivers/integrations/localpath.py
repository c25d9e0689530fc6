"""A volume's path on the machine that copies an image, in the place of one of os-brick's connectors."""

from collections.abc import Mapping
from typing import Any

from voldrivers.api.connections import from_data
from voldrivers.errors import InvalidInput
from voldrivers.integrations.asking import Worker
from voldrivers.model import ConnectionInfo, Volume

Data = Mapping[str, Any]  # Any: what JSON holds


class LocalPath:
    """Connects and disconnects as os_brick's BaseLinuxConnector does, through the worker."""

    def __init__(self, worker: Worker, driver_volume_type: str) -> None:
        """Have `worker` do it; which way it is connected stands beside the data."""
        self._worker, self._type = worker, driver_volume_type

    def connect_volume(self, data: Data) -> dict[str, str]:
        """Connect; give the path."""
        volume, info = self._read(data)
        path = self._worker.ask("connect_here", volume=volume, connection_info=info)
        return {"type": "block", "path": path}

    def disconnect_volume(self, data: Data, device: Mapping[str, str], **_more: object) -> None:
        """Disconnect; what is gone already is no error."""
        volume, info = self._read(data)
        self._worker.ask("disconnect_here", volume=volume, connection_info=info, path=device["path"])

    def _read(self, data: Data) -> tuple[Volume, ConnectionInfo]:
        # What is copied is what lies on the backend, encrypted or not.
        info = from_data({**data, "driver_volume_type": self._type, "encrypted": False})
        if info is None:
            raise InvalidInput("connection of a volume", "was not given by a driver of voldrivers")
        return Volume(data["volume_id"], f"volume-{data['volume_id']}", "", 0), info
