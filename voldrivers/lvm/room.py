"""Room in a volume group: extents, the group's own metadata, and the thin pool."""

from voldrivers.errors import InvalidState, NoSpace, NotSupported
from voldrivers.lvm.lvmtools import LogicalVolume, VolumeGroup
from voldrivers.lvm.options import LVMOptions
from voldrivers.model import Pool
from voldrivers.sizes import KiB

#: What the description of the group must be able to grow for a new volume; extends get by with less, so
#: that what is there can still be extended (a thin volume takes 390 bytes, lvm2 2.03.16).
_TO_CREATE_BYTES, _TO_EXTEND_BYTES = 16 * KiB, 1 * KiB


def pool_of(group: VolumeGroup, options: LVMOptions, *, thin: bool) -> Pool:
    """Give the room of the thin pool or of the group, less what is promised."""
    if not thin:
        free_bytes = group.free_bytes - _reserved(group.size_bytes, options)
        return Pool(group.size_bytes, max(0, free_bytes), group.size_bytes - group.free_bytes)
    pool = thin_pool(group, options)
    promised_bytes = sum(volume.size_bytes for volume in group.volumes if volume.pool == pool.name)
    ratio = options.max_over_subscription_ratio
    return Pool(pool.size_bytes, _promisable(group, pool, options), promised_bytes, ratio)


def check_metadata(subject: str, group: VolumeGroup, *, creates: bool) -> None:
    """Refuse what the description of the group has no room for. Raises NoSpace."""
    needed_bytes = _TO_CREATE_BYTES if creates else _TO_EXTEND_BYTES
    if group.metadata_free_bytes < needed_bytes:
        raise NoSpace(
            f"{subject} in the metadata of volume group {group.name}", needed_bytes, group.metadata_free_bytes
        )


def check_thick(subject: str, group: VolumeGroup, options: LVMOptions, growth_bytes: int) -> None:
    """Refuse more than there is. Raises NoSpace."""
    free_bytes = max(0, group.free_bytes - _reserved(group.size_bytes, options))
    if growth_bytes > free_bytes:
        raise NoSpace(subject, growth_bytes, free_bytes)


def check_thin(subject: str, group: VolumeGroup, options: LVMOptions, growth_bytes: int) -> None:
    """Refuse what may not be promised, and all in a pool that is nearly full, ill or gives out old bytes.

    Raises NoSpace, InvalidState, NotSupported.
    """
    pool = thin_pool(group, options)
    if pool.health:
        raise InvalidState(f"thin pool {group.name}/{pool.name}", pool.health, "healthy")
    fullest = max(pool.data_percent, pool.metadata_percent)
    if fullest > options.thin_pool_full_percentage:
        what = "data" if fullest == pool.data_percent else "metadata"
        state = f"full to {fullest:g} % in its {what}"
        needed = f"full to {options.thin_pool_full_percentage} % at most"
        raise InvalidState(f"thin pool {group.name}/{pool.name}", state, needed)
    free_bytes = _promisable(group, pool, options)
    if growth_bytes > free_bytes:
        raise NoSpace(subject, growth_bytes, free_bytes)


def thin_pool(group: VolumeGroup, options: LVMOptions) -> LogicalVolume:
    """Give the pool. Raises NotSupported without one, or for one that does not zero what it gives out."""
    pool = group.find(options.pool)
    if pool is None or pool.kind != "thin-pool":
        make = f"lvcreate --type thin-pool --size SIZE --name {options.pool} {group.name}"
        missing = f"it has no thin pool {options.pool}; make one: {make}"
        raise NotSupported(f"volume group {group.name}", missing)
    if not pool.zeroes:
        reason = "it gives out blocks with the bytes of other volumes: lvchange --zero y"
        raise NotSupported(f"thin pool {group.name}/{pool.name}", reason)
    return pool


def _promisable(group: VolumeGroup, pool: LogicalVolume, options: LVMOptions) -> int:
    """The ratio times the room, less what is promised; never more than the ratio times what is free."""
    promised_bytes = sum(volume.size_bytes for volume in group.volumes if volume.pool == pool.name)
    reserved_bytes, ratio = _reserved(pool.size_bytes, options), options.max_over_subscription_ratio
    free_bytes = pool.size_bytes * (1 - pool.data_percent / 100)
    not_promised = (pool.size_bytes - reserved_bytes) * ratio - promised_bytes
    return max(0, int(min(not_promised, (free_bytes - reserved_bytes) * ratio)))


def _reserved(size_bytes: int, options: LVMOptions) -> int:
    return size_bytes * options.reserved_percentage // 100
