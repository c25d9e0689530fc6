"""ATT: a volume appears where it is attached, for whom it is meant, and is gone afterwards."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from voldrivers.base import Completed
from voldrivers.conformance.aids.copying import allowed
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import Level, check
from voldrivers.conformance.disk import STAMP_BYTES, Disk, Stamps, probes
from voldrivers.conformance.verdicts import NotRun, expect
from voldrivers.errors import InvalidState, NotFound, NotSupported, VolDriverError
from voldrivers.model import ConnectionInfo, Volume

_MULTI_ATTACH = "multi_attach"
#: What the name of a property has in it whose value must not be seen.
_SECRET = ("password", "passwd", "secret", "token", "key", "credential")
#: What is shorter stands in other words by chance.
_SHORTEST = 6


@check(
    "ATT-001",
    "an attached volume is there, with all that was needed for it, and after a detach nothing is left",
    smoke=True,
)
def attach_and_detach(bench: Bench) -> None:
    """Attach, look at connection_info and device, detach, compare with before."""
    volume = bench.create()
    before = bench.everything()
    attachment = bench.attach(volume)
    info = attachment.connection_info
    complete = info is not None and info.driver_volume_type and info.properties
    expect(complete, "I9", "connection_info does not say how the volume is reached", read=info)
    expect(attachment.device_path, "I9", "the host does not say where the device is")
    bench.check_agreed(volume, volume.size_bytes)
    bench.check_data(volume)
    bench.detach(volume, attachment)
    after = bench.everything()
    expect(after.residue == before.residue, "I10", "the host has something left", now=after.residue)
    expect(after == before, "I10", "an attach and a detach leave something", before=before, after=after)


@check("ATT-002", "a volume can be attached and detached again and again, and told of twice")
def ten_times(bench: Bench) -> None:
    """Attach and detach ten times, ask for the connection twice, read and compare."""
    volume = bench.create()
    bench.stamp(volume)
    before = bench.everything()
    for _ in range(10):
        attachment = bench.attach(volume)
        bench.check_agreed(volume, volume.size_bytes)
        bench.detach(volume, attachment)
    expect(bench.everything() == before, "I7", "ten attaches and detaches leave something")
    attachment = bench.attach(volume)
    if attachment.connector is not None:
        again = bench.driver.initialize_connection(bench.now(volume), attachment.connector)
        expect(again == attachment.connection_info, "I7", "asked again, the driver gives another connection")
    bench.check_data(volume)


@check(
    "ATT-003",
    "of several attachments each is for itself: a detach leaves the others as they are",
    level=Level.EXTENDED,
    capability=_MULTI_ATTACH,
)
def two_hosts(bench: Bench) -> None:
    """Attach to two hosts, stamp, detach one, read and stamp on the other; and so with both on one host."""
    other = bench.second_place()
    volume = _shared(bench)
    if volume is None:
        raise NotRun("a declared condition refuses volumes for several attachments here")
    first = bench.attach(volume)
    alone = bench.everything()
    second = bench.attach(volume, other)
    bench.check_agreed(volume, volume.size_bytes)
    bench.stamp(volume)
    bench.detach(volume, second)
    _check_still(bench, volume)
    after = bench.everything()
    same = (after.objects, after.residue) == (alone.objects, alone.residue)
    expect(same, "I5", "a detach has changed another attachment", before=alone, after=after)
    second = bench.attach(volume, other)
    bench.detach(volume, first)
    _check_still(bench, volume)
    if other.instance is not None:
        bare = bench.attach(volume, other, instance=False)
        bench.detach(volume, second)
        _check_still(bench, volume)
        bench.detach(volume, bare)


@check("ATT-004", "taking back what was not given is no error; what does not exist is not attached")
def missing(bench: Bench) -> None:
    """Detach what is not attached, attach what is not there, and where nothing is."""
    volume, place, engine = bench.create(), bench.subject.places[0], bench.engine
    host, connector = place.host.name, place.host.connector()
    with bench.unchanged("nothing was attached"):
        bench.driver.terminate_connection(volume, connector)
    bench.refused(lambda: engine.detach(volume.id, host, ""), NotFound)
    bench.refused(lambda: engine.attach(bench.name(), host), NotFound)
    bench.refused(lambda: engine.attach(volume.id, bench.name()), NotFound)
    if place.instance is not None:
        bench.refused(lambda: engine.attach(volume.id, host, bench.name()), NotFound, InvalidState)
    bench.detach(volume, bench.attach(volume))
    with bench.unchanged("it was detached already"):
        bench.driver.terminate_connection(volume, connector)


@check(
    "ATT-005",
    "an attached volume is not deleted, by the driver itself either",
    smoke=True,
    hint="look at volume.attachments, and at who holds the volume on the backend",
)
def delete_attached(bench: Bench) -> None:
    """Attach, try to delete it, ask the driver itself to, read."""
    volume = bench.create()
    bench.attach(volume)
    bench.stamp(volume)
    bench.refused(lambda: bench.engine.delete_volume(volume.id), InvalidState, invariant="I6")
    bench.refused(lambda: bench.driver.delete_volume(bench.now(volume)), InvalidState, invariant="I6")
    bench.check_agreed(volume, volume.size_bytes)
    bench.check_data(volume)


@check("ATT-007", "a volume for one writer gets no second one, and nobody is let in twice at one place")
def single_writer(bench: Bench) -> None:
    """Attach, try to attach it everywhere again, read; and twice at one place where it may have several."""
    volume = bench.create()
    bench.attach(volume)
    bench.stamp(volume)
    for place in bench.subject.places:
        for instance in (True, False):
            bench.refused(partial(bench.attach, volume, place, instance=instance), InvalidState)
    bench.check_agreed(volume, volume.size_bytes)
    bench.check_data(volume)
    if bench.declared.multi_attach and (shared := _shared(bench)):
        bench.attach(shared)
        bench.refused(lambda: bench.attach(shared), InvalidState)


@check(
    "ATT-009",
    "a device never shows the size or the bytes of a volume that was there before it",
    hint="forget the device of a LUN when it is taken away, before its number is given to another volume",
)
def reused(bench: Bench) -> None:
    """Attach a volume, stamp, detach, delete; attach a smaller one on the same host, and a larger one."""
    for size_bytes in (bench.small + bench.step, bench.small, bench.small + 2 * bench.step):
        volume = bench.create(size_bytes)
        attachment = bench.attach(volume)
        bench.check_agreed(volume, bench.rule.round_up(size_bytes))
        bench.check_data(volume)
        bench.stamp(volume)
        bench.detach(volume, attachment)
        bench.engine.delete_volume(volume.id)


@check(
    "ATT-010",
    "a secret is seen by who connects, and nowhere else: no record's repr, error, log or program's arguments",
)
def secrets_kept(bench: Bench) -> None:
    """Attach with all programs and logs noted, provoke errors, look for the secrets of connection_info."""
    volume = bench.create()
    with _overheard(bench) as heard:
        attachment = bench.attach(volume)
        now = bench.now(volume)
        heard.extend(_errors_of(bench, now))
        heard.extend(repr(each) for each in (attachment, now, bench.engine.ledger(volume.id)))
        bench.detach(volume, attachment)
    heard.extend(str(call) for call in bench.watch.calls)
    info = attachment.connection_info
    for name, secret in _secrets(info).items():
        seen = [text.replace(secret, "*" * 8) for text in heard if secret in text]
        expect(not seen, "I11", f"the secret {name} of connection_info is seen", where=seen[:1])


@check(
    "ATT-013",
    "of a volume attached to two hosts each sees what the other one writes",
    level=Level.EXTENDED,
    capability=_MULTI_ATTACH,
    hint="a host that keeps what it has read, or what is to be written, cannot share a volume",
)
def seen_by_both(bench: Bench) -> None:
    """Attach to two hosts; have each write a block and the other one read it."""
    other = bench.second_place()
    volume = _shared(bench)
    if volume is None:
        raise NotRun("a declared condition refuses volumes for several attachments here")
    places = (bench.subject.places[0], other)
    attachments = [bench.attach(volume, place) for place in places]
    now, stamps = bench.now(volume), bench.stamps.setdefault(volume.id, Stamps())
    one, two = (
        Disk(place, now, attachment, stamps) for place, attachment in zip(places, attachments, strict=True)
    )
    # Nobody reads a block twice, or near an end of the device, where whoever probes it may have read: a host
    # whose page cache lives on, as long as something holds the device open, need not know of others' writes.
    for at, writer, reader in zip(probes(now.size_bytes, 4)[1:3], (one, two), (two, one), strict=True):
        content = f"{volume.id} from {writer.place.host.name} ".encode().ljust(STAMP_BYTES, b"#")
        writer.write(at, content)
        found, name = reader.read(at), reader.place.host.name
        expect(found == content, "I4", f"{name} does not see what was written elsewhere", found=found[:60])


@check(
    "ATT-090", "a volume for several attachments is refused where they are not declared", absent=_MULTI_ATTACH
)
def refused_when_absent(bench: Bench) -> None:
    """Ask for such a volume, compare; a volume of the other kind gets no second attachment."""
    bench.refused(lambda: bench.create(multi_attach=True), NotSupported, invariant="I9")
    volume = bench.create()
    bench.attach(volume)
    bench.refused(lambda: bench.attach(volume, bench.subject.places[-1], instance=False), InvalidState)


def _shared(bench: Bench) -> Volume | None:
    """Make a volume for several attachments; none where a declared condition refuses it."""
    made: list[Volume] = []
    allowed(bench, lambda: made.append(bench.create(multi_attach=True)), _MULTI_ATTACH)
    return made[0] if made else None


def _check_still(bench: Bench, volume: Volume) -> None:
    """Have what is still attached read and written."""
    bench.check_agreed(volume, volume.size_bytes)
    bench.check_data(volume)
    bench.stamp(volume)


def _errors_of(bench: Bench, volume: Volume) -> Iterator[str]:
    """Give what the driver says of an extend that is too large, and of a volume that is not there."""
    driver, largest_bytes = bench.driver, bench.rule.maximum_bytes // bench.granule * bench.granule
    gone = replace(volume, id=bench.new_id())
    for act in (partial(driver.check_extend, volume, largest_bytes), partial(driver.volume_size, gone)):
        try:
            act()
        except VolDriverError as error:
            yield from (str(error), repr(error))


def _secrets(info: ConnectionInfo | None) -> dict[str, str]:
    properties = info.properties if info else {}
    named = {n: value for n, value in properties.items() if any(word in n.lower() for word in _SECRET)}
    return {name: value for name, value in named.items() if len(value) >= _SHORTEST}


@contextmanager
def _overheard(bench: Bench) -> Iterator[list[str]]:
    """Give what is logged, and which programs a new driver object starts, with their arguments."""
    heard: list[str] = []
    subject, root = bench.subject, logging.getLogger()
    run, level, listener = subject.run, root.level, _Listener(heard)

    def noted(argv: Sequence[str], *, timeout_s: float) -> Completed:
        heard.append(" ".join(argv))
        return run(argv, timeout_s=timeout_s)

    bench.subject = replace(subject, run=noted)
    bench.restart()
    root.addHandler(listener)
    root.setLevel(logging.DEBUG)
    try:
        yield heard
    finally:
        root.setLevel(level)
        root.removeHandler(listener)
        bench.subject = subject
        bench.restart()


class _Listener(logging.Handler):
    """Keeps every line."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self.heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())
