"""A backend and hosts in RAM: complete, for tests, documentation and the suite's own tests.

The array and the machine outlive the driver and host objects, as a real array outlives the process
that talks to it.
"""

from voldrivers.memory.array import MemoryArray, MemoryImage
from voldrivers.memory.driver import MemoryDriver, MemoryFileDriver, MemoryOptions
from voldrivers.memory.host import PATHS, MemoryHost, MemoryMachine

__all__ = [
    "PATHS",
    "MemoryArray",
    "MemoryDriver",
    "MemoryFileDriver",
    "MemoryHost",
    "MemoryImage",
    "MemoryMachine",
    "MemoryOptions",
]
