"""Acme boxes, for voldrivers."""
