"""The model that a driver is compared with: volumes, where they are attached, their snapshots, the room.

It knows no driver and looks at none.
"""

from dataclasses import dataclass, field

from voldrivers.conformance.walks.ground import Ground
from voldrivers.conformance.walks.traces import Step

#: So few that the rules meet.
VOLUMES, SNAPSHOTS = 4, 3
#: Of the volume itself, where a snapshot could be named.
ITSELF = -1

#: The number of a host, and whether into its instance.
Target = tuple[int, bool]


@dataclass
class Known:
    """A volume. `pending_bytes` is the size that an extend which was interrupted is to reach."""

    size_bytes: int
    multi: bool = False
    targets: set[Target] = field(default_factory=set)
    snapshots: dict[int, int] = field(default_factory=dict)
    pending_bytes: int = 0

    @property
    def state(self) -> str:
        """Its state in a few words."""
        attached = f"in-use x{len(self.targets)}" if len(self.targets) > 1 else "in-use"
        words = [attached if self.targets else "available"]
        words += ["extending"] if self.pending_bytes else []
        words += ["with snapshots"] if self.snapshots else []
        return ", ".join(words)


@dataclass
class Model:
    """All that there is, volumes by their number."""

    ground: Ground
    volumes: dict[int, Known] = field(default_factory=dict)

    @property
    def used_bytes(self) -> int:
        """What everything takes, if nothing is thin."""
        known = self.volumes.values()
        kept = sum(sum(each.snapshots.values()) for each in known)
        return kept + sum(max(each.size_bytes, each.pending_bytes) for each in known)

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return self.ground.room_bytes - self.used_bytes

    def known(self, step: Step) -> Known | None:
        """Give the volume that a step is about, if there is one."""
        return self.volumes.get(step.number("volume")) if "volume" in step.arguments else None

    def volume(self, step: Step) -> Known:
        """Give the volume that a step is about."""
        return self.volumes[step.number("volume")]

    def source(self, step: Step) -> Known:
        """Give the volume that a copy is made of, or of a snapshot of which."""
        return self.volumes[step.number("source")]

    def source_bytes(self, step: Step) -> int:
        """Give the size of what a copy is made of."""
        source, snapshot = self.source(step), step.number("snapshot")
        return source.size_bytes if snapshot == ITSELF else source.snapshots[snapshot]

    def add(self, step: Step) -> None:
        """Have there be a new volume."""
        size_bytes = self.ground.round_up(step.number("size_bytes"))
        self.volumes[step.number("volume")] = Known(size_bytes, multi=step.flag("multi"))

    def target_bytes(self, known: Known, more_bytes: int) -> int:
        """Give the size that a volume has after an extend by so much; the one it has is never rounded."""
        return self.ground.round_up(known.size_bytes + more_bytes) if more_bytes else known.size_bytes

    def state(self, step: Step) -> str:
        """Give the state in which a step finds its volume."""
        known = self.known(step)
        return known.state if known else "none"
