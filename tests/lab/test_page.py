from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from kdlib.lab import page
from kdlib.lab.page import ReportError, write_report
from kdlib.viz import canvas
from kdlib.viz.curves import Estimate, draw_arms

VOID = {"meta", "img", "br", "link", "input", "hr"}
EVIL = "<script>alert('1')</script> & \"quotes\""


class Page(HTMLParser):
    """What a browser would load, and whether the tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.scripts, self.open = 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loads += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "srcset", "data", "action", "poster")
        ]
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def chapter(
    title: str, text: str = "", *, table: dict[str, Any] | None = None, **pictures: str | Path
) -> dict[str, Any]:
    shown = [{"file": str(path), "caption": caption} for caption, path in pictures.items()]
    return {
        "title": title,
        "text": text,
        "sentences": [],
        "tables": [table] if table else [],
        "pictures": shown,
    }


@pytest.fixture()
def png(tmp_path: Path) -> Path:
    path = tmp_path / "pictures" / "a.png"
    path.parent.mkdir()
    path.write_bytes(canvas.to_png(draw_arms([Estimate("alone", 1.0, 0.5, 1.5)])))
    return path


def test_report_is_one_file_that_loads_nothing(tmp_path, png) -> None:
    scene = tmp_path / "scene.json"
    go.Figure(go.Scatter3d(x=[1], y=[2], z=[3])).write_json(scene)
    part = chapter("Pictures", "Some text.", drawn=png, again=png, turned=scene, twice=scene)
    path = write_report(tmp_path / "report.html", [part])
    text = path.read_text()
    shown = Page(text)
    assert not shown.open and path.stat().st_size < page.MAX_BYTES
    assert all(load.startswith(("data:image/png;base64,", "#s")) for load in shown.loads)
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"https?://|@import|url\(", outside)
    assert text.count("<script>/**") == 1 and text.count("Plotly.newPlot(") >= 2
    images = [load for load in shown.loads if load.startswith("data:")]
    assert len(images) == 2 and all(
        base64.b64decode(image.split(",")[1]).startswith(b"\x89PNG") for image in images
    )


def test_without_a_scene_there_is_no_script(tmp_path, png) -> None:
    path = write_report(tmp_path / "r.html", [chapter("A", a=png)])
    assert Page(path.read_text()).scripts == 0 and path.stat().st_size < 200_000


def test_every_text_is_escaped(tmp_path, png) -> None:
    table = {"caption": EVIL, "rows": [{EVIL: EVIL, "b": 1.0}]}
    part = {**chapter(EVIL, EVIL, table=table, **{EVIL: png}), "sentences": [EVIL]}
    cover = {
        "tiles": [{"value": EVIL, "label": EVIL, "role": EVIL}],
        "verdicts": [{"wish": EVIL, "result": EVIL, "met": True}],
        "card": {EVIL: EVIL},
    }
    text = write_report(
        tmp_path / "r.html", [part], title=EVIL, subtitle=EVIL, simulated=True, **cover
    ).read_text()
    shown = Page(text)
    assert shown.scripts == 0 and not shown.open and text.count("alert(&#39;1&#39;)") == 19, (
        "every place it stands in"
    )


def test_cover_says_what_was_met_and_that_data_is_simulated(tmp_path) -> None:
    verdicts = [
        {"wish": wish, "result": "so", "met": met}
        for wish, met in (("a", True), ("b", False), ("c", None))
    ]
    tiles = [{"value": "62.4", "label": "teacher", "role": "teacher"}]
    cover = {
        "title": "Run",
        "subtitle": "with `code`",
        "tiles": tiles,
        "verdicts": verdicts,
        "card": {"CPU": "2 cores"},
    }
    text = write_report(tmp_path / "r.html", [], simulated=True, **cover).read_text()
    for part in (
        "✓ met",
        "✗ not met",
        "– not measured",
        "Simulated data: ",
        "<code>code</code>",
        "<dt>CPU</dt><dd>2 cores</dd>",
    ):
        assert part in text
    assert "Simulated data: " not in write_report(tmp_path / "s.html", []).read_text()


def test_tables_set_numbers_right(tmp_path) -> None:
    names = ("model", "params", "mAPH", "gain", "shipped")
    cells = (
        ("teacher", 5_200_000, 62.4, None, True),
        ("student", 1_400_000, float("nan"), 1.2, False),
    )
    table = {"caption": "", "rows": [dict(zip(names, row)) for row in cells]}
    text = write_report(
        tmp_path / "r.html", [chapter("A", "One.\n\nTwo.", table=table)]
    ).read_text()
    assert (
        '<td class="number">5,200,000</td><td class="number">62.40</td><td '
        'class="number">–</td><td class="">yes</td>'
    ) in text
    assert "<p>One.</p><p>Two.</p>" in text


def test_bad_pictures_leave_the_earlier_report(tmp_path) -> None:
    path = write_report(tmp_path / "r.html", [chapter("first")])
    before = path.read_bytes()
    with pytest.raises(ReportError, match=r"none\.png cannot be read as PNG"):
        write_report(path, [chapter("A", a=tmp_path / "none.png")])
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    with pytest.raises(ReportError, match=r"a\.png cannot be read as PNG"):
        write_report(path, [chapter("A", a=tmp_path / "a.png")])
    assert path.read_bytes() == before and {file.name for file in tmp_path.iterdir()} == {
        "r.html",
        "a.png",
    }


def test_large_pages_lose_colours_before_they_fail(tmp_path, monkeypatch) -> None:
    noise = canvas.new_figure(2, 2)
    noise.figimage(np.random.default_rng(0).random((300, 300, 3)))
    (tmp_path / "noise.png").write_bytes(canvas.to_png(noise))
    part = chapter("A", a=tmp_path / "noise.png")
    full = write_report(tmp_path / "a.html", [part]).stat().st_size
    monkeypatch.setattr(page, "MAX_BYTES", full - 30_000)
    assert write_report(tmp_path / "b.html", [part]).stat().st_size < full - 30_000
    monkeypatch.setattr(page, "MAX_BYTES", 10_000)
    with pytest.raises(ReportError, match="show fewer scenes"):
        write_report(tmp_path / "c.html", [part])
