"""EXO and EXI: the file system on a volume grows with it, after an attach and while it is mounted."""

from collections.abc import Iterator
from contextlib import contextmanager

from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.subject import Filesystem
from voldrivers.conformance.verdicts import Broken, NotRun, expect
from voldrivers.model import Volume
from voldrivers.sizes import MiB

#: Room for a file system with a journal; a volume is made three times as large as it was.
_SIZE_BYTES, _TIMES = 16 * MiB, 3


@check(
    "EXO-007",
    "the file system of a volume that was extended detached grows over all of it, and keeps its files",
    level=Level.EXTENDED,
    hint="nothing of a volume belongs to its driver: no label, no table, no last block",
)
def grows_when_attached(bench: Bench) -> None:
    """Make a file system with a file, detach, extend, attach, have it grow, write more than there was."""
    volume = _created(bench)
    with _mounted(bench, volume, fresh=True) as filesystem:
        filesystem.write("before", MiB)
    bench.extend(volume, _TIMES * volume.size_bytes)
    with _mounted(bench, volume) as filesystem:
        _check_grows(bench, volume, filesystem, online=False)


@check(
    "EXI-013",
    "the file system of a volume in use grows while it is mounted, and takes more than it had room for",
    level=Level.EXTENDED,
    capability="in_use_extend",
    hint="the whole volume can be written as soon as its size is shown",
)
def grows_online(bench: Bench) -> None:
    """Make a file system with a file, extend it mounted, have it grow, write more than there was."""
    volume = _created(bench)
    with _mounted(bench, volume, fresh=True) as filesystem:
        filesystem.write("before", MiB)
        bench.extend(volume, _TIMES * volume.size_bytes)
        _check_grows(bench, volume, filesystem, online=True)
    with _mounted(bench, volume) as filesystem:
        filesystem.check("after")


def _created(bench: Bench) -> Volume:
    size_bytes = bench.rule.round_up(max(bench.small, _SIZE_BYTES))
    if bench.room_bytes < _TIMES * size_bytes:
        raise NotRun(f"volumes may take {bench.room_bytes} bytes, which is too little for a file system")
    return bench.create(size_bytes)


@contextmanager
def _mounted(bench: Bench, volume: Volume, *, fresh: bool = False) -> Iterator[Filesystem]:
    """Attach a volume to the first host alone and mount its file system; whatever fails there is I4."""
    attachment = bench.attach(volume, instance=False)
    try:
        with bench.place(attachment).filesystem(volume, attachment, fresh=fresh) as filesystem:
            yield filesystem
    except OSError as error:
        raise Broken("I4", f"the file system is not whole: {error}") from error
    bench.detach(volume, attachment)


def _check_grows(bench: Bench, volume: Volume, filesystem: Filesystem, *, online: bool) -> None:
    filesystem.grow(online=online)
    seen, most = filesystem.size_bytes(), bench.now(volume).size_bytes
    expect(volume.size_bytes < seen <= most, "I1", "it did not grow with its volume", seen=seen, volume=most)
    filesystem.check("before")
    filesystem.write("after", volume.size_bytes + MiB)
    filesystem.check("after")
