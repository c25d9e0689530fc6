"""How a volume is reached, as os-brick and Nova take it: one flat mapping."""

from collections.abc import Mapping
from typing import Any

from voldrivers.model import ConnectionInfo

Data = dict[str, Any]  # Any: what JSON holds
_LISTS = ("target_portals", "target_iqns", "target_luns")
_OURS = "voldrivers:properties"


def to_data(info: ConnectionInfo) -> Data:
    """Write the properties with the types that os-brick expects, and as they are for `from_data`."""
    data: Data = dict(info.properties)
    for name in _LISTS:
        if name in data:
            several = [int(each) if name == "target_luns" else each for each in data[name].split(",")]
            data |= {name: several, name.removesuffix("s"): several[0]}
    if info.driver_volume_type == "nvmeof":
        portals = (each.rpartition(":") for each in str(data.get("portals", "")).split(","))
        data["portals"] = [[address.strip("[]"), int(port), "tcp"] for address, _, port in portals]
    if info.driver_volume_type == "nfs" and data["options"]:
        data["options"] = f"-o {data['options']}"
    return data | {
        "encrypted": info.encrypted,
        "qos_specs": None,
        "cacheable": False,
        "enforce_multipath": False,
        _OURS: dict(info.properties),
    }


def from_data(data: Mapping[str, Any]) -> ConnectionInfo | None:  # Any: what JSON holds
    """Read what `to_data` wrote, the way `driver_volume_type` beside it; None for anybody else's."""
    kind, properties = data.get("driver_volume_type"), data.get(_OURS)
    if not kind or not isinstance(properties, Mapping):
        return None
    # A platform says by itself, later, what it has encrypted.
    encrypted = {"encrypted": "true"} if data.get("encrypted") in (True, "True", "true") else {}
    return ConnectionInfo(kind, {**properties, **encrypted})
