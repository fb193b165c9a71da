"""Scans of one's own: boxes found in them, and films of a run."""
