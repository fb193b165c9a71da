"""The notebooks: short cells that call the package, and the whole chain once, headless, from
another folder.
"""

from __future__ import annotations

import ast
import html
import json
import math
import re
import shlex
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdlib import records
from kdlib.errors import DataError
from kdlib.lab import comparison, explore, pipeline, scoring
from kdlib.lab.profile import ABLATIONS, CROSS_STAGE
from kdlib.lab.profile import MAIN_LINE as CHAIN
from kdlib.models.weights import read_card
from kdlib.profiling import published

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 25  # lines

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook: Path, kind: str) -> list[str]:
    return [
        "".join(cell["source"])
        for cell in json.loads(notebook.read_text())["cells"]
        if cell["cell_type"] == kind
    ]


@every_notebook
def test_name_is_a_number_a_verb_and_an_object(notebook: Path) -> None:
    assert re.fullmatch(r"\d\d(_[a-z0-9]+)+", notebook.stem)
    if notebook.stem in CROSS_STAGE:  # a chain of its own
        assert notebook.stem[:2] == "07"
        return
    # 00 to 09 the main line, 11 to 19 ablations
    tens = ABLATIONS if notebook.stem in ABLATIONS else CHAIN
    assert (
        notebook.stem[:2] == f"{tens.index(notebook.stem) + (11 if tens is ABLATIONS else 0):02d}"
    )


@every_notebook
def test_cells_are_short_and_call_the_package(notebook: Path) -> None:
    for code in cells(notebook, "code"):
        assert 0 < len(code.splitlines()) <= LONGEST_CELL
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, definitions)]


@every_notebook
def test_text_says_why(notebook: Path) -> None:
    text = cells(notebook, "markdown")
    assert text[0].startswith(f"# {notebook.stem[:2]} · ") and "**Question:**" in text[0]
    assert len(text) >= 2


@every_notebook
def test_last_cell_hands_over_the_result(notebook: Path) -> None:
    last = cells(notebook, "code")[-1]
    assert f'pipeline.save_result(run, "{notebook.stem}"' in re.sub(r"\(\s+", "(", last)


