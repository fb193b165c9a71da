"""Boxes of one scan by an exported pillar model, with NumPy and onnxruntime alone: run_exported.py
MODEL.onnx POINTS.npy
"""

import json
import sys

import numpy as np
import onnxruntime


# points (N, 5): x, y, z, tanh(intensity), elongation
def pillars(points: np.ndarray, grid: dict) -> dict[str, np.ndarray]:
    low, size, most = (
        np.float32(grid["point_range"][:3]),
        np.float32(grid["voxel_size"]),
        grid["max_points"],
    )
    cell = np.floor((points[:, :3] - low) / size).astype(np.int64)
    inside = ((cell >= 0) & (cell < grid["grid_size"])).all(axis=1)
    key = (cell[:, 1] * grid["grid_size"][0] + cell[:, 0])[inside]
    order = np.argsort(key, kind="stable")  # a pillar's points in the order of the scan
    keys, start, count = np.unique(key[order], return_index=True, return_counts=True)
    pillar, slot = (
        np.repeat(np.arange(len(keys)), count),
        np.arange(len(key)) - np.repeat(start, count),
    )
    values = np.zeros((len(keys), most, 5), np.float32)
    values[pillar[slot < most], slot[slot < most]] = points[inside][order][slot < most]
    row, column = np.divmod(keys, grid["grid_size"][0])
    return {
        "pillars": values,
        "num_points": count.clip(max=most),
        "coords": np.stack((0 * row, 0 * row, row, column), axis=1),
    }


def detect(
    model: str, points: np.ndarray, score: float = 0.3
) -> list[tuple[str, float, list[float]]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["kdlib"])
    boxes, scores, labels = session.run(
        ["boxes", "scores", "labels"], pillars(points, card["grid"])
    )
    found: list[tuple[str, float, list[float]]] = []
    for box, value, label in zip(
        boxes[scores >= score], scores[scores >= score], labels[scores >= score]
    ):
        # no two centres in one box
        if all(np.hypot(*(box[:2] - other[:2])) > min(box[4], other[4]) for _, _, other in found):
            found.append((card["class_names"][label - 1], float(value), box.tolist()))
    return found


if __name__ == "__main__":
    for kind, value, box in detect(sys.argv[1], np.load(sys.argv[2])):
        print(f"{kind:10} {value:.3f} ", " ".join(f"{number:7.2f}" for number in box))
