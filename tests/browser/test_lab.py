"""Notebook 04 as a reader meets it: JupyterLab in a real browser, all cells run, a slider moved, a
layer switched.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdlib import records
from kdlib.lab.folders import NOTEBOOKS
from kdlib.lab.pipeline import Run

pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.timeout(900)]
NAME = "04_visualize_3d.ipynb"


@pytest.fixture(scope="module")
def address(smoke_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab that has notebook 04, with the parameters of a smoke run, and
    asks for no token.
    """
    pytest.importorskip("jupyterlab", reason="needs JupyterLab: pip install jupyterlab")
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install nbformat")
    root = tmp_path_factory.mktemp("lab")
    run = root / "smoke"
    shutil.copytree(smoke_run.folder, run)
    notebook = nbformat.read(NOTEBOOKS / NAME, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    cell.source += (
        f'\nPROFILE = "smoke"\nRUN_DIR = {str(run)!r}\nDATA_ROOT = '
        f"{str(smoke_run.data)!r}\nSCORE_THRESHOLD = 0.1"
    )
    nbformat.write(notebook, root / NAME)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        f"--ServerApp.root_dir={root}",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.ip=127.0.0.1",
    ]
    options += [
        "--no-browser",
        "--allow-root",
        "--IdentityProvider.token=",
        "--ServerApp.disable_check_xsrf=True",
    ]
    homes = {
        f"JUPYTER_{kind}_DIR": str(root / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")
    }
    quiet(root)
    environment = {
        **os.environ,
        **homes,
        "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"),
        "OMP_NUM_THREADS": "1",
    }
    with (root / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(server, f"http://127.0.0.1:{port}/api", root / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()


def quiet(root: Path) -> None:
    """Without its two questions: whether to build itself anew (for an extension of open3d's
    dependency dash), and about news.
    """
    answers = {
        "config/labconfig/page_config.json": {"buildCheck": False, "buildAvailable": False},
        "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
            "fetchNews": "false",
            "checkForUpdates": False,
        },
    }
    for name, values in answers.items():
        records.write_json(root / name, values)


def wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(
        f"JupyterLab did not answer within two minutes:\n{log.read_text()[-3000:]}"
    )


def run_all(page: Any) -> None:
    """Run every cell, not before the kernel is there: JupyterLab would ask for one instead."""
    page.locator("#jp-main-statusbar").get_by_text(re.compile(r"Python 3 .*\| Idle")).wait_for()
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click("li[data-command='runmenu:run-all']")
    page.wait_for_selector(".kdlib-picture, .jp-Dialog")
    asked = page.locator(".jp-Dialog").all_inner_texts()
    assert not asked, f"JupyterLab asks: {asked}"


def changed(page: Any, before: str) -> str:
    """Wait until the picture from above is another one, and return it."""
    script = (
        "old => { const i = document.querySelector('.kdlib-picture'); return i && "
        "i.naturalWidth > 300 && i.src !== old; }"
    )
    page.wait_for_function(script, arg=before)
    return str(page.eval_on_selector(".kdlib-picture", "image => image.src"))


def test_notebook_04_answers_to_slider_layer_and_mouse(
    address: str, page: Any, tmp_path: Path, cameras: Any, drag: Any
) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}/lab/tree/{NAME}", wait_until="commit")
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
    run_all(page)
    first = changed(page, "")

    slider = page.locator(".widget-slider", has_text="frame").locator(".noUi-handle")
    slider.scroll_into_view_if_needed()
    slider.focus()
    page.keyboard.press(
        "ArrowRight" if slider.get_attribute("aria-valuenow") in ("0", "0.0") else "ArrowLeft"
    )
    second = changed(page, first)
    page.get_by_role("checkbox", name="ground truth").click()
    third = changed(page, second)
    page.get_by_role("button", name="heatmap").click()
    fourth = changed(page, third)
    assert len({first, second, third, fourth}) == 4

    page.get_by_role("button", name=re.compile("most misses")).click()
    page.get_by_text(re.compile("most misses, right, 1 of")).wait_for()
    space = page.locator("iframe[title='3D view']")
    space.scroll_into_view_if_needed()
    page.frame_locator("iframe[title='3D view']").locator("canvas").first.wait_for()
    frame = next(one for one in page.frames if one.query_selector("#kdlib-scene"))
    first, version = cameras(frame)[0], frame.get_attribute("#kdlib-scene", "data-version")
    drag(space, 0.25)
    frame.wait_for_function(
        "old => JSON.stringify(document.getElementById('kdlib-scene').layout.scene.camera) !== old",
        arg=first,
    )
    left, right = cameras(frame)
    assert left == right != first, "both views turn together"
    page.get_by_role("checkbox", name="misses").click()
    frame.wait_for_function(
        "old => document.getElementById('kdlib-scene').dataset.version > old", arg=version
    )
    assert cameras(frame) == [left, right], "the camera stays where the reader turned it"
    page.screenshot(path=tmp_path / "lab.png")
    assert not [
        text
        for text in page.locator(".jp-RenderedText[data-mime-type$='stderr']").all_inner_texts()
        if "Error" in text
    ]
    assert not errors
