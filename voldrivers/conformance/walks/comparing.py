"""What must hold after every step of the stateful machine, and at its end."""

from voldrivers.conformance.aids import copying
from voldrivers.conformance.verdicts import expect
from voldrivers.conformance.walks.model import Known
from voldrivers.conformance.walks.player import Player
from voldrivers.conformance.walks.traces import Step
from voldrivers.model import Volume, VolumeStatus

#: These change no byte of a detached volume, nor can they show one that is changed.
_NO_BYTES = ("create_again", "attach", "detach", "delete", "extend_bad", "restart", "write")


def check_all(player: Player, step: Step) -> None:
    """Compare everything with the model; bytes where a volume is attached, or was just worked on."""
    _check_there(player)
    for number, known in player.model.volumes.items():
        volume = player.bench.now(player.volumes[number])
        _check_status(player, volume, known)
        _check_size(player, volume, known)
        _check_snapshots(player, number, volume, known)
        about = number in (step.arguments.get("volume"), step.arguments.get("source"))
        if known.targets or (about and step.name not in _NO_BYTES and not known.pending_bytes):
            player.check_data(volume)
    _check_room(player)


def check_end(player: Player) -> None:
    """Read every byte of volumes and of snapshots; what is left behind, the bench finds when it is left."""
    bench = player.bench
    for number, known in player.model.volumes.items():
        bench.check_agreed(player.volumes[number], known.size_bytes)
        player.check_data(player.volumes[number])
    for kept in player.kept.values():
        free_bytes = bench.driver.pool().free_bytes
        if bench.declared.clones and 2 * kept.snapshot.size_bytes + bench.granule <= free_bytes:
            copying.check_kept(bench, kept)


def _check_there(player: Player) -> None:
    """Have all volumes and snapshots be there, on record and by the driver's list, and no other of ours."""
    bench = player.bench
    ids = {volume.id for volume in player.volumes.values()}
    recorded = {volume.id for volume in bench.engine.volumes()}
    expect(recorded == ids, "I5", "not the volumes that were made are on record", recorded=recorded, made=ids)
    listed = {each for each in bench.driver.list_volumes() if bench.is_ours(each)}
    expect(ids <= listed, "I5", "a volume is not listed", lacking=ids - listed)
    expect(listed <= ids, "I10", "more volumes are listed than there are", more=listed - ids)
    if bench.declared.snapshots:
        kept = {each.snapshot.id for each in player.kept.values()}
        there = {each for each in copying.keeper(bench).list_snapshots() if bench.is_ours(each)}
        expect(kept <= there, "I5", "a snapshot is not listed", lacking=kept - there)
        expect(there <= kept, "I10", "more snapshots are listed than there are", more=there - kept)


def _check_status(player: Player, volume: Volume, known: Known) -> None:
    wanted = VolumeStatus.IN_USE if known.targets else VolumeStatus.AVAILABLE
    wanted = VolumeStatus.EXTENDING if known.pending_bytes else wanted
    expect(volume.status is wanted, "I1", f"its status is not {wanted}", status=volume.status)
    numbers = {place.host.name: number for number, place in enumerate(player.bench.subject.places)}
    targets = {(numbers[each.host], each.instance is not None) for each in volume.attachments}
    expect(targets == known.targets, "I5", "it is attached elsewhere", now=targets, model=known.targets)


def _check_size(player: Player, volume: Volume, known: Known) -> None:
    """Have one size everywhere; while an extend is pending the old or the new one, the old one published."""
    if not known.pending_bytes:
        player.bench.check_agreed(volume, known.size_bytes)
        return
    read = player.bench.sizes(volume)
    allowed = {known.size_bytes, known.pending_bytes}
    expect(set(read.values()) <= allowed, "I6", "neither the old size nor the new one", **read)
    expect(read["published"] == known.size_bytes, "I14", "published before it is true", **read)


def _check_snapshots(player: Player, number: int, volume: Volume, known: Known) -> None:
    for slot, size_bytes in known.snapshots.items():
        snapshot = player.kept[number, slot].snapshot
        seen = copying.keeper(player.bench).snapshot_size(volume, snapshot)
        sizes = {size_bytes, seen, player.bench.engine.snapshot(snapshot.id).size_bytes}
        expect(len(sizes) == 1, "I5", "a snapshot has another size", was=size_bytes, driver=seen)


def _check_room(player: Player) -> None:
    """Have the figures be sound; where there are volumes alone, just their bytes are allocated (I8)."""
    pool, volumes = player.bench.driver.pool(), player.model.volumes.values()
    expect(min(pool.free_bytes, pool.allocated_bytes) >= 0, "I8", "less than nothing", pool=pool)
    if any(each.snapshots or each.pending_bytes for each in volumes):
        return
    taken, model = pool.allocated_bytes - player.allocated_before, sum(each.size_bytes for each in volumes)
    expect(taken == model, "I8", "not just what the volumes take is allocated", pool=pool, volumes=model)
