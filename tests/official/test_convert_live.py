"""Frames simulated here and now: kdlib's readers against Waymo's own conversion of the same files,
v1 and v2.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdlib.simulate import simulate
from kdlib.tools.judge.official import run_child
from kdlib.waymo import tfrecord
from kdlib.waymo.frame_proto import FRAME_MESSAGES, pack_matrix, parse_frame, unpack_matrix
from kdlib.waymo.segments import read_segment

CHILD = Path(__file__).with_name("convert_child.py")
PLACES = {
    "near": (0.0, 0.0, 0.0),
    "far": (-25_211.0, 42_391.0, 0.0),
    "twice as far": (-50_422.0, 84_782.0, 0.0),
}
"""Where in the world the car is put; "far" is where the one released frame that was looked at is
(spec section 4).
"""
# The official code adds and turns world coordinates in float32, whose step is 4 mm from 32.8 km on,
# 8 from 65.5 km on. At "far" its points of 48 simulated TOP images (8 seeds) were 4 to 11 mm, in 3
# images more than 10, from what the same code gives in float64; each of its steps alone: the last
# product up to 8 mm, the inverse 6, the sum 2, the rounding of the frame's pose 2.
EXACT = 1e-4  # from the official code in float64, anywhere
# twice as far, float32 is too coarse for any promise but the one below
SHIPPED = {"near": 1e-4, "far": 1e-2}
SEGMENTS, FRAMES = 2, 3


def moved_v1(folder, segment, by):
    """Move the world under the car of a segment."""
    for path in folder.glob(f"*{segment}*.tfrecord"):
        frames = [parse_frame(payload) for payload in tfrecord.iter_payloads(path)]
        with path.open("wb") as out:
            for frame in frames:
                for axis in range(3):
                    frame.pose.transform[4 * axis + 3] += by[axis]
                for laser in frame.lasers:
                    if laser.ri_return1.range_image_pose_compressed:
                        pose = unpack_matrix(laser.ri_return1.range_image_pose_compressed, 6).copy()
                        pose[..., 3:6] = pose[..., 3:6] + by
                        laser.ri_return1.range_image_pose_compressed = pack_matrix(pose)
                tfrecord.write_record(out, frame.SerializeToString())


def moved_v2(folder, segment, by):
    edits = {
        "vehicle_pose": ("[VehiclePoseComponent].world_from_vehicle.transform", 16, (3, 7, 11))
    }
    edits["lidar_pose"] = ("[LiDARPoseComponent].range_image_return1.values", 6, (3, 4, 5))
    for component, (name, width, places) in edits.items():
        path = folder / component / f"{segment}.parquet"
        table = pq.read_table(path)
        kind, rows = table.schema.field(name).type, []
        for row in table.column(name).to_pylist():
            values = np.array(row).reshape(-1, width)
            values[:, places] += by
            rows.append(values.ravel().astype(kind.value_type.to_pandas_dtype()))
        place = table.schema.get_field_index(name)
        pq.write_table(
            table.set_column(place, table.schema.field(name), pa.array(rows, kind)), path
        )


@pytest.fixture(scope="module", params=["v1", "v2"])
def form(request):
    return request.param


@pytest.fixture(scope="module", params=PLACES)
def converted(form, request, tmp_path_factory, official_python):
    """Frames as kdlib reads them and arrays as the official package does, by segment; and the place
    of both.
    """
    root = tmp_path_factory.mktemp(f"{form}-{request.param.replace(' ', '-')}")
    names = simulate(
        root,
        SEGMENTS,
        FRAMES,
        seed=int.from_bytes(form.encode(), "big"),
        scale="demo",
        progress=False,
        format=form,
    )
    folder = root / "training"
    pairs = []
    for name in names:
        origin = next(read_segment(folder, name)).pose[:3, 3]
        {"v1": moved_v1, "v2": moved_v2}[form](
            folder, name, np.array(PLACES[request.param]) - np.round(origin)
        )
        result = root / f"{name}.npz"
        run_child(official_python, CHILD, [form, str(folder), name, str(result)], timeout=300.0)
        with np.load(result) as arrays:
            official = {key: arrays[key] for key in arrays.files}
        pairs.append((list(read_segment(folder, name)), official))
    return pairs, request.param


def of_frame(official, number):
    return {
        key.partition("/")[2]: value
        for key, value in official.items()
        if key.startswith(f"{number}/")
    }


def apart(one, other):
    return np.abs(one[:, :3].astype(np.float64) - other[:, :3]).max()


def test_points_and_features(converted):
    pairs, place = converted
    for frames, official in pairs:
        assert len(frames) == FRAMES
        for frame in frames:
            theirs = of_frame(official, frame.index)
            assert frame.timestamp_micros == theirs["time"]
            np.testing.assert_array_equal(frame.pose, theirs["pose"])
            assert len(frame.points) > 5_000
            # hence the same pixels in the same order
            np.testing.assert_array_equal(frame.points[:, 3:], theirs["points"][:, 3:])
            exact, shipped = (
                apart(frame.points, theirs["exact"]),
                apart(frame.points, theirs["points"]),
            )
            rounding = apart(theirs["points"], theirs["exact"])  # of the official code alone
            print(
                f"{place}: {exact:.2e} m from the official code in float64, {shipped:.2e} as "
                f"shipped, itself off {rounding:.2e}"
            )
            assert exact <= EXACT
            assert shipped <= rounding + EXACT  # whatever parts us is the official float32
            assert shipped <= SHIPPED.get(place, rounding + EXACT)


def test_labels_velocities_and_difficulty(converted):
    pairs, _ = converted
    seen = {"boxes": 0, "hard": 0, "moving": 0}
    for frames, official in pairs:
        for frame in frames:
            ours, theirs = frame.labels, of_frame(official, frame.index)
            assert ours.ids == tuple(theirs["ids"].tolist())
            for name in ("boxes", "types", "difficulty", "num_points"):
                np.testing.assert_array_equal(getattr(ours, name), theirs[name], err_msg=name)
            world = np.column_stack((theirs["speeds"][:, :2], np.zeros(len(ours.ids))))
            np.testing.assert_allclose(
                ours.velocity, (world @ theirs["pose"][:3, :3])[:, :2], atol=1e-5
            )
            seen["boxes"] += len(ours.ids)
            seen["hard"] += int((ours.difficulty == 2).sum())
            seen["moving"] += int((np.hypot(*ours.velocity.T) > 1.0).sum())
    assert min(seen.values()) > 0, seen


def test_frames_of_ours_mean_the_same_to_the_official_package(tmp_path):
    """In one process: the private messages live beside the official ones, and each reads what the
    other wrote.
    """
    dataset_pb2 = pytest.importorskip("waymo_open_dataset.dataset_pb2")
    (name,) = simulate(tmp_path, 1, 1, seed=3, scale="demo", progress=False, format="v1")
    path = next((tmp_path / "training").glob("*.tfrecord"))
    payload = tfrecord.first_payload(path)
    theirs, ours = dataset_pb2.Frame.FromString(payload), parse_frame(payload)
    assert theirs.context.name == name == ours.context.name.decode()
    assert theirs.timestamp_micros == ours.timestamp_micros
    assert [label.id for label in theirs.laser_labels] == [
        label.id.decode() for label in ours.laser_labels
    ]
    assert [list(c.beam_inclinations) for c in theirs.context.laser_calibrations] == [
        list(c.beam_inclinations) for c in ours.context.laser_calibrations
    ]
    again = FRAME_MESSAGES["Frame"].FromString(theirs.SerializeToString())
    assert again == ours
