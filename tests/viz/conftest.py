"""An invented street to draw: a ground plane with walls, and boxes of three origins on it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from kdlib.viz.layers import BoxLayer, layer

BOXES = np.array(
    [
        (8.0, 3.5, 0.8, 4.5, 2.0, 1.6, 0.0),
        (12.0, -3.5, 0.8, 4.6, 2.1, 1.7, np.pi),
        (6.0, -8.0, 0.9, 0.8, 0.8, 1.8, 1.0),
        (-9.0, 5.0, 0.9, 1.8, 0.8, 1.7, -0.5),
    ]
)
LABELS = np.array([1, 1, 2, 3])


@pytest.fixture(scope="session")
def cloud() -> np.ndarray:
    rng = np.random.default_rng(3)
    ground = np.column_stack(
        (rng.uniform(-20, 20, (3000, 2)), rng.normal(0, 0.03, 3000), rng.uniform(0, 1, 3000))
    )
    wall = np.column_stack(
        (
            rng.uniform(-20, 20, 800),
            np.full(800, 15.0),
            rng.uniform(0, 4, 800),
            rng.uniform(0, 1, 800),
        )
    )
    return np.concatenate((ground, wall)).astype(np.float32)


@pytest.fixture(scope="session")
def layers() -> list[BoxLayer]:
    shifted = BOXES + np.array([0.2, 0.1, 0, 0, 0, 0, 0.05])
    return [
        layer("truth", BOXES, LABELS),
        layer("teacher", shifted, LABELS, np.array([0.9, 0.8, 0.7, 0.6])),
        layer("student", shifted[:2], LABELS[:2], np.array([0.8, 0.2])),
    ]


@pytest.fixture(scope="session")
def pixels():
    """PNG bytes or file -> (H, W, 3), asserting that the picture is not blank."""

    def read(source) -> np.ndarray:
        content = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(content) as image:
            assert image.format == "PNG"
            found = np.asarray(image.convert("RGB"), float)
        assert found.std() > 3, "the picture is blank"
        return found

    return read
