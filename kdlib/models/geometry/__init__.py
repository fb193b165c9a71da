"""Boxes in, corners, overlaps and suppressed lists out: pure functions."""
