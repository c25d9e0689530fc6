"""The side door of the conformance suite: a volume group as lvs and vgs show it, and what is exported."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voldrivers.lvm.options import LVMOptions
from voldrivers.model import Volume
from voldrivers.process import run
from voldrivers.sizes import MiB

_LOOK_S, _TAG_S = 60.0, 60.0
_PLAIN = ("--reportformat", "json", "--units", "b", "--nosuffix")
#: What may stand in a tag (lvm(8)); the value follows the equals sign.
_MARK = "voldrivers_scratch="
Row = Mapping[str, Any]  # Any: what JSON holds
#: Backstores and targets of LIO (Documentation/target), subsystems of nvmet (drivers/nvme/target/configfs.c).
_EXPORTS = ("target/core/*/*", "target/iscsi/iqn*", "nvmet/subsystems/*")


class VolumeGroupOracle:
    """Looks into a volume group. `voldrivers.conformance.Oracle` says what each method means."""

    #: A thin pool tells how full it is in hundredths of a percent.
    tolerance_bytes = MiB

    def __init__(self, options: LVMOptions, configfs: Path = Path("/sys/kernel/config")) -> None:
        """Look at the group of a backend's options."""
        self.pool, self._configfs = options.volume_group, configfs

    def objects(self) -> Mapping[str, int]:
        """Give every logical volume with its size, and every export there is."""
        volumes = {row["lv_name"]: int(row["lv_size"]) for row in self._look()["lv"]}
        exports = [path for pattern in _EXPORTS for path in self._configfs.glob(pattern) if path.is_dir()]
        return volumes | {f"export {path.parent.name}/{path.name}": 0 for path in exports}

    def size_bytes(self, volume: Volume) -> int | None:
        """Give the size of the logical volume that is named after a volume."""
        return self.objects().get(f"volume-{volume.id}")

    def free_bytes(self) -> int:
        """Give the extents that nobody has, and what is not written of thin pools."""
        seen = self._look()
        empty = [
            int(row["lv_size"]) * (1 - float(row["data_percent"] or 0) / 100)
            for row in seen["lv"]
            if _is_pool(row)
        ]
        return int(seen["vg"][0]["vg_free"]) + int(sum(empty))

    def mark(self) -> str:
        """Give what the tag says of whose the group is; nothing without one."""
        tags = str(self._look()["vg"][0]["vg_tags"]).split(",")
        found = [tag for tag in tags if tag.startswith(_MARK)]
        return found[0].removeprefix(_MARK) if found else ""

    def set_mark(self, mark: str) -> None:
        """Tag the group."""
        run(["vgchange", "--quiet", "--addtag", f"{_MARK}{mark}", self.pool], timeout_s=_TAG_S)

    def occupants(self) -> Sequence[str]:
        """Name every logical volume but thin pools, in which there is nothing of their own."""
        return [str(row["lv_name"]) for row in self._look()["lv"] if not _is_pool(row)]

    def _look(self) -> Mapping[str, Sequence[Row]]:
        """Look at the group and its logical volumes: one program."""
        fields = {"vg": "vg_free,vg_tags", "lv": "lv_name,lv_size,lv_layout,data_percent", "pv": "pv_name"}
        fields |= {"pvseg": "pv_uuid", "seg": "lv_uuid"}
        chosen = [
            w for report, names in fields.items() for w in ("--configreport", report, "--options", names)
        ]
        argv = ["lvm", "fullreport", *_PLAIN, *chosen, self.pool]
        report: Mapping[str, Sequence[Row]] = json.loads(run(argv, timeout_s=_LOOK_S).stdout)["report"][0]
        return report


def _is_pool(row: Row) -> bool:
    return {"thin", "pool"} <= set(row["lv_layout"].split(","))
