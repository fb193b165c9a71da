"""What to measure in, seconds and bytes out: one measurement in a process of its own, with one thread and memory of its own.

``python -m kdlib.tools.bench.stages NAME REQUEST.json RESULT.json`` is that process. Frames are read from the page cache: every
measurement begins with a round that does not count.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdlib.errors import KdlibError

Result = dict[str, Any]

_BATCH = 2  # frames, as published


def run(name: str, request: Result, limit: float = 3600.0) -> Result:
    """Run a stage in a fresh interpreter with one thread and return its result.

    Raises:
        KdlibError: If it fails; the message ends with the last line it wrote.
    """
    threads = {key: "1" for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS")}
    package = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH", "")) if part)
    with tempfile.TemporaryDirectory(prefix="kdlib-bench-") as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(request))
        command = [sys.executable, "-m", "kdlib.tools.bench.stages", name, str(asked), str(answered)]
        environment = {**os.environ, **threads, "PYTHONPATH": path}
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, check=False)
        if child.returncode:
            raise KdlibError(f"the measurement '{name}' failed: {(child.stderr.splitlines() or ['it wrote nothing'])[-1]}")
        found: Result = json.loads(answered.read_text())
    return found


def peak_bytes() -> int:
    """Return the most memory this process, or the largest of its children, has held."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a fresh process may be that of the parent it was forked from
        own = next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return max(own, children)
    factor = 1 if sys.platform == "darwin" else 1024
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor, children)


def _rounds(request: Result, work: Callable[[], Any]) -> Result:
    """Return the seconds of each of ``rounds`` rounds, or more until ``seconds`` are over, after one that does not count.

    ``processor`` are the seconds the process was running: on a busy machine they say more than ``seconds`` on the wall clock.
    """
    work()
    seconds: list[float] = []
    processor: list[float] = []
    while len(seconds) < request["rounds"] or sum(seconds) < request["seconds"]:
        start, running = time.perf_counter(), time.process_time()
        work()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - running)
    return {"seconds": seconds, "processor": processor}


def read(request: Result) -> Result:
    """Read and convert all frames of a segment, either format: file to points, labels included."""
    from kdlib.waymo.segments import read_segment

    folder, segment = Path(request["folder"]), request["segment"]
    frames: list[Result] = []

    def work() -> None:
        frames.clear()
        for frame in read_segment(folder, segment):
            total = frame.points[:, :3].astype(np.float64).sum(axis=0).tolist()
            frames.append({"points": len(frame.points), "sum": total})

    return {**_rounds(request, work), "frames": frames}


def convert(request: Result) -> Result:
    """Convert a segment's range images, already in memory, to points."""
    from kdlib.waymo.lasers import laser_points

    inputs = list(_range_images(Path(request["folder"]), request["segment"]))

    def work() -> None:
        for one in inputs:
            laser_points(*one)

    return {**_rounds(request, work), "images": len(inputs)}


def _range_images(folder: Path, segment: str) -> Iterator[tuple[Any, ...]]:
    """Yield what each laser of each frame of a v2 segment is converted from."""
    import pyarrow.parquet as pq

    from kdlib.waymo.components import component_files
    from kdlib.waymo.lasers import TOP, calibration
    from kdlib.waymo.range_image import as_transform

    files = component_files(folder, segment)

    def rows(component: str, *columns: str) -> list[Any]:
        keys = ["key.frame_timestamp_micros"] if component != "lidar_calibration" else []
        keys += ["key.laser_name"] if component != "vehicle_pose" else []
        table = pq.read_table(files[component], columns=[*keys, *columns])
        keyed = zip(*(table.column(name).to_pylist() for name in keys))
        values = zip(*(table.column(name) for name in columns))
        return list(zip(keyed, values))

    def image(values: Any, shape: Any) -> Any:
        return values.values.to_numpy(zero_copy_only=False).reshape(shape.as_py())

    returns = [f"[LiDARComponent].range_image_return{i}.{part}" for i in (1, 2) for part in ("values", "shape")]
    pixels = [f"[LiDARPoseComponent].range_image_return1.{part}" for part in ("values", "shape")]
    beams = [f"[LiDARCalibrationComponent].{part}" for part in ("extrinsic.transform", *_BEAMS)]
    poses = {key[0]: as_transform(np.array(value[0].as_py())) for key, value in rows("vehicle_pose", _POSE)}
    seen_from = {key[0]: calibration(*(v.as_py() for v in value)) for key, value in rows("lidar_calibration", *beams)}
    moving = {key[0]: image(*value) for key, value in rows("lidar_pose", *pixels)}
    for (moment, laser), (*first, third, fourth) in rows("lidar", *returns):
        pose = moving[moment] if laser == TOP else None
        yield [image(*first), image(third, fourth)], seen_from[laser], pose, poses[moment]


