"""The size ledger: what each layer must show in each status, what is stale, and how it is said."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from faulty import GRANULE_BYTES, Fault, Killed, World, no_programs
from hypothesis import given
from hypothesis import strategies as st

from voldrivers.config import Policy
from voldrivers.errors import BackendError, NoSpace, OutcomeUnknown, VolDriverError
from voldrivers.extend.converge import describe, ledger
from voldrivers.extend.engine import Engine
from voldrivers.extend.site import Site
from voldrivers.extend.store import Store
from voldrivers.memory import MemoryArray, MemoryDriver, MemoryHost, MemoryMachine, MemoryOptions
from voldrivers.model import Attachment, Ledger, LedgerRow, Phase, Volume, VolumeStatus
from voldrivers.sizes import MiB, format_size

OLD, NEW = 2 * GRANULE_BYTES, 3 * GRANULE_BYTES
HEADER_BYTES = MiB

bytes_there = st.integers(0, 2**50)
observed = st.none() | bytes_there
rows = st.builds(
    LedgerRow,
    layer=st.sampled_from(["file", "target LUN", "device", "QEMU node", "guest"]),
    place=st.sampled_from(["h1", "h1/vm1"]),
    observed_bytes=observed,
    expected_bytes=bytes_there,
    required=st.booleans(),
    note=st.sampled_from(["", "the host does not answer"]),
    repair=st.sampled_from(["", "voldrivers retry v"]),
)


# --- one row; when it agrees and when it is stale stands in test_model.py


@given(rows)
def test_a_row_is_said_with_its_layer_its_place_both_sizes_and_its_reason(row: LedgerRow) -> None:
    said = describe(row)
    assert said.startswith(f"{row.layer} {row.place} ")
    assert f"must show {format_size(row.expected_bytes)}" in said
    if row.observed_bytes is None:
        assert "cannot be read" in said
    else:
        assert f" shows {format_size(row.observed_bytes)}, " in said
    assert said.endswith(f"({row.note})") == bool(row.note)


def test_sizes_that_differ_by_a_byte_are_said_differently() -> None:
    row = LedgerRow("device", "h1", NEW - 1, NEW, note="the kernel has not read it")
    assert describe(row) == ("device h1 shows 12582911 B, must show 12 MiB (the kernel has not read it)")


# --- all rows


class SealedDriver(MemoryDriver):
    """Its array cannot be read."""

    def volume_size(self, volume: Volume) -> int:
        raise BackendError(volume.title, "the array does not answer")


class EncryptedHost(MemoryHost):
    """Each volume is opened through dm-crypt, whose header takes room from what is above it."""

    def ledger_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        device, *above = super().ledger_rows(volume, attachment, expected_bytes)
        return (device, *(self._above_header(row) for row in above))

    def _above_header(self, row: LedgerRow) -> LedgerRow:
        seen = None if row.observed_bytes is None else row.observed_bytes - HEADER_BYTES
        return replace(row, observed_bytes=seen, expected_bytes=row.expected_bytes - HEADER_BYTES)


class GuestHost(MemoryHost):
    """It also shows what the guest says, which nobody waits for."""

    def ledger_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        guest = LedgerRow("guest", attachment.place, OLD, expected_bytes, required=False, note="in firmware")
        return (*super().ledger_rows(volume, attachment, expected_bytes), guest)


def volume_on(*places: tuple[str, str | None]) -> Volume:
    attachments = [Attachment(f"a{i}", "v", host, instance) for i, (host, instance) in enumerate(places)]
    return Volume("v", "v", "block", OLD, attachments=tuple(attachments))


def made(host_type: type[MemoryHost], array: MemoryArray, name: str = "h1") -> MemoryHost:
    machine = MemoryMachine(devices=dict(array.sizes), instances={"vm1": dict(array.sizes)})
    return host_type(name, array, machine)


@given(size_bytes=bytes_there, expected_bytes=bytes_there)
def test_every_layer_has_one_row_with_what_is_there_and_what_must_be(
    size_bytes: int, expected_bytes: int
) -> None:
    array = MemoryArray(2**60, {"v": size_bytes})
    driver = MemoryDriver("block", MemoryOptions(), no_programs, array)
    hosts = {name: made(MemoryHost, array, name) for name in ("h1", "h2")}
    found = ledger(volume_on(("h1", "vm1"), ("h2", None)), driver, hosts, expected_bytes)
    assert [(row.layer, row.place) for row in found] == [
        ("backend", "block"),
        ("device", "h1"),
        ("QEMU node", "h1/vm1"),
        ("device", "h2"),
    ]
    assert {(row.observed_bytes, row.expected_bytes, row.required) for row in found} == {
        (size_bytes, expected_bytes, True)
    }
    assert any(row.stale for row in found) == (size_bytes != expected_bytes)


def test_a_layer_that_cannot_be_read_is_a_stale_row_that_says_why() -> None:
    array = MemoryArray(2**60, {"v": OLD})
    driver = SealedDriver("block", MemoryOptions(), no_programs, array)
    silent = made(MemoryHost, array, "h2")
    silent.machine.reachable = False
    found = ledger(volume_on(("h1", "vm1"), ("h2", "vm1"), ("h3", "vm1")), driver, {"h2": silent}, OLD)
    assert [(row.layer, row.place, row.stale) for row in found] == [
        ("backend", "block", True),
        ("host", "h1/vm1", True),
        ("device", "h2", True),
        ("host", "h3/vm1", True),
    ]
    assert {row.observed_bytes for row in found} == {None}
    assert "does not answer" in found[0].note
    assert "h3" in found[3].note


@given(size_bytes=st.integers(HEADER_BYTES, 2**50))
def test_a_layer_above_a_header_has_its_own_expected_size(size_bytes: int) -> None:
    array = MemoryArray(2**60, {"v": size_bytes})
    driver = MemoryDriver("block", MemoryOptions(), no_programs, array)
    found = ledger(volume_on(("h1", "vm1")), driver, {"h1": made(EncryptedHost, array)}, size_bytes)
    assert [row.expected_bytes for row in found] == [size_bytes, size_bytes, size_bytes - HEADER_BYTES]
    assert not [row for row in found if row.stale]


# --- what an engine expects, by status and phase


@dataclass(frozen=True)
class Moment:
    """A fault, what it leaves, and the size that every layer must show from then on."""

    fault: Fault | None
    status: VolumeStatus
    phase: Phase
    expected_bytes: int
    stale: tuple[str, ...]


MOMENTS = {
    "completed": Moment(None, VolumeStatus.IN_USE, Phase.COMPLETED, NEW, ()),
    "rolled back": Moment(
        Fault("driver.extend_volume", 0, "error", NoSpace), VolumeStatus.IN_USE, Phase.ROLLED_BACK, OLD, ()
    ),
    "growing, nothing grown": Moment(
        Fault("driver.extend_volume", 0, "kill"),
        VolumeStatus.EXTENDING,
        Phase.GROWING,
        NEW,
        ("backend", "device", "QEMU node"),
    ),
    "growing, grown": Moment(
        Fault("driver.extend_volume", 0, "kill-after"),
        VolumeStatus.EXTENDING,
        Phase.GROWING,
        NEW,
        ("device", "QEMU node"),
    ),
    "rescanning": Moment(
        Fault("host.rescan", 0, "kill-after"), VolumeStatus.EXTENDING, Phase.RESCANNING, NEW, ("QEMU node",)
    ),
    "resizing": Moment(
        Fault("host.assist_extend", 0, "error", OutcomeUnknown),
        VolumeStatus.EXTENDING,
        Phase.RESIZING,
        NEW,
        ("QEMU node",),
    ),
    "settling": Moment(Fault("host.ledger_rows", 0, "kill"), VolumeStatus.EXTENDING, Phase.SETTLING, NEW, ()),
    "failed": Moment(
        Fault("host.rescan", 0, "error", BackendError),
        VolumeStatus.ERROR_EXTENDING,
        Phase.FAILED,
        NEW,
        ("device", "QEMU node"),
    ),
}


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def open_engine(ram_path: Path, world: World) -> Iterator[Callable[[], Engine]]:
    opened: list[Engine] = []

    def open_one(host_type: type[MemoryHost] | None = None) -> Engine:
        store = world.store = Store(ram_path / "voldrivers.db")
        hosts = {"h1": host_type("h1", world.array, world.machines["h1"])} if host_type else world.hosts()
        site = Site(
            store,
            world.drivers(),
            hosts,
            ram_path / "locks",
            Policy(deadline_s=1.0),
            now=world.now,
            sleep=world.sleep,
        )
        opened.append(Engine(site))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.store.close()


def attached(engine: Engine) -> Engine:
    engine.create_volume("v", OLD, "block")
    engine.attach("v", "h1", "vm1")
    return engine


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_the_status_decides_what_every_layer_must_show(
    moment: Moment, world: World, open_engine: Callable[[], Engine]
) -> None:
    engine = attached(open_engine())
    world.arm(moment.fault)
    with suppress(VolDriverError, Killed):
        engine.extend("v", NEW)
    world.arm(None)
    volume = engine.volume("v")
    last = engine.last_extend(volume)
    assert last
    assert (volume.status, last.phase) == (moment.status, moment.phase)
    found = engine.ledger("v")
    assert {row.expected_bytes for row in found} == {moment.expected_bytes}
    assert [row.layer for row in found if row.stale] == list(moment.stale)


def test_a_volume_that_grew_by_itself_is_stale_until_it_is_extended_to_what_it_has(
    world: World, open_engine: Callable[[], Engine]
) -> None:
    engine = attached(open_engine())
    world.grow(engine.volume("v").id)
    assert [describe(row) for row in engine.ledger("v") if row.stale] == [
        "backend block shows 12 MiB, must show 8 MiB"
    ]
    engine.repair("v")
    found = engine.ledger("v")
    assert {(row.observed_bytes, row.expected_bytes) for row in found} == {(NEW, NEW)}


def test_the_failure_names_every_stale_layer(world: World, open_engine: Callable[[], Engine]) -> None:
    engine = attached(open_engine())
    world.arm(Fault("host.assist_extend", 0, "lie"))
    with pytest.raises(BackendError) as caught:
        engine.extend("v", NEW)
    world.arm(None)
    stale = [describe(row) for row in engine.ledger("v") if row.stale]
    assert stale == ["QEMU node h1/vm1 shows 8 MiB, must show 12 MiB"]
    assert stale[0] in str(caught.value)
    assert stale[0] in engine.messages(engine.volume("v"))[-1].text


@pytest.mark.parametrize("host_type", [EncryptedHost, GuestHost])
def test_settling_compares_each_required_row_with_its_own_size(
    host_type: type[MemoryHost], open_engine: Callable[..., Engine]
) -> None:
    engine = attached(open_engine(host_type))
    assert engine.extend("v", 10 * GRANULE_BYTES).phase is Phase.COMPLETED
    assert not [row for row in engine.ledger("v") if row.stale]
