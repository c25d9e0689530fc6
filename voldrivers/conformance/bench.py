"""The bench: one driver in a real engine, on real or RAM hosts, for the length of one check."""

import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from voldrivers.base import Driver
from voldrivers.capabilities import Capabilities, InUseExtend
from voldrivers.config import Policy
from voldrivers.conformance.disk import Disk, Stamps
from voldrivers.conformance.ending import check_steady, take_away
from voldrivers.conformance.naming import Names
from voldrivers.conformance.subject import Place, Subject
from voldrivers.conformance.verdicts import Broken, NotRun, expect
from voldrivers.conformance.watch import Watch, watched
from voldrivers.errors import VolDriverError
from voldrivers.extend.engine import Engine
from voldrivers.extend.site import Site
from voldrivers.extend.store import Store
from voldrivers.model import Attachment, Volume
from voldrivers.sizes import MiB, SizeRule


@dataclass(frozen=True)
class Everything:
    """All that can be seen from outside of the driver, to be compared."""

    objects: Mapping[str, int]
    listed: frozenset[str]
    residue: Mapping[str, frozenset[str]]
    records: tuple[object, ...]


class Bench:
    """What a check works with. It ends with everything taken away again, and nothing left behind."""

    #: Whether it ended with everything taken away.
    is_clean = False

    def __init__(
        self, subject: Subject, directory: Path, run_id: str | None = None, *, keeps: bool = False
    ) -> None:
        """Work on a subject; records and locks are in `directory`. If it `keeps`, failures stay."""
        self.keeps = keeps
        self.subject, self.directory = subject, directory
        self.run_id = run_id or secrets.token_hex(4)
        self.watch = Watch(self.is_ours, subject.intend)
        self.stamps: dict[str, Stamps] = {}
        #: What is to be told of a check that passes.
        self.told: list[str] = []
        #: Ids that are drawn next, instead of new ones.
        self.ids: list[str] = []
        self._engines: list[Engine] = []
        self._names = Names(self.run_id)
        self.engine = self.open()
        self.before = self.everything()
        self.free_before = self.free_bytes()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            self._end(error)
            self.is_clean = True
        except (VolDriverError, Broken) as left:
            if error is None:
                raise
            error.add_note(f"and it could not be cleaned up: {left}")
        finally:
            self.close()

    def close(self) -> None:
        """Close the records; whatever was made stays."""
        for engine in self._engines:
            engine.store.close()

    def _end(self, error: BaseException | None) -> None:
        if error is not None and self.keeps:
            raise Broken("I10", "it was to be kept as it is")
        self.restart()
        if error is None:
            check_steady(self)
        take_away(self)
        if error is None:
            self.check_nothing_left()

    # --- the driver in its engine

    def open(self) -> Engine:
        """Open an engine with a new driver object, as another process would."""
        engine = self._opened()
        self._engines.append(engine)
        return engine

    @contextmanager
    def another(self) -> Iterator[Engine]:
        """Give an engine as another process has it, to one thread, and close it."""
        with self._opened() as engine:
            yield engine

    def _opened(self) -> Engine:
        subject = self.subject
        driver = subject.make(watched(subject.driver_class, self.watch), self.watch.running(subject.run))
        site = Site(
            Store(self.directory / "records.db"),
            {driver.name: driver},
            {place.host.name: place.host for place in subject.places},
            self.directory / "locks",
            Policy(extend_attached=True, deadline_s=subject.deadline_s),
            now=subject.now,
            sleep=subject.sleep,
            new_id=self.new_id,
        )
        return subject.engine_class(site)

    def restart(self) -> None:
        """Go on with new objects; nothing may have been kept in the old ones."""
        self.engine = self.open()

    @property
    def driver(self) -> Driver:
        """The driver, every call of it watched."""
        (driver,) = self.engine.site.drivers.values()
        return driver

    @property
    def declared(self) -> Capabilities:
        """What the driver declares."""
        return self.subject.driver_class.capabilities

    @property
    def rule(self) -> SizeRule:
        """The driver's sizes."""
        return self.driver.size_rule

    # --- names and sizes

    def new_id(self) -> str:
        """Draw an id that begins with the run's: nothing else is ever touched."""
        return self.ids.pop(0) if self.ids else f"{self.run_id}{str(uuid.uuid4())[8:]}"

    def is_ours(self, thing_id: str) -> bool:
        """Tell whether something was made by this run."""
        return thing_id.startswith(self.run_id)

    def name(self) -> str:
        """Give the next name, such as an operator would give."""
        return self._names.next()

    @property
    def granule(self) -> int:
        """The step from one size of the rule to the next."""
        return self.rule.granularity_bytes

    @property
    def small(self) -> int:
        """A small size of the rule, of several granules and blocks."""
        return self.rule.round_up(max(self.rule.minimum_bytes, 4 * self.granule, MiB))

    @property
    def step(self) -> int:
        """By how much volumes are extended: whole granules, and enough to see."""
        return self.rule.round_up(max(self.granule, MiB // 4))

    @contextmanager
    def vast(self, size_bytes: int) -> Iterator["Bench"]:
        """Give a bench where volumes may take so much: this one, or one of its own. Raises NotRun."""
        if self.room_bytes >= size_bytes:
            yield self
        elif self.subject.vast is None:
            raise NotRun(f"volumes may take {self.room_bytes} bytes, {size_bytes} are needed")
        else:
            directory = self.directory / "vast"
            directory.mkdir()
            with Bench(self.subject.vast(), directory, self.run_id) as bench:
                yield bench

    @property
    def room_bytes(self) -> int:
        """How much volumes may take: what the operator allows, and the pool has."""
        return min(self.subject.max_bytes, self.driver.pool().free_bytes)

    # --- acting as an operator

    def create(self, size_bytes: int = 0, *, multi_attach: bool = False) -> Volume:
        """Make a volume; small unless said otherwise."""
        options, size_bytes = self.subject.volume_options, size_bytes or self.small
        return self.engine.create_volume(self.name(), size_bytes, options=options, multi_attach=multi_attach)

    def attach(self, volume: Volume, place: Place | None = None, *, instance: bool = True) -> Attachment:
        """Attach to the first place, or another one, into its instance if it has one."""
        place = place or self.subject.places[0]
        plugged = place.instance if instance else None
        return self.engine.attach(volume.id, place.host.name, plugged)

    def detach(self, volume: Volume, attachment: Attachment) -> None:
        """Detach from one place."""
        place = self.place(attachment)
        with place.letting_go() if attachment.instance else nullcontext():
            self.engine.detach(volume.id, attachment.host, attachment.instance or "")

    def extend(self, volume: Volume, size_bytes: int) -> None:
        """Extend to a size, as an operator asks for it."""
        self.engine.extend(volume.id, size_bytes)

    def in_use(self, *, multi_attach: bool = False) -> Volume:
        """Make a volume that is in use as an in-use extend of this driver needs it."""
        volume = self.create(multi_attach=multi_attach)
        if self.declared.in_use_extend is InUseExtend.BY_HYPERVISOR and not self.subject.places[0].instance:
            raise NotRun("the place has no instance whose hypervisor could grow it")
        self.attach(volume)
        return self.now(volume)

    def second_place(self) -> Place:
        """Give another host. Raises NotRun."""
        if len(self.subject.places) < 2:
            raise NotRun("only one host is configured; a second one is needed")
        return self.subject.places[1]

    def place(self, attachment: Attachment) -> Place:
        """Find where an attachment is."""
        return next(each for each in self.subject.places if each.host.name == attachment.host)

    def volumes(self) -> list[Volume]:
        """Give every volume, the oldest first, whatever the names are that were drawn."""
        return sorted(self.engine.volumes(), key=lambda volume: self._names.number(volume.name))

    def now(self, volume: Volume) -> Volume:
        """Give a volume as it is now."""
        return self.engine.volume(volume.id)

    # --- reading

    def free_bytes(self) -> int:
        """The room that is left, by the oracle if there is one."""
        return self.subject.oracle.free_bytes() if self.subject.oracle else self.driver.pool().free_bytes

    def check_room(self, free_bytes: int) -> None:
        """Have as much room as before (I8), as nearly as the oracle can tell."""
        oracle, now = self.subject.oracle, self.free_bytes()
        tolerance = oracle.tolerance_bytes if oracle else 0
        expect(
            abs(now - free_bytes) <= tolerance, "I8", "the room is not what it was", was=free_bytes, now=now
        )

    def everything(self) -> Everything:
        """See all that an operation could change."""
        oracle = self.subject.oracle
        engine = self.engine
        return Everything(
            dict(oracle.objects()) if oracle else {},
            frozenset(each for each in self.driver.list_volumes() if self.is_ours(each)),
            {place.host.name: place.residue() for place in self.subject.places},
            tuple((volume, engine.last_extend(volume)) for volume in engine.volumes()),
        )

    def sizes(self, volume: Volume) -> dict[str, int | None]:
        """Read the size of a volume wherever it can be read."""
        volume, oracle = self.now(volume), self.subject.oracle
        read: dict[str, int | None] = {"published": volume.size_bytes}
        read["driver"] = self.driver.volume_size(volume)
        if oracle is not None:
            read["oracle"] = oracle.size_bytes(volume)
        for attachment in volume.attachments:
            place = self.place(attachment)
            read[f"device on {attachment.host}"] = place.device_bytes(volume, attachment)
            if attachment.instance and (seen := place.guest_bytes(volume, attachment)) is not None:
                read[f"guest {attachment.place}"] = seen
        return read

    def check_agreed(self, volume: Volume, size_bytes: int) -> None:
        """Have every reading of a volume be this size (I1)."""
        read = self.sizes(volume)
        expect(set(read.values()) == {size_bytes}, "I1", f"not all sizes are {size_bytes}", **read)
        for row in self.engine.ledger(volume.id):
            expect(row.agrees or not row.required, "I1", f"{row.layer} at {row.place} is stale: {row.note}")

    @contextmanager
    def unchanged(self, what: str = "it was refused") -> Iterator[None]:
        """Have nothing changed by the block (I6), whatever is raised in it."""
        before, free = self.everything(), self.free_bytes()
        yield
        after = self.everything()
        expect(after == before, "I6", f"{what}, and something changed", before=before, after=after)
        self.check_room(free)

    def refused(
        self, act: Callable[[], object], *kinds: type[VolDriverError], invariant: str = "I11"
    ) -> VolDriverError:
        """Have an act refused with one of these errors, and nothing changed."""
        with self.unchanged():
            try:
                answer = act()
            except kinds as error:
                return error
            except VolDriverError as error:
                wanted = " or ".join(each.__name__ for each in kinds)
                raise Broken(invariant, f"{type(error).__name__} instead of {wanted}: {error}") from error
            raise Broken(invariant, "it was not refused", answer=answer)

    # --- data

    @contextmanager
    def opened(self, volume: Volume) -> Iterator[Disk]:
        """Give the disk of a volume, attached for it if it is not."""
        volume = self.now(volume)
        if volume.attachments:
            yield self._disk(volume, volume.attachments[0])
            return
        attachment = self.attach(volume)  # a file may have layers, which only an instance reads
        try:
            yield self._disk(self.now(volume), attachment)
        finally:
            self.detach(volume, attachment)

    def _disk(self, volume: Volume, attachment: Attachment) -> Disk:
        stamps = self.stamps.setdefault(volume.id, Stamps())
        return Disk(self.place(attachment), volume, attachment, stamps)

    def stamp(self, volume: Volume) -> None:
        """Write to the first, a middle and the last block."""
        with self.opened(volume) as disk:
            disk.stamp()

    def check_data(self, volume: Volume) -> None:
        """Read back what was stamped, and zeros where nothing was (I4)."""
        with self.opened(volume) as disk:
            disk.check()

    # --- the end

    def check_nothing_left(self) -> None:
        """Compare with what was there before the check (I10)."""
        after = self.everything()
        for name, was, now in (
            ("objects on the backend", self.before.objects, after.objects),
            ("volumes that the driver lists", self.before.listed, after.listed),
            ("on the hosts", self.before.residue, after.residue),
        ):
            expect(was == now, "I10", f"left behind or lost: {name}", before=was, after=now)
        self.check_room(self.free_before)
