"""Lies about volumes that are reached on several paths."""

from liars.liar import lying_host
from voldrivers.memory import PATHS, MemoryHost
from voldrivers.model import Attachment, Volume


class OnePathOnly(MemoryHost):
    """Reads the new size on the first path, and takes that for the map's."""

    def rescan_path(self, volume: Volume, path: str) -> None:
        if path == PATHS[0]:
            super().rescan_path(volume, path)


class IgnoresLostPaths(MemoryHost):
    """Does not look whether a path is lost before it lets an extend begin."""

    def check_extend(self, volume: Volume, attachment: Attachment) -> None:
        lost, self.machine.lost = self.machine.lost, set()
        try:
            super().check_extend(volume, attachment)
        finally:
            self.machine.lost = lost


class SwallowsTheLostPath(MemoryHost):
    """Leaves a lost path as it is, and says that all went well."""

    def rescan_path(self, volume: Volume, path: str) -> None:
        if path not in self.machine.lost:
            super().rescan_path(volume, path)


LIARS = [
    lying_host(OnePathOnly, "EXI-005"),
    lying_host(IgnoresLostPaths, "EXI-005"),
    lying_host(SwallowsTheLostPath, "ATT-011"),
]
