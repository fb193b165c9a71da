"""Simulates LiDAR in street scenes and writes genuine Waymo files, for people without the
dataset.
"""

from __future__ import annotations

from kdlib.simulate.generate import simulate

__all__ = ["simulate"]
