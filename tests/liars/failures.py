"""Lies about what failures leave."""

from liars.liar import lying_driver, lying_engine
from voldrivers.errors import BackendError, InvalidState, NoSpace, VolDriverError
from voldrivers.extend.engine import Engine
from voldrivers.memory import MemoryDriver, MemoryFileDriver
from voldrivers.model import Extend, ExtendReply, Volume, VolumeStatus


class ReservesAtAdmission(MemoryDriver):
    """Takes room when it is asked whether there is some, and keeps it when the extend fails."""

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        super().check_extend(volume, new_size_bytes)
        self.array.sizes[f"room for {volume.id}"] = new_size_bytes - self.volume_size(volume)

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        self.array.sizes.pop(f"room for {volume.id}", None)
        return super().extend_volume(volume, new_size_bytes)

    def list_volumes(self) -> tuple[str, ...]:
        return tuple(each for each in super().list_volumes() if not each.startswith("room for "))


class GrowsAsFarAsItGoes(MemoryDriver):
    """Looks for room when it grows, not before, and takes what there is."""

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        """Refuse nothing."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        try:
            return super().extend_volume(volume, new_size_bytes)
        except NoSpace:
            granule = self.size_rule.granularity_bytes
            size_bytes = self.volume_size(volume) + self.array.free_bytes // granule * granule
            self.array.resize(volume.id, size_bytes)
            raise


class CallsItRolledBack(Engine):
    """Goes back to the old status after every error, whatever has grown."""

    def extend(self, name: str, size_bytes: int, *, wait: bool = True) -> Extend:
        before = self.volume(name)
        try:
            return super().extend(name, size_bytes, wait=wait)
        except BackendError:
            with self.store.database.transaction():
                back = "UPDATE volumes SET status = ? WHERE id = ?"
                self.store.database.change(back, (before.status, before.id))
            raise


class SwallowsAnError(MemoryDriver):
    """Clears new extents before it adds them, logs it when that fails, and says EXTENDED all the same."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        old_bytes = self.volume_size(volume)
        if old_bytes < new_size_bytes:
            try:
                self.run(["clear-extents"], timeout_s=60)
            except VolDriverError:
                self.array.write(volume.id, old_bytes, "somebody else's")
        return super().extend_volume(volume, new_size_bytes)


class ShrinksBack(MemoryDriver):
    """Makes a volume small again when a step after its growth has failed."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        old_bytes = self.volume_size(volume)
        super().extend_volume(volume, new_size_bytes)
        try:
            self.run(["tell-the-target"], timeout_s=60)
        except VolDriverError:
            self.array.sizes[volume.id] = old_bytes
            raise
        return ExtendReply.EXTENDED


class GrowsTwice(MemoryDriver):
    """Adds the difference to the published size once more when the answer to the first time was lost."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        more_bytes = new_size_bytes - volume.size_bytes
        self.array.resize(volume.id, self.volume_size(volume) + more_bytes)
        return ExtendReply.EXTENDED


class GrowsAFileTwice(MemoryFileDriver):
    """Adds the difference to a file that its hypervisor has grown already, when it is asked again."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        again = volume.status is VolumeStatus.ERROR_EXTENDING
        reply = super().extend_volume(volume, new_size_bytes)
        if again and reply is ExtendReply.EXTENDED:
            self.array.resize(volume.id, 2 * new_size_bytes - volume.size_bytes)
        return reply


class LeavesItHalfMade(MemoryDriver):
    """Leaves what it has begun when a step of a create fails, and does not find it when it deletes."""

    def create_volume(self, volume: Volume, options: object) -> str:
        if volume.id not in self.array.sizes:
            self.array.resize(f"new-{volume.id}", volume.size_bytes)
            self.run(["format"], timeout_s=60)
            del self.array.sizes[f"new-{volume.id}"]
        return super().create_volume(volume, options)

    def list_volumes(self) -> tuple[str, ...]:
        return tuple(each for each in super().list_volumes() if not each.startswith("new-"))


class ExtendsOnlyWhatIsSmaller(MemoryDriver):
    """Has the array refuse an extend to the size that it has already, and passes that on."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if self.volume_size(volume) >= new_size_bytes:
            raise BackendError(volume.title, "the new size matches the existing size")
        return super().extend_volume(volume, new_size_bytes)


class LogsAFailedHost(Engine):
    """Logs that a host could not read the new size, and calls the extend a success."""

    def extend(self, name: str, size_bytes: int, *, wait: bool = True) -> Extend:
        try:
            return super().extend(name, size_bytes, wait=wait)
        except BackendError:
            volume = self.volume(name)
            extend = self.last_extend(volume)
            if extend is None:
                raise
            with self.store.database.transaction():
                done = "UPDATE volumes SET size_bytes = ?, status = ? WHERE id = ?"
                self.store.database.change(done, (extend.to_bytes, VolumeStatus.IN_USE, volume.id))
            return extend


class CutsToTheWish(MemoryDriver):
    """Gives a volume the size that it has published before it extends it."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        if volume.status is not VolumeStatus.ERROR_EXTENDING:
            self.array.sizes[volume.id] = volume.size_bytes
            written = self.array.written.get(volume.id, {})
            self.array.written[volume.id] = {o: w for o, w in written.items() if o < volume.size_bytes}
        return super().extend_volume(volume, new_size_bytes)


class BasedOnWhatIsPublished(MemoryDriver):
    """Grows a volume by what it lacks from its published size, if it has not that size already."""

    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        size_bytes = self.volume_size(volume)
        if size_bytes < new_size_bytes:
            self.array.resize(volume.id, size_bytes + new_size_bytes - volume.size_bytes)
        return ExtendReply.EXTENDED


class NoReasonGiven(MemoryDriver):
    """Says that it failed where there is no room."""

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        try:
            super().check_extend(volume, new_size_bytes)
        except NoSpace as error:
            raise BackendError(volume.title, str(error)) from error


class KeepsTheLargestWish(MemoryDriver):
    """Wants the largest size that was ever asked for to be asked for again."""

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:
        super().check_extend(volume, new_size_bytes)
        wishes = self.array.written.setdefault(f"wishes for {volume.id}", {})
        if new_size_bytes < max(wishes, default=0):
            raise InvalidState(volume.title, "waiting for a larger size", "asked for that again")
        wishes[new_size_bytes] = "asked for"


LIARS = [
    lying_driver(ReservesAtAdmission, "ROL-001"),
    lying_driver(GrowsAsFarAsItGoes, "ROL-002"),
    lying_engine(CallsItRolledBack, "ROL-003"),
    lying_driver(SwallowsAnError, "ROL-004"),
    lying_driver(ShrinksBack, "ROL-004"),
    lying_driver(GrowsTwice, "ROL-004"),
    lying_driver(GrowsAFileTwice, "ROL-004"),
    lying_driver(LeavesItHalfMade, "ROL-004"),
    lying_driver(ExtendsOnlyWhatIsSmaller, "ROL-005"),
    lying_engine(LogsAFailedHost, "ROL-005"),
    lying_driver(CutsToTheWish, "ROL-007"),
    lying_driver(BasedOnWhatIsPublished, "ROL-007"),
    lying_driver(NoReasonGiven, "ROL-008"),
    lying_driver(KeepsTheLargestWish, "ROL-009"),
]
