"""IDM: doing it again is doing it once, also where only the answer was lost."""

from contextlib import suppress
from dataclasses import replace
from functools import partial

from voldrivers.abilities import Clones, Manages, Snapshots
from voldrivers.base import able
from voldrivers.capabilities import InUseExtend
from voldrivers.conformance.aids import direct
from voldrivers.conformance.aids.copying import clone, take
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.verdicts import expect
from voldrivers.errors import InvalidState, NotFound, VolDriverError
from voldrivers.model import ExtendReply, Volume, VolumeStatus

_SUITE = "the conformance suite"
_LOOK = "look first, then act: after a crash everything is asked for once more"


@check(
    "IDM-001",
    "everything that the driver does is done once, however often it is asked",
    smoke=True,
    hint=_LOOK,
)
def twice(bench: Bench) -> None:
    """Have the driver create, extend and export again, with the arguments of the first time."""
    volume = bench.create()
    bench.stamp(volume)
    with bench.unchanged("it was created again"):
        answer = direct.make(bench, _asked(volume, VolumeStatus.CREATING)).provider_data
    expect(answer == volume.provider_data, "I7", "another provider_data", first=volume, then=answer)
    wanted = volume.size_bytes + bench.step
    bench.extend(volume, wanted)
    for known in (volume, bench.now(volume)):
        with bench.unchanged("it was extended again"):
            reply = bench.driver.extend_volume(known, wanted)
        expect(reply is ExtendReply.EXTENDED, "I7", "it is large enough, and not said to be", reply=reply)
    _check_exports(bench, bench.now(volume))
    bench.check_data(volume)


@check(
    "IDM-002",
    "an extend to the size that it has is no error, and brings up what has stayed behind",
    hint="a volume that is large enough is left alone, with EXTENDED",
)
def same_size(bench: Bench) -> None:
    """Extend to the same size; then grow it behind the engine's back and extend to the same size again."""
    volume = bench.create()
    bench.extend(volume, volume.size_bytes)
    bench.check_agreed(volume, volume.size_bytes)
    if bench.declared.in_use_extend is InUseExtend.BY_BACKEND:
        bench.attach(volume)
    grown = bench.rule.round_up(volume.size_bytes + bench.step)
    bench.driver.extend_volume(bench.now(volume), grown)
    bench.extend(volume, volume.size_bytes)
    bench.check_agreed(volume, grown)


@check("IDM-003", "a name or id that is taken is not given to a volume of another size")
def taken(bench: Bench) -> None:
    """Create under the same name, then have the driver create the same id, with other sizes."""
    volume = bench.create()
    bench.stamp(volume)
    for other in (volume.size_bytes + bench.step, volume.size_bytes - bench.granule):
        bench.refused(partial(bench.engine.create_volume, volume.name, other), InvalidState)
        with bench.unchanged("it was there with another size"), suppress(VolDriverError):
            direct.make(bench, replace(volume, size_bytes=other))
    bench.check_data(volume)


@check("IDM-004", "what is gone can be deleted, detached and let go of again", hint=_LOOK)
def gone_already(bench: Bench) -> None:
    """Delete a snapshot, detach and delete a volume; have the driver do each again."""
    volume, driver = bench.create(), bench.driver
    attachment = bench.attach(volume)
    bench.detach(volume, attachment)
    connector = bench.subject.places[0].host.connector()
    bench.refused(lambda: bench.detach(volume, attachment), NotFound)
    with bench.unchanged("it was detached already"):
        driver.terminate_connection(volume, connector)
    if bench.declared.snapshots and isinstance(driver, Snapshots):
        snapshot = bench.engine.create_snapshot(volume.id, bench.name())
        bench.engine.delete_snapshot(snapshot.id)
        with bench.unchanged("the snapshot was deleted already"):
            driver.delete_snapshot(bench.now(volume), snapshot)
    last = bench.now(volume)
    bench.engine.delete_volume(volume.id)
    with bench.unchanged("it was deleted already"):
        driver.delete_volume(last)
        driver.terminate_connection(last, connector)


