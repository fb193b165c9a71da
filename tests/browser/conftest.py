"""A headless Chromium and a run to look at; without either, the tests are skipped and say why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SOFTWARE = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)
PATIENCE = 120_000  # milliseconds; only a busy machine needs more than a few seconds


@pytest.fixture(scope="session")
def cameras() -> Callable[[Any], list[str]]:
    """A function: how the cameras of the two halves stand that a page or frame shows."""

    def both(frame: Any) -> list[str]:
        script = (
            "plot => [plot.layout.scene, plot.layout.scene2].map(scene => "
            "JSON.stringify(scene.camera))"
        )
        return list(frame.eval_on_selector(".js-plotly-plot", script))

    return both


@pytest.fixture()
def drag(page: Any) -> Callable[..., None]:
    """A function that moves the mouse over a view, from the middle or from another share of its
    width, the button held.
    """

    def move(element: Any, across: float = 0.5) -> None:
        box = element.bounding_box()
        x, y = box["x"] + across * box["width"], box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 90, y + 25, steps=6)
        page.mouse.up()

    return move


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, or the one KDLIB_CHROMIUM names, drawing 3D in software."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'"
    )
    binary = os.environ.get("KDLIB_CHROMIUM") or next(
        (path for name in NAMES if (path := shutil.which(name))), None
    )
    if binary is None:
        pytest.skip(
            "needs Chromium: apt-get install chromium, or set KDLIB_CHROMIUM to a browser's path"
        )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=SOFTWARE)
        yield browser
        browser.close()


@pytest.fixture()
def page(chromium: Any) -> Iterator[Any]:
    """A fresh page as large as a laptop's screen."""
    context = chromium.new_context(viewport={"width": 1366, "height": 768})
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()
