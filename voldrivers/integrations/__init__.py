"""Platforms that keep their own records, and use the same drivers and the same converging step."""
