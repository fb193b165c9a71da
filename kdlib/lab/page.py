"""The page of a run: parts of text, tables, pictures and scenes become one HTML file that needs
nothing else.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from PIL import Image

from kdlib import records
from kdlib.errors import KdlibError
from kdlib.lab.parts import Words, cell_text
from kdlib.types import Json
from kdlib.viz import canvas
from kdlib.viz.interactive import CONTENT_POLICY, figure_html, plotly_script

MAX_BYTES = 15_000_000
# of a picture on the page: its letters come out a little smaller than the text's
_PIXELS_PER_INCH = 104
_BANNER = (
    "Simulated data: every number below was measured on simulated street scenes and says "
    "nothing about real traffic."
)


class ReportError(KdlibError):
    """A report that cannot be written."""


def render_page(template: str, **values: Any) -> str:
    """Return a page made from a template, named by its path in the package; whatever is put into
    HTML is escaped.
    """
    return _templates().get_template(template).render(**values)


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1]),
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "rich": _rich,
        "cell": cell_text,
        "kinds": _kinds,
        "paragraphs": _paragraphs,
    }
    return templates


def _rich(words: Any) -> Markup:
    """Escape everything, then turn `code` between backticks into code."""
    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(words))))


def write_report(
    path: Path, parts: Sequence[Json], *, simulated: bool = False, **cover: Any
) -> Path:
    """Write one self-contained ``report.html``: no network, pictures inside, plotly.js once where a
    scene needs it.

    Args:
        path: The file to write; an earlier one is replaced only when the new one is complete.
        parts: Chapters in order, as :func:`kdlib.lab.parts.part` makes them, but pictures with
            their whole path.
        simulated: Whether the banner says so.
        cover: ``title`` and ``subtitle``; ``tiles``, headline numbers: ``value``, ``label`` and
            ``role`` ('teacher', 'student' or nothing), which colours it; ``verdicts``, what was
            wanted (``wish``) and what came of it: ``result``, and ``met``, None where it was not
            measured; ``card``, what the numbers hold for.

    Raises:
        ReportError: If a picture cannot be read, or the page grows past 15 MB.
    """
    cover = {"title": "Distilling a LiDAR detector", **cover}
    scenes = any(
        picture["file"].endswith(".json") for part in parts for picture in part["pictures"]
    )
    cover |= {
        "script": Markup(plotly_script()) if scenes else "",
        "banner": _BANNER if simulated else "",
    }
    for colors in (None, 256):  # pictures lose colours only where the page would be too large
        figure = partial(_figure, colors=colors)
        page = render_page(
            "lab/page.html", policy=CONTENT_POLICY, parts=parts, figure=figure, **cover
        ).encode()
        if len(page) <= MAX_BYTES:
            records.write_bytes(path, page)
            return path
    raise ReportError(
        f"{path}: {len(page) / 1e6:.0f} MB, more than {MAX_BYTES / 1e6:.0f}; show "
        "fewer scenes, points or pictures"
    )


def _paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in re.split(r"\n\s*\n", text.strip()) if paragraph]


def _kinds(rows: Sequence[Json]) -> dict[str, str]:
    """Return the class of each column: those of numbers (or nothing) are set right."""
    numbers = {int, float, type(None)}
    return {
        name: "number" if all(type(row[name]) in numbers for row in rows) else ""
        for name in rows[0]
    }


def _figure(picture: Words, colors: int | None) -> Json:
    path = Path(picture["file"])
    if path.suffix == ".json":
        import plotly.io

        return {"scene": Markup(figure_html(plotly.io.read_json(path)))}
    png, pixels = packed_png(path, colors)
    return {
        "width": round(pixels / canvas.DPI * _PIXELS_PER_INCH),
        "png": base64.b64encode(png).decode(),
    }


def packed_png(
    path: Path, colors: int | None = None, widest: int | None = None
) -> tuple[bytes, int]:
    """Return a picture packed tightly, with fewer colours or pixels where wanted, and its width;
    ReportError if it is no PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            picture = image.convert("RGB")
    except OSError as error:
        raise ReportError(
            f"picture {path} cannot be read as PNG ({error}); draw it again"
        ) from error
    if widest:
        picture.thumbnail((widest, picture.height), Image.Resampling.LANCZOS)
    if colors:
        picture = picture.quantize(
            colors, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue(), picture.width
