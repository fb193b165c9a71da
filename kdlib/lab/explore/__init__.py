"""A run in; tables, frames with their boxes, rankings and the application of notebook 04 out: what the notebooks look at."""

from __future__ import annotations

from kdlib.lab.explore.ranking import most_improved_frame
from kdlib.lab.explore.scenes import Scene, extent, frame_count, scene
from kdlib.lab.explore.signals import PivotalExample, pivotal_example, startup_report
from kdlib.lab.explore.studio import Studio, studios
from kdlib.lab.explore.tables import CLASSES, data_overview, difficulty_table

__all__ = [
    "CLASSES",
    "PivotalExample",
    "Scene",
    "Studio",
    "data_overview",
    "difficulty_table",
    "extent",
    "frame_count",
    "most_improved_frame",
    "pivotal_example",
    "scene",
    "startup_report",
    "studios",
]
