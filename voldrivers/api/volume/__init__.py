"""The volume service: a subset of the Block Storage API v3, as its clients know it, over the engine."""
