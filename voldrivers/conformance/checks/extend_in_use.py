"""EXI: a volume in use is extended, and everybody agrees; or it is refused, and nothing has changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from voldrivers.abilities import GrownByHypervisor
from voldrivers.base import Driver
from voldrivers.capabilities import InUseExtend
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import Broken, Finding, NotRun, expect
from voldrivers.errors import NotSupported, VolDriverError
from voldrivers.model import Volume, VolumeStatus

_IN_USE = "in_use_extend"


@check(
    "EXI-001",
    "every attached host shows the new size without a detach",
    level=Level.EXTENDED,
    capability=_IN_USE,
    smoke=True,
)
def hosts_agree(bench: Bench) -> None:
    """Attach, extend, compare every layer."""
    volume = bench.in_use()
    bench.extend(volume, volume.size_bytes + bench.step)
    bench.check_agreed(volume, bench.rule.round_up(volume.size_bytes + bench.step))


@check(
    "EXI-002",
    "the guest sees the new size, whatever its hypervisor says",
    level=Level.EXTENDED,
    capability=_IN_USE,
    hint="a size that QEMU tells is its own figure; the guest learns it by block_resize",
)
def guest_sees(bench: Bench) -> None:
    """Plug into a guest, extend, ask the guest."""
    volume = bench.in_use()
    _guest_bytes(bench, volume)
    bench.extend(volume, volume.size_bytes + bench.step)
    seen, wanted = _guest_bytes(bench, volume), bench.rule.round_up(volume.size_bytes + bench.step)
    expect(seen == wanted, "I1", "the guest does not see the new size", guest=seen, wanted=wanted)


@check(
    "EXI-003",
    "what was written stays, what is new reads as zeros, and its last block can be written",
    level=Level.EXTENDED,
    capability=_IN_USE,
    smoke=True,
)
def bytes_kept(bench: Bench) -> None:
    """Stamp the whole volume in use, extend, read it and the new end, stamp that too and read again."""
    volume = bench.in_use()
    bench.stamp(volume)
    bench.extend(volume, volume.size_bytes + bench.step)
    with bench.opened(volume) as disk:
        disk.check()
        disk.check_zeros(volume.size_bytes, disk.size_bytes)
        disk.stamp()
        disk.check()


@check(
    "EXI-007",
    "a volume that is detached after its extend has the new size when it is attached again",
    level=Level.EXTENDED,
    capability=_IN_USE,
)
def attached_again(bench: Bench) -> None:
    """Extend in use, detach, attach again, compare every layer."""
    volume = bench.in_use()
    bench.extend(volume, volume.size_bytes + bench.step)
    bench.detach(volume, volume.attachments[0])
    bench.attach(volume)
    bench.check_agreed(volume, bench.rule.round_up(volume.size_bytes + bench.step))


@check(
    "EXI-008",
    "an instance that is started again has the size that the volume was given, while it ran or was stopped",
    level=Level.EXTENDED,
    capability=_IN_USE,
)
def started_again(bench: Bench) -> None:
    """Extend, stop the instance, extend again, start it, compare every layer."""
    volume, place = bench.in_use(), bench.subject.places[0]
    bench.extend(volume, volume.size_bytes + bench.step)
    with place.stopped():
        bench.extend(volume, volume.size_bytes + 2 * bench.step)
    bench.check_agreed(volume, bench.rule.round_up(volume.size_bytes + 2 * bench.step))


@check(
    "EXI-009",
    "a volume in use can be extended again and again",
    level=Level.EXTENDED,
    capability=_IN_USE,
)
def five_times(bench: Bench) -> None:
    """Extend five times, compare every layer each time, and the bytes at the end."""
    volume = bench.in_use()
    bench.stamp(volume)
    for number in range(1, 6):
        bench.extend(volume, volume.size_bytes + number * bench.step)
        bench.check_agreed(volume, bench.rule.round_up(volume.size_bytes + number * bench.step))
    bench.check_data(volume)


@check(
    "EXI-011",
    "the status is extending meanwhile and then what it was; the size is published at the end only",
    level=Level.EXTENDED,
    capability=_IN_USE,
)
def published_last(bench: Bench) -> None:
    """Extend in use and detached; look at status and published size at every call of the driver."""
    volume = bench.in_use()
    _look_meanwhile(bench, volume, VolumeStatus.IN_USE)
    bench.detach(volume, volume.attachments[0])
    _look_meanwhile(bench, bench.now(volume), VolumeStatus.AVAILABLE)


@check(
    "EXI-015",
    "a volume that is attached without an instance grows in place, granule by granule",
    level=Level.EXTENDED,
    capability=_IN_USE,
)
def without_instance(bench: Bench) -> None:
    """Attach to the host alone, stamp, extend three times by one granule, compare every layer and byte."""
    volume = bench.create()
    bench.attach(volume, instance=False)
    for number in range(1, 4):
        bench.stamp(volume)
        bench.extend(volume, volume.size_bytes + number * bench.granule)
        bench.check_agreed(volume, bench.rule.round_up(volume.size_bytes + number * bench.granule))
    bench.check_data(volume)


@check(
    "EXI-016",
    "a volume that is attached to two hosts has the new size on both",
    level=Level.EXTENDED,
    capability=f"{_IN_USE} multi_attach",
)
def on_two_hosts(bench: Bench) -> None:
    """Attach to two hosts, stamp, extend, compare every layer and byte."""
    second = bench.second_place()
    volume = bench.in_use(multi_attach=True)
    bench.attach(volume, second)
    bench.stamp(volume)
    bench.extend(volume, volume.size_bytes + bench.step)
    bench.check_agreed(volume, bench.rule.round_up(volume.size_bytes + bench.step))
    bench.check_data(volume)


@check(
    "EXI-090",
    "an in-use extend that is not declared is refused before anything is touched",
    absent=_IN_USE,
    smoke=True,
)
def refused_when_absent(bench: Bench) -> None:
    """Attach, ask for an extend, compare."""
    volume = bench.create()
    bench.attach(volume)
    bench.refused(lambda: bench.extend(volume, volume.size_bytes + bench.step), NotSupported, invariant="I9")
    bench.check_agreed(volume, volume.size_bytes)


@check(
    "EXI-091",
    "an in-use extend that is not declared does not work either: one that works would be declared",
    absent=_IN_USE,
    hint="declare in_use_extend, and its checks will prove it",
)
def works_when_absent(bench: Bench) -> None:
    """Have the driver declare it for once, do what a driver that declares it must pass, see it fail."""
    try:
        with _claiming(bench) as trial:
            hosts_agree(trial)
            bytes_kept(trial)
    except (VolDriverError, Broken):
        return  # it does not work; what the attempt has left behind, the bench finds
    how = trial.declared.in_use_extend
    raise Finding("it works, and no size and no byte is wrong, but it is not declared", works=how)


@contextmanager
def _claiming(bench: Bench) -> Iterator[Bench]:
    """Give a bench whose driver declares that it can: admission lets pass what it refuses otherwise."""
    kind: type[Driver] = bench.subject.driver_class
    how = InUseExtend.BY_HYPERVISOR if issubclass(kind, GrownByHypervisor) else InUseExtend.BY_BACKEND
    claimed = {"capabilities": replace(bench.declared, in_use_extend=how), "__module__": kind.__module__}
    subject = replace(bench.subject, driver_class=type(kind.__name__, (kind,), claimed))
    directory = bench.directory / "claiming"
    directory.mkdir()
    with Bench(subject, directory, bench.run_id) as trial:
        trial.watch = bench.watch  # what its calls raise, and their trace, is looked for there
        trial.restart()
        yield trial


def _guest_bytes(bench: Bench, volume: Volume) -> int:
    attachment = bench.now(volume).attachments[0]
    seen = bench.place(attachment).guest_bytes(volume, attachment) if attachment.instance else None
    if seen is None:
        raise NotRun("the place has no guest that can be asked")
    return seen


def _look_meanwhile(bench: Bench, volume: Volume, steady: VolumeStatus) -> None:
    target_bytes = bench.rule.round_up(volume.size_bytes + bench.step)
    path = [volume.status]

    def look(_number: int, _name: str, _before: bool) -> None:
        now = bench.now(volume)
        path.append(now.status)
        expect(now.size_bytes == volume.size_bytes, "I1", "a size was published before the end", now=now)

    with bench.watch.struck(look):
        bench.extend(volume, target_bytes)
    now = bench.now(volume)
    path = [*path, now.status]
    shown = [each for each, before in zip(path, [None, *path], strict=False) if each != before]
    expect(shown == [steady, VolumeStatus.EXTENDING, steady], "I1", "not the path of statuses", shown=shown)
    expect(now.size_bytes == target_bytes, "I1", "the size was not published", now=now.size_bytes)
