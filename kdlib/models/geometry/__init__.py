"""Geometry of boxes as pure functions: corners, overlaps, suppression."""
