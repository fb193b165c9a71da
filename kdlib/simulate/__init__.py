"""Street scenes in, genuine Waymo v2 Parquet files out: a LiDAR simulator for people without the dataset."""

from __future__ import annotations

from kdlib.simulate.simulate import simulate

__all__ = ["simulate"]