@check("IDM-005", "whatever took effect without an answer is taken up where it stands", hint=_LOOK)
def lost_answers(bench: Bench) -> None:
    """Lose the answer to each of the driver's acts once; start anew and go on each time."""
    engine, name = bench.engine, bench.name()
    with direct.lost_answer(bench, "create_volume"):
        engine.create_volume(name, bench.small)
    volume = _resumed(bench, name, bench.small)
    bench.stamp(volume)
    wanted = bench.rule.round_up(volume.size_bytes + bench.step)
    with direct.lost_answer(bench, "extend_volume"):
        bench.extend(volume, wanted)
    _resumed(bench, name, wanted)
    with direct.lost_answer(bench, "initialize_connection"):
        bench.attach(volume)
    (attachment,) = _resumed(bench, name, wanted).attachments
    bench.check_data(volume)
    with direct.lost_answer(bench, "terminate_connection"):
        bench.detach(volume, attachment)
    _resumed(bench, name, wanted)
    with direct.lost_answer(bench, "delete_volume"):
        bench.engine.delete_volume(volume.id)
    _resume(bench)
    expect(volume.id not in bench.driver.list_volumes(), "I7", "it is still there")


@check(
    "IDM-006",
    "a clone that is asked for again is left alone, and the answer is the same",
    level=Level.EXTENDED,
    capability="clones",
    hint=_LOOK,
)
def copied_twice(bench: Bench) -> None:
    """Clone a volume, stamp the clone, have the driver clone again, read; and so of a snapshot."""
    volume, driver = bench.create(), able(bench.driver, Clones, _SUITE)
    bench.stamp(volume)
    for kept in [None, take(bench, volume)] if bench.declared.snapshots else [None]:
        made = clone(bench, volume, kept)
        bench.stamp(made)
        asked, options = _asked(made, VolumeStatus.CREATING), direct.usual_options(bench)
        snapshot = kept.snapshot if kept else None
        with bench.unchanged("it was copied already"):
            answer = driver.clone_volume(asked, options, bench.now(volume), snapshot)
        expect(answer == made.provider_data, "I7", "another provider_data", first=made, then=answer)
        bench.check_data(made)


@check(
    "IDM-007",
    "what is given up, or taken over, is so once, with the same answer however often it is asked",
    level=Level.EXTENDED,
    capability="manage",
    hint=_LOOK,
)
def managed_twice(bench: Bench) -> None:
    """Have the driver give a volume up again, then take it over again; compare the answers, read."""
    volume, driver = bench.create(), able(bench.driver, Manages, _SUITE)
    bench.stamp(volume)
    last = bench.now(volume)
    reference = bench.engine.unmanage_volume(volume.id)
    with bench.unchanged("it was given up already"):
        again = driver.unmanage(last)
    expect(again == reference, "I7", "another reference", first=reference, then=again)
    managed = bench.engine.manage_volume(bench.name(), reference, options=bench.subject.volume_options)
    bench.stamps[managed.id] = bench.stamps.pop(volume.id)
    asked = _asked(managed, VolumeStatus.MANAGING)
    with bench.unchanged("it was taken over already"):
        answer = driver.manage_existing(asked, reference, direct.usual_options(bench))
    expect(answer == managed.provider_data, "I7", "another provider_data", first=managed, then=answer)
    bench.check_data(managed)


def _asked(made: Volume, status: VolumeStatus) -> Volume:
    """Give a volume as it was when it was asked for."""
    return replace(made, status=status, provider_data="", backend_bytes=0)


def _check_exports(bench: Bench, volume: Volume) -> None:
    """Export twice, and take it back twice."""
    before = bench.everything()
    with direct.exported(bench, volume) as (connector, info):
        with bench.unchanged("it was exported already"):
            again = bench.driver.initialize_connection(volume, connector)
        expect(again == info, "I7", "another way to the volume was given", first=info, then=again)
        bench.driver.terminate_connection(volume, connector)
    expect(bench.everything() == before, "I7", "an export is left, or more than that is gone")


def _resume(bench: Bench) -> None:
    bench.restart()
    for ended in bench.engine.resume():
        expect(ended.error is None, "I7", f"{ended.what} cannot be ended: {ended.error}")


def _resumed(bench: Bench, name: str, size_bytes: int) -> Volume:
    """Start anew, go on, and compare all sizes."""
    _resume(bench)
    volume = bench.engine.volume(name)
    bench.check_agreed(volume, size_bytes)
    return volume
