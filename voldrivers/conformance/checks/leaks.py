"""LEK: after a busy life of volumes nothing is left: on the backend, on the hosts, in this process."""

import gc
import re
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from voldrivers.conformance.aids.blows import Blow, is_killed
from voldrivers.conformance.aids.copying import allowed, clone, keeper, revert, take
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import expect
from voldrivers.conformance.watch import Killed
from voldrivers.sizes import MiB

_PROCESS = Path("/proc/self")
#: By so much a life may make the process larger: Python's own heap, and the trace of calls.
_ROUND_BYTES = MiB
#: Lines of a level below warning (syslog(2)), and what is worse under any level.
_COMPLAINT = re.compile(r"^<[0-3]>|\bBUG\b|\bOops\b|hung task|blocked for more than|I/O error|Call Trace")
#: What LIO writes, as errors, when somebody has only tried whether a portal answers: our hosts do, before
#: they log in.
_TRIED = re.compile(r"rx_data returned 0, expecting 48|iSCSI Login negotiation failed")


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


@check(
    "LEK-004",
    "during a busy life the kernel of no host complains: no error, no BUG, no hung task",
    hint="look at dmesg of the host where the line is from",
)
def kernel(bench: Bench) -> None:
    """Read what the kernels say, take a busy life, look through what is new."""
    before = {place.host.name: frozenset(place.kernel_log()) for place in bench.subject.places}
    _live(bench)
    for place in bench.subject.places:
        new = [line for line in place.kernel_log() if line not in before[place.host.name]]
        complaints = [line for line in new if _COMPLAINT.search(line) and not _TRIED.search(line)]
        expect(not complaints, "I12", f"the kernel of {place.host.name} complains", lines=complaints[:5])


@check("LEK-005", "after a busy life all room is back")
def room(bench: Bench) -> None:
    """Write, attach, extend, snapshot, clone and revert volumes, delete all, compare the free bytes."""
    free_bytes = bench.free_bytes()
    _live(bench)
    bench.check_room(free_bytes)


@check(
    "LEK-006",
    "a worker that is killed in the middle of everything, one after the other, leaves nothing in the end",
    level=Level.FAULT,
    hint="what is asked for again finds what it has begun, under the same name",
)
def killed_all_along(bench: Bench) -> None:
    """Kill each operation after the driver's act, start anew, resume; delete all; compare everything."""
    before, snapshots, free_bytes = bench.everything(), _snapshots(bench), bench.free_bytes()
    _killed(bench, "create_volume", bench.create)
    (volume,) = bench.engine.volumes()
    _killed(bench, "extend_volume", lambda: _extend(bench, volume.id))
    if bench.declared.snapshots:
        _killed(bench, "create_snapshot", lambda: bench.engine.create_snapshot(volume.id, bench.name()))
        for snapshot in bench.now(volume).snapshots:
            _killed(bench, "delete_snapshot", partial(bench.engine.delete_snapshot, snapshot.id))
    _killed(bench, "initialize_connection", lambda: bench.attach(volume))
    for attachment in bench.now(volume).attachments or (bench.attach(volume),):
        _killed(bench, "terminate_connection", partial(bench.detach, volume, attachment))
    _killed(bench, "delete_volume", lambda: bench.engine.delete_volume(volume.id))
    after = bench.everything()
    expect(after == before, "I10", "something is left", before=before, after=after)
    expect(_snapshots(bench) == snapshots, "I10", "snapshots are still listed", listed=_snapshots(bench))
    bench.check_room(free_bytes)


@check(
    "LEK-007",
    "however often a volume lives, this process and the hosts hold no more than after the first time",
    level=Level.SOAK,
    hint="the number of rounds is soak_rounds of the subject",
)
def many_lives(bench: Bench) -> None:
    """Take busy lives; count files, threads, children, memory and what hosts hold, at first and at last."""
    rounds = max(2, bench.subject.soak_rounds // 4)
    with _traced():
        for _ in range(2):
            _live(bench)
        before, memory, residue = _held(), _memory(), bench.everything().residue
        for _ in range(rounds):
            _live(bench)
        after = _held()
        more = {name: bytes_ - memory[name] for name, bytes_ in _memory().items()}
    grown = {name: (before[name], after[name]) for name in before if after[name] > before[name]}
    expect(not grown, "I10", "this process holds more than before", **grown)
    grows = max(more.values()) > rounds * _ROUND_BYTES
    expect(not grows, "I10", "this process takes more and more memory", **more)
    now = bench.everything().residue
    expect(now == residue, "I10", "something is left on a host", before=residue, now=now)


def _killed(bench: Bench, method: str, act: Callable[[], object]) -> None:
    """Kill an operation right after an act of the driver, start anew, and have it ended."""
    blow = Blow(bench, is_killed, 0, lambda name, before: (name, before) == (method, False))
    with bench.watch.struck(blow), suppress(Killed):
        act()
    expect(blow.landed, "I9", f"{method} was not called")
    bench.restart()
    for resumed in bench.engine.resume():
        if resumed.error is not None:
            raise resumed.error


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


@contextmanager
def _traced() -> Iterator[None]:
    """Count the bytes of Python's objects as long as the context is."""
    already = tracemalloc.is_tracing()
    if not already:
        tracemalloc.start()
    try:
        yield
    finally:
        if not already:
            tracemalloc.stop()


def _memory() -> dict[str, int]:
    """Give the memory of this process, proc_pid_statm(5), and that of its objects, in bytes.

    What is kept may lie in memory that was the process's before; a library in C makes no objects.
    """
    gc.collect()
    return {
        "more_of_the_process": int((_PROCESS / "statm").read_text().split()[1]) * resource.getpagesize(),
        "more_of_its_objects": tracemalloc.get_traced_memory()[0],
    }


def _held() -> dict[str, int]:
    """Count what this process holds, once nothing is held by accident."""
    gc.collect()
    children = [each.read_text().split() for each in _PROCESS.glob("task/*/children")]
    return {
        "open files": len(list(_PROCESS.glob("fd/*"))),
        "threads": len(list(_PROCESS.glob("task/*"))),
        "child processes": sum(len(each) for each in children),
    }
