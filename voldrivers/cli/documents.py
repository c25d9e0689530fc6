"""What `--json` prints. The keys are a promise: sizes in bytes, times in ISO 8601."""

from collections.abc import Sequence
from dataclasses import dataclass

from voldrivers import plugins, registry
from voldrivers.capabilities import NAMES
from voldrivers.cli import texts
from voldrivers.errors import VolDriverError
from voldrivers.extend.admission import Plan
from voldrivers.extend.resuming import Resumed
from voldrivers.model import Attachment, Extend, Ledger, Snapshot, Volume

Object = dict[str, object]


def volume(shown: Volume) -> Object:
    """One volume with its attachments; what belongs to the driver is left out."""
    return {
        "id": shown.id,
        "name": shown.name,
        "backend": shown.backend,
        "status": str(shown.status),
        "size_bytes": shown.size_bytes,
        "backend_bytes": shown.backend_bytes,
        "extend_new_size_bytes": shown.extend_new_size_bytes,
        "multi_attach": shown.multi_attach,
        "attachments": [attachment(each) for each in shown.attachments],
        "snapshots": [snapshot(shown, each) for each in shown.snapshots],
    }


def snapshot(of: Volume, shown: Snapshot) -> Object:
    """One snapshot."""
    return {
        "id": shown.id,
        "name": shown.name,
        "volume": of.name,
        "size_bytes": shown.size_bytes,
        "status": str(shown.status),
    }


def attachment(shown: Attachment) -> Object:
    """One attachment; connection properties may hold secrets and are left out."""
    return {
        "id": shown.id,
        "host": shown.host,
        "instance": shown.instance,
        "qmp": shown.monitor,
        "state": str(shown.state),
        "device_path": shown.device_path,
    }


def extend(of: Volume, shown: Extend) -> Object:
    """One extend."""
    return {
        "volume": of.name,
        "id": shown.id,
        "phase": str(shown.phase),
        "from_bytes": shown.from_bytes,
        "requested_bytes": shown.requested_bytes,
        "to_bytes": shown.to_bytes,
        "deferred": shown.deferred,
        "reason": shown.reason,
        "expires_at": shown.expires_at.isoformat(),
    }


def plan(shown: Plan) -> Object:
    """What an extend would do."""
    return {
        "volume": shown.volume.name,
        "from_bytes": shown.from_bytes,
        "requested_bytes": shown.requested_bytes,
        "to_bytes": shown.to_bytes,
        "grown_by": shown.grown_by,
        "steps": list(shown.steps),
        "notes": list(shown.notes),
    }


def resumed(shown: Resumed) -> Object:
    """What `resume` did with one volume."""
    return {
        "volume": shown.volume.name,
        "was": shown.what,
        "outcome": shown.outcome,
        "error": str(shown.error) if shown.error else None,
    }


def ledger(of: Volume, shown: Ledger, stopped: Sequence[Attachment], *, settled: bool) -> Object:
    """The size ledger of one volume; `stopped` are the places whose instances are proved to have stopped."""
    rows = [
        {
            "layer": row.layer,
            "place": row.place,
            "observed_bytes": row.observed_bytes,
            "expected_bytes": row.expected_bytes,
            "required": row.required,
            "stale": row.stale,
            "note": row.note,
            "repair": texts.mending(of, row),
        }
        for row in shown
    ]
    places = [each.place for each in stopped]
    return {
        "volume": of.name,
        "status": str(of.status),
        "settled": settled,
        "rows": rows,
        "stopped": places,
    }


@dataclass(frozen=True)
class DeclaredCapability:
    """One capability of one driver, as people read it."""

    name: str
    value: str
    unless: str


@dataclass(frozen=True)
class Declared:
    """What one driver declares, or why it cannot be used."""

    driver: str
    capabilities: tuple[DeclaredCapability, ...] = ()
    problem: str | None = None

    def document(self) -> Object:
        """The same as JSON."""
        listed = [{"name": c.name, "declared": c.value, "unless": c.unless} for c in self.capabilities]
        return {"driver": self.driver, "capabilities": listed, "problem": self.problem}


def declared(driver: str) -> Declared:
    """Look up what an installed driver declares."""
    try:
        capabilities = plugins.driver_class(driver).capabilities
    except VolDriverError as error:
        return Declared(driver, problem=str(error))
    listed = []
    for name in NAMES:
        value = getattr(capabilities, name)
        unless = "; ".join(c.unless for c in capabilities.conditions if c.capability == name)
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        listed.append(DeclaredCapability(name.replace("_", "-"), shown, unless))
    return Declared(driver, tuple(listed))


def checked(shown: registry.Checked) -> Object:
    """A configuration, key by key."""
    settings = [
        {
            "table": setting.table,
            "key": setting.help.name,
            "value": setting.value,
            "given": setting.given,
            "type": setting.help.kind,
            "default": setting.help.default,
            "meaning": setting.help.meaning,
        }
        for setting in shown.settings
    ]
    problems = [str(problem) for problem in shown.problems]
    return {"path": str(shown.path), "settings": settings, "problems": problems}
