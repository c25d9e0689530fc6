"""The three keys: nothing is destroyed unless the pool, the file and the command line all name it.

1. The pool bears a mark, set by `voldrivers scratch init` past the driver. An oracle that cannot mark leaves
   it at a pool that is empty.
2. The file of the run names the pool.
3. So does who starts the run.
"""

import uuid

from voldrivers.base import Driver
from voldrivers.conformance.subject import Marks, Oracle
from voldrivers.errors import InvalidInput, InvalidState, NotSupported


def init(oracle: Oracle | None, pool: str) -> str:
    """Mark a pool that is empty as one to be destroyed; give the mark. One that is marked stays as it is.

    Raises InvalidInput (another pool), InvalidState (something is in it), NotSupported (no such oracle).
    """
    if not isinstance(oracle, Marks):
        raise NotSupported(f"pool {pool}", "cannot be marked: the driver's package offers no oracle that can")
    if pool != oracle.pool:
        raise InvalidInput(f"pool {pool}", f"the driver's options lead to {oracle.pool}")
    if mark := oracle.mark():
        return mark
    if found := sorted(oracle.occupants()):
        raise InvalidState(f"pool {pool}", f"in use: there is {_some(found)}", "empty")
    oracle.set_mark(str(uuid.uuid4()))
    return oracle.mark()


def missing_key(driver: Driver, oracle: Oracle | None, named: str, given: str | None) -> InvalidState | None:
    """Say which key is missing, if one is. Only looks; raises what the backend raises."""
    pool = f"pool {named}"
    if given is None:
        return InvalidState(pool, "not given to the run", f"named to it: --destroy {named}")
    if given != named:
        return InvalidState(f"pool {given}", f"not the one of the file, {named}", "the same")
    if isinstance(oracle, Marks):
        if oracle.pool != named:
            return InvalidState(pool, f"not {oracle.pool}, where the driver's options lead", "the same")
        if not oracle.mark():
            return InvalidState(pool, "without a mark", "marked first: voldrivers scratch init")
    elif found := [*driver.list_volumes(), *(oracle.objects() if oracle else ())]:
        return InvalidState(pool, f"in use: there is {_some(found)}", "empty, as nothing can mark it")
    return None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
