"""What the duties answer that is no part of the model."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Described:
    """What a platform must know of a backend before it uses it."""

    driver: str
    package: str
    protocol: str
    granularity_bytes: int
    capabilities: Sequence[str]
    by_hypervisor: bool
    extends_attached: bool
    deadline_s: float
    #: What is wrong with single hosts: volumes that they have cannot be extended in use.
    troubles: Sequence[str]


@dataclass(frozen=True)
class Grown:
    """An extend that every layer shows; `reason` says what was found to be not as recorded."""

    backend_bytes: int
    reason: str
