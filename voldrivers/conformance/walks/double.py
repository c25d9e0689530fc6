"""The driver in RAM in the place of another one: what it declares, its sizes, its places - and no fault."""

from dataclasses import replace

from voldrivers.conformance import memory
from voldrivers.conformance.memory import MemoryPlace
from voldrivers.conformance.subject import Subject
from voldrivers.conformance.walks.ground import Ground
from voldrivers.memory import MemoryDriver, MemoryFileDriver


def double(ground: Ground) -> Subject:
    """Make it. What fails on it too is no fault of the driver that it stands for."""
    kind = MemoryFileDriver if ground.by_hypervisor else MemoryDriver
    declared = {"capabilities": ground.declared, "size_rule": ground.rule}
    made = memory.subject(type("InRam", (kind,), declared), capacity_bytes=ground.room_bytes)
    hosts = [place.host for place in made.places if isinstance(place, MemoryPlace)]
    pairs = zip(hosts, ground.instances, strict=False)
    return replace(made, places=[MemoryPlace(host, "vm" if there else None) for host, there in pairs])
