"""A simulated split in, what Waymo's own code reads from it out: a script for the Python that has
the official package.

PYTHON convert_child.py v1|v2 FOLDER SEGMENT RESULT.npz

Arrays of frame f: ``f/points`` (N, 6) x y z intensity elongation nlz by ascending laser, first
return before the second one; ``f/exact`` (N, 3) x y z by the same official code in float64;
``f/time``, ``f/pose``, ``f/ids``, ``f/boxes``, ``f/types``, ``f/difficulty``, ``f/num_points``,
``f/speeds`` (world frame).
"""

import sys
from pathlib import Path

import numpy as np

LASERS = range(1, 6)


def main(form, folder, segment, result):
    frames = {"v1": frames_v1, "v2": frames_v2}[form](Path(folder), segment)
    arrays = {
        f"{number}/{name}": value
        for number, frame in enumerate(frames)
        for name, value in frame.items()
    }
    np.savez(result, **arrays)


def flags(image, shape):
    """No-label-zone flags of the valid pixels of a range image."""
    image = np.asarray(image).reshape(shape)
    return image[..., 3][image[..., 0] > 0]


def cloud(polar, nlz):
    """Official columns range, intensity, elongation, x, y, z and the flags as one array."""
    return np.column_stack((polar[:, 3:6], polar[:, 1:3], nlz)).astype(np.float32)


def labels(rows):
    """Rows of id, 7 box numbers, type, difficulty, points, 3 speeds; ordered by id, unknown types
    left out.
    """
    rows = sorted(row for row in rows if row[8])
    columns = list(zip(*rows)) if rows else [()] * 14
    return {
        "ids": np.array(columns[0], dtype=str),
        "boxes": np.array(columns[1:8], float).T.reshape(-1, 7),
        "types": np.array(columns[8], int),
        "difficulty": np.array(columns[9], int),
        "num_points": np.array(columns[10], int),
        "speeds": np.array(columns[11:14], float).T.reshape(-1, 3),
    }


def frames_v1(folder, segment):
    import tensorflow as tf
    from waymo_open_dataset import dataset_pb2
    from waymo_open_dataset.utils import frame_utils

    (file,) = folder.glob(f"*{segment}*.tfrecord")
    for record in tf.data.TFRecordDataset(str(file), compression_type=""):
        frame = dataset_pb2.Frame.FromString(record.numpy())
        assert frame.context.name == segment
        images, projections, _, pose = frame_utils.parse_range_image_and_camera_projection(frame)
        returns = [
            frame_utils.convert_range_image_to_point_cloud(
                frame, images, projections, pose, i, keep_polar_features=True
            )[0]
            for i in (0, 1)
        ]
        clouds = []
        for position, laser in enumerate(LASERS):
            for i in (0, 1):
                matrix = images[laser][i]
                clouds.append(cloud(returns[i][position], flags(matrix.data, matrix.shape.dims)))
        yield {
            "time": frame.timestamp_micros,
            "pose": np.array(frame.pose.transform).reshape(4, 4),
            "points": np.concatenate(clouds),
            "exact": np.concatenate(list(exact_v1(frame, images, pose))),
            **labels([row_v1(label) for label in frame.laser_labels]),
        }


def exact_v1(frame, images, top_pose):
    """frame_utils.convert_range_image_to_cartesian once more, with everything it leaves in float32
    in float64.
    """
    poses = np.reshape(top_pose.data, top_pose.shape.dims), frame.pose.transform
    for calibration in sorted(
        frame.context.laser_calibrations, key=lambda calibration: calibration.name
    ):
        ends = calibration.beam_inclination_min, calibration.beam_inclination_max
        for matrix in images[calibration.name]:
            image = np.reshape(matrix.data, matrix.shape.dims)
            turns = poses if calibration.name == 1 else (None, None)
            yield exact(
                image, calibration.extrinsic.transform, calibration.beam_inclinations, ends, *turns
            )


