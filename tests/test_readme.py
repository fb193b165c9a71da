"""What the READMEs say is what the project does: tables, pictures, links and commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

from kdlib import zoo
from kdlib.cli import app
from kdlib.lab.publish import BEGIN, END, results_table, with_results
from kdlib.profiling import published

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "reports/README.md", "notebooks/README.md", "data/README.md")


RUNS = sorted(path.parent.name for path in (ROOT / "reports").glob("*/result.json") if path.parent.name != "runs")


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


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    text = (ROOT / page).read_text()
    verbs = set(get_command(app).commands)  # type: ignore[attr-defined]
    for verb in re.findall(r"-m kdlib ([a-z][\w-]*)", text):
        assert verb in verbs, verb
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for target in re.findall(r"(?:^|`)make (\w+)", text, re.M):
        assert target in targets, target
    for name in set(re.findall(r"-p ([A-Z_]+)=", text)) - {"NAME"}:
        assert any(re.search(rf'"{name} = ', book.read_text()) for book in (ROOT / "notebooks").glob("*.ipynb")), name


def test_notebook_table_names_every_notebook():
    text = (ROOT / "notebooks/README.md").read_text()
    assert re.findall(r"^\| `(\w+)`", text, re.M) == sorted(book.stem for book in (ROOT / "notebooks").glob("*.ipynb"))


def test_published_numbers_of_the_main_page():
    rows = re.findall(r"^\| (CP-\S*)[^|]*\| ([\d.]+) \|[^|]*\| ([\d.]+) \|$", (ROOT / "README.md").read_text(), re.M)
    found = {name.lower().replace("-", "_"): (float(score), float(giga)) for name, score, giga in rows}
    theirs = {name: (row.level_2_maph, row.giga_flops) for name, row in published.MODELS.items() if row.level_2_maph}
    assert found == theirs
    assert set(found) <= set(zoo.MODELS)
