"""The driver: parameters are checked before anything runs, finished stages are kept, whatever fails
is loud.
"""

from __future__ import annotations

import ast
import json
import os
import re
import socket
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from kdlib import records
from kdlib.errors import ConfigError
from kdlib.lab import execute, folders, pipeline, plan, profiles, report
from kdlib.lab.execute import StageFailed
from kdlib.lab.plan import parse_overrides, plan_stages
from kdlib.lab.profile import ABLATIONS, CROSS_STAGE, MAIN_LINE
from kdlib.models.build import build
from kdlib.models.weights import save_weights

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def tagged_cells(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ())]


def test_the_chains_are_what_lies_in_the_folder() -> None:
    assert tuple(path.stem for path in NOTEBOOKS) == (
        *MAIN_LINE,
        *CROSS_STAGE,
        *ABLATIONS,
    )
    assert {profile.chain for profile in profiles.PROFILES.values()} == {
        MAIN_LINE,
        CROSS_STAGE,
        ABLATIONS,
    }
    assert all(
        (profile.study is not None) == (profile.chain == ABLATIONS)
        for profile in profiles.PROFILES.values()
    )


@every_notebook
def test_parameters_cell(notebook: Path) -> None:
    cells = tagged_cells(notebook)
    assert len(cells) == 1
    lines = [line for line in cells[0].splitlines() if line.strip()]
    statements = ast.parse(cells[0]).body
    assert len(lines) == len(statements), "one line for each parameter"
    for line, statement in zip(lines, statements):
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)
        assert line.partition("  # ")[2].strip(), f"no comment: {line}"
    declared = plan.declared_parameters(notebook)
    assert list(declared)[:3] == ["PROFILE", "RUN_DIR", "DATA_ROOT"]
    assert all(name == name.upper() for name in declared)
    profile = next(
        name
        for name in ("demo", "study", "demo_cross_stage")
        if notebook.stem in profiles.profile(name).chain
    )
    assert (declared["PROFILE"], declared["RUN_DIR"], declared["DATA_ROOT"]) == (profile, "", "")


def test_a_name_has_one_type_everywhere() -> None:
    kinds: dict[str, set[type]] = {}
    for notebook in NOTEBOOKS:
        for name, default in plan.declared_parameters(notebook).items():
            kinds.setdefault(name, set()).add(type(default))
    assert all(len(found) == 1 for found in kinds.values()), kinds


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(stage: plan.Stage, *_: object) -> None:
        raise AssertionError(f"{stage.name} was executed")

    monkeypatch.setattr(execute, "execute", refuse)


