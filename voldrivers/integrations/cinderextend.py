"""Extending with Cinder's records: what is under way stands in the volume's admin metadata.

Cinder itself records only that a volume is `extending`: neither to what size nor how far it has come, and it
never carries on with one (cinder/objects/volume.py, `_is_cleanable`). A driver's error makes it
`error_extending`, where it can be neither detached nor used; one after which provably nothing has changed
is given back the status that it had.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cinder import context as cinder_context
from cinder import exception, objects, quota
from cinder.compute import nova
from cinder.db import api as db
from cinder.message import api as message_api
from cinder.message import message_field
from cinder.volume import rpcapi
from oslo_db.exception import DBError
from oslo_log import log as logging

from voldrivers.errors import HostUnreachable, InvalidState, OutcomeUnknown, VolDriverError
from voldrivers.integrations import translation
from voldrivers.integrations.asking import Worker
from voldrivers.model import Extend, Phase, Volume
from voldrivers.sizes import GiB

LOG = logging.getLogger(__name__)
#: Metadata of a volume, for its owner: why its last extend failed. A message of Cinder's has no room for it.
FAILURE_KEY = "voldrivers:extend_failure"
#: So long a message that Cinder's queue has kept may take to arrive, and Cinder to record an error.
_QUEUE_S, _RECORD_S, _POLL_S = 60.0, 60.0, 0.2
#: So long an extend whose worker has died is carried on with, by one worker after the other.
_AGAIN_S, _AGAIN_POLL_S = 60.0, 1.0
_LONGEST_TEXT = 255
#: What a message of Cinder's can say, of a fixed list, beside that the driver failed.
_DETAILS: Mapping[type[VolDriverError], tuple[str, str]] = {
    HostUnreachable: message_field.Detail.NOTIFY_COMPUTE_SERVICE_FAILED,
    InvalidState: message_field.Detail.VOLUME_INVALID_STATE,
}

Theirs = Any  # Any: Cinder's own objects, which have no types


class Extends:
    """The extends of one backend."""

    def __init__(
        self, worker: Worker, ours: Callable[[Theirs], Volume], host: str, completion_s: float | None
    ) -> None:
        """Have `worker` do them; `ours` gives a volume of Cinder's as ours.

        `host` is Cinder's name of the backend; `completion_s` is how long Nova may take where it grows an
        attached volume, None where we do.
        """
        self._worker, self._ours, self._host = worker, ours, host
        self._completion_s, self._messages = completion_s, message_api.API()

    def extend(self, volume: Theirs, new_size: int) -> None:
        """Make a volume so many GiB large in every layer. Raises ExtendVolumeError."""
        journal = _Journal(volume)
        extend_id = journal.begin()
        try:
            if self._completion_s is not None and volume.volume_attachment:
                self._await_completion(volume, new_size, self._completion_s)
            self._carry(volume, journal, "extend_volume", new_size_bytes=new_size * GiB, extend_id=extend_id)
        except VolDriverError as error:
            self._failed(volume, journal, error)
            raise exception.ExtendVolumeError(reason=translation.told(error)) from error
        _set_failure(volume, None)

    def interrupted(self) -> Sequence[Theirs]:
        """Give the volumes of this backend that are `extending`."""
        context, filters = cinder_context.get_admin_context(), {"status": "extending"}
        return list(objects.VolumeList.get_all_by_host(context, self._host, filters=filters))

    def resume_all(self) -> None:
        """Carry on, beside everything else, with what was being extended when a process ended."""
        for volume in self.interrupted():
            threading.Thread(target=self._resume, args=(volume,), daemon=True).start()

    # --- one that is under way

    def _carry(self, volume: Theirs, journal: "_Journal", duty: str, **arguments: object) -> int:
        """Have the worker extend; one that has died meanwhile is replaced, and looks what there is.

        So it goes when the database is away for a while, which keeps the record.
        """
        ends, first = time.monotonic() + _AGAIN_S, ""
        while True:
            try:
                grown = self._worker.ask(duty, journal.record, volume=self._ours(volume), **arguments)
                break
            except (VolDriverError, DBError) as error:
                seen = error if isinstance(error, VolDriverError) else _unrecorded(volume, error)
                is_known = not isinstance(seen, OutcomeUnknown) and not journal.is_open()
                if is_known or time.monotonic() > ends:
                    if first and first != str(seen):
                        seen.add_note(f"at first: {first}")
                    raise seen from error
                if not first:
                    LOG.warning("Looking again how volume %s is being extended: %s", volume.id, seen)
                first = first or str(seen)
            if journal.extend is not None:
                duty, arguments = "resume_extend", {"extend": journal.extend}
            time.sleep(_AGAIN_POLL_S)
        if grown.reason:
            LOG.warning("Volume %s: %s", volume.id, grown.reason)
        journal.forget()
        return int(grown.backend_bytes)

    def _failed(self, volume: Theirs, journal: "_Journal", error: VolDriverError) -> None:
        """Tell why; give a volume that provably has not changed the status back that Cinder takes away."""
        text = translation.told(error)
        LOG.error("Volume %s was not extended: %s", volume.id, text)
        _set_failure(volume, translation.for_owner(text))
        detail = next((_DETAILS[kind] for kind in type(error).__mro__ if kind in _DETAILS), None)
        if detail is not None:
            context, extends = volume._context, message_field.Action.EXTEND_VOLUME
            self._messages.create(context, extends, resource_uuid=volume.id, detail=detail)
        if not journal.may_have_grown() and not isinstance(error, OutcomeUnknown):
            journal.forget()
            before = volume.previous_status or ("in-use" if volume.volume_attachment else "available")
            back = partial(_give_back, volume.id, "error_extending", before)
            threading.Thread(target=back, daemon=True).start()

    # --- one whose process has ended

    def _resume(self, volume: Theirs) -> None:
        # A message is its project's: that of a context without one is lost.
        volume._context = cinder_context.get_admin_context()
        volume._context.project_id = volume.project_id
        journal = _Journal(volume)
        if journal.extend is None:
            self._resume_unbegun(volume)
            return
        new_size = -(-journal.extend.requested_bytes // GiB)
        LOG.info("Carrying on with the extend of volume %s to %s GiB", volume.id, new_size)
        try:
            self._carry(volume, journal, "resume_extend", extend=journal.extend)
        except VolDriverError as error:
            self._failed(volume, journal, error)
            self._complete(volume, new_size, error=True)
            return
        _set_failure(volume, None)
        self._complete(volume, new_size, error=False)

    def _resume_unbegun(self, volume: Theirs) -> None:
        """Wait whether Cinder's queue still has the call; else it was lost before anything began."""
        ends = time.monotonic() + _QUEUE_S
        while time.monotonic() < ends:
            time.sleep(_POLL_S)
            volume.refresh()
            if volume.status != "extending" or _Journal(volume).extend is not None:
                return
        LOG.warning("Volume %s is extending, but nothing was begun: its status is given back", volume.id)
        _set_failure(volume, "the request was lost before anything was begun: ask for it again")
        _give_back(volume.id, "extending", volume.previous_status)

    def _complete(self, volume: Theirs, new_size: int, *, error: bool) -> None:
        """Have Cinder record the end; what the ended process had reserved of a quota expires by itself."""
        context = volume._context
        reservations = [] if error else _reserved(context, volume, new_size - volume.size)
        api = rpcapi.VolumeAPI()
        api.extend_volume_completion(context, volume, new_size, reservations, error)
        instances = [each.instance_uuid for each in volume.volume_attachment if each.instance_uuid]
        if instances and not error:
            nova.API().extend_volume(context, instances, volume.id)

    # --- Nova grows it and reports

    def _await_completion(self, volume: Theirs, new_size: int, limit_s: float) -> None:
        """Leave it to Nova, which reports by os-extend_volume_completion: a hint to look then.

        What Cinder's API needs for that stands in the admin metadata, where it takes it away. Raises
        InvalidState where Nova says that it failed and nothing has grown, else OutcomeUnknown: it may yet.
        """
        context, before_bytes = cinder_context.get_admin_context(), self._backend_bytes(volume)
        metadata = {"extend_new_size": str(new_size), "extend_reservations": "[]"}
        db.volume_admin_metadata_update(context, volume.id, metadata, False)
        instances = [each.instance_uuid for each in volume.volume_attachment if each.instance_uuid]
        nova.API().extend_volume(context, instances, volume.id)
        ends = time.monotonic() + limit_s
        while (status := objects.Volume.get_by_id(context, volume.id).status) == "extending":
            if time.monotonic() > ends:
                for key in metadata:
                    db.volume_admin_metadata_delete(context, volume.id, key)
                reason = f"nobody reported its completion within {limit_s:g} seconds"
                raise OutcomeUnknown(f"the extend of volume {volume.name} by Nova", reason)
            time.sleep(_POLL_S)
        if "error" in status:
            if self._backend_bytes(volume) != before_bytes:
                what = f"the extend of volume {volume.name} by Nova"
                raise OutcomeUnknown(what, "it failed, but has grown")
            raise InvalidState(f"volume {volume.name}", "not extended, says Nova", "extended by it")

    def _backend_bytes(self, volume: Theirs) -> int:
        return int(self._worker.ask("volume_size", volume=self._ours(volume)))


