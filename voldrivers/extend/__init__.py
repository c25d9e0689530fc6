"""Extending a volume: the converging step, the engine that records it, the store."""

from voldrivers.extend.engine import Engine
from voldrivers.extend.resuming import Resumed
from voldrivers.extend.site import Progress, Site
from voldrivers.extend.store import Store

__all__ = ["Engine", "Progress", "Resumed", "Site", "Store"]
