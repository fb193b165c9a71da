"""Simulated range images turn back into a street: ground at zero, counts that are true, zones,
poses.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kdlib.simulate.box_labels import label_frame
from kdlib.simulate.ego import pose_matrix
from kdlib.simulate.lidar import Scanner, inside_zones
from kdlib.simulate.scene import build_scene
from kdlib.simulate.sensors import mount_lasers
from kdlib.waymo.segments import read_segment

BOX = "[LiDARBoxComponent]."


def inside(points, box):
    x, y, z = (points - box[:3]).T
    along, across = np.cos(box[6]) * x + np.sin(box[6]) * y, np.cos(box[6]) * y - np.sin(box[6]) * x
    return (
        (np.abs(along) <= box[3] / 2) & (np.abs(across) <= box[4] / 2) & (np.abs(z) <= box[5] / 2)
    )


def all_frames(segments):
    return [frame for segment in segments for frame in segment.frames]


def test_the_ground_is_at_zero(segments):
    for frame in all_frames(segments):
        near = np.hypot(*frame.points[:, :2].T) < 15
        low = frame.points[near & (frame.points[:, 2] < 0.25)]
        road = np.abs(low[:, 2]) < 0.06
        kerb = np.abs(low[:, 2] - 0.145) < 0.06
        assert len(low) > 3000
        assert (road | kerb).mean() > 0.95
        assert road.mean() > 0.2
        assert frame.points[:, 2].min() > -0.6


def test_point_counts_are_true(segments):
    checked = 0
    for frame in all_frames(segments):
        for box, row in zip(frame.boxes, frame.rows):
            within = inside(frame.points, box)
            # A point exactly on a border may fall to either side after float32 storage.
            assert abs(int(within.sum()) - row[f"{BOX}num_lidar_points_in_box"]) <= 1
            assert (
                abs(
                    int((within & (frame.laser == 1)).sum())
                    - row[f"{BOX}num_top_lidar_points_in_box"]
                )
                <= 1
            )
            checked += row[f"{BOX}num_lidar_points_in_box"] > 0
    assert checked > 200


def test_near_boxes_are_tight(segments):
    """The points of a well seen object reach to within a hand's breadth of its box on the side that
    faces the laser.
    """
    gaps = []
    for frame in all_frames(segments):
        for box, row in zip(frame.boxes, frame.rows):
            if row[f"{BOX}type"] == 1 and row[f"{BOX}num_lidar_points_in_box"] > 150:
                points = frame.points[inside(frame.points, box)] - box[:3]
                along = points[:, 0] * np.cos(box[6]) + points[:, 1] * np.sin(box[6])
                across = points[:, 1] * np.cos(box[6]) - points[:, 0] * np.sin(box[6])
                gap_x = box[3] / 2 - np.abs(along).max()
                gap_y = box[4] / 2 - np.abs(across).max()
                gaps.append(min(gap_x, gap_y))
    assert len(gaps) >= 8
    assert np.median(gaps) < 0.06
    assert max(gaps) < 0.3


def test_points_outside_boxes_do_not_hug_them(segments):
    """Range noise must not push an object's face out of its box."""
    inner = outer = 0
    for frame in all_frames(segments):
        high = frame.points[frame.points[:, 2] > 0.4]
        for box, row in zip(frame.boxes, frame.rows):
            if row[f"{BOX}type"] == 1 and row[f"{BOX}num_lidar_points_in_box"] > 50:
                grown = box + np.array([0, 0, 0, 0.1, 0.1, 0, 0])
                within = inside(high, box)
                inner += within.sum()
                outer += (inside(high, grown) & ~within).sum()
    assert outer < 0.02 * inner


def test_values_are_in_range(segments):
    for segment in segments:
        lidar = segment.tables["lidar"]
        for row, laser in enumerate(lidar["key.laser_name"].to_pylist()):
            for echo in (1, 2):
                values = np.array(
                    lidar[f"[LiDARComponent].range_image_return{echo}.values"][row].values
                ).reshape(-1, 4)
                seen = values[:, 0] > 0
                assert (values[~seen] == -1).all()
                assert values[seen, 0].max(initial=0) <= (75 if laser == 1 else 20)
                assert (values[seen, 1] >= 0).all()
                assert ((values[seen, 2] >= 0) & (values[seen, 2] <= 1.5)).all()
                assert np.isin(values[seen, 3], (-1, 1)).all()
        for frame in segment.frames:
            assert 20_000 < len(frame.points) < 32_000
            assert 100 < frame.second.sum() < 0.1 * len(frame.points)
            assert len(np.unique(frame.laser)) == 5


