"""Lies about extends that are left to a hypervisor."""

from dataclasses import replace
from unittest.mock import patch

from liars.liar import lying_driver, lying_engine, lying_host
from voldrivers.errors import BackendError, InvalidState, OutcomeUnknown
from voldrivers.extend import admission
from voldrivers.extend.engine import Engine
from voldrivers.extend.resuming import Resumed
from voldrivers.memory import MemoryDriver, MemoryFileDriver, MemoryHost
from voldrivers.model import Attachment, Extend, ExtendReply, Phase, Volume, VolumeStatus


class GrowsBehindTheHypervisor(MemoryFileDriver):
    """Makes the file larger and leaves it to the hypervisor that has it open."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        reply = super().extend_volume(volume, new_size_bytes)
        if reply is ExtendReply.DEFERRED:
            MemoryDriver.extend_volume(self, volume, new_size_bytes)
        return reply


class ClearsWhatHasGrown(MemoryFileDriver):
    """Clears the new range after the hypervisor has grown it, and with it what the guest wrote there."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        reply = super().extend_volume(volume, new_size_bytes)
        if reply is ExtendReply.EXTENDED:
            written = self.array.written.get(volume.id, {})
            for offset in [each for each in written if each >= volume.size_bytes]:
                del written[offset]
        return reply


class NeverDone(MemoryFileDriver):
    """Says DEFERRED again when the hypervisor has done it, and does nothing."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        super().extend_volume(volume, new_size_bytes)
        return ExtendReply.EXTENDED if volume.nobody_runs else ExtendReply.DEFERRED


class LosesItsReservation(MemoryFileDriver):
    """Takes room for what the hypervisor will grow, and gives it back only when that went well."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        reply, reserved = super().extend_volume(volume, new_size_bytes), f"room for {volume.id}"
        if reply is ExtendReply.DEFERRED:
            self.array.sizes[reserved] = new_size_bytes - self.volume_size(volume)
        else:
            self.array.sizes.pop(reserved, None)
        return reply

    def list_volumes(self) -> tuple[str, ...]:
        return tuple(each for each in super().list_volumes() if not each.startswith("room for "))


class _BelievesCompletions(Engine):
    def take_back(self, volume: Volume, size_bytes: int, status: VolumeStatus) -> None:
        """Write a status and a size, whatever is true."""
        with self.store.database.transaction():
            wrong = "UPDATE volumes SET size_bytes = ?, status = ?, extend_new_size_bytes = NULL WHERE id = ?"
            self.store.database.change(wrong, (size_bytes, status, volume.id))


class CompletesTwice(_BelievesCompletions):
    """Adds what an extend has added once more with each completion that comes."""

    def completion(self, name: str, extend_id: int, *, error: bool = False) -> None:
        volume = self.volume(name)
        extend = self.last_extend(volume)
        if extend is not None and not error:
            more_bytes = extend.to_bytes - extend.from_bytes
            self.take_back(volume, volume.size_bytes + more_bytes, VolumeStatus.IN_USE)


class CompletesNothing(_BelievesCompletions):
    """Takes any completion for the end of an extend, after which a volume is available."""

    def completion(self, name: str, extend_id: int, *, error: bool = False) -> None:
        volume = self.volume(name)
        self.take_back(volume, volume.size_bytes, VolumeStatus.AVAILABLE)


class TakesAStaleOne(_BelievesCompletions):
    """Takes the completion of another extend as evidence that this one is done."""

    def completion(self, name: str, extend_id: int, *, error: bool = False) -> None:
        volume = self.volume(name)
        if volume.extend_new_size_bytes is not None and not error:
            self.take_back(volume, volume.extend_new_size_bytes, VolumeStatus.IN_USE)


class OneOrderForAll(MemoryHost):
    """Refuses the extend of one volume as older when a newer one of another volume was carried out."""

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        if extend.id < self.machine.newest.get("of all", 0):
            raise InvalidState(f"extend {extend.id}", "older", "the newest")
        super().assist_extend(volume, attachment, extend)
        self.machine.newest["of all"] = extend.id


class ForgetsThePending(Engine):
    """Lets a second extend in, and with that forgets the one that is pending."""

    def extend(self, name: str, size_bytes: int, *, wait: bool = True) -> Extend:
        pending = self.last_extend(self.volume(name))
        if pending is not None and pending.phase.under_way:
            self.store.move(pending, replace(pending, phase=Phase.ROLLED_BACK))
        return super().extend(name, size_bytes, wait=wait)