BAD_SEEDS = ("[1,2]", "1,1", "1, 2,", "1;2", "one", "-1", "1.5", "4294967296", " ", "1e3", "²")
BAD_ARMS = ("fulll", "alone,alone", "alone,", "['full']", "teacher", "own")
TERM = """
from kdlib.kd.term import Term
MEAN = Term("kd_mean", weight=1.0, value=lambda step: step.prediction.heads[0].rot.mean())
TAKEN = Term("kd_heatmap", weight=1.0, value=MEAN.value)
TWIN = Term("kd_mean", weight=1.0, value=MEAN.value)
COMPLEX = Term("kd_complex", weight=1.0, value=lambda step: 1j * MEAN.value(step))
WIDE = Term("kd_wide", weight=1.0, value=lambda step: step.prediction.heads[0].rot.mean((1, 2, 3)))
NAN = Term("kd_nan", weight=1.0, value=lambda step: step.prediction.heads[0].rot.mean() / 0)
DEAF = Term("kd_deaf", weight=1.0, value=lambda step: step.answer.heads[0].rot.mean())
TYPO = Term(
    "kd_typo",
    weight=1.0,
    value=lambda step: step.predictions.heads[0].rot.mean(),
)
"""
BAD_TERMS = {
    "mine.py:COMPLEX": ["mine.py:COMPLEX", "one real number"],
    "none.py:MEAN": ["none.py does not exist"],
    "mine.py": ["term 'mine.py' is neither FILE.py:NAME nor MODULE:NAME"],
    "mine.py:MEEN": ["mine.py has no 'MEEN'; its terms are: MEAN, TAKEN, TWIN"],
    "mine.py:MEAN,mine:MEAN": ["MEAN in", "is named twice"],
    "mine.py:MEAN,mine.py:TWIN": ["there is a term 'kd_mean' already"],
    "mine.py:TAKEN": ["there is a term 'kd_heatmap' already"],
    "mine.py:WIDE": ["mine.py: term 'kd_wide' returned a tensor of shape (2,); reduce it"],
    "mine.py:NAN": ["mine.py: term 'kd_nan' is", "on simulated frames"],
    "mine.py:DEAF": ["mine.py: term 'kd_deaf' has no gradient", "step.prediction"],
    "mine.py:TYPO": ["mine.py, line 13: AttributeError", "'predictions'"],
}


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"SEED": "1"}, ["SEED", "SEEDS", "TEACHER", "DATA_ROOT"]),
        ({"seeds": "1"}, ["seeds", "SEEDS"]),
        ({"SEDES": "1"}, ["SEDES", "did you mean 'SEEDS'?"]),
        ({"RUN_DIR": "/elsewhere"}, ["RUN_DIR", "SEEDS", "it is --out FOLDER here"]),
        ({"PROFILE": "demo"}, ["PROFILE", "name the profile after 'run'"]),
        ({"REPEATS": "many"}, ["REPEATS", "many", "int", "20"]),
        ({"REPEATS": "2.0"}, ["REPEATS", "2.0", "int"]),
        ({"REPEATS": "True"}, ["REPEATS", "True", "int"]),
        ({"REPEATS": "__import__('os')"}, ["REPEATS", "int"]),
        ({"SCORE_THRESHOLD": "high"}, ["SCORE_THRESHOLD", "high", "float"]),
        ({"SCORE_THRESHOLD": "1.5"}, ["SCORE_THRESHOLD=1.5", "from 0 to 1"]),
        ({"SCORE_THRESHOLD": "-0.1"}, ["SCORE_THRESHOLD=-0.1", "from 0 to 1"]),
        *(({"SEEDS": text}, ["SEEDS", text, "whole numbers", "1,2,3"]) for text in BAD_SEEDS),
        *(({"ARMS": text}, ["ARMS", text, "alone, init, full"]) for text in BAD_ARMS),
        ({"STUDENT_EPOCHS": "-1"}, ["STUDENT_EPOCHS=-1", "at least 0", "0 means the profile's"]),
        ({"TEACHER_EPOCHS": "-3"}, ["TEACHER_EPOCHS=-3", "at least 0", "0 means the profile's"]),
        ({"TEACHER_EPOCHS": "99999999"}, ["TEACHER_EPOCHS=99999999", "from 0 to 1000000"]),
        ({"RESAMPLES": "0"}, ["RESAMPLES=0", "at least 1"]),
        ({"REPEATS": "-2"}, ["REPEATS=-2", "at least 1"]),
        ({"FRAME": "-2"}, ["FRAME=-2", "at least -1"]),
        ({"FRAME": "8"}, ["FRAME=8", "none of the 8 evaluated frames", "the last one is 7"]),
        ({"SCORE_THRESHOLD": "1e999"}, ["SCORE_THRESHOLD=inf", "from 0 to 1"]),
        *(({"FRAME": text}, ["FRAME", "int", "0"]) for text in ("", "1.0", "None", "0x", "[1]")),
        ({"TEACHER": "/nowhere.safetensors"}, ["TEACHER=/nowhere", "auto, shipped, scratch"]),
        ({"TEACHER": "Auto"}, ["TEACHER=Auto", "auto, shipped, scratch", "did you mean 'auto'?"]),
        ({"TEACHER": ""}, ["TEACHER= is neither auto, shipped, scratch"]),
        ({"TEACHER": "x" * 5000}, ["auto, shipped, scratch", "safetensors file"]),
        ({"TEACHER": __file__}, [__file__, "is a text", "no weights"]),
        ({"TEACHER": "/tmp"}, ["/tmp is a folder"]),
        ({"DATA_ROOT": __file__}, [f"DATA_ROOT={__file__} is no folder"]),
        ({"DATA_ROOT": f"{__file__}/below"}, ["DATA_ROOT=", "cannot be written to"]),
        ({"DATA_ROOT": "/proc/nobody"}, ["DATA_ROOT=/proc/nobody cannot be written to"]),
    ],
)
def test_wrong_parameters_stop_before_anything_runs(
    overrides: dict[str, str], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        execute.run_profile("smoke", tmp_path / "run", overrides)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_runs")
def test_real_data_are_looked_for_before_anything_runs(tmp_path: Path, smoke_data: Path) -> None:
    """And no message recommends what it refuses."""
    for where in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="holds neither waymo nor store") as caught:
            execute.run_profile("waymo20", tmp_path / "run", {"DATA_ROOT": str(where)})
        assert f"DATA_ROOT={where}" not in str(caught.value)
    with pytest.raises(ConfigError, match="TEACHER=shiped is neither auto, scratch nor") as caught:
        execute.run_profile("waymo20", tmp_path / "run", {"TEACHER": "shiped"})
    assert "shipped" not in str(caught.value), "which this profile refuses, too"
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(ConfigError, match=rf"--out {out} cannot be written to .* name another"):
            execute.run_profile("smoke", out, {"DATA_ROOT": str(smoke_data)})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"SEEDS": [1, 2]}, r"SEEDS=\[1, 2\] must be a text"),
        ({"ARMS": ("full",)}, r"ARMS=\('full',\) must be a text"),
        ({"TEACHER": None}, "TEACHER=None must be a text"),
        ({"RESAMPLES": "many"}, "RESAMPLES='many' must be a whole number from 1 to"),
        ({"REPEATS": 2.5}, "REPEATS=2.5 must be a whole number from 1 to"),
        ({"STUDENT_EPOCHS": True}, "STUDENT_EPOCHS=True must be a whole number .*the profile's"),
        ({"FRAME": 8}, "FRAME=8 is none of the 8 evaluated frames"),
        ({"SCORE_THRESHOLD": float("nan")}, "SCORE_THRESHOLD=nan must be a number from 0 to 1"),
    ],
)
def test_a_notebook_run_by_hand_refuses_in_one_sentence(
    values: dict[str, object], words: str, tmp_path: Path
) -> None:
    run = pipeline.open_run("smoke", str(tmp_path / "run"), str(tmp_path))
    with pytest.raises(ConfigError, match=words):
        run.check(**values)


