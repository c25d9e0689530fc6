"""A run on a pool that may be destroyed: its file, the keys, what it writes down, and sweeping up."""
