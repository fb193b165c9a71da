"""The golden segment, whole or with one component edited."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdlib.types import Frame

SEGMENT = "1234567890123456789_1000_000_1020_000"


OLD = int(pa.__version__.partition(".")[0]) < 15
"""Reads no nulls in lists of a fixed size."""


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
    """Rewrite one component: ``edit("lidar", lambda rows: rows[:3])`` on its rows as
    dictionaries.
    """

    def rewrite(
        component: str, change: Callable[[list[dict]], list[dict]], row_group_size: int = 4
    ) -> Path:
        path = split / component / f"{SEGMENT}.parquet"
        table = pq.read_table(path)
        rows, fields = change(table.to_pylist()), []
        for field in table.schema:
            null = pa.types.is_fixed_size_list(field.type) and any(
                row[field.name] is None for row in rows
            )
            fields.append(
                pa.field(field.name, pa.list_(field.type.value_type)) if null and OLD else field
            )
        pq.write_table(
            pa.Table.from_pylist(rows, schema=pa.schema(fields)),
            path,
            row_group_size=row_group_size,
        )
        return path

    return rewrite


@pytest.fixture
def rewrite(split) -> Callable[..., Path]:
    """Rewrite one component as a table:
    ``rewrite("lidar", lambda table: table.drop(["index"]), compression="none")``.
    """

    def write(
        component: str, change: Callable[[pa.Table], pa.Table] = lambda table: table, **options: Any
    ) -> Path:
        path = split / component / f"{SEGMENT}.parquet"
        table = change(pq.read_table(path))
        try:
            pq.write_table(table, path, **options)
        except TypeError as error:
            pytest.skip(f"this pyarrow cannot write that: {error}")
        return path

    return write


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Sequence[Frame], Sequence[Frame]], None]:
    """Assert that two lists of frames are equal to the last bit."""

    def check(found: Sequence[Frame], expected: Sequence[Frame]) -> None:
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            for name in ("segment", "index", "timestamp_micros"):
                assert getattr(one, name) == getattr(other, name)
            assert one.labels.ids == other.labels.ids
            arrays = [(one.points, other.points), (one.pose, other.pose)]
            columns = ("boxes", "types", "difficulty", "num_points", "velocity")
            arrays += [(getattr(one.labels, name), getattr(other.labels, name)) for name in columns]
            for a, b in arrays:
                assert a.dtype == b.dtype and a.shape == b.shape
                np.testing.assert_array_equal(a, b)

    return check