def test_every_notebook_checks_what_it_takes() -> None:
    for notebook in NOTEBOOKS:
        code = "".join(
            "".join(cell["source"])
            for cell in json.loads(notebook.read_text())["cells"]
            if cell["cell_type"] == "code"
        )
        checked = set(re.findall(r"\b([A-Z_]+)=\1\b", code))
        opened = set(re.findall(r"[A-Z_]{4,}", re.search(r"open_run\((.*)\)", code)[1]))
        chapter = {"SEEDS"} if "trainings.open_chapter(" in code else set()
        assert set(plan.declared_parameters(notebook)) == checked | opened | chapter, notebook


def test_a_notebook_shows_a_mistake_as_its_sentence_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shell = InteractiveShell()
    shell.run_cell("from kdlib.errors import ConfigError\nraise ConfigError('say it once')")
    assert capsys.readouterr().out.strip() == "ConfigError: say it once"


def test_a_notebook_of_another_checkout_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    (other / "kdlib").mkdir(parents=True)
    (other / "kdlib" / "__init__.py").write_text("")
    (other / "notebooks").mkdir()
    monkeypatch.chdir(other / "notebooks")
    pipeline.open_run("smoke", str(tmp_path / "run"))  # a script may stand anywhere
    monkeypatch.setattr(sys, "argv", ["/lib/ipykernel_launcher.py", "-f", "kernel.json"])
    words = f"this notebook lies in {other}, but kdlib comes from {folders.PROJECT}; .*PYTHONPATH="
    with pytest.raises(ConfigError, match=words):
        pipeline.open_run("smoke", str(tmp_path / "run"))
    monkeypatch.chdir(folders.NOTEBOOKS)
    pipeline.open_run("smoke", str(tmp_path / "run"))


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("given", BAD_TERMS)
def test_terms_that_cannot_be_trained_stop_before_anything_runs(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(TERM)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        execute.run_profile("smoke", tmp_path / "run", {"TERMS": given})
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in BAD_TERMS[given]), caught.value
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_runs")
def test_the_terms_of_a_profile_are_tried_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(TERM)
    smoke = replace(profiles.profile("smoke"), terms=(f"{tmp_path}/mine.py:TYPO",))
    monkeypatch.setitem(profiles.PROFILES, "smoke", smoke)
    with pytest.raises(ConfigError, match=r"mine\.py, line 13: AttributeError"):
        execute.run_profile("smoke", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="00_explore_data was executed"):
        execute.run_profile("smoke", tmp_path / "run", {"TERMS": "mine.py:MEAN"})


