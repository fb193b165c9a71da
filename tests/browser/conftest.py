"""A headless Chromium and a run to look at; without either, the tests are skipped and say why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SOFTWARE = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
PATIENCE = 120_000  # milliseconds; only a busy machine needs more than a few seconds


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, or the one KDLIB_CHROMIUM names, drawing 3D in software."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")
    binary = os.environ.get("KDLIB_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if binary is None:
        pytest.skip("needs Chromium: apt-get install chromium, or set KDLIB_CHROMIUM to a browser's path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=SOFTWARE)
        yield browser
        browser.close()


@pytest.fixture()
def page(chromium: Any) -> Iterator[Any]:
    """A fresh page as large as a laptop's screen."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()
