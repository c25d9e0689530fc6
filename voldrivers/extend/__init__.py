"""Extending a volume: the converging step, the engine that records it, the store."""
