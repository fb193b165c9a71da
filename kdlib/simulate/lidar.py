"""A scene, the lasers and a frame number in, the range images, pixel poses and points of one sweep out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdlib.simulate import echoes
from kdlib.simulate.echoes import Echoes, Hits
from kdlib.simulate.ego import matrix, rotation
from kdlib.simulate.lasers import TOP, Laser
from kdlib.simulate.mesh import BoolArray, Mesh
from kdlib.simulate.scene import PERIOD, Scene
from kdlib.types import FloatArray, IntArray


@dataclass(frozen=True)
class Sweep:
    """What all lasers saw in one frame."""

    images: tuple[tuple[FloatArray, FloatArray], ...]  # per laser: return 1 and 2, (H, W, 4) float32
    pixel_pose: FloatArray  # (H, W, 6) float32, the TOP laser's
    pose: FloatArray  # (4, 4) world from vehicle in the middle of the frame
    points: FloatArray  # (N, 3) all returns, vehicle frame
    top: BoolArray  # (N,) bool, which of them the TOP laser saw


class Scanner:
    """Casts the rays of one car (TOP is the first of its lasers); the directions of the pixels are the same in every frame."""

    def __init__(self, scene: Scene, lasers: tuple[Laser, ...]) -> None:
        self.scene, self.lasers = scene, lasers
        self._sees = [laser.sees() for laser in lasers]
        self._directions = [laser.directions() for laser in lasers]
        self._max_range = np.concatenate([np.full(int(sees.sum()), laser.max_range) for laser, sees in zip(lasers, self._sees)])
        self._row_major = np.cumsum([0, *(int(sees.sum()) for sees in self._sees)])
        self._ahead = np.concatenate([start + _neighbours(sees) for start, sees in zip(self._row_major[:-1], self._sees)])
        yaw = scene.world[2]
        self._world = matrix(scene.world)
        self._world_turn = np.array([0.0, 0.0, yaw])

    def pixel_pose(self, frame: int) -> FloatArray:
        """Return world-from-vehicle at the firing time of each column of the TOP image, (W, 6) float32."""
        laser = next(laser for laser in self.lasers if laser.name == TOP)
        times = (frame + (np.arange(laser.width) + 0.5) / laser.width) * PERIOD
        return self._to_world(self.scene.ego.pose(times)).astype(np.float32)

    def frame_pose(self, frame: int) -> FloatArray:
        """Return world-from-vehicle in the middle of a frame, (4, 4)."""
        return matrix(self._to_world(self.scene.ego.pose(np.array([(frame + 0.5) * PERIOD])))[0])

    def _to_world(self, poses: FloatArray) -> FloatArray:
        # The local frame is level, so roll and pitch stay.
        placed = poses[:, 3:] @ self._world[:3, :3].T + self._world[:3, 3]
        return np.concatenate([poses[:, :3] + self._world_turn, placed], 1)

    def _rays(self, columns: FloatArray, frame_pose: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return origins and directions of all seeing pixels in world axes around the local origin, (N, 3) each."""
        origins, directions = [], []
        for laser, rays, sees in zip(self.lasers, self._directions, self._sees):
            place = laser.extrinsic[:3, 3]
            if laser.name == TOP:
                turns = rotation(columns[:, :3].astype(np.float64))
                starts = turns @ place + columns[:, 3:].astype(np.float64)
                turned = np.matmul(turns[None], rays[..., None])[..., 0]
                origins.append(np.broadcast_to(starts, rays.shape)[sees])
                directions.append(turned[sees])
            else:
                turned = rays[sees] @ frame_pose[:3, :3].T
                origins.append(np.broadcast_to(frame_pose[:3, :3] @ place + frame_pose[:3, 3], turned.shape))
                directions.append(turned)
        return np.concatenate(origins), np.concatenate(directions)

    def sweep(self, frame: int, rng: np.random.Generator) -> Sweep:
        """Return one frame; deterministic for a generator in a given state."""
        columns, pose = self.pixel_pose(frame), self.frame_pose(frame)
        origins, directions = self._rays(columns, pose)
        # The mesh lies in local coordinates: take the rays there.
        local = (origins - self._world[:3, 3]) @ self._world[:3, :3]
        cast = _Caster(self.scene.mesh(frame))
        aims = directions @ self._world[:3, :3]
        hits = cast(local, aims)
        first = echoes.first_echoes(rng, hits, self._max_range)
        second = self._second(rng, cast, local, aims, hits, first)
        first_range, second_range = first.range.astype(np.float32), second.range.astype(np.float32)
        values, points = [], []
        for echo, measured in ((first, first_range), (second, second_range)):
            world = origins + directions * measured[:, None].astype(np.float64)
            zone = np.where(inside_zones(self.scene.zones, (world - self._world[:3, 3]) @ self._world[:3, :3]), 1.0, -1.0)
            rows = np.stack([measured, echo.intensity, echo.elongation, zone], 1).astype(np.float32)
            rows[measured <= 0] = -1.0
            values.append(rows)
            points.append((world[measured > 0] - pose[:3, 3]) @ pose[:3, :3])
        top = np.arange(len(first_range)) < self._row_major[1]
        return Sweep(
            tuple((self._image(i, values[0]), self._image(i, values[1])) for i in range(len(self.lasers))),
            np.broadcast_to(columns, (self.lasers[0].height, *columns.shape)),
            pose,
            np.concatenate(points),
            np.concatenate([top[first_range > 0], top[second_range > 0]]),
        )

    def _second(
        self, rng: np.random.Generator, cast: _Caster, local: FloatArray, aims: FloatArray, hits: Hits, first: Echoes
    ) -> Echoes:
        """Cast the rays that go on again from behind their first hit."""
        some = echoes.second_candidates(rng, hits, first, self._ahead)
        # Past an edge goes the light of the neighbouring direction; the pixel's own ray stands for it.
        past = np.where(hits.distance[self._ahead[some]] > hits.distance[some] + echoes.SEPARATION, self._ahead[some], some)
        skip = np.where(past == some, hits.distance[some] + 0.05, 0.0)
        behind = cast(local[some] + aims[past] * skip[:, None], aims[past])
        behind = Hits(behind.distance + skip, behind.material, behind.tint, behind.cosine)
        found = echoes.second_echoes(rng, behind, first.range[some], self._max_range[some])
        full = [np.full(len(aims), -1.0) for _ in range(3)]
        for array, part in zip(full, (found.range, found.intensity, found.elongation)):
            array[some] = part
        return Echoes(*full)

    def _image(self, number: int, values: FloatArray) -> FloatArray:
        sees = self._sees[number]
        image = np.full((*sees.shape, 4), -1.0, np.float32)
        image[sees] = values[self._row_major[number] : self._row_major[number + 1]]
        return image