def test_terms_are_part_of_the_keys_from_the_notebook_that_trains_them_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(TERM)
    monkeypatch.chdir(tmp_path)
    plain, given = keys(tmp_path), keys(tmp_path, TERMS="mine.py:MEAN", ARMS="own")
    early = "".join(MAIN_LINE[:2])
    assert changed(plain, given) == "".join(MAIN_LINE[2:])
    smoke = replace(profiles.profile("smoke"), terms=("mine.py:MEAN",))
    monkeypatch.setitem(profiles.PROFILES, "smoke", smoke)
    named = keys(tmp_path)
    assert changed(plain, named) == "".join(MAIN_LINE[2:])
    given_by = [stage.parameters.get("TERMS") for stage in plan_stages("smoke", tmp_path, {})]
    assert given_by == [None, None, f"{tmp_path}/mine.py:MEAN", None, None, None]
    (tmp_path / "mine.py").write_text(TERM + "# another objective\n")
    for before, after in (
        (given, keys(tmp_path, TERMS="mine.py:MEAN", ARMS="own")),
        (named, keys(tmp_path)),
    ):
        assert early + changed(before, after) == "".join(MAIN_LINE)
    (stage,) = [stage for stage in plan_stages("smoke", tmp_path, {"TERMS": " mine : MEAN"})][2:3]
    assert stage.parameters["TERMS"] == f"{tmp_path}/mine.py:MEAN"


