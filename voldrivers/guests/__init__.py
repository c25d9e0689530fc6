"""Guests for tests and demonstrations: one without a CPU, one with a real kernel."""
