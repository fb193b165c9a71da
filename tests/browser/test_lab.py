"""Notebook 04 as a reader meets it: JupyterLab in a real browser, all cells run, a slider moved, a
layer switched.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kdlib.lab.folders import NOTEBOOKS, PROJECT
from kdlib.lab.pipeline import Run

pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.timeout(900)]
FIRST, NAME = "00_explore_data.ipynb", "04_visualize_3d.ipynb"


def parametrised(name: str, target: Path, parameters: str) -> None:
    """Copy a notebook, with lines behind its parameters, as a person would change them."""
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install nbformat")
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    cell.source += f"\n{parameters}"
    nbformat.write(notebook, target / name)


@contextmanager
def served(command: list[str], root: Path, homes: Path) -> Iterator[str]:
    """Start JupyterLab on a folder, for a person who never used it: no settings, no answers; yield
    its address.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        f"--ServerApp.root_dir={root}",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.ip=127.0.0.1",
        "--no-browser",
        "--allow-root",
        "--IdentityProvider.token=",
        "--ServerApp.disable_check_xsrf=True",
    ]
    kinds = ("CONFIG", "DATA", "RUNTIME")
    own = {f"JUPYTER_{kind}_DIR": str(homes / kind.lower()) for kind in kinds}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(homes / "settings"), "OMP_NUM_THREADS": "1"}
    words = [f"LAB_ARGS={' '.join(options)}"] if command[0] == "make" else options
    with (homes / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, *words],
            cwd=PROJECT,
            env={**os.environ, **own},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for(server, f"http://127.0.0.1:{port}/api", homes / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def lab_of(smoke_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A function: JupyterLab by a command, on copies of notebooks 00 and 04 with the parameters of
    a smoke run.
    """
    pytest.importorskip("jupyterlab", reason="needs JupyterLab: pip install jupyterlab")
    root = tmp_path_factory.mktemp("lab")
    run = root / "smoke"
    shutil.copytree(smoke_run.folder, run)
    where = f'PROFILE = "smoke"\nRUN_DIR = {str(run)!r}\nDATA_ROOT = {str(smoke_run.data)!r}'
    parametrised(FIRST, root, where)
    parametrised(NAME, root, f"{where}\nSCORE_THRESHOLD = 0.1")
    return lambda *command: served(list(command), root, tmp_path_factory.mktemp("homes"))


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


def run_all(page: Any, until: str = ".kdlib-picture") -> None:
    """Run every cell, not before the kernel is there: JupyterLab would ask for one instead."""
    page.locator("#jp-main-statusbar").get_by_text(re.compile(r"Python 3 .*\| Idle")).wait_for()
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click("li[data-command='runmenu:run-all']")
    page.wait_for_selector(f"{until}, .jp-Dialog")
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


QUESTIONS = ".jp-Dialog, .jp-toast-message, .Toastify__toast"


def test_make_lab_asks_nothing_and_notebook_00_runs(
    lab_of: Callable[..., Any], page: Any, tmp_path: Path
) -> None:
    if not (PROJECT / ".venv" / "bin" / "jupyter").is_file():
        pytest.skip("needs the environment that 'make lab' makes: .venv")
    with lab_of("make", "-o", ".venv/.installed", "lab") as address:
        page.goto(f"{address}/lab/tree/{FIRST}", wait_until="commit")
        page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
        page.wait_for_timeout(30_000)  # questions come late
        assert page.locator(QUESTIONS).all_inner_texts() == []
        page.screenshot(path=tmp_path / "opened.png")
        run_all(page, until=".jp-RenderedImage")
        page.wait_for_function(
            "() => document.querySelectorAll('.jp-RenderedImage img').length >= 2"
        )
        page.locator("#jp-main-statusbar").get_by_text(re.compile(r"\| Idle")).wait_for()
        assert not page.locator(".jp-RenderedText[data-mime-type$='error']").count()
        page.screenshot(path=tmp_path / "ran.png")


@pytest.fixture()
def address(lab_of: Callable[..., Any]) -> Iterator[str]:
    """The address of a plain ``jupyter lab`` of this environment."""
    with lab_of(sys.executable, "-m", "jupyterlab") as where:
        yield where


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
    page.locator(".kdlib-picture").scroll_into_view_if_needed()
    page.locator("iframe[title='3D view']").scroll_into_view_if_needed()
    shown = [slider, page.locator(".kdlib-picture"), page.locator("iframe[title='3D view']")]
    for one in shown:  # all of it on one screen
        box, height = one.bounding_box(), page.viewport_size["height"]
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, (one, box)
    slider.focus()
    page.keyboard.press(
        "ArrowRight" if slider.get_attribute("aria-valuenow") in ("0", "0.0") else "ArrowLeft"
    )
    second = changed(page, first)
    page.get_by_role("checkbox", name="ground truth").click()
    third = changed(page, second)
    page.get_by_label("map").select_option("heatmap")
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
