"""A pinhole camera in numpy and the picture made with it where open3d cannot render: points and
lines in, pixels out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from kdlib.types import FloatArray
from kdlib.viz import canvas, palette

_NEAR = 0.3  # metres; nothing closer to the lens is drawn


@dataclass(frozen=True)
class Camera:
    """Where the viewer stands; the default looks over the ego vehicle's shoulder down the road,
    some 35 m far.
    """

    eye: tuple[float, float, float] = (-19.0, -9.0, 13.5)  # metres, vehicle frame
    target: tuple[float, float, float] = (13.0, 1.0, 0.0)
    field_of_view: float = 50.0  # vertical, degrees
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)

    @staticmethod
    def behind(reach: float) -> Camera:
        """Return the default view scaled to a scene that reaches ``reach`` metres around the
        vehicle.
        """
        return Camera(
            eye=(-0.55 * reach, -0.26 * reach, 0.4 * reach),
            target=(0.36 * reach, 0.03 * reach, 0.0),
        )

    @staticmethod
    def above(reach: float) -> Camera:
        """Return a camera high above and a little behind that sees ``reach`` metres around the
        vehicle.
        """
        return Camera(eye=(-0.9 * reach, 0.0, 1.25 * reach), target=(0.08 * reach, 0.0, 0.0))

    def at(self, x: float, y: float) -> Camera:
        """Return the same view of another place than the vehicle's."""
        place = (x, y, 0.0)
        eye, target = (tuple(np.add(point, place).tolist()) for point in (self.eye, self.target))
        return replace(self, eye=eye, target=target)

    def axes(self) -> NDArray[np.float64]:
        """Return right, down and forward as rows of a (3, 3) rotation."""
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, self.up)
        right /= np.linalg.norm(right)
        return np.stack((right, np.cross(forward, right), forward))


@dataclass(frozen=True)
class Lines:
    """Line segments of one colour."""

    segments: NDArray[np.float64]  # (S, 2, 3)
    color: str
    width: float  # pixels in a picture 900 pixels high


def paint(
    points: FloatArray,
    colors: FloatArray,
    lines: list[Lines],
    camera: Camera,
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """Return the picture (height, width, 3) of coloured points (N, 3) and lines, seen through a
    pinhole camera.
    """
    width, height = size
    figure = canvas.new_figure(width / canvas.DPI, height / canvas.DPI, facecolor=palette.NIGHT)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    seen = _to_camera(np.asarray(points, np.float64)[:, :3], camera)
    far_first = np.argsort(-seen[:, 2])
    far_first = far_first[seen[far_first, 2] > _NEAR]
    seen = seen[far_first]
    x, y = _project(seen, camera, size).T
    # A point's disc shrinks with distance, but never below what the screen can show.
    dots = np.clip(26.0 / np.maximum(seen[:, 2], 1.0), 0.35, 2.6) * (height / 800)
    ax.scatter(x, y, s=dots, c=np.asarray(colors)[far_first], linewidths=0, zorder=1)
    for line in lines:
        ends = _clip(_to_camera(line.segments, camera))
        if len(ends):
            drawn = list(_project(ends, camera, size))
            thick = line.width * height / 900 * 72 / canvas.DPI  # matplotlib counts in points
            ax.add_collection(
                LineCollection(
                    drawn, colors=line.color, linewidths=thick, capstyle="round", zorder=2
                )
            )
    return canvas.to_pixels(figure)[..., :3]


def _to_camera(points: NDArray[np.float64], camera: Camera) -> NDArray[np.float64]:
    return (points - np.asarray(camera.eye)) @ camera.axes().T


def _project(
    seen: NDArray[np.float64], camera: Camera, size: tuple[int, int]
) -> NDArray[np.float64]:
    focal = size[1] / 2 / np.tan(np.radians(camera.field_of_view) / 2)
    return seen[..., :2] / seen[..., 2:] * focal + np.array(size) / 2


def _clip(ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut segments (S, 2, 3) at the near plane; those wholly behind it go."""
    ends = ends[(ends[..., 2] > _NEAR).any(axis=1)]
    depth, ahead = ends[..., 2:], ends[:, ::-1] - ends  # from each end to the other
    behind = depth <= _NEAR  # then the other end is in front, so that the way ahead is never flat
    return (
        ends
        + np.where(behind, (_NEAR - depth) / np.where(behind, ahead[..., 2:], 1.0), 0.0) * ahead
    )
