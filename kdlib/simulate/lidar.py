"""Casts the rays of all lasers into a scene: the range images, pixel poses and points of one
sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from kdlib.simulate.echoes import SEPARATION, Hits, first_echoes, second_candidates, second_echoes
from kdlib.simulate.ego import pose_matrix, rotation
from kdlib.simulate.mesh import Mesh, Rng
from kdlib.simulate.scene import PERIOD, StreetScene
from kdlib.simulate.sensors import Laser
from kdlib.types import Bool, FloatArray, IntArray
from kdlib.waymo.lasers import TOP

_Cast = Callable[[FloatArray, FloatArray], Hits]


@dataclass(frozen=True)
class Sweep:
    """What all lasers saw in one frame."""

    # per laser: return 1 and 2, (H, W, 4) float32
    images: tuple[tuple[FloatArray, FloatArray], ...]
    pixel_pose: FloatArray  # (H, W, 6) float32, the TOP laser's
    pose: FloatArray  # (4, 4) world from vehicle in the middle of the frame
    points: FloatArray  # (N, 3) all returns, vehicle frame
    top: Bool  # (N,) bool, which of them the TOP laser saw


class Scanner:
    """Casts the rays of one car (TOP is the first of its lasers); the directions of the pixels are
    the same in every frame.
    """

    def __init__(self, scene: StreetScene, lasers: tuple[Laser, ...]) -> None:
        self.scene, self.lasers = scene, lasers
        self._sees = [laser.sees() for laser in lasers]
        self._directions = [laser.directions() for laser in lasers]
        counts = [int(sees.sum()) for sees in self._sees]
        self._borders = np.cumsum([0, *counts])  # of the lasers in arrays of all seeing pixels
        self._max_range = np.repeat([laser.max_range for laser in lasers], counts)
        self._ahead = np.concatenate(
            [start + _neighbours(sees) for start, sees in zip(self._borders, self._sees)]
        )
        self._world = pose_matrix(scene.world)

    def pixel_pose(self, frame: int) -> FloatArray:
        """Return world-from-vehicle at the firing time of each column of the TOP image, (W, 6)
        float32.
        """
        width = self.lasers[0].width
        return self._world_pose((frame + (np.arange(width) + 0.5) / width) * PERIOD).astype(
            np.float32
        )

    def frame_pose(self, frame: int) -> FloatArray:
        """Return world-from-vehicle in the middle of a frame, (4, 4)."""
        return pose_matrix(self._world_pose(np.array([(frame + 0.5) * PERIOD]))[0])

    def _world_pose(self, times: FloatArray) -> FloatArray:
        poses = self.scene.ego.pose(times)
        # The local frame is level, so roll and pitch stay.
        placed = poses[:, 3:] @ self._world[:3, :3].T + self._world[:3, 3]
        return np.concatenate([poses[:, :3] + self.scene.world[:3], placed], 1)

    def _to_local(self, world: FloatArray) -> FloatArray:
        return (world - self._world[:3, 3]) @ self._world[:3, :3]

    def _rays(self, columns: FloatArray, frame_pose: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return origins and directions of all seeing pixels in world axes around the local origin,
        (N, 3) each.
        """
        origins, directions = [], []
        for laser, rays, sees in zip(self.lasers, self._directions, self._sees):
            place = laser.extrinsic[:3, 3]
            if laser.name == TOP:
                turns = rotation(columns[:, :3])
                starts = np.broadcast_to(turns @ place + columns[:, 3:], rays.shape)[sees]
                turned = np.matmul(turns[None], rays[..., None])[..., 0][sees]
            else:
                turned = rays[sees] @ frame_pose[:3, :3].T
                starts = np.broadcast_to(
                    frame_pose[:3, :3] @ place + frame_pose[:3, 3], turned.shape
                )
            origins.append(starts)
            directions.append(turned)
        return np.concatenate(origins), np.concatenate(directions)

    def sweep(self, frame: int, rng: Rng) -> Sweep:
        """Return one frame; deterministic for a generator in a given state."""
        columns, pose = self.pixel_pose(frame), self.frame_pose(frame)
        origins, directions = self._rays(columns, pose)
        # The mesh lies in local coordinates: take the rays there.
        local, aims = self._to_local(origins), directions @ self._world[:3, :3]
        cast = _caster(self.scene.mesh(frame))
        hits = cast(local, aims)
        first = first_echoes(rng, hits, self._max_range)
        second = self._second(rng, cast, local, aims, hits, first)
        images, points, tops = [], [], []
        top = np.arange(len(first)) < self._borders[1]
        for echo in (first, second):
            measured = echo[:, 0].astype(np.float32)  # as a file holds it
            seen = measured > 0
            world = origins + directions * measured[:, None]
            zone = np.where(inside_zones(self.scene.zones, self._to_local(world)), 1.0, -1.0)
            images.append(
                self._images(np.where(seen[:, None], np.column_stack([echo, zone]), -1.0))
            )
            points.append((world[seen] - pose[:3, 3]) @ pose[:3, :3])
            tops.append(top[seen])
        pixel_pose = np.broadcast_to(columns, (self.lasers[0].height, *columns.shape))
        return Sweep(
            tuple(zip(*images)), pixel_pose, pose, np.concatenate(points), np.concatenate(tops)
        )

    def _second(
        self,
        rng: Rng,
        cast: _Cast,
        local: FloatArray,
        aims: FloatArray,
        hits: Hits,
        first: FloatArray,
    ) -> FloatArray:
        """Cast the rays that go on again from behind their first hit."""
        rays = second_candidates(rng, hits, first, self._ahead)
        distance, ahead = hits.distance[rays], self._ahead[rays]
        # Past an edge goes the light of the neighbouring direction; the pixel's own ray stands for
        # it.
        past = np.where(hits.distance[ahead] > distance + SEPARATION, ahead, rays)
        skip = np.where(past == rays, distance + 0.05, 0.0)
        behind = cast(local[rays] + aims[past] * skip[:, None], aims[past])
        behind = replace(behind, distance=behind.distance + skip)
        echoes = np.full(first.shape, -1.0)
        echoes[rays] = second_echoes(rng, behind, first[rays, 0], self._max_range[rays])
        return echoes

    def _images(self, values: FloatArray) -> Iterator[FloatArray]:
        """Yield the image (H, W, 4) of each laser, float32, from the values (N, 4) of all seeing
        pixels.
        """
        for sees, start in zip(self._sees, self._borders):
            image = np.full((*sees.shape, 4), -1.0, np.float32)
            image[sees] = values[start : start + sees.sum()]
            yield image


