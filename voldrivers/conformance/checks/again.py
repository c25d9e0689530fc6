"""IDM: doing it again is doing it once, also where only the answer was lost."""

from contextlib import suppress
from dataclasses import replace
from functools import partial

from voldrivers.abilities import Snapshots
from voldrivers.capabilities import InUseExtend
from voldrivers.conformance.aids import direct
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import check
from voldrivers.conformance.verdicts import expect
from voldrivers.errors import InvalidState, NotFound, VolDriverError
from voldrivers.model import ExtendReply, Volume, VolumeStatus

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
    asked = replace(volume, status=VolumeStatus.CREATING, provider_data="", backend_bytes=0)
    with bench.unchanged("it was created again"):
        answer = direct.make(bench, asked).provider_data
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