@every_notebook
def test_nothing_executed_is_kept(notebook: Path) -> None:
    for cell in json.loads(notebook.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.fixture(scope="module")
def chain(headless: Any) -> Any:
    """``python -m kdlib run smoke``; all later tests look at it."""
    return headless("smoke", "a run", TEACHER="shipped", SEEDS="1,2", REPEATS=2)


PROMISED = {
    "00_explore_data": {"fingerprint", "renderer", "overview", "difficulty"},
    "01_train_teacher": {
        "weights",
        "origin",
        "model",
        "scores",
        "metrics",
        "evaluation",
        "steps",
        "final",
    },
    "02_distill_student": {"budget", "students", "terms"},
    "03_evaluate": {
        "metric",
        "comparison",
        "arms",
        "differences",
        "verdicts",
        "metrics",
        "evaluation",
    },
    "04_visualize_3d": {"frame", "threshold", "renderer"},
    "05_measure_cost": {"hardware", "costs", "family"},
}


def marked(test: Any) -> Any:
    """The first of these tests pays for the chain: minutes on a busy machine."""
    return pytest.mark.notebooks(pytest.mark.timeout(1800)(test))


@marked
def test_every_stage_hands_over_what_it_promised(chain: Any) -> None:
    assert set(PROMISED) == set(CHAIN)
    for stage, keys in PROMISED.items():
        values = chain.result(stage)
        assert keys <= set(values), stage
        assert (values["profile"], values["simulated"]) == ("smoke", True)
        assert set(values["card"]) >= {"versions", "commit", "hardware"}
        assert (chain.folder / stage / records.COMPLETE).is_file()
        assert f"{stage}: done in" in chain.printed
    whole = records.read_json(chain.folder / "result.json")
    assert set(whole) == {"profile", *CHAIN}


@marked
def test_report_and_cards_name_the_command_that_was_typed(chain: Any) -> None:
    typed = shlex.join(["python", "-m", "kdlib", *chain.command[3:]])
    assert "-p TEACHER=shipped -p SEEDS=1,2" in typed
    assert {chain.result(stage)["card"]["command"] for stage in CHAIN} == {typed}
    assert typed in html.unescape((chain.folder / "report.html").read_text())
    weights = chain.folder / "students" / "full_seed1" / "weights.safetensors"
    assert read_card(weights)["command"] == typed


@marked
def test_a_run_that_was_copied_opens_elsewhere(
    chain: Any, smoke_data: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(chain.folder, tmp_path / "laptop", ignore=shutil.ignore_patterns(".*"))
    for stage in CHAIN:
        assert str(chain.folder) not in json.dumps({**chain.result(stage), "card": {}}), stage
    run = pipeline.open_run("smoke", str(copy), str(smoke_data))
    found = comparison.compare_run(run, 50)
    assert found.to_dict()["arms"] == chain.result("03_evaluate")["arms"]
    named = [scoring.chosen_teacher(run), *scoring.trained_students(run).values()]
    assert all(trained.weights.is_relative_to(copy) for trained in named[1:])
    assert explore.studios(run)["laptop"]().start(0).frame == 0
    absent = pipeline.open_run("smoke", str(copy), str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=r"nothing holds no finished store; .* as DATA_ROOT"):
        comparison.compare_run(absent, 50)


@marked
def test_training_went_on_from_the_shipped_teacher(chain: Any) -> None:
    values = chain.result("01_train_teacher")
    assert (values["origin"], values["model"]) == ("shipped", "cp_pillar_demo")
    assert values["weights"] == "data/weights/cp_pillar_demo.safetensors"
    assert values["steps"] == 2 and math.isfinite(values["final"]["loss"])


@marked
def test_students_share_one_budget_and_have_finite_losses(chain: Any) -> None:
    values = chain.result("02_distill_student")
    assert [(row["arm"], row["seed"]) for row in values["students"]] == [
        (arm, seed) for seed in (1, 2) for arm in ("alone", "init", "full")
    ]
    for row in values["students"]:
        assert math.isfinite(row["final"]["loss"]) and row["steps"] == values["budget"]["steps"]
        assert (chain.folder / row["weights"]).is_file()
    assert all(
        term["value"] is not None and math.isfinite(term["value"]) for term in values["terms"]
    )
    full = [row for row in values["students"] if row["arm"] == "full"]
    assert len(full[0]["final"]["parts"]) > 2, "distillation adds terms"


@marked
def test_scores_are_probabilities_and_the_teacher_can_see(chain: Any) -> None:
    values = chain.result("03_evaluate")
    found = [
        values["metrics"]["teacher"],
        *(m for arm in ("alone", "init", "full") for m in values["metrics"][arm].values()),
    ]
    assert len(found) == 7
    assert all(0 <= value <= 1 for metrics in found for value in metrics.values())
    assert values["metrics"]["teacher"]["LEVEL_2/mAPH"] > 0.3
    assert values["arms"][0]["arm"] == "teacher" and len(values["verdicts"]) == 3
    assert values["comparison"]["resamples"] == 50 and values["evaluation"]["frames"] == 8


@marked
def test_costs_are_counted(chain: Any) -> None:
    values = chain.result("05_measure_cost")
    teacher, student = values["costs"]
    assert (teacher["role"], student["role"]) == ("teacher", "student")
    assert teacher["G MACs"] > 3 * student["G MACs"] > 0
    assert len(values["family"]) == len(published.PUBLISHED_MODELS) == 10


@marked
def test_pictures_show_something(chain: Any) -> None:
    pictures = {
        "00_explore_data": ("bev", "scene"),
        "01_train_teacher": ("training",),
        "02_distill_student": ("pivotal", "training"),
        "03_evaluate": ("arms", "change", "precision_recall"),
        "04_visualize_3d": ("comparison", "browser", "scene"),
        "05_measure_cost": ("accuracy_cost",),
    }
    for stage, names in pictures.items():
        for name in names:
            with Image.open(chain.folder / stage / f"{name}.png") as image:
                values = np.asarray(image.convert("L"), float)
            assert min(values.shape) >= 200 and values.std() > 5, f"{stage}/{name}.png is blank"


def addresses(page: str) -> list[str]:
    """What a page would load or lead to, but for what lies inside it; the text of scripts is no
    markup.
    """
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(
                value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
            )

    Reader().feed(page)
    return [address for address in found if not address.startswith(("data:", "#"))]


@marked
def test_report_stands_alone_and_says_what_it_is(chain: Any) -> None:
    page = (chain.folder / "report.html").read_text()
    assert addresses(page) == []
    assert "Simulated data" in page and "Content-Security-Policy" in page
    assert page.count("data:image/png;base64,") >= 10 and "plotly" in page
    assert page.count('class="mark"') == 3
    assert 0.2e6 < len(page) < 15e6
    scene = (chain.folder / "04_visualize_3d" / "scene.html").read_text()
    assert "aspectmode" in scene and addresses(scene) == []


@marked
def test_executed_notebooks_have_static_pictures_and_no_flood(chain: Any) -> None:
    for stage in CHAIN:
        path = chain.folder / f"{stage}.ipynb"
        assert path.stat().st_size < 8e6
        outputs = [
            output
            for cell in json.loads(path.read_text())["cells"]
            for output in cell.get("outputs", ())
        ]
        assert not [output for output in outputs if output["output_type"] == "error"]
        lines = [
            line
            for output in outputs
            if output["output_type"] == "stream"
            for line in output["text"]
        ]
        assert len(lines) < 300, f"{stage} printed {len(lines)} lines"
        kinds = [set(output.get("data", ())) for output in outputs]
        if any("application/vnd.jupyter.widget-view+json" in kind for kind in kinds):
            assert any("image/png" in kind for kind in kinds), f"{stage} shows widgets only"


@marked
def test_a_second_call_does_no_work_twice(chain: Any) -> None:
    watched = [
        path for path in chain.folder.rglob("*") if path.is_file() and path.parent != chain.folder
    ]
    before = {path: path.stat().st_mtime_ns for path in watched}
    start = time.monotonic()
    done = chain.again()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": kept from an earlier run") == len(CHAIN)
    assert ": running" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in watched} == before
    assert time.monotonic() - start < 60


@marked
def test_nothing_is_written_elsewhere(chain: Any) -> None:
    assert [path.name for path in chain.cwd.iterdir()] == ["a run"]
