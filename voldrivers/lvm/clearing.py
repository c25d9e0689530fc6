"""Zeroes: what was in the extents of one volume must never be read in another one."""

from voldrivers.base import Run
from voldrivers.sizes import MiB

#: A slow disk writes so much in a second; the limit on time follows from it.
_SLOWEST_BYTES_PER_S, _LEAST_S = 8 * MiB, 60.0
#: So that a killed clearing ends soon.
_STEP_BYTES = 64 * MiB


def clear(run: Run, path: str, size_bytes: int, from_bytes: int = 0) -> None:
    """Write zeroes to a device from an offset on (blkdiscard(8), BLKZEROOUT: a discard promises none).

    May be repeated. Raises CommandFailed, OutcomeUnknown.
    """
    where = ["--offset", str(from_bytes), path]
    argv = ["blkdiscard", "--zeroout", "--force", "--step", str(_STEP_BYTES), *where]
    run(argv, timeout_s=_LEAST_S + (size_bytes - from_bytes) / _SLOWEST_BYTES_PER_S)
