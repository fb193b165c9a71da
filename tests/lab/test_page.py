from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from kdlib.lab import page
from kdlib.lab.page import Cover, Picture, ReportError, Section, Table, Tile, Verdict, write_report
from kdlib.viz import canvas
from kdlib.viz.interactive import scene_figure
from kdlib.viz.scores import Estimate, draw_arms

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
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")]
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture()
def figure():
    return draw_arms([Estimate("alone", 1.0, 0.5, 1.5)])


def test_report_is_one_file_that_loads_nothing(tmp_path, figure, cloud, layers) -> None:
    png = tmp_path / "a.png"
    png.write_bytes(canvas.to_png(figure))
    scene = scene_figure(cloud, layers, point_budget=200)
    pictures = (Picture(figure, "drawn"), Picture(png), Picture(png.read_bytes()), Picture(scene, "turn it"), Picture(scene))
    path = write_report(tmp_path / "report.html", [Section("Pictures", "Some text.", pictures)])
    text = path.read_text()
    shown = Page(text)
    assert not shown.open and path.stat().st_size < page.MAX_BYTES
    assert all(load.startswith(("data:image/png;base64,", "#s")) for load in shown.loads)
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"https?://|@import|url\(", outside)
    assert text.count("<script>/**") == 1 and text.count("Plotly.newPlot(") >= 2
    images = [load for load in shown.loads if load.startswith("data:")]
    assert len(images) == 3 and all(base64.b64decode(image.split(",")[1]).startswith(b"\x89PNG") for image in images)


def test_without_a_scene_there_is_no_script(tmp_path, figure) -> None:
    path = write_report(tmp_path / "r.html", [Section("A", figures=(Picture(figure),))])
    assert Page(path.read_text()).scripts == 0 and path.stat().st_size < 200_000


def test_every_text_is_escaped(tmp_path, figure) -> None:
    cover = Cover(EVIL, EVIL, True, (Tile(EVIL, EVIL, EVIL),), (Verdict(EVIL, EVIL, True),), {EVIL: EVIL})
    table = Table((EVIL, "b"), ((EVIL, 1.0),), EVIL)
    text = write_report(tmp_path / "r.html", [Section(EVIL, EVIL, (Picture(figure, EVIL),), (table,))], cover=cover).read_text()
    shown = Page(text)
    assert shown.scripts == 0 and not shown.open and "alert(&#x27;1&#x27;)" in text


def test_html_of_our_own_goes_in_as_it_is(tmp_path) -> None:
    text = write_report(tmp_path / "r.html", [Section("A", html="<p id='mine'>x</p>")]).read_text()
    assert "<p id='mine'>x</p></section>" in text


def test_cover_says_what_was_met_and_that_data_is_simulated(tmp_path) -> None:
    verdicts = (Verdict("a", "yes", True), Verdict("b", "no", False), Verdict("c", "no GPU", None))
    cover = Cover("Run", "with `code`", True, (Tile("62.4", "teacher", "teacher"),), verdicts, {"CPU": "2 cores"})
    text = write_report(tmp_path / "r.html", [], cover=cover).read_text()
    for part in ("✓ met", "✗ not met", "– not measured", page.SIMULATED, "<code>code</code>", "<dt>CPU</dt><dd>2 cores</dd>"):
        assert part in text
    assert page.SIMULATED not in write_report(tmp_path / "s.html", []).read_text()


def test_tables_set_numbers_right(tmp_path) -> None:
    rows = (("teacher", 5_200_000, 62.4, None, True), ("student", 1_400_000, float("nan"), "+1.2", False))
    table = Table(("model", "params", "mAPH", "gain", "shipped"), rows, digits=1, strong=(1,))
    text = write_report(tmp_path / "r.html", [Section("A", "One.\n\nTwo.", tables=(table,))]).read_text()
    assert '<td class="number">5,200,000</td><td class="number">62.4</td><td class="number">–</td><td>yes</td>' in text
    assert "<tr class=strong><td>student</td>" in text and "<p>One.</p><p>Two.</p>" in text
    with pytest.raises(ReportError, match="a row has 1 cells, its header 2"):
        write_report(tmp_path / "r.html", [Section("A", tables=(Table(("a", "b"), (("x",),)),))])


def test_bad_pictures_leave_the_earlier_report(tmp_path) -> None:
    path = write_report(tmp_path / "r.html", [Section("first")])
    before = path.read_bytes()
    with pytest.raises(ReportError, match=r"none\.png cannot be read"):
        write_report(path, [Section("A", figures=(Picture(tmp_path / "none.png"),))])
    with pytest.raises(ReportError, match="must be a matplotlib or plotly figure"):
        write_report(path, [Section("A", figures=(Picture(b"GIF89a"),))])
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["r.html"]


def test_large_pages_lose_colours_before_they_fail(tmp_path, monkeypatch) -> None:
    noise = canvas.new_figure(2, 2)
    noise.figimage(np.random.default_rng(0).random((300, 300, 3)))
    section = Section("A", figures=(Picture(noise),))
    full = write_report(tmp_path / "a.html", [section]).stat().st_size
    monkeypatch.setattr(page, "MAX_BYTES", full - 30_000)
    assert write_report(tmp_path / "b.html", [section]).stat().st_size < full - 30_000
    monkeypatch.setattr(page, "MAX_BYTES", 10_000)
    with pytest.raises(ReportError, match="show fewer scenes"):
        write_report(tmp_path / "c.html", [section])
