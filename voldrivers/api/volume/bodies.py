"""What clients send, as Cinder's schemas have it (cinder/api/schemas): what is not known is refused.

What is ours alone begins with `voldrivers:`.
"""

import json
import re
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from voldrivers.api import whole
from voldrivers.sizes import GiB

_Name = Annotated[str, StringConstraints(max_length=255)]
_Key = Annotated[str, StringConstraints(min_length=1, max_length=255)]
_Id = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z._@+=:-]{0,127}$")]
Metadata = dict[_Key, _Name]


_DIGITS = r"^0*[1-9][0-9]{0,8}$"


def _gib(given: object) -> object:
    """Take a whole number of GiB as Cinder does, a text of digits too."""
    if isinstance(given, str) and re.fullmatch(_DIGITS, given, re.ASCII):
        return int(given)
    return whole.number(given, "must be a whole number of GiB")


_Number = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Text = Annotated[str, StringConstraints(pattern=_DIGITS)]
Gibibytes = Annotated[
    int, BeforeValidator(_gib, json_schema_input_type=_Number | _Text), Field(ge=1, le=2**31 - 1)
]


class Body(BaseModel):
    """Refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", populate_by_name=False)

    @model_validator(mode="before")
    @classmethod
    def _is_utf8(cls, given: object) -> object:
        """Refuse half of a surrogate pair, which JSON can hold and no file name and no record can."""
        if isinstance(given, bytes):
            raise ValueError("must be JSON, sent with the header Content-Type: application/json")
        try:
            json.dumps(given, ensure_ascii=False).encode()
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError("must be text that UTF-8 can hold") from error
        return given


class NewVolume(Body):
    """A volume to be made. `volume_type` is the name of a backend."""

    size: Gibibytes | None = None
    name: _Name | None = None
    description: _Name | None = None
    volume_type: _Name | None = None
    availability_zone: _Name | None = None
    metadata: Metadata | None = None
    snapshot_id: _Id | None = None
    source_volid: _Id | None = None
    multiattach: bool | None = None
    image_id: None = Field(None, alias="imageRef")
    consistencygroup_id: None = None
    group_id: None = None
    backup_id: None = None
    options: dict[str, str | int | float | bool] | None = Field(None, alias="voldrivers:options")
    size_bytes: whole.Bytes | None = Field(None, alias="voldrivers:size_bytes")

    @property
    def wanted_bytes(self) -> int | None:
        """The size that was asked for, if one was."""
        if self.size_bytes is not None:
            return self.size_bytes
        return None if self.size is None else self.size * GiB


class CreateVolume(Body):
    """POST /volumes."""

    volume: NewVolume
    hints: dict[str, object] | None = Field(None, alias="OS-SCH-HNT:scheduler_hints")


class Changes(Body):
    """What may be changed of a volume or a snapshot."""

    name: _Name | None = None
    description: _Name | None = None
    display_name: _Name | None = None
    display_description: _Name | None = None
    metadata: Metadata | None = None


class UpdateVolume(Body):
    """PUT /volumes/ID."""

    volume: Changes


class UpdateSnapshot(Body):
    """PUT /snapshots/ID."""

    snapshot: Changes


class NewMetadata(Body):
    """PUT or POST /volumes/ID/metadata."""

    metadata: Metadata


class Extend(Body):
    """The new size; in bytes, it is the one that counts."""

    new_size: Gibibytes
    new_size_bytes: whole.Bytes | None = Field(None, alias="voldrivers:new_size_bytes")


class ExtendCompletion(Body):
    """What a compute service says of an extend: a hint to look. `"false"` is a text, and refused."""

    error: StrictBool = False
    extend_id: whole.Count | None = Field(None, alias="voldrivers:extend_id")


class ResetStatus(Body):
    """The status that an administrator wants."""

    status: _Name | None = None
    attach_status: _Name | None = None
    migration_status: _Name | None = None


class Revert(Body):
    """The snapshot."""

    snapshot_id: _Id


class ReadonlyFlag(Body):
    """Whether the volume is for reading only."""

    readonly: StrictBool


#: Their argument is null.
_WITHOUT_ARGUMENTS = ("unmanage", "retry", "repair", "cancel")


class VolumeAction(Body):
    """POST /volumes/ID/action: exactly one of them."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    extend: Extend | SkipJsonSchema[None] = Field(None, alias="os-extend")
    extend_volume_completion: ExtendCompletion | SkipJsonSchema[None] = Field(
        None, alias="os-extend_volume_completion"
    )
    reset_status: ResetStatus | SkipJsonSchema[None] = Field(None, alias="os-reset_status")
    revert: Revert | SkipJsonSchema[None] = None
    update_readonly_flag: ReadonlyFlag | SkipJsonSchema[None] = Field(None, alias="os-update_readonly_flag")
    unmanage: None = Field(None, alias="os-unmanage")
    retry: None = Field(None, alias="voldrivers:retry")
    repair: None = Field(None, alias="voldrivers:repair")
    cancel: None = Field(None, alias="voldrivers:cancel")

    @model_validator(mode="after")
    def _is_one(self) -> "VolumeAction":
        if len(self.model_fields_set) != 1:
            raise ValueError("there must be exactly one action")
        name = next(iter(self.model_fields_set))
        if getattr(self, name) is None and name not in _WITHOUT_ARGUMENTS:
            raise ValueError("an action needs its arguments")
        return self