def test_kdlib_reads_the_same_points(segments):
    for segment in segments[:2]:
        for frame, theirs in zip(
            segment.frames, read_segment(segment.folder, segment.name), strict=True
        ):
            np.testing.assert_allclose(theirs.points[:, :3], frame.points, atol=1e-4)
            np.testing.assert_array_equal(theirs.points[:, 3:], frame.features)
            order = {row["key.laser_object_id"]: place for place, row in enumerate(frame.rows)}
            np.testing.assert_array_equal(
                theirs.labels.boxes, frame.boxes[[order[name] for name in theirs.labels.ids]]
            )
            assert len(theirs.labels.ids) == len(frame.rows)


def test_pixel_poses_follow_the_ego_motion():
    rng = np.random.default_rng(8)
    while (scene := build_scene(rng, 2, 45.0)).ego.manoeuvre.speed < 5:
        pass
    scanner = Scanner(scene, mount_lasers("demo", rng))
    columns, pose = scanner.pixel_pose(0).astype(np.float64), scanner.frame_pose(0)
    assert columns.shape == (800, 6)
    assert columns.dtype == np.float64
    np.testing.assert_allclose(
        np.linalg.norm(columns[-1, 3:] - columns[0, 3:]), 0.1 * scene.ego.manoeuvre.speed, rtol=0.1
    )
    middle = (pose_matrix(columns[399]) + pose_matrix(columns[400])) / 2
    np.testing.assert_allclose(middle, pose, atol=2e-3)
    # The next frame begins where this one ends.
    after = scanner.pixel_pose(1)[0, 3:]
    assert np.linalg.norm(after - columns[-1, 3:]) < 0.01


def test_still_things_stay_put_while_the_car_drives():
    """Points of walls seen in two frames agree in the world, which they only do if the pixel poses
    are right.
    """
    rng = np.random.default_rng(8)
    while (scene := build_scene(rng, 5, 45.0)).ego.manoeuvre.speed < 8:
        pass
    scanner = Scanner(scene, mount_lasers("demo", rng))
    for number in (0, 4):
        sweep = scanner.sweep(number, np.random.default_rng(0))
        world = sweep.points @ sweep.pose[:3, :3].T + sweep.pose[:3, 3]
        local = (world - scene.world[3:]) @ pose_matrix(scene.world)[:3, :3]
        ground = np.abs(local[:, 2]) < 0.3
        kerb = np.abs(np.abs(local[:, 1]) - scene.plan.main.half) < 0.03
        # Kerbs lie on exact lines of the layout and are vertical there.
        face = kerb & ground & (local[:, 2] > 0.03) & (local[:, 2] < 0.11)
        assert face.sum() > 10


def test_the_highest_beam_is_row_zero():
    for laser in mount_lasers("full", np.random.default_rng(0)):
        rows = laser.inclinations()
        assert (np.diff(rows) < 0).all()
        assert (laser.table is None) == (laser.name != 1)
        assert (laser.height, laser.width) == ((64, 2650) if laser.name == 1 else (200, 600))
        middle = laser.directions()[laser.height // 2, laser.width // 2]
        assert np.arctan2(middle[1], middle[0]) == pytest.approx(0.0, abs=0.02)


def test_inside_zones_of_a_polygon_that_is_not_convex():
    zone = np.array([(0, 0), (4, 0), (4, 1), (1, 1), (1, 3), (0, 3)], float)
    points = np.array([(0.5, 2.0, 9), (3, 0.5, 0), (3, 2, 0), (-1, 1, 0), (0.9, 2.9, 0)], float)
    assert inside_zones((zone,), points).tolist() == [True, True, False, False, True]
    assert not inside_zones((), points).any()


def test_zones_flag_points_and_hide_boxes():
    rng = np.random.default_rng(1)
    scene = build_scene(rng, 1, 45.0)
    half = replace(scene, zones=(np.array([(-500, 0), (500, 0), (500, 500), (-500, 500)], float),))
    lasers = mount_lasers("demo", rng)
    sweep = Scanner(half, lasers).sweep(0, np.random.default_rng(0))
    first = sweep.images[0][0]
    assert {-1.0, 1.0} == set(np.unique(first[first[..., 0] > 0][:, 3]))
    labels, every = label_frame(half, 0, sweep, 32_000), label_frame(scene, 0, sweep, 32_000)
    assert 0 < len(labels) < len(every)
