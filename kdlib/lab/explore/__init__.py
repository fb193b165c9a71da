"""What the notebooks look at: tables of the data, frames with their boxes, where distillation acts,
notebook 04's application.
"""

from __future__ import annotations

from kdlib.lab.explore.application import application
from kdlib.lab.explore.overview import data_overview, data_reading, difficulty_table
from kdlib.lab.explore.scenes import extent, scene
from kdlib.lab.explore.signals import pivotal_example, startup_report
from kdlib.lab.explore.studio import studios

__all__ = [
    "application",
    "data_overview",
    "data_reading",
    "difficulty_table",
    "extent",
    "pivotal_example",
    "scene",
    "startup_report",
    "studios",
]