class DetachesMeanwhile(_BelievesCompletions):
    """Lets a volume be detached while its extend is pending."""

    def detach(
        self, name: str, host: str | None = None, instance: str | None = None, *, force: bool = False
    ) -> None:
        volume = self.volume(name)
        if volume.status is VolumeStatus.EXTENDING:
            self.take_back(volume, volume.size_bytes, VolumeStatus.IN_USE)
        super().detach(name, host, instance, force=force)


class ForgetsAtRestart(_BelievesCompletions):
    """Knows nothing of a pending extend any more when it is started anew."""

    def resume(self, name: str | None = None) -> tuple[Resumed, ...]:
        for volume in self.volumes():
            if volume.extend_new_size_bytes is not None:
                self.take_back(volume, volume.size_bytes, VolumeStatus.IN_USE)
        return ()


class LooksAtTheTimeLater(MemoryHost):
    """Resizes although it says no: it looks at the time of a request after it has carried it out."""

    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        if self.array.sizes[volume.id] < extend.to_bytes:
            self.array.resize(volume.id, extend.to_bytes)
        super().assist_extend(volume, attachment, extend)


class RollsBackUnfenced(_BelievesCompletions):
    """Rolls a cancelled extend back without asking the host whether it may still carry it out."""

    def cancel(self, name: str) -> Extend:
        extend, volume = super().cancel(name), self.volume(name)
        self.take_back(volume, volume.size_bytes, VolumeStatus.IN_USE)
        return extend


class BelievesItsWish(MemoryFileDriver):
    """Tells as the size of a volume what it has asked the hypervisor for."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        wishes = self.array.written.setdefault("wishes", {})
        known = volume.id in wishes.values()
        reply = super().extend_volume(volume, new_size_bytes)
        if reply is ExtendReply.DEFERRED and not known:
            wishes[new_size_bytes] = volume.id
        return ExtendReply.EXTENDED if known else reply

    def volume_size(self, volume: Volume) -> int:
        wishes = self.array.written.get("wishes", {})
        return max([super().volume_size(volume), *(size for size, of in wishes.items() if of == volume.id)])


class DoesNotLook(_BelievesCompletions):
    """Takes a hypervisor's error for the proof that nothing has grown, and rolls back."""

    def extend(self, name: str, size_bytes: int, *, wait: bool = True) -> Extend:
        before = self.volume(name)
        try:
            return super().extend(name, size_bytes, wait=wait)
        except (BackendError, OutcomeUnknown):
            self.take_back(before, before.size_bytes, before.status)
            raise


class SkipsTheVersion(Engine):
    """Does not ask how old a host is."""

    def _plan(self, volume: Volume, size_bytes: int) -> admission.Plan:
        with patch.object(admission, "HOST_VERSION", 0):
            return super()._plan(volume, size_bytes)


LIARS = [
    lying_driver(GrowsBehindTheHypervisor, "DEF-001"),
    lying_driver(ClearsWhatHasGrown, "DEF-002"),
    lying_driver(NeverDone, "DEF-002"),
    lying_driver(LosesItsReservation, "DEF-003"),
    lying_engine(CompletesTwice, "DEF-004", MemoryFileDriver),
    lying_engine(CompletesNothing, "DEF-005", MemoryFileDriver),
    lying_engine(TakesAStaleOne, "DEF-006", MemoryFileDriver),
    lying_host(OneOrderForAll, "DEF-006", MemoryFileDriver),
    lying_engine(ForgetsThePending, "DEF-007", MemoryFileDriver),
    lying_engine(DetachesMeanwhile, "DEF-008", MemoryFileDriver),
    lying_engine(ForgetsAtRestart, "DEF-009", MemoryFileDriver),
    lying_host(LooksAtTheTimeLater, "DEF-010", MemoryFileDriver),
    lying_engine(RollsBackUnfenced, "DEF-010", MemoryFileDriver),
    lying_driver(BelievesItsWish, "DEF-012"),
    lying_engine(DoesNotLook, "DEF-013", MemoryFileDriver),
    lying_engine(SkipsTheVersion, "DEF-014", MemoryFileDriver),
]
