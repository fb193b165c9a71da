"""The report of a run: sections of text, tables, pictures and scenes in, one HTML file that needs nothing else out."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kdlib.errors import KdlibError
from kdlib.lab.page_style import STYLE
from kdlib.viz import canvas
from kdlib.viz.interactive import CONTENT_POLICY, figure_html, plotly_script

MAX_BYTES = 15_000_000
_PIXELS_PER_INCH = 104  # of a picture on the page: its letters come out a little smaller than the text's
SIMULATED = "Simulated data: every number below was measured on simulated street scenes and says nothing about real traffic."


class ReportError(KdlibError):
    """A report that cannot be written."""


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure, PNG bytes or a PNG file, or a plotly figure, with its caption."""

    source: Any
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Cells of text or numbers; numbers are set right, floats with ``digits`` decimals, None as a dash."""

    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str = ""
    digits: int = 2
    strong: tuple[int, ...] = ()  # rows to emphasise


@dataclass(frozen=True)
class Section:
    """One chapter. ``text`` is plain: blank lines separate paragraphs, backticks mark code, all else is escaped."""

    title: str
    text: str = ""
    figures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    html: str = ""  # inserted as it is: only for markup made by kdlib itself


@dataclass(frozen=True)
class Tile:
    """A headline number; ``role`` colours it: 'teacher', 'student', 'truth' or nothing."""

    value: str
    label: str
    role: str = ""


@dataclass(frozen=True)
class Verdict:
    """A wish and what came of it, in plain words; ``met`` None means that it was not measured."""

    wish: str
    result: str
    met: bool | None


@dataclass(frozen=True)
class Cover:
    """What stands above the sections."""

    title: str = "Distilling a LiDAR detector"
    subtitle: str = ""
    simulated: bool = False
    tiles: tuple[Tile, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)  # hardware, seeds, frames, hashes: what the numbers hold for


def write_report(path: str | Path, sections: Sequence[Section], *, cover: Cover | None = None) -> Path:
    """Write one self-contained ``report.html``: no network, pictures inside, plotly.js once where a scene needs it.

    Args:
        path: The file to write; an earlier one is replaced only when the new one is complete.
        sections: Chapters in order.
        cover: Title, banner, headline numbers, verdicts and the card of the numbers.

    Returns:
        The path.

    Raises:
        ReportError: If a picture cannot be read, a table's row has the wrong length, or the page grows past 15 MB.
    """
    cover = cover or Cover()
    names = [section.title for section in sections] + (["What the numbers hold for"] if cover.card else [])
    anchors = [f"s{index}" for index in range(1, len(names) + 1)]
    scenes = any(_is_scene(picture.source) for section in sections for picture in section.figures)
    script = plotly_script() if scenes else ""
    for colors in (None, 256):  # pictures lose colours only where the page would be too large
        body = [_cover(cover)] + [_section(anchor, section, colors) for anchor, section in zip(anchors, sections)]
        if cover.card:
            body.append(f'<section id="{anchors[-1]}"><h2>{names[-1]}</h2>{_card(cover.card)}</section>')
        page = _page(cover, list(zip(anchors, names)), "".join(body), script).encode()
        if len(page) <= MAX_BYTES:
            return canvas.write_bytes(path, page)
    raise ReportError(f"{path}: {len(page) / 1e6:.0f} MB, more than {MAX_BYTES / 1e6:.0f}; show fewer scenes, points or pictures")


def _page(cover: Cover, links: Sequence[tuple[str, str]], body: str, script: str) -> str:
    contents = "".join(f'<a href="#{anchor}">{_text(name)}</a>' for anchor, name in links)
    banner = f'<div class="banner" role="note">{_text(SIMULATED)}</div>' if cover.simulated else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
        f"<title>{_text(cover.title)}</title><style>{STYLE}</style>{script}</head>\n"
        f'<body>{banner}<div class="page"><nav><p>Contents</p>{contents}</nav><main>{body}'
        "<footer>Written by kdlib. This file needs no network.</footer></main></div></body></html>\n"
    )


def _cover(cover: Cover) -> str:
    parts = [f"<h1>{_text(cover.title)}</h1>"]
    if cover.subtitle:
        parts.append(f'<p class="lead">{_rich(cover.subtitle)}</p>')
    if cover.tiles:
        parts.append(f'<div class="tiles">{"".join(map(_tile, cover.tiles))}</div>')
    if cover.verdicts:
        parts.append(f'<ul class="verdicts">{"".join(map(_verdict, cover.verdicts))}</ul>')
    return "".join(parts)


def _tile(tile: Tile) -> str:
    return f'<div class="tile {_text(tile.role)}"><b>{_text(tile.value)}</b><span>{_text(tile.label)}</span></div>'


def _verdict(verdict: Verdict) -> str:
    kind, mark = {True: ("met", "✓ met"), False: ("unmet", "✗ not met"), None: ("open", "– not measured")}[verdict.met]
    words = f"<div>{_rich(verdict.wish)}<small>{_rich(verdict.result)}</small></div>"
    return f'<li class="{kind}"><span class="mark">{mark}</span>{words}</li>'


def _section(anchor: str, section: Section, colors: int | None) -> str:
    paragraphs = "".join(f"<p>{_rich(part)}</p>" for part in re.split(r"\n\s*\n", section.text.strip()) if part)
    tables = "".join(map(_table, section.tables))
    figures = "".join(_figure(picture, colors) for picture in section.figures)
    return f'<section id="{anchor}"><h2>{_text(section.title)}</h2>{paragraphs}{tables}{figures}{section.html}</section>'


def _table(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.header):
            raise ReportError(f"table '{table.caption}': a row has {len(row)} cells, its header {len(table.header)}: {row}")
    numeric = [bool(table.rows) and all(_is_number(row[index]) for row in table.rows) for index in range(len(table.header))]
    kind = [' class="number"' if number else "" for number in numeric]
    head = "".join(f'<th scope="col"{kind[index]}>{_text(name)}</th>' for index, name in enumerate(table.header))
    lines = []
    for number, row in enumerate(table.rows):
        cells = "".join(f"<td{kind[index]}>{_cell(cell, table.digits)}</td>" for index, cell in enumerate(row))
        lines.append(f"<tr{' class=strong' if number in table.strong else ''}>{cells}</tr>")
    caption = f"<caption>{_rich(table.caption)}</caption>" if table.caption else ""
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _is_number(cell: Any) -> bool:
    if isinstance(cell, str):
        return bool(re.match(r"^[+\-−–±]?[\d,.]+", cell))
    return cell is None or (isinstance(cell, (int, float)) and not isinstance(cell, bool))


def _cell(cell: Any, digits: int) -> str:
    if cell is None or (isinstance(cell, float) and cell != cell):
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:,.{digits}f}" if isinstance(cell, float) else _rich(str(cell))


def _card(card: Mapping[str, Any]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_rich(str(value))}</dd>" for name, value in card.items()) + "</dl>"


def _figure(picture: Picture, colors: int | None) -> str:
    caption = f"<figcaption>{_rich(picture.caption)}</figcaption>" if picture.caption else ""
    if _is_scene(picture.source):
        return f'<figure><div class="scene">{figure_html(picture.source)}</div>{caption}</figure>'
    png, width = _small(_png(picture.source), colors)
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{_text(picture.caption)}" width="{width}" src="data:image/png;base64,{data}">{caption}</figure>'


def _is_scene(source: Any) -> bool:
    return hasattr(source, "to_plotly_json")


def _png(source: Any) -> bytes:
    if isinstance(source, Figure):
        return canvas.to_png(source)
    if isinstance(source, (str, Path)):
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise ReportError(f"picture {source} cannot be read ({error.strerror}); draw it again") from error
    if not isinstance(source, bytes) or not source.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ReportError("a picture must be a matplotlib or plotly figure, PNG bytes or the path of a PNG file")
    return source


def _small(png: bytes, colors: int | None) -> tuple[bytes, int]:
    """Return the PNG packed tighter, with fewer colours where wanted, and its width on the page."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        packed, width = image.convert("RGB"), round(image.width / canvas.DPI * _PIXELS_PER_INCH)
    if colors:
        packed = packed.quantize(colors, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    packed.save(buffer, format="PNG", optimize=True)
    return min(png, buffer.getvalue(), key=len), width


def _text(words: str) -> str:
    return html.escape(str(words), quote=True)


def _rich(words: str) -> str:
    """Escape everything, then turn `code` between backticks into code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", _text(words))