class NewSnapshot(Body):
    """A snapshot to be taken; one of a volume in use needs no force since 3.66, and it changes nothing."""

    volume_id: _Id
    name: _Name | None = None
    description: _Name | None = None
    metadata: Metadata | None = None
    force: bool | None = None


class CreateSnapshot(Body):
    """POST /snapshots."""

    snapshot: NewSnapshot


class Connector(BaseModel):
    """What os-brick says of a host; what is of no use here is let pass."""

    model_config = ConfigDict(extra="allow")

    host: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,254}$")]
    ip: _Name | None = None
    initiator: _Name | None = None
    nqn: _Name | None = None
    multipath: bool = False


class NewAttachment(Body):
    """A volume to be attached: reserved, or with a connector given at once.

    With `voldrivers:host` the service connects it and plugs it into the instance itself.
    """

    volume_uuid: _Id
    instance_uuid: _Id | None = None
    connector: Connector | None = None
    mode: Literal["rw", "ro"] | None = None
    host: _Id | None = Field(None, alias="voldrivers:host")

    @model_validator(mode="before")
    @classmethod
    def _without_empty_connector(cls, given: object) -> object:
        """Clients send {} for none."""
        if isinstance(given, dict) and given.get("connector") == {}:
            return {**given, "connector": None}
        return given


class CreateAttachment(Body):
    """POST /attachments."""

    attachment: NewAttachment


class GivenConnector(Body):
    """The host that will connect."""

    connector: Connector


class UpdateAttachment(Body):
    """PUT /attachments/ID."""

    attachment: GivenConnector


class AttachmentAction(Body):
    """POST /attachments/ID/action. Clients send the id, or nothing, as its argument."""

    complete: _Id | dict[str, object] | None = Field(alias="os-complete")


class Reference(Body):
    """What is on the backend: its name, as `voldrivers volume manage` takes it."""

    source_name: Annotated[str, StringConstraints(min_length=1, max_length=4096)] = Field(alias="source-name")


class ManagedVolume(Body):
    """Something that is to become a volume."""

    host: _Name
    ref: Reference
    name: _Name | None = None
    description: _Name | None = None
    volume_type: _Name | None = None
    availability_zone: _Name | None = None
    metadata: Metadata | None = None
    bootable: bool | None = None
    options: dict[str, str | int | float | bool] | None = Field(None, alias="voldrivers:options")


class ManageVolume(Body):
    """POST /manageable_volumes."""

    volume: ManagedVolume
