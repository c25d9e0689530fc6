"""The ground that the stateful machine walks on: what is declared, where volumes can be attached, the room.

It is read once, before the first step; from then on steps are made of it and of the model alone.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from voldrivers.capabilities import Capabilities, InUseExtend
from voldrivers.conformance.bench import Bench
from voldrivers.sizes import GiB, SizeRule

#: More hosts than these make no new cases.
_PLACES = 2
#: A larger pool is not filled: what is made of all its room, or copied, takes minutes.
_SMALL_POOL_BYTES = 2 * GiB


@dataclass(frozen=True)
class Ground:
    """What is declared and what there is."""

    declared: Capabilities
    rule: SizeRule
    #: Of each host, whether there is an instance on it.
    instances: tuple[bool, ...]
    #: What volumes may take together.
    room_bytes: int
    #: Whether the pool has no more than that, and is small, so that it can be filled.
    fills: bool
    small_bytes: int
    step_bytes: int

    @property
    def targets(self) -> tuple[tuple[int, bool], ...]:
        """Where a volume can be attached: the number of a host, and whether into its instance."""
        found = [(number, True) for number, there in enumerate(self.instances) if there]
        return (*found, *((number, False) for number in range(len(self.instances))))

    @property
    def by_hypervisor(self) -> bool:
        """Tell whether attached volumes are left to the hypervisor."""
        return self.declared.in_use_extend is InUseExtend.BY_HYPERVISOR

    def round_up(self, asked_bytes: int) -> int:
        """Give the size that the rule makes of what is asked for."""
        return self.rule.round_up(asked_bytes)

    def document(self) -> Mapping[str, object]:
        """Give it for people who read a trace, as JSON has it."""
        found: Mapping[str, object] = json.loads(json.dumps(asdict(self)))
        return found


def ground_of(bench: Bench) -> Ground:
    """Look at what a bench stands on."""
    free_bytes, places = bench.driver.pool().free_bytes, bench.subject.places[:_PLACES]
    return Ground(
        bench.declared,
        bench.rule,
        tuple(place.instance is not None for place in places),
        min(bench.subject.max_bytes, free_bytes),
        free_bytes <= min(bench.subject.max_bytes, _SMALL_POOL_BYTES),
        bench.small,
        bench.step,
    )
