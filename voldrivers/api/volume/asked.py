"""One request: who asks, in which project and version, and what of it the caller may see and do."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Protocol, TypeVar

from fastapi import Depends, Path, Request, Response

from voldrivers.api.access import PROJECT, Caller
from voldrivers.api.policy import Policy
from voldrivers.api.volume import bodies, versions
from voldrivers.api.volume.desk import Begun, Desk, Failed
from voldrivers.api.volume.faults import Refused, refusal
from voldrivers.api.volume.versions import Microversion
from voldrivers.errors import NotFound, VolDriverError
from voldrivers.extend.catalog import Catalog, Description
from voldrivers.extend.engine import Engine
from voldrivers.model import Snapshot, Volume, utc_now

Result = TypeVar("Result")


@dataclass(frozen=True)
class Asked:
    """A request, with what answers it."""

    desk: Desk
    policy: Policy
    caller: Caller
    project: str
    version: Microversion

    @property
    def is_admin(self) -> bool:
        """Tell whether the caller is an administrator by the policy in force."""
        return self.policy.allows("admin_api", self.caller, self.project)

    def must(self, rule: str, project: str | None = None) -> None:
        """Refuse what the policy does not allow. Raises Refused, 403."""
        if not self.policy.allows(rule, self.caller, self.project if project is None else project):
            raise Refused(403, f"Policy doesn't allow {rule} to be performed.")

    def needs(self, version: Microversion) -> None:
        """Refuse what came with a younger version than the one asked for. Raises Refused, 404 as Cinder."""
        if self.version < version:
            raise Refused(
                404, f"This came with version {version} of the API, the request is for {self.version}."
            )

    async def look(self, work: Callable[[Engine], Result]) -> Result:
        """Look something up. Raises Refused."""
        try:
            return await asyncio.wrap_future(self.desk.look(work))
        except VolDriverError as error:
            raise refusal(error) from error

    async def act(
        self,
        work: Callable[[Engine], object],
        begun: Begun = lambda _engine, _volume: None,
        failed: Failed = lambda _engine, _error: None,
    ) -> object:
        """Begin an operation; see `Desk.act`. Raises Refused for one that was refused before it began."""
        try:
            return await asyncio.shield(asyncio.wrap_future(self.desk.act(work, begun, failed)))
        except VolDriverError as error:
            raise refusal(error) from error

    async def act_whole(self, work: Callable[[Engine], Result]) -> Result:
        """Take an operation to its end before it is answered: the answer holds what came of it."""
        try:
            return await asyncio.shield(asyncio.wrap_future(self.desk.act_whole(work)))
        except VolDriverError as error:
            raise refusal(error) from error

    def sees(self, said: Description | None) -> bool:
        """Tell whether the caller may know of something: an admin of all, others of their project's."""
        return self.is_admin or (said is not None and said.project == self.project)

    def lists(self, said: Description | None, *, everybody: bool) -> bool:
        """Tell whether something belongs in the caller's list: their project's, or every one's if wanted."""
        if said is None:
            return self.is_admin
        return said.project == self.project or (everybody and self.is_admin)

    def found(self, engine: Engine, volume_id: str, rule: str) -> tuple[Volume, Description | None]:
        """Find a volume by its id. Raises NotFound where the caller may not see it, Refused by the rule."""
        said = Catalog(engine.store.database).get(volume_id)
        volume = engine.volume(volume_id)
        if volume.id != volume_id or not self.sees(said):
            raise NotFound("volume", volume_id)
        self.must(rule, self.project if said is None else said.project)
        return volume, said

    def found_snapshot(
        self, engine: Engine, snapshot_id: str, rule: str
    ) -> tuple[Snapshot, Description | None]:
        """Find a snapshot by its id, as `found`."""
        said = Catalog(engine.store.database).get(snapshot_id)
        snapshot = engine.snapshot(snapshot_id)
        if snapshot.id != snapshot_id or not self.sees(said):
            raise NotFound("snapshot", snapshot_id)
        self.must(rule, self.project if said is None else said.project)
        return snapshot, said


async def asked(
    request: Request,
    response: Response,
    project_id: Annotated[str, Path(pattern=f"^{PROJECT}$")],
) -> Asked:
    """Read who asks for what; the answer says its version. Raises Refused."""
    caller: Caller = request.scope["caller"]
    if caller.project and caller.project != project_id:
        raise Refused(400, "Malformed request url: the token is for another project.")
    version = versions.asked(request.headers)
    request.state.version = version
    response.headers.update(versions.answered(version))
    return Asked(request.app.state.desk, request.app.state.policy, caller, project_id, version)


Question = Annotated[Asked, Depends(asked)]


class Named(Protocol):
    """What every body that makes something has."""

    name: str | None
    description: str | None
    metadata: dict[str, str] | None


def describe(asked: Asked, wanted: Named, volume_id: str | None = None) -> Description:
    """Give what a client says of something that is to be made."""
    return Description(
        id="",
        project=asked.project,
        user=asked.caller.name,
        size_bytes=0,
        volume_id=volume_id,
        name=wanted.name,
        description=wanted.description,
        metadata=wanted.metadata or {},
    )


def changed(
    asked: Asked, subject: Volume | Snapshot, said: Description | None, changes: bodies.Changes
) -> Description:
    """Give what is said of a volume or snapshot after a change."""
    given = changes.model_fields_set
    before = said or Description(
        subject.id,
        asked.project,
        asked.caller.name,
        subject.size_bytes,
        volume_id=subject.volume_id if isinstance(subject, Snapshot) else None,
        name=subject.name,
    )
    new: dict[str, object] = {"updated_at": utc_now()}
    if given & {"name", "display_name"}:
        new["name"] = changes.name if "name" in given else changes.display_name
    if given & {"description", "display_description"}:
        new["description"] = changes.description if "description" in given else changes.display_description
    if "metadata" in given:
        new["metadata"] = changes.metadata or {}
    return replace(before, **new)  # type: ignore[arg-type]  # each of its field's type
