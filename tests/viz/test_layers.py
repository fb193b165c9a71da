from __future__ import annotations

import itertools

import numpy as np
import pytest

from kdlib.errors import ConfigError
from kdlib.viz import palette
from kdlib.viz.layers import (
    BoxLayer,
    LayerError,
    Panel,
    box_counts,
    count_inside,
    drawable_points,
    ground_corners,
    heading_ticks,
    layer,
    wireframe,
)


def test_roles_are_distinct_and_have_a_twin_for_the_dark() -> None:
    for first, second in itertools.combinations(palette.ROLES.values(), 2):
        for one, other in ((first.color, second.color), (first.dark, second.dark)):
            assert np.abs(np.subtract(palette.rgb(one), palette.rgb(other))).sum() > 0.25
    assert palette.on_dark(palette.role("teacher").color) == palette.role("teacher").dark
    assert palette.on_dark("#123456") == "#123456"
    with pytest.raises(ConfigError, match="unknown role 'pupil'; there are: truth"):
        palette.role("pupil")


def test_footprint_and_heading_of_a_quarter_turn() -> None:
    box = np.array([[10.0, 5.0, 1.0, 4.0, 2.0, 1.5, np.pi / 2]])
    # The front of a box turned by 90 degrees points to +y; front left is at smaller x.
    np.testing.assert_allclose(
        ground_corners(box)[0], [(9, 7), (9, 3), (11, 3), (11, 7)], atol=1e-12
    )
    np.testing.assert_allclose(heading_ticks(box, beyond=1.0)[0], [(10, 5), (10, 8)], atol=1e-12)


def test_wireframe_edges_have_the_box_sides_as_lengths() -> None:
    vertices, edges = wireframe(np.array([[1.0, 2.0, 3.0, 4.0, 2.0, 1.0, 0.7]]))
    ends = vertices[0][edges[:12]]
    lengths = np.sort(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1))
    np.testing.assert_allclose(lengths, [1] * 4 + [2] * 4 + [4] * 4)
    tip = vertices[0, 9] - [1.0, 2.0, 2.5]  # the arrow lies on the ground, ahead of the box
    np.testing.assert_allclose(np.arctan2(tip[1], tip[0]), 0.7)
    assert vertices[0, 9, 2] == pytest.approx(2.5)


def test_count_inside_of_turned_boxes() -> None:
    points = np.array([(0, 0, 0), (1.9, 0, 0), (0, 1.9, 0), (0, 0, 5)], float)
    boxes = np.array(
        [(0, 0, 0, 4, 1, 1, 0), (0, 0, 0, 4, 1, 1, np.pi / 2), (50, 0, 0, 1, 1, 1, 0)], float
    )
    assert count_inside(points, boxes).tolist() == [2, 2, 0]


def test_part_of_a_layer_keeps_scores_and_classes(layers: list[BoxLayer]) -> None:
    truth, teacher, _ = layers
    kept = teacher.part(teacher.labels == 2)
    assert kept.class_of(0) == "Pedestrian" and len(kept) == 1 and len(teacher) == 4
    assert kept.scores is not None and kept.scores.tolist() == [0.7] and kept.color == teacher.color
    assert truth.part(np.zeros(4, bool)).scores is None


def test_counts_are_one_number_unless_panels_differ(layers: list[BoxLayer]) -> None:
    truth, teacher, student = layers
    panels = (
        Panel("a", (truth, teacher)),
        Panel("b", (truth, teacher.part(np.arange(4) < 1))),
        Panel("c", (student,)),
    )
    assert box_counts(panels) == {"ground truth": "4", "teacher": "4 | 1", "student": "2"}


def test_bad_layers_are_named() -> None:
    with pytest.raises(LayerError, match="'x': 1 labels but boxes of shape"):
        BoxLayer("x", np.zeros((2, 7)), np.array([1]))
    with pytest.raises(LayerError, match="1 boxes but 2 scores"):
        BoxLayer("x", np.ones((1, 7)), np.array([1]), np.ones(2))
    with pytest.raises(LayerError, match="NaN"):
        BoxLayer("x", np.full((1, 7), np.nan), np.array([1]))
    with pytest.raises(LayerError, match=r"labels must lie in 1\.\.3"):
        layer("truth", np.ones((1, 7)), np.array([4]))
    with pytest.raises(LayerError, match="expected"):
        drawable_points(np.zeros((5, 2)))


def test_empty_and_broken_points_are_data() -> None:
    assert len(layer("truth", np.zeros((0, 7)), np.zeros(0, int))) == 0
    assert drawable_points(np.array([(0, 0, 0), (np.nan, 0, 0), (0, np.inf, 0)], float)).shape == (
        1,
        3,
    )