def exact(image, extrinsic, beams, ends, pixel_pose, frame_pose):
    """Valid points of one range image, by the functions both formats share, in float64."""
    import tensorflow as tf
    from waymo_open_dataset.utils import range_image_utils, transform_utils

    def tensor(values, *shape):
        return tf.reshape(tf.constant(np.array(values), tf.float64), shape)

    poses = {}
    if pixel_pose is not None:
        places = tensor(pixel_pose, *np.shape(pixel_pose))
        turns = transform_utils.get_rotation_matrix(places[..., 0], places[..., 1], places[..., 2])
        poses = {
            "pixel_pose": transform_utils.get_transform(turns, places[..., 3:])[None],
            "frame_pose": tensor(frame_pose, 1, 4, 4),
        }
    rows = (
        tensor(beams, -1)
        if len(beams)
        else range_image_utils.compute_inclination(tensor(ends, 2), height=len(image))
    )
    points = range_image_utils.extract_point_cloud_from_range_image(
        tensor(image[..., 0], 1, *image.shape[:2]),
        tensor(extrinsic, 1, 4, 4),
        tf.reverse(rows, axis=[-1])[None],
        **poses,
        dtype=tf.float64,
    )
    return points[0].numpy()[image[..., 0] > 0]


def row_v1(label):
    b, m = label.box, label.metadata
    box = (b.center_x, b.center_y, b.center_z, b.length, b.width, b.height, b.heading)
    return (
        label.id,
        *box,
        label.type,
        label.detection_difficulty_level,
        label.num_lidar_points_in_box,
        m.speed_x,
        m.speed_y,
        m.speed_z,
    )


def frames_v2(folder, segment):
    import pandas as pd
    from waymo_open_dataset import v2

    def table(name):
        return pd.read_parquet(folder / name / f"{segment}.parquet")

    merged = v2.merge(v2.merge(table("lidar"), table("lidar_calibration")), table("vehicle_pose"))
    merged = v2.merge(merged, table("lidar_pose"), right_nullable=True)
    boxes = table("lidar_box")
    for time, rows in merged.groupby("key.frame_timestamp_micros", sort=True):
        clouds, doubles = [], []
        for _, row in rows.sort_values("key.laser_name").iterrows():
            lidar, calibration = (
                v2.LiDARComponent.from_dict(row),
                v2.LiDARCalibrationComponent.from_dict(row),
            )
            frame_pose = v2.VehiclePoseComponent.from_dict(row)
            poses = ()
            if row["key.laser_name"] == v2.perception.lidar.LaserName.TOP.value:
                poses = (v2.LiDARPoseComponent.from_dict(row).range_image_return1, frame_pose)
            for image in lidar.range_image_returns:
                polar = v2.convert_range_image_to_point_cloud(
                    image, calibration, *poses, keep_polar_features=True
                ).numpy()
                clouds.append(cloud(polar, flags(image.values, image.shape)))
                doubles.append(exact_v2(image, calibration, *poses))
        here = boxes[boxes["key.frame_timestamp_micros"] == time]
        yield {
            "time": time,
            "pose": np.array(frame_pose.world_from_vehicle.transform).reshape(4, 4),
            "points": np.concatenate(clouds),
            "exact": np.concatenate(doubles),
            **labels([row_v2(v2.LiDARBoxComponent.from_dict(row)) for _, row in here.iterrows()]),
        }


def exact_v2(image, calibration, pixel_pose=None, frame_pose=None):
    """v2.convert_range_image_to_cartesian once more, in float64."""
    beams = calibration.beam_inclination
    poses = None, None
    if pixel_pose is not None:
        poses = (
            np.reshape(pixel_pose.values, pixel_pose.shape),
            frame_pose.world_from_vehicle.transform,
        )
    rows = () if beams.values is None else beams.values
    return exact(
        np.reshape(image.values, image.shape),
        calibration.extrinsic.transform,
        rows,
        (beams.min, beams.max),
        *poses,
    )


def row_v2(component):
    box, speed, level = component.box, component.speed, component.difficulty_level
    numbers = (
        box.center.x,
        box.center.y,
        box.center.z,
        box.size.x,
        box.size.y,
        box.size.z,
        box.heading,
    )
    speeds = (
        (0.0, 0.0, 0.0)
        if speed is None or speed.x is None or np.isnan(speed.x)
        else (speed.x, speed.y, speed.z)
    )
    hard = (
        0
        if level is None or level.detection is None or np.isnan(level.detection)
        else level.detection
    )
    key = component.key.laser_object_id
    return (key, *numbers, component.type, hard, component.num_lidar_points_in_box, *speeds)


if __name__ == "__main__":
    main(*sys.argv[1:])