class _Journal:
    """The extend of one volume in its admin metadata."""

    def __init__(self, volume: Theirs) -> None:
        self._context, self._volume_id = cinder_context.get_admin_context(), volume.id
        stored = objects.Volume.get_by_id(self._context, volume.id)
        text = stored.admin_metadata.get(translation.EXTEND_KEY)
        self.extend = translation.read_extend(stored.name_id, text) if text else None

    def begin(self) -> int:
        """Give a number above that of every extend before; hosts refuse older ones."""
        last, self.extend = self.extend, None
        return max(time.time_ns() // 1_000_000, last.id + 1 if last else 0)

    def record(self, extend: Extend) -> None:
        """Have it on disk."""
        metadata = {translation.EXTEND_KEY: translation.write_extend(extend)}
        db.volume_admin_metadata_update(self._context, self._volume_id, metadata, False)
        self.extend = extend

    def is_open(self) -> bool:
        """Tell whether an act was begun whose end is not recorded as a failure."""
        return self.extend is not None and self.extend.phase not in (Phase.FAILED, Phase.ROLLED_BACK)

    def may_have_grown(self) -> bool:
        """Tell whether an act was begun, and not rolled back."""
        return self.extend is not None and self.extend.phase is not Phase.ROLLED_BACK

    def forget(self) -> None:
        """Remove it."""
        db.volume_admin_metadata_delete(self._context, self._volume_id, translation.EXTEND_KEY)


def _give_back(volume_id: str, wrong: str, before: str) -> None:
    """Give a volume the status that it had, once it has the wrong one."""
    volume = objects.Volume.get_by_id(cinder_context.get_admin_context(), volume_id)
    ends = time.monotonic() + _RECORD_S
    while not volume.conditional_update({"status": before}, {"status": wrong}):
        if time.monotonic() > ends:
            return
        time.sleep(_POLL_S)
    LOG.info("Volume %s is %s again: nothing of it has changed", volume_id, before)


def _unrecorded(volume: Theirs, error: Exception) -> OutcomeUnknown:
    reason = f"Cinder's database does not keep its record: {type(error).__name__}"
    return OutcomeUnknown(f"the extend of volume {volume.name}", reason)


def _set_failure(volume: Theirs, text: str | None) -> None:
    context = cinder_context.get_admin_context()
    if text is not None:
        short = text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."
        db.volume_metadata_update(context, volume.id, {FAILURE_KEY: short}, False)
    elif FAILURE_KEY in db.volume_metadata_get(context, volume.id):
        db.volume_metadata_delete(context, volume.id, FAILURE_KEY)


def _reserved(context: Theirs, volume: Theirs, more: int) -> Sequence[str]:
    """Reserve what a volume has become larger by; over its quota it has become all the same."""
    deltas = {"gigabytes": more}
    quota.QUOTAS.add_volume_type_opts(context, deltas, volume.volume_type_id)
    try:
        return list(quota.QUOTAS.reserve(context, project_id=volume.project_id, **deltas))
    except exception.OverQuota:
        LOG.warning("Volume %s has grown by %s GiB, which is over its project's quota", volume.id, more)
        return []
