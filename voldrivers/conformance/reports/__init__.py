"""What a run found, written down and read back: the report, the proof of each capability, comparisons."""