def _neighbours(sees: Bool) -> IntArray:
    """Return for each seeing pixel, in row-major order, the position of the next one in its row
    (itself at the end).
    """
    rows = np.nonzero(sees)[0]
    last = np.append(rows[1:] != rows[:-1], True)
    return np.arange(len(rows)) + ~last


def _caster(mesh: Mesh) -> _Cast:
    """Return what finds the first hits of rays, origins and directions (N, 3) each, among the
    triangles of one frame.
    """
    import open3d as o3d

    tensor = o3d.core.Tensor.from_numpy
    # One thread: segments run side by side, and the order of triangles stays the same everywhere.
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    vertices, triangles = (
        np.ascontiguousarray(mesh.vertices, np.float32),
        np.ascontiguousarray(mesh.triangles, np.uint32),
    )
    scene.add_triangles(tensor(vertices), tensor(triangles))

    def cast(origins: FloatArray, directions: FloatArray) -> Hits:
        rays = np.concatenate([origins, directions], 1).astype(np.float32)
        answer = scene.cast_rays(tensor(rays), nthreads=1)
        distance = answer["t_hit"].numpy().astype(np.float64)
        hit = np.isfinite(distance)
        triangle = np.where(hit, answer["primitive_ids"].numpy(), 0)
        cosine = np.abs((answer["primitive_normals"].numpy() * rays[:, 3:]).sum(1))
        return Hits(
            distance,
            mesh.material[triangle],
            mesh.tint[triangle],
            np.minimum(np.where(hit, cosine, 0.0), 1.0),
        )

    return cast


def inside_zones(zones: tuple[FloatArray, ...], points: FloatArray) -> Bool:
    """Tell which points lie in any of the polygons, seen from above (even-odd rule)."""
    inside = np.zeros(len(points), bool)
    x, y = points[:, 0], points[:, 1]
    for zone in zones:
        crossings = np.zeros(len(points), bool)
        for (x0, y0), (x1, y1) in zip(zone, np.roll(zone, -1, 0)):
            if y0 != y1:
                crossings ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
        inside |= crossings
    return inside
