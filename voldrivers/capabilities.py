"""What a driver promises. Not given means no; a name that does not exist is an error."""

from dataclasses import dataclass
from enum import StrEnum


class InUseExtend(StrEnum):
    """Who makes an attached volume larger.

    The specifications call the capability `in-use-extend`; Cinder's key is `online_extend_support`.
    """

    NO = "no"
    #: The backend grows it and every host rescans.
    BY_BACKEND = "by-backend"
    #: Only the hypervisor that holds the file may grow it; the driver answers DEFERRED.
    BY_HYPERVISOR = "by-hypervisor"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A case in which a declared capability does not hold; it is refused before anything happens."""

    capability: str
    unless: str


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """The promises of one driver, with the conditions under which they do not hold."""

    in_use_extend: InUseExtend = InUseExtend.NO
    multi_attach: bool = False
    snapshots: bool = False
    revert: bool = False
    clones: bool = False
    manage: bool = False
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a condition on a capability that does not exist or is not declared."""
        for condition in self.conditions:
            if not self.declares(condition.capability):
                raise ValueError(f"condition on a capability that is not declared: {condition.capability!r}")

    def declares(self, capability: str) -> bool:
        """Tell whether `capability` is promised. Raises ValueError for a name that does not exist."""
        if capability not in NAMES:
            raise ValueError(f"there is no capability {capability!r}, only {', '.join(NAMES)}")
        return getattr(self, capability) not in (False, InUseExtend.NO)


#: The capabilities there are, in the order in which they are listed.
NAMES = tuple(name for name in Capabilities.__dataclass_fields__ if name != "conditions")
