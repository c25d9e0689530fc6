"""The checks, a module for each group or two that belong together."""
