"""The options of the LVM driver: of one volume group, and of one new volume in it."""

from dataclasses import dataclass

from voldrivers.options import option

LVM_TYPES = ("auto", "default", "thin")
TARGET_PROTOCOLS = ("iscsi", "nvmet_tcp")
#: When the extents of thick volumes are cleared: before they are given back, or before they are given out.
CLEARED = ("at-delete", "before-use")


@dataclass(frozen=True)
class LVMOptions:
    """The options of one volume group."""

    volume_group: str = option("the volume group; what is not tagged `voldrivers` in it is left alone")
    lvm_type: str = option(
        "kind of new volumes: default is thick, auto is thin with a pool", "auto", choices=LVM_TYPES
    )
    thin_pool: str = option("the thin pool; none: VOLUME_GROUP-pool", "")
    stripes: int = option("physical volumes over which a thick volume is striped", 1, minimum=1, maximum=128)
    volume_clear: str = option(
        "at-delete zeroes deleted thick volumes, before-use new extents, for a group that others use too",
        "at-delete",
        choices=CLEARED,
    )
    # Cinder's default: an operator who chooses thin volumes means to promise more than there is.
    max_over_subscription_ratio: float = option("how often the thin pool may be promised", 20.0, minimum=1.0)
    thin_pool_full_percentage: int = option(
        "how full data or metadata of the thin pool may be for something to grow", 95, minimum=1, maximum=100
    )
    reserved_percentage: int = option(
        "percentage of the room that is never promised", 0, minimum=0, maximum=99
    )

    target_ip_addresses: str = option("portals of the target, ADDRESS or ADDRESS:PORT, with commas", "")
    target_protocol: str = option(
        "how volumes are exported: over iSCSI by LIO, over NVMe/TCP by nvmet",
        "iscsi",
        choices=TARGET_PROTOCOLS,
    )
    target_prefix: str = option(
        "what the names of targets begin with; NVMe's have nqn. for iqn.", "iqn.2010-10.org.openstack:"
    )

    def __post_init__(self) -> None:
        """Refuse a backend that nobody could reach. Raises ValueError."""
        if not self.portals:
            raise ValueError("target_ip_addresses must name an address of this machine")

    @property
    def portals(self) -> tuple[str, ...]:
        """Where initiators find the target."""
        return tuple(filter(None, self.target_ip_addresses.replace(" ", "").split(",")))

    @property
    def pool(self) -> str:
        """The name of the thin pool."""
        return self.thin_pool or f"{self.volume_group}-pool"


@dataclass(frozen=True)
class LVMVolumeOptions:
    """The options of one new volume."""

    lvm_type: str | None = option("kind of the volume; none: the backend's", None, choices=LVM_TYPES)
