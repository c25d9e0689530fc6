"""LEK: after a busy life of volumes nothing is left: on the backend, on the hosts, in this process."""

import gc
from pathlib import Path

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import check
from voldrivers.conformance.copying import allowed, clone, keeper, revert, take
from voldrivers.conformance.verdicts import expect

_PROCESS = Path("/proc/self")


@check("LEK-001", "after a busy life the backend holds what it held before", smoke=True)
def backend(bench: Bench) -> None:
    """Write, attach, extend, snapshot, clone and revert volumes, delete all, compare what is there."""
    before, snapshots = bench.everything(), _snapshots(bench)
    _live(bench)
    after = bench.everything()
    expect(after.objects == before.objects, "I10", "objects are left", before=before, after=after)
    expect(after.listed == before.listed, "I10", "volumes are still listed", listed=after.listed)
    expect(_snapshots(bench) == snapshots, "I10", "snapshots are still listed", listed=_snapshots(bench))


@check("LEK-002", "after a busy life the hosts hold what they held before: devices, sessions, mounts")
def hosts(bench: Bench) -> None:
    """Write, attach, extend, snapshot, clone and revert volumes, delete all, compare the hosts."""
    before = bench.everything().residue
    _live(bench)
    after = bench.everything().residue
    expect(after == before, "I10", "something is left on a host", before=before, after=after)


@check("LEK-003", "a driver opens no more files, threads and child processes the longer it works")
def process(bench: Bench) -> None:
    """Take a busy life to warm up, count; take another one, count again."""
    _live(bench)
    before = _held()
    _live(bench)
    after = _held()
    grown = {name: (before[name], after[name]) for name in before if after[name] > before[name]}
    expect(not grown, "I10", "this process holds more than before", **grown)


@check("LEK-005", "after a busy life all room is back", smoke=True)
def room(bench: Bench) -> None:
    """Write, attach, extend, snapshot, clone and revert volumes, delete all, compare the free bytes."""
    free_bytes = bench.free_bytes()
    _live(bench)
    bench.check_room(free_bytes)


def _live(bench: Bench) -> None:
    """Do with volumes all that is declared, and delete them."""
    declared, volume = bench.declared, bench.create()
    bench.stamp(volume)
    attachment = bench.attach(volume)
    if declared.declares("in_use_extend"):
        allowed(bench, lambda: _extend(bench, volume.id), "in_use_extend")
    if declared.snapshots:
        allowed(bench, lambda: take(bench, volume), "snapshots")
    if declared.clones:
        allowed(bench, lambda: clone(bench, volume), "clones")
    bench.detach(volume, attachment)
    kept = take(bench, volume) if declared.snapshots else None
    if declared.clones:
        clone(bench, volume, kept)
    _extend(bench, volume.id)
    if kept is not None and declared.revert:
        allowed(bench, lambda: revert(bench, kept), "revert")
    _delete_all(bench)


def _extend(bench: Bench, volume_id: str) -> None:
    bench.engine.extend(volume_id, bench.engine.volume(volume_id).size_bytes + bench.step)


def _delete_all(bench: Bench) -> None:
    for volume in bench.engine.volumes():
        for snapshot in reversed(volume.snapshots):
            bench.engine.delete_snapshot(snapshot.id)
        bench.engine.delete_volume(volume.id)


def _snapshots(bench: Bench) -> frozenset[str]:
    return frozenset(keeper(bench).list_snapshots()) if bench.declared.snapshots else frozenset()


def _held() -> dict[str, int]:
    """Count what this process holds, once nothing is held by accident."""
    gc.collect()
    children = [each.read_text().split() for each in _PROCESS.glob("task/*/children")]
    return {
        "open files": len(list(_PROCESS.glob("fd/*"))),
        "threads": len(list(_PROCESS.glob("task/*"))),
        "child processes": sum(len(each) for each in children),
    }
