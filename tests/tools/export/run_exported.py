"""Boxes of a scan by an exported pillar model: run_exported.py MODEL.onnx POINTS.npy"""

import json
import sys

import numpy as np
import onnxruntime

Boxes = list[tuple[str, float, list[float]]]  # class, score, x y z dx dy dz heading


def pillars(points: np.ndarray, grid: dict) -> dict[str, np.ndarray]:
    """Sort points (N, 5), x, y, z, tanh(intensity), elongation, into the pillars of a grid."""
    columns, most = grid["grid_size"][0], grid["max_points"]
    low, size = np.float32(grid["point_range"][:3]), np.float32(grid["voxel_size"])
    cell = np.floor((points[:, :3] - low) / size).astype(np.int64)
    inside = ((cell >= 0) & (cell < grid["grid_size"])).all(axis=1)
    key = (cell[:, 1] * columns + cell[:, 0])[inside]
    order = np.argsort(key, kind="stable")  # a pillar's points in the order of the scan
    keys, start, count = np.unique(key[order], return_index=True, return_counts=True)
    pillar = np.repeat(np.arange(len(keys)), count)
    slot = np.arange(len(key)) - np.repeat(start, count)
    values = np.zeros((len(keys), most, 5), np.float32)
    values[pillar[slot < most], slot[slot < most]] = points[inside][order][slot < most]
    coords = np.stack((0 * keys, 0 * keys, keys // columns, keys % columns), axis=1)
    return {"pillars": values, "num_points": count.clip(max=most), "coords": coords}


def detect(model: str, points: np.ndarray, score: float = 0.3) -> Boxes:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["kdlib"])
    answers = session.run(["boxes", "scores", "labels"], pillars(points, card["grid"]))
    chosen: Boxes = []
    for box, value, label in zip(*(answer[answers[1] >= score] for answer in answers)):
        # no two centres in one box
        if all(np.hypot(*(box[:2] - other[:2])) > min(box[4], other[4]) for *_, other in chosen):
            chosen.append((card["class_names"][label - 1], float(value), box.tolist()))
    return chosen


if __name__ == "__main__":
    for kind, value, box in detect(sys.argv[1], np.load(sys.argv[2])):
        print(f"{kind:10} {value:.3f} ", " ".join(f"{number:7.2f}" for number in box))
