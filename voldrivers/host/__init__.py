"""Machines where volumes are attached: their kernel, their QEMUs, what the guests see."""
