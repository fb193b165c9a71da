"""The report as a reader meets it: opened from disk without any network, its 3D views turned with
the mouse.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdlib.lab import explore
from kdlib.lab.explore.studio import Studio
from kdlib.lab.page import write_report
from kdlib.lab.parts import part
from kdlib.lab.pipeline import Run
from kdlib.viz import interactive
from kdlib.viz.layers import Panel

pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def report(smoke_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chapter of a report that notebook 04 fills, made from a smoke run."""
    studio = Studio(smoke_run, threshold=0.1)
    view = studio.start(0)
    scene = explore.scene(smoke_run, 0)
    folder = tmp_path_factory.mktemp("report")
    studio.draw(view, folder / "browser.png")
    studio.scene(view).write_json(folder / "pair.json")
    interactive.scene_figure(scene.points, [Panel("", scene.layers)], point_budget=2000).write_json(
        folder / "scene.json"
    )
    captions = {
        str(folder / name): "Something." for name in ("browser.png", "pair.json", "scene.json")
    }
    return write_report(
        folder / "report.html", [part("Teacher and student", pictures=captions)], simulated=True
    )


def seen(element: Any) -> np.ndarray:
    with Image.open(io.BytesIO(element.screenshot())) as image:
        return np.asarray(image.convert("RGB"), float)


def turned(page: Any, drag: Any, element: Any, across: float = 0.5) -> bool:
    """Drag across a view, and say whether it then shows something else."""
    element.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    before = seen(element)
    assert before.std() > 3, "nothing is drawn"
    drag(element, across)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        page.wait_for_timeout(300)
        if (np.abs(seen(element) - before).max(axis=-1) > 20).mean() > 0.005:
            return True
    return False


def test_report_opens_without_network_and_turns(
    report: Path, page: Any, tmp_path: Path, cameras: Any, drag: Any
) -> None:
    asked: list[str] = []
    errors: list[str] = []
    page.context.set_offline(True)
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: errors.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    page.goto(report.as_uri(), wait_until="commit")
    page.wait_for_selector(".scene canvas")
    pair, alone = page.locator(".scene .js-plotly-plot").all()
    before = cameras(page)
    assert turned(page, drag, pair, 0.25), "the left half does not turn"
    left, right = cameras(page)
    assert left == right and before != [left, right], "the right half does not follow"
    assert turned(page, drag, pair, 0.75), "the right half does not turn"
    assert cameras(page)[0] == cameras(page)[1] != left, "the left half does not follow"
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert turned(page, drag, alone), "the scene of its own does not turn"
    assert not errors
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_page_of_the_pair_stands_alone(
    smoke_run: Run, page: Any, tmp_path: Path, cameras: Any
) -> None:
    studio = Studio(smoke_run, threshold=0.1)
    path = interactive.save_html(
        studio.scene(studio.start(0)), tmp_path / "pair.html", title="<pair>"
    )
    page.context.set_offline(True)
    page.goto(path.as_uri())
    page.wait_for_selector(".js-plotly-plot canvas")
    assert page.title() == "<pair>"
    before = cameras(page)
    page.get_by_text("above", exact=True).click()
    page.wait_for_timeout(300)
    after = cameras(page)
    assert after[0] == after[1] != before[0]
    page.locator(".legendtoggle").nth(1).click()
    page.wait_for_function(
        "document.querySelector('.js-plotly-plot').data.filter(trace => trace.visible === "
        "'legendonly').length === 2"
    )
