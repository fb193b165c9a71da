"""What the READMEs say is what the project does: tables, pictures, links and commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from kdlib import records, zoo
from kdlib.cli import app
from kdlib.lab.publish import BEGIN, END, results_table, with_results
from kdlib.profiling import published
from kdlib.types import Batch, GroundTruth, PointBatch

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "reports/README.md", "notebooks/README.md", "data/README.md")


RUNS = sorted(
    path.parent.name
    for path in (ROOT / "reports").glob("*/result.json")
    if path.parent.name != "runs"
)


@pytest.mark.parametrize("page", ["README.md", "reports/README.md"])
def test_results_are_those_of_the_committed_runs(page):
    text = (ROOT / page).read_text()
    shown = re.findall(r"results of reports/(\w+)/result.json", text)
    assert shown == RUNS if page.startswith("reports") else "demo" in shown
    for profile in shown:
        result = json.loads((ROOT / f"reports/{profile}/result.json").read_text())
        block = text.partition(BEGIN.format(profile=profile))[2].partition(END)[0].strip()
        assert block == results_table(result)
        assert with_results(text, block, profile, page) == text


@pytest.mark.parametrize("profile", RUNS)
def test_the_committed_run_is_simulated_and_names_no_machine(profile):
    text = (ROOT / f"reports/{profile}/result.json").read_text()
    assert json.loads(text)["03_evaluate"]["simulated"] is True
    assert not re.findall(r'"/[a-z]+/[^"]*"', text), "absolute paths"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def options(words: list[str]) -> set[str]:
    """The options of a verb, or of the measurement that ``bench`` names."""
    command = get_command(app)
    while words and words[0] in getattr(command, "commands", ()):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    return {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page):
    text = (ROOT / page).read_text()
    verbs = set(get_command(app).commands)  # type: ignore[attr-defined]
    for command in re.findall(r"-m kdlib ([a-z][^`#|\n]*)", text):
        words = command.split()
        assert words[0] in verbs, command
        given = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", command))
        assert given <= options(words), command
    targets = set(re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), re.M))
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M):
        assert target in " ".join(targets).split(), target
    for name in set(re.findall(r"-p ([A-Z_]+)=", text)) - {"NAME"}:
        assert any(
            re.search(rf'"{name} = ', book.read_text())
            for book in (ROOT / "notebooks").glob("*.ipynb")
        ), name


@pytest.mark.long
def test_the_pieces_fit_together_as_written():
    block = (ROOT / "README.md").read_text().partition("## The pieces")[2]
    code = re.search(r"```python\n(.*?)```", block, re.S)[1]
    points = torch.rand(2000, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [60.0, 60.0, 3.0, 1.0, 1.0]
    )
    truth = GroundTruth(
        torch.tensor([[[20.0, 10.0, 1.0, 4.5, 2.0, 1.6, 0.3]]]), torch.tensor([[1]])
    )
    names = {
        "batch": Batch(PointBatch(points, torch.zeros(2000, dtype=torch.int64), 1, ("a",)), truth)
    }
    torch.manual_seed(0)
    exec(code, names)
    assert names["terms"].loss.isfinite() and set(names["terms"].parts) >= {
        "heatmap",
        "box",
        "kd_heatmap",
    }


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_loss_of_ones_own_trains_by_the_readmes_command(smoke_data: Path, tmp_path: Path) -> None:
    """From a folder outside the checkout, with nothing there but the file the page shows."""
    section = (ROOT / "README.md").read_text().partition("## A distillation term of your own")[2]
    file, code = re.search(r"`(\w+\.py)`.*?```python\n(.*?)```", section, re.S).groups()
    words = re.search(r"^python (-m kdlib run .*?) +#", section, re.M)[1].split()
    (tmp_path / file).write_text(code)
    done = subprocess.run(
        (sys.executable, *words, "--out", "out", "-p", f"DATA_ROOT={smoke_data}"),
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "result.json").read_text())
    trained = {row["arm"]: row for row in results["02_distill_student"]["students"]}
    assert set(trained) == {"full", "own"}
    assert trained["own"]["final"]["parts"]["kd_heading"] > 0
    (term,) = [row for row in results["02_distill_student"]["terms"] if row["name"] == "kd_heading"]
    assert term["weight"] == 0.5 and term["value"] > 0
    scored = results["03_evaluate"]
    assert "full SparseKD and own terms" in [row["arm"] for row in scored["arms"]]
    names = [row["difference"] for row in scored["differences"]]
    assert "full SparseKD and own terms − full SparseKD" in names
    for arm in trained:
        lines = records.read_history(tmp_path / "out" / "students" / f"{arm}_seed1")
        assert lines and all(("kd_heading" in line["parts"]) == (arm == "own") for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == [file, "out"]


def test_notebook_table_names_every_notebook():
    text = (ROOT / "notebooks/README.md").read_text()
    assert re.findall(r"^\| `(\w+)`", text, re.M) == sorted(
        book.stem for book in (ROOT / "notebooks").glob("*.ipynb")
    )


def test_published_numbers_of_the_main_page():
    rows = re.findall(
        r"^\| (CP-\S*)[^|]*\| ([\d.]+) \|[^|]*\| ([\d.]+) \|$",
        (ROOT / "README.md").read_text(),
        re.M,
    )
    found = {
        name.lower().replace("-", "_"): (float(score), float(giga)) for name, score, giga in rows
    }
    theirs = {
        name: (row.level_2_maph, row.giga_flops)
        for name, row in published.PUBLISHED_MODELS.items()
        if row.level_2_maph
    }
    assert found == theirs
    assert set(found) <= set(zoo.MODELS)