def _neighbours(sees: BoolArray) -> IntArray:
    """Return for each seeing pixel, in row-major order, the position of the next one in its row (itself at the end)."""
    rows = np.nonzero(sees)[0]
    following = np.arange(len(rows)) + 1
    last = np.append(rows[1:] != rows[:-1], True)
    return np.where(last, np.arange(len(rows)), following)


class _Caster:
    """The triangles of one frame, ready for rays."""

    def __init__(self, mesh: Mesh) -> None:
        import open3d as o3d

        self._tensor = o3d.core.Tensor.from_numpy
        self._mesh = mesh
        # One thread: segments run side by side, and the order of triangles stays the same everywhere.
        self._scene = o3d.t.geometry.RaycastingScene(nthreads=1)
        vertices = np.ascontiguousarray(mesh.vertices, np.float32)
        self._scene.add_triangles(self._tensor(vertices), self._tensor(np.ascontiguousarray(mesh.triangles, np.uint32)))

    def __call__(self, origins: FloatArray, directions: FloatArray) -> Hits:
        """Return the first hit of every ray, (N, 3) each."""
        rays = np.concatenate([origins, directions], 1).astype(np.float32)
        answer = self._scene.cast_rays(self._tensor(rays), nthreads=1)
        distance = answer["t_hit"].numpy().astype(np.float64)
        hit = np.isfinite(distance)
        triangle = np.where(hit, answer["primitive_ids"].numpy(), 0).astype(np.int64)
        normals = answer["primitive_normals"].numpy()
        cosine = np.where(hit, np.abs((normals * rays[:, 3:]).sum(1)), 0.0)
        return Hits(distance, self._mesh.material[triangle], self._mesh.tint[triangle], np.minimum(cosine, 1.0))


def inside_zones(zones: tuple[FloatArray, ...], points: FloatArray) -> BoolArray:
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
