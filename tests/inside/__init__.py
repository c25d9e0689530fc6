"""Tests that run in a lab machine, started from outside by path."""
