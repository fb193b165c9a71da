"""Films sweeps with two sets of boxes side by side, as an animated GIF that a README can hold."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kdlib.errors import KdlibError
from kdlib.types import FloatArray
from kdlib.viz import palette, scene3d
from kdlib.viz.layers import BoxLayer
from kdlib.viz.perspective import Camera

MOST_POINTS = 7000  # a sweep in a small picture; more only cost bytes
_BAND = 26  # pixels above and below the panels
_SHRINK = 0.85
_DURATION = 100  # milliseconds of a picture


class FilmError(KdlibError):
    """A film that cannot be made."""


@dataclass(frozen=True)
class Shot:
    """One sweep with what is drawn into the left and the right panel."""

    points: FloatArray  # (N, >=3)
    left: Sequence[BoxLayer]
    right: Sequence[BoxLayer]
    title: str


@dataclass(frozen=True)
class Film:
    """A finished film."""

    gif: bytes
    size: tuple[int, int]
    images: int
    info: scene3d.RenderInfo


def camera_path(count: int, reach: float) -> list[Camera]:
    """Return cameras that go from high behind the vehicle around its right side and down, all
    looking ahead of it.
    """
    cameras = []
    for share in np.linspace(0, 1, count):
        eased = share * share * (3 - 2 * share)
        angle = math.radians(165 + 95 * eased)
        away, height = reach * (1.25 - 0.15 * eased), reach * (1.0 - 0.42 * eased)
        eye = (away * math.cos(angle), away * math.sin(angle), height)
        cameras.append(
            Camera(eye=eye, target=(0.02 * reach, 0.0, -0.1 * reach), field_of_view=48.0)
        )
    return cameras


def film(
    shots: Sequence[Shot],
    captions: tuple[str, str],
    *,
    footer: str,
    reach: float,
    images: int = 40,
    panel: tuple[int, int] = (420, 320),
    limit: int = 1_500_000,
    worker: Sequence[str] = scene3d.WORKER,
) -> Film:
    """Render sweeps one after the other, two panels of ``panel`` pixels (width, height) each, while
    the camera moves.

    Each sweep is shown for ``images / len(shots)`` pictures, with captions above the panels and a
    footer below: what data these are. The camera shows ``reach`` metres around the vehicle. The
    pictures shrink until the file has ``limit`` bytes at most. ``worker`` is the command of the
    renderer, a process of its own.

    Raises:
        FilmError: If there is no sweep, or the limit cannot be met.
    """
    if not shots or images < len(shots):
        raise FilmError(
            f"{images} pictures cannot show {len(shots)} sweeps; give at least one "
            "sweep and a picture for each"
        )
    chosen = [shots[number * len(shots) // images] for number in range(images)]
    views = []
    for shot, camera in zip(chosen, camera_path(images, reach)):
        points = shot.points[:: max(1, math.ceil(len(shot.points) / MOST_POINTS))]
        views += [scene3d.View(points, layers, camera) for layers in (shot.left, shot.right)]
    pictures, info = scene3d.render_views(views, size=panel, worker=worker)
    share = 1.0
    while share > 0.3:
        size = (round(panel[0] * share), round(panel[1] * share))
        frames = [
            _side_by_side(
                pictures[2 * number : 2 * number + 2], size, captions, f"{footer}, {shot.title}"
            )
            for number, shot in enumerate(chosen)
        ]
        content = _gif(frames)
        if len(content) <= limit:
            return Film(content, frames[0].size, images, info)
        share *= _SHRINK
    raise FilmError(
        f"{images} pictures do not fit into {limit:,} bytes; allow more, or ask for fewer"
    )


def _side_by_side(
    panels: Sequence[NDArray[np.uint8]],
    size: tuple[int, int],
    captions: tuple[str, str],
    footer: str,
) -> Image.Image:
    width, height = size
    whole = Image.new("RGB", (2 * width + 2, height + 2 * _BAND), palette.NIGHT)
    draw = ImageDraw.Draw(whole)
    for number, (pixels, caption, role) in enumerate(zip(panels, captions, ("teacher", "student"))):
        left = number * (width + 2)
        scaled = Image.fromarray(scene3d.lifted(pixels)).resize(size, Image.Resampling.LANCZOS)
        whole.paste(scaled, (left, _BAND))
        _write(draw, (left + 10, 6), caption, palette.role(role).dark, 13, room=width - 18)
    green = palette.role("truth").dark
    _write(
        draw,
        (2 * width - 8, height + _BAND + 6),
        palette.role("truth").title + " in both",
        green,
        13,
        anchor="ra",
    )
    draw.line([(width, 0), (width, height + 2 * _BAND)], fill=palette.NIGHT_FAINT, width=2)
    _write(draw, (10, height + _BAND + 7), footer, palette.NIGHT_INK, 11)
    return whole


def _write(
    draw: Any,
    place: tuple[int, int],
    text: str,
    color: str,
    size: int,
    anchor: str = "la",
    room: float = math.inf,
) -> None:
    """Write a line, smaller where it would be wider than its room."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
    while font.getlength(text) > room and font.size > 7:
        font = font.font_variant(size=font.size - 1)
    left, top, right, bottom = draw.textbbox(place, text, font=font, anchor=anchor)
    draw.rectangle((left - 4, top - 2, right + 4, bottom + 2), fill=palette.NIGHT)
    draw.text(place, text, fill=color, font=font, anchor=anchor)


def _gif(frames: Sequence[Image.Image]) -> bytes:
    """Return the film in one palette: a palette for each picture would flicker, dithering would
    double the bytes.
    """
    roles = [palette.role(name).dark for name in ("truth", "teacher", "student")]
    bright = np.array(
        [
            palette.rgb(color)
            for color in (*palette.NIGHT_RAMP, *roles, palette.NIGHT_INK, palette.NIGHT_FAINT)
        ]
    )
    night = np.array([palette.rgb(palette.NIGHT)])
    # Every colour a scene has, and two darker shades of each for smoothed edges; what is left of 32
    # is night.
    shades = [
        night,
        *(night + share * (bright - night) for share in (0.35, 0.65, 1.0)),
        night,
        night,
        night,
        night,
    ]
    colors = Image.new("P", (1, 1))
    colors.putpalette(np.rint(255 * np.concatenate(shades)).astype(int).ravel().tolist())
    first, *rest = (frame.quantize(palette=colors, dither=Image.Dither.NONE) for frame in frames)
    buffer = io.BytesIO()
    first.save(
        buffer,
        "GIF",
        save_all=True,
        append_images=rest,
        duration=_DURATION,
        loop=0,
        optimize=False,
        disposal=1,
    )
    return buffer.getvalue()
