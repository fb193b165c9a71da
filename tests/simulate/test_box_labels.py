"""Labels say what is there: boxes around the shapes, no two in one place, speeds in the world
frame.
"""

from __future__ import annotations

import numpy as np
import pytest

from kdlib.simulate.box_labels import points_in_box
from kdlib.simulate.scene import build_scene

BOX = "[LiDARBoxComponent]."


@pytest.fixture(scope="module")
def scenes():
    return [build_scene(np.random.default_rng([3, number]), 8, 45.0) for number in range(5)]


def test_every_triangle_of_an_actor_is_in_its_box(scenes):
    for scene in scenes:
        for actor in scene.actors:
            for frame in (0, 5):
                box, vertices = actor.box(frame), actor.mesh(frame).vertices
                lifted = vertices.copy()
                # soles and tyres touch the ground
                lifted[:, 2] = np.maximum(lifted[:, 2], box[2] - box[5] / 2)
                assert points_in_box(lifted, box).all()
                assert not points_in_box(
                    lifted, box - np.array([0, 0, 0, 0.08, 0.08, 0.08, 0])
                ).all()


def test_no_two_objects_overlap(scenes):
    shapely = pytest.importorskip("shapely")
    from shapely import affinity

    for scene in scenes:
        for frame in (0, 7):
            outlines = []
            for actor in scene.actors:
                if actor.figure.type == 3:
                    continue
                x, y, _, length, width, _, heading = actor.box(frame)
                outline = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
                outlines.append(
                    affinity.translate(
                        affinity.rotate(outline, heading, (0, 0), use_radians=True), x, y
                    )
                )
            tree = shapely.STRtree(outlines)
            first, second = tree.query(outlines, predicate="overlaps")
            pairs = [
                (a, b)
                for a, b in zip(first, second)
                if a < b and outlines[a].intersection(outlines[b]).area > 1e-3
            ]
            assert not pairs


def test_there_is_something_of_everything(scenes):
    for kind in (1, 2, 3, 4):
        assert sum(actor.figure.type == kind for scene in scenes for actor in scene.actors) > 10
    moving = [
        actor.track.moves for scene in scenes for actor in scene.actors if actor.figure.type != 3
    ]
    assert 0.2 < np.mean(moving) < 0.9
    assert len({actor.id for scene in scenes for actor in scene.actors}) == sum(
        len(scene.actors) for scene in scenes
    )


def test_speed_is_in_the_world_frame(segments):
    compared = 0
    for segment in segments:
        positions: dict[str, list[tuple]] = {}
        for frame in segment.frames:
            for box, row in zip(frame.boxes, frame.rows):
                world = frame.pose[:3, :3] @ box[:3] + frame.pose[:3, 3]
                speed = [row[f"{BOX}speed.{axis}"] for axis in "xyz"]
                positions.setdefault(row["key.laser_object_id"], []).append(
                    (frame.timestamp, world, speed, row)
                )
        for history in positions.values():
            (t0, p0, v0, row), (t1, p1, _, _) = history[0], history[-1]
            if row[f"{BOX}type"] == 3:
                assert v0 == [None, None, None]
            elif row[f"{BOX}type"] == 1 and t1 > t0:
                measured = (p1 - p0)[:2] / ((t1 - t0) * 1e-6)
                np.testing.assert_allclose(measured, v0[:2], atol=0.15)
                compared += np.hypot(*v0[:2]) > 1
    assert compared > 10


def test_headings_point_along_the_motion(segments):
    for segment in segments:
        for frame in segment.frames:
            assert (np.abs(frame.boxes[:, 6]) <= np.pi).all()
            for box, row in zip(frame.boxes, frame.rows):
                speed = np.array([row[f"{BOX}speed.{axis}"] or 0.0 for axis in "xy"])
                if np.hypot(*speed) > 0.3:
                    heading = box[6] + np.arctan2(frame.pose[1, 0], frame.pose[0, 0])
                    assert np.cos(np.arctan2(speed[1], speed[0]) - heading) > 0.999


def test_difficulty_and_empty_boxes(segments):
    rows = [row for segment in segments for frame in segment.frames for row in frame.rows]
    levels = [
        (row[f"{BOX}difficulty_level.detection"], row[f"{BOX}difficulty_level.tracking"])
        for row in rows
    ]
    assert set(levels) == {(2, 0), (None, None)}
    points = [row[f"{BOX}num_lidar_points_in_box"] for row in rows]
    assert 0 < sum(count == 0 for count in points) < 0.4 * len(points)
    assert all(
        row[f"{BOX}num_top_lidar_points_in_box"] <= count for row, count in zip(rows, points)
    )
    seen = {row["key.laser_object_id"] for row, count in zip(rows, points) if count}
    assert {row["key.laser_object_id"] for row in rows} == seen
