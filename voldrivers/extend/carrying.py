"""Carrying an admitted extend to its end: the converging step, each phase recorded before its act."""

import logging

from voldrivers.extend import admission
from voldrivers.extend.converge import Outcome, converge
from voldrivers.extend.site import Progress, Site
from voldrivers.model import Extend, Phase, Volume
from voldrivers.sizes import format_size

_log = logging.getLogger(__name__)


def admit(site: Site, volume: Volume, plan: admission.Plan) -> Extend:
    """Record an extend as planned, and what was found to be not as recorded. Raises InvalidState."""
    reason, seen, known = "", format_size(plan.from_bytes), format_size(volume.size_bytes)
    if plan.from_bytes > volume.size_bytes:
        reason = f"the backend had {seen} instead of {known}: it is kept"
    elif plan.from_bytes < volume.size_bytes:
        reason = f"the backend had only {seen} of {known}: what was beyond is lost"
    extend = Extend(
        id=0,
        volume_id=volume.id,
        from_bytes=plan.from_bytes,
        requested_bytes=plan.requested_bytes,
        to_bytes=plan.to_bytes,
        phase=Phase.GROWING,
        expires_at=site.expiry(),
        reason=reason,
    )
    return site.store.admit(volume, extend)


def carry(site: Site, volume: Volume, extend: Extend) -> Extend:
    """Bring every layer to the extend's size and record how that ended. Raises what stood in the way."""
    journal = _Journal(site, volume, extend)
    outcome = converge(
        volume,
        extend,
        site.driver(volume),
        site.hosts,
        journal.record,
        cancelled=journal.cancelled,
        refused=journal.refused,
        now=site.now,
        sleep=site.sleep,
    )
    journal.end(outcome)
    if outcome.error is not None:
        raise outcome.error
    return outcome.extend


def was_cancelled(site: Site, volume: Volume, extend: Extend) -> bool:
    """Tell whether an extend was rolled back because its operator had asked for it."""
    ended = site.store.last_extend(volume)
    rolled_back = ended is not None and ended.phase is Phase.ROLLED_BACK
    return rolled_back and bool(site.store.hints(extend, "cancel"))


class _Journal:
    """Writes each phase of one extend before its act, and shows it."""

    def __init__(self, site: Site, volume: Volume, extend: Extend) -> None:
        self.site, self.volume, self.extend = site, volume, extend
        self.refused_before = site.store.hints(extend, "failure")

    def record(self, new: Extend) -> None:
        """Commit the move before the act."""
        self._move(new)
        self.site.progress(Progress(self.volume, new.phase, format_size(new.to_bytes)))

    def cancelled(self) -> bool:
        """Tell whether the operator has asked to cancel this extend."""
        return bool(self.site.store.hints(self.extend, "cancel"))

    def refused(self) -> bool:
        """Tell whether a host has said, since this run began, that it could not do its part."""
        return self.site.store.hints(self.extend, "failure") > self.refused_before

    def end(self, outcome: Outcome) -> None:
        """Commit the end and publish what follows from it."""
        self._move(outcome.extend, outcome.backend_bytes)

    def _move(self, new: Extend, backend_bytes: int | None = None) -> None:
        self.site.store.move(self.extend, new, backend_bytes=backend_bytes)
        _log.info("extend %s %s -> %s", self.volume.name, self.extend.phase, new.phase)
        self.extend = new
