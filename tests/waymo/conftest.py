"""The golden segment, whole or with one component edited."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SEGMENT = "1234567890123456789_1000_000_1020_000"


@pytest.fixture(scope="session")
def golden_split(goldens) -> Path:
    return goldens / "waymo_format" / "v2" / "training"


@pytest.fixture
def split(golden_split, tmp_path) -> Path:
    """A copy that may be damaged."""
    folder = tmp_path / "training"
    for component in ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose", "lidar_box"):
        shutil.copytree(golden_split / component, folder / component)
    return folder


@pytest.fixture
def edit(split) -> Callable[..., Path]:
    """Rewrite one component: ``edit("lidar", lambda rows: rows[:3])`` on its rows as dictionaries."""

    def rewrite(component: str, change: Callable[[list[dict]], list[dict]], row_group_size: int = 4) -> Path:
        path = split / component / f"{SEGMENT}.parquet"
        table = pq.read_table(path)
        rows = change(table.to_pylist())
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path, row_group_size=row_group_size)
        return path

    return rewrite