@pytest.mark.usefixtures("nothing_runs")
def test_unknown_profile_stops_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'smokey'.*smoke, demo"):
        execute.run_profile("smokey", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overrides() -> None:
    assert parse_overrides(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    for texts, words in (
        (["A"], "'A' is not NAME=VALUE"),
        (["=1"], "NAME=VALUE"),
        (["A=1", "A=2"], "A is given twice: '1' and '2'"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_overrides(texts)


def test_values_take_the_type_of_their_default(tmp_path: Path) -> None:
    stages = {
        s.name: s.parameters
        for s in plan_stages(
            "smoke", tmp_path, {"SCORE_THRESHOLD": "1", "SEEDS": "1,2", "FRAME": "-1"}
        )
    }
    assert stages["04_visualize_3d"]["SCORE_THRESHOLD"] == 1.0
    assert isinstance(stages["04_visualize_3d"]["SCORE_THRESHOLD"], float)
    assert stages["02_distill_student"]["SEEDS"] == "1,2"
    assert stages["00_explore_data"]["FRAME"] == stages["04_visualize_3d"]["FRAME"] == -1
    assert "SEEDS" not in stages["03_evaluate"]
    kept = str(tmp_path / "profile.json")
    assert all(p["PROFILE"] == kept and p["RUN_DIR"] == str(tmp_path) for p in stages.values())


def test_a_teacher_that_is_given_is_looked_at_before_anything_runs(
    tmp_path: Path, nothing_runs: None
) -> None:
    file = tmp_path / "teacher.safetensors"
    network = build(profiles.profile("smoke").teacher_model)
    save_weights(file, network, {})
    with pytest.raises(ConfigError, match=r"teacher\.safetensors does not fit the model"):
        execute.run_profile("waymo20", tmp_path / "run", {"TEACHER": str(file)})
    next(network.parameters()).data.fill_(torch.nan)
    save_weights(file, network, {})
    with pytest.raises(ConfigError, match="ships none; use scratch or a safetensors file"):
        execute.run_profile("waymo20", tmp_path / "run", {"TEACHER": "shipped"})
    with pytest.raises(ConfigError, match=r"teacher\.safetensors: .* are NaN or infinite"):
        execute.run_profile("smoke", tmp_path / "run", {"TEACHER": str(file)})
    with pytest.raises(ConfigError, match=r"teacher\.safetensors: .* are NaN or infinite"):
        execute.run_profile("smoke_cross_stage", tmp_path / "run", {"FIRST_STAGE": str(file)})
    assert not (tmp_path / "run").exists()


def test_seeds_and_arms_may_hold_blanks() -> None:
    profile = profiles.profile("smoke")
    assert profile.chosen_seeds(" 3, 4294967295 ,0") == (3, 2**32 - 1, 0)
    assert profile.chosen_arms("full , alone") == ("full", "alone")
    assert (profile.chosen_seeds(""), profile.chosen_arms("")) == (profile.seeds, profile.arms)


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.safetensors").write_bytes(b"x")
    own = plan_stages("smoke", tmp_path, {"DATA_ROOT": "~/d", "TEACHER": "~/mine.safetensors"})
    values = {name: value for stage in own for name, value in stage.parameters.items()}
    assert values["DATA_ROOT"] == str(tmp_path / "d")
    assert values["TEACHER"] == str(tmp_path / "mine.safetensors")


def test_relative_paths_mean_the_callers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.safetensors").write_bytes(b"x")
    own = {
        s.name: s.parameters
        for s in plan_stages(
            "smoke", tmp_path, {"DATA_ROOT": "data", "TEACHER": "mine.safetensors"}
        )
    }
    assert own["01_train_teacher"]["TEACHER"] == str(tmp_path / "mine.safetensors")
    assert {p["DATA_ROOT"] for p in own.values()} == {str(tmp_path / "data")}
    scratch = plan_stages("smoke", tmp_path, {"TEACHER": "scratch", "DATA_ROOT": ""})[1].parameters
    assert (scratch["TEACHER"], scratch["DATA_ROOT"]) == ("scratch", "")


TOY = "PROFILE = 'demo'  # p\nRUN_DIR = ''  # r\nDATA_ROOT = ''  # d\n"
GOOD = """
import json, pathlib, datetime
home = pathlib.Path(RUN_DIR) / "{name}"
with (home / "count").open("a") as stream:
    stream.write("x")
(home / "result.json").write_text(json.dumps({{"n": N}}))
"""


def write_notebook(
    folder: Path, name: str, *cells: str, parameters: str = TOY + "N = 1  # n"
) -> Path:
    notebook = nbformat.v4.new_notebook()
    head = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook.cells = [head, *(nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in cells)]
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def set_chain(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setitem(profiles.PROFILES, "smoke", replace(profiles.profile("smoke"), chain=names))


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chain of three notebooks; only the second has a parameter M."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder, "a", GOOD.format(name="a"))
    write_notebook(folder, "b", GOOD.format(name="b"), parameters=TOY + "N = 1  # n\nM = 0.5  # m")
    write_notebook(folder, "c", GOOD.format(name="c"))
    monkeypatch.setattr(execute, "NOTEBOOKS", folder)
    monkeypatch.setattr(plan, "NOTEBOOKS", folder)
    set_chain(monkeypatch, "a", "b", "c")
    monkeypatch.setattr(report, "write_run_report", lambda folder, profile: folder / "report.html")
    return folder


def keys(folder: Path, **overrides: str) -> dict[str, str]:
    return {stage.name: stage.key for stage in plan_stages("smoke", folder, overrides)}


def changed(before: dict[str, str], after: dict[str, str]) -> str:
    return "".join(name for name in before if before[name] != after[name])


def test_keys_change_with_parameters_notebooks_and_sources(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(tmp_path)
    assert keys(tmp_path) == before
    assert changed(before, keys(tmp_path, N="2")) == "abc"
    assert changed(before, keys(tmp_path, M="2")) == "bc"
    write_notebook(toys, "c", "1 + 1")
    assert changed(before, keys(tmp_path)) == "c"
    monkeypatch.setattr(plan, "source_hash", lambda: "other")
    assert changed(before, keys(tmp_path)) == "abc"


def test_keys_change_with_the_shipped_teacher(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "WEIGHTS", tmp_path)
    before = keys(tmp_path)
    (tmp_path / profiles.profile("smoke").shipped_teacher).write_bytes(b"weights")
    assert changed(before, keys(tmp_path)) == "abc"


def test_keys_change_with_the_content_of_a_teacher_that_is_given(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "declared_parameters", lambda notebook: {"TEACHER": "auto"})
    given = []
    for content in (b"weights", b"other weights"):
        Path("mine.safetensors").write_bytes(content)
        given.append(keys(tmp_path, TEACHER="mine.safetensors"))
    assert changed(*given) == "abc"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("N = 2 * 3", "NAME = literal, not 'N = 2 \\* 3'"),
        ("import os", "NAME = literal"),
        ("N: int = 1", "NAME = literal"),
        ("a, b = 1, 2", "NAME = literal"),
    ],
)
def test_parameters_must_be_literals(
    toys: Path, tmp_path: Path, parameters: str, words: str
) -> None:
    write_notebook(toys, "b", parameters=TOY + parameters)
    with pytest.raises(ConfigError, match=words) as caught:
        plan_stages("smoke", tmp_path, {})
    assert "b.ipynb" in str(caught.value)


def test_notebook_without_parameters_or_missing(toys: Path, tmp_path: Path) -> None:
    nbformat.write(nbformat.v4.new_notebook(), toys / "b.ipynb")
    with pytest.raises(ConfigError, match="exactly one cell tagged 'parameters', it has 0"):
        plan_stages("smoke", tmp_path, {})
    (toys / "c.ipynb").unlink()
    with pytest.raises(ConfigError, match=r"c\.ipynb does not exist"):
        plan.declared_parameters(toys / "c.ipynb")


@pytest.fixture
def fake_papermill(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs the cells in this process: the driver's decisions can be tested without starting
    kernels.
    """
    import papermill

    executed: list[str] = []

    def run(source: str, target: str, parameters: dict, **options: object) -> None:
        executed.append(Path(source).stem)
        notebook = nbformat.read(source, 4)
        nbformat.write(notebook, target)
        scope: dict = {}
        for cell in notebook.cells:
            exec(cell.source, scope)
            scope.update(parameters if "parameters" in cell.metadata.get("tags", ()) else {})

    monkeypatch.setattr(papermill, "execute_notebook", run)
    return executed


@pytest.mark.usefixtures("toys")
def test_finished_stages_are_kept(
    tmp_path: Path, fake_papermill: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = execute.run_profile("smoke", tmp_path / "run")
    assert fake_papermill == ["a", "b", "c"]
    execute.run_profile("smoke", folder)
    assert fake_papermill == ["a", "b", "c"]
    assert capsys.readouterr().out.count(": kept from") == 3
    execute.run_profile("smoke", folder, {"M": "0.7"})
    assert fake_papermill[3:] == ["b", "c"]
    assert (folder / "a" / "count").read_text() == "x"
    assert records.read_json(folder / execute.RUN) == {
        "profile": "smoke",
        "stages": {
            "a": {"state": "kept"},
            "b": {"state": "done", "seconds": 0},
            "c": {"state": "done", "seconds": 0},
        },
    }


def test_what_is_at_work_and_what_failed_is_noted(
    toys: Path,
    tmp_path: Path,
    fake_papermill: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    note = (
        f"import json; noted = json.loads(open('{tmp_path}/run/{execute.RUN}').read())['stages']\n"
    )
    seen = f"open('{tmp_path}/seen', 'w').write(json.dumps(noted))"
    write_notebook(toys, "b", note + seen, parameters=TOY + "N = 1  # n\nM = 0.5  # m")
    with pytest.raises(StageFailed):
        execute.run_profile("smoke", tmp_path / "run")
    stages = json.loads((tmp_path / "seen").read_text())
    assert {name: stage["state"] for name, stage in stages.items()} == {
        "a": "done",
        "b": "running",
        "c": "waiting",
    }
    assert (stages["b"]["pid"], stages["b"]["host"]) == (
        os.getpid(),
        socket.gethostname(),
    ) and stages["b"]["since"]
    stages = records.read_json(tmp_path / "run" / execute.RUN)["stages"]
    assert {name: stage["state"] for name, stage in stages.items()} == {
        "a": "done",
        "b": "failed",
        "c": "waiting",
    }
    assert "b ended without writing" in stages["b"]["message"]
    assert "ended without writing" not in capsys.readouterr().out, "whoever called says it, once"
    assert "kdlib: b ended without writing" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.usefixtures("toys")
def test_a_stage_whose_result_is_gone_is_repeated(
    tmp_path: Path, fake_papermill: list[str]
) -> None:
    folder = execute.run_profile("smoke", tmp_path / "run")
    (folder / "b" / "result.json").unlink()
    execute.run_profile("smoke", folder)
    assert fake_papermill[3:] == ["b"]


def test_after_a_failure_the_chain_goes_on_where_it_stopped(
    toys: Path, tmp_path: Path, fake_papermill: list[str]
) -> None:
    good = (toys / "b.ipynb").read_text()
    folder = execute.run_profile("smoke", tmp_path / "run")
    write_notebook(toys, "b", "raise ValueError('no')", parameters=TOY + "N = 1  # n\nM = 0.5  # m")
    with pytest.raises(ValueError, match="no"):
        execute.run_profile("smoke", folder)
    assert fake_papermill[3:] == ["b"]
    (toys / "b.ipynb").write_text(good)
    execute.run_profile("smoke", folder)
    assert fake_papermill[4:] == ["b"], (
        "the mark of the earlier success must not stand without its result"
    )


@pytest.mark.notebooks
def test_a_real_kernel_stops_loudly(toys: Path, tmp_path: Path) -> None:
    """One kernel for each way of failing: an error, an exit that claims success, an exit, a dead
    kernel, no result.
    """
    endings = {
        "1 / 0": "a stopped at cell 3: ZeroDivisionError: division by zero",
        "import sys; sys.exit(0)": "a ended without writing",
        "import sys; sys.exit(3)": "a stopped at cell 3: SystemExit",
        "import os; os._exit(0)": "a: its kernel died",
        "pass": "a ended without writing",
    }
    for number, (cell, words) in enumerate(endings.items()):
        folder = tmp_path / f"run{number}"
        write_notebook(toys, "a", cell, GOOD.format(name="a") if cell != "pass" else "1 + 1")
        with pytest.raises(StageFailed) as caught:
            execute.run_profile("smoke", folder)
        assert words in str(caught.value), caught.value
        assert str(folder) in str(caught.value)
        assert (folder / "a.ipynb").is_file(), "the executed copy shows where it stopped"
        assert not (folder / "b.ipynb").exists()
        assert not (folder / "a" / records.COMPLETE).exists()


@pytest.mark.notebooks
def test_a_real_kernel_gets_its_parameters(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_chain(monkeypatch, "a")
    monkeypatch.chdir(tmp_path)
    # another checkout that comes first for this process's children
    (tmp_path / "other" / "kdlib").mkdir(parents=True)
    (tmp_path / "other" / "kdlib" / "__init__.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'other'}:{os.environ.get('PYTHONPATH', '')}")
    noise = "for i in range(20_000): print('noise', i)"
    write_notebook(toys, "a", "import kdlib", GOOD.format(name="a"), noise)
    folder = execute.run_profile("smoke", tmp_path / "run", {"N": "7"})
    assert records.read_json(folder / "a" / "result.json") == {"n": 7}
    assert records.is_complete(folder / "a", plan_stages("smoke", folder, {"N": "7"})[0].key)


@pytest.mark.notebooks
@pytest.mark.parametrize("kernel", ['{"argv": ["/bin/false"], "language": "python"}', "{damaged"])
def test_braces_in_paths_and_foreign_kernels_change_nothing(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    set_chain(monkeypatch, "a")
    checkout = tmp_path / "checkout {lr}"
    checkout.mkdir()
    write_notebook(checkout, "a", GOOD.format(name="a") + "import sys; print(sys.executable)")
    monkeypatch.setattr(execute, "NOTEBOOKS", checkout)
    monkeypatch.setattr(plan, "NOTEBOOKS", checkout)
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(kernel)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    folder = execute.run_profile("smoke", tmp_path / "exp {lr} {PROFILE} {{0}} {")
    assert folder.name == "exp {lr} {PROFILE} {{0}} {"
    assert records.read_json(folder / "a" / "result.json") == {"n": 1}
    assert sys.executable in (folder / "a.ipynb").read_text()


def test_run_folder(tmp_path: Path) -> None:
    assert folders.run_folder("smoke", tmp_path / "x") == (tmp_path / "x").resolve()
    assert folders.run_folder("smoke", None) == folders.PROJECT / "reports" / "runs" / "smoke"


@pytest.mark.parametrize(
    ("edited", "counts"),
    [
        ("records.py", True),
        ("models/geometry/boxes.py", True),
        ("lab/pipeline.py", True),
        ("lab/study/answers.py", True),
        ("viz/bev.py", False),
        ("tools/bench/data.py", False),
        ("cli.py", False),
        ("lab/execute.py", False),
        ("lab/publish.py", False),
    ],
)
def test_source_hash_sees_what_numbers_rest_on(edited: str, counts: bool, tmp_path: Path) -> None:
    path = tmp_path / edited
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a = 1")
    assert (plan.SOURCES / edited).is_file()
    first = plan.source_hash(tmp_path)
    path.write_text("a = 2")
    assert (plan.source_hash(tmp_path) != first) is counts


def test_profiles_are_replaced_not_changed() -> None:
    smoke = profiles.profile("smoke")
    assert replace(smoke, seeds=(9,)).seeds == (9,) and smoke.seeds != (9,)
    assert sys.modules["kdlib.lab.profiles"].PROFILES["smoke"] is smoke
