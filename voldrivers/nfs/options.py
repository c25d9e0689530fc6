"""The options of the NFS driver: of one share, and of one new volume on it."""

from dataclasses import dataclass
from pathlib import Path

from voldrivers.nfs.image import FORMATS
from voldrivers.options import option


@dataclass(frozen=True)
class NFSOptions:
    """The options of one share."""

    share: str = option("server:/export, mounted through os-brick, or a directory", or_remote=True)
    format: str = option("format of new volumes; only raw can be attached twice", "raw", choices=FORMATS)
    preallocate: bool = option("give new volumes all their room at once, and keep it so", False)
    mount_options: str = option("options for mount(8), such as vers=4.2,hard", "")
    mount_point_base: Path = option("where exports are mounted", Path("/var/lib/voldrivers/mnt"))
    must_be_mounted: bool = option("refuse a directory that is no mount point, so a lost mount shows", False)
    # Cinder's default: an operator who chooses sparse files means to promise more than there is.
    max_over_subscription_ratio: float = option(
        "how often the room may be promised to sparse volumes", 20.0, minimum=1.0
    )
    reserved_percentage: int = option(
        "percentage of the share that is never promised", 0, minimum=0, maximum=99
    )


@dataclass(frozen=True)
class NFSVolumeOptions:
    """The options of one new volume."""

    format: str | None = option("format of the file; none: the backend's", None, choices=FORMATS)
    preallocate: bool | None = option("give it all its room at once; none: the backend's", None)