_POSE = "[VehiclePoseComponent].world_from_vehicle.transform"
_BEAMS = ("beam_inclination.min", "beam_inclination.max", "beam_inclination.values")


def prepare(request: Result) -> Result:
    """Prepare a source into a store with one worker; the store of the last round stays."""
    import pyarrow as pa

    from kdlib.data.prepare import prepare as make
    from kdlib.data.store import Store

    pa.set_cpu_count(1)
    source, out = Path(request["source"]), Path(request["out"])

    def work() -> None:
        shutil.rmtree(out, ignore_errors=True)
        make(source, out, splits=("training",), workers=1, progress=False)

    times = _rounds(request, work)
    peak = peak_bytes()
    files = [path for path in (out / "training").glob("*/*") if path.is_file()]
    points = int(Store.open(out).split("training").counts.sum())
    return {**times, "bytes": sum(path.stat().st_size for path in files), "points": points, "peak_bytes": peak}


def load(request: Result) -> Result:
    """Make training batches of a store's frames in one process, as a loader's worker does.

    Frames are filled up to ``objects`` more than the average frame has of each class, so that so many are drawn however crowded
    the simulated streets are; those that collide are dropped as always.
    """
    import torch

    from kdlib import zoo
    from kdlib.config import CLASS_NAMES, AugmentConfig, ObjectSamplingConfig
    from kdlib.data.collate import collate
    from kdlib.data.dataset import FrameDataset
    from kdlib.data.object_bank import build_bank
    from kdlib.data.store import Store, class_types

    torch.set_num_threads(1)
    split = Store.open(Path(request["store"])).split("training")
    reach = zoo.model("cp_pillar").grid.point_range

    def dataset(objects: ObjectSamplingConfig | None) -> FrameDataset:
        return FrameDataset(split, augment=AugmentConfig(objects=objects), drop_empty=True, point_range=reach)

    data, plain = dataset(None), dataset(None)
    if request["objects"]:
        build_bank(split, progress=False)
        there = [int((split.types == kind).sum()) // len(split) for kind in class_types(CLASS_NAMES)]
        data = dataset(ObjectSamplingConfig(counts=tuple(a + b for a, b in zip(there, request["objects"]))))
    epoch = 0

    def work() -> None:
        nonlocal epoch
        for first in range(0, len(data), _BATCH):
            collate([data[(epoch, index)] for index in range(first, min(first + _BATCH, len(data)))])
        epoch += 1

    times = _rounds(request, work)
    peak = peak_bytes()
    pasted = sum(len(data[(0, index)].labels) - len(plain[(0, index)].labels) for index in range(len(data))) / len(data)
    return {**times, "frames": len(data), "pasted": pasted, "peak_bytes": peak}


STAGES: dict[str, Callable[[Result], Result]] = {stage.__name__: stage for stage in (read, convert, prepare, load)}


def main(name: str, request: str, result: str) -> None:
    """Run the stage that :func:`run` asked for."""
    Path(result).write_text(json.dumps(STAGES[name](json.loads(Path(request).read_text()))))


if __name__ == "__main__":
    main(*sys.argv[1:])
