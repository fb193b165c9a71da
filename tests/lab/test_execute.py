"""The driver: parameters are checked before anything runs, finished stages are kept, whatever fails
is loud.
"""

from __future__ import annotations

import ast
import json
import os
import socket
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch

from kdlib import records
from kdlib.errors import ConfigError
from kdlib.lab import execute, folders, profiles, report
from kdlib.lab.execute import StageFailed, parse_overrides, plan_stages
from kdlib.models.build import build
from kdlib.models.weights import save_weights

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def tagged_cells(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ())]


def test_the_chains_are_what_lies_in_the_folder() -> None:
    assert tuple(path.stem for path in NOTEBOOKS) == (
        *profiles.MAIN_LINE,
        *profiles.CROSS_STAGE,
        *profiles.ABLATIONS,
    )
    assert {profile.chain for profile in profiles.PROFILES.values()} == {
        profiles.MAIN_LINE,
        profiles.CROSS_STAGE,
        profiles.ABLATIONS,
    }
    assert all(
        (profile.study is not None) == (profile.chain == profiles.ABLATIONS)
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
    declared = execute.declared_parameters(notebook)
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
        for name, default in execute.declared_parameters(notebook).items():
            kinds.setdefault(name, set()).add(type(default))
    assert all(len(found) == 1 for found in kinds.values()), kinds


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(stage: execute.Stage, folder: Path, log: object) -> None:
        raise AssertionError(f"{stage.name} was executed")

    monkeypatch.setattr(execute, "execute", refuse)


BAD_SEEDS = ("[1,2]", "1,1", "1, 2,", "1;2", "one", "-1", "1.5", "4294967296", " ", "1e3", "²")
BAD_ARMS = ("fulll", "alone,alone", "alone,", "['full']", "teacher")


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"SEED": "1"}, ["SEED", "SEEDS", "TEACHER", "DATA_ROOT"]),
        ({"seeds": "1"}, ["seeds", "SEEDS"]),
        ({"RUN_DIR": "/elsewhere"}, ["RUN_DIR", "SEEDS"]),
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
        ({"TEACHER": "/nowhere.safetensors"}, ["TEACHER=/nowhere", "auto, shipped, scratch"]),
        ({"TEACHER": "Auto"}, ["TEACHER=Auto", "auto, shipped, scratch", "safetensors file"]),
        ({"TEACHER": "x" * 5000}, ["auto, shipped, scratch", "safetensors file"]),
        ({"TEACHER": __file__}, [__file__, "is a text", "no weights"]),
        ({"TEACHER": "/tmp"}, ["/tmp is a folder"]),
        ({"DATA_ROOT": __file__}, [f"DATA_ROOT={__file__} is no folder"]),
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
    monkeypatch.setattr(execute, "source_hash", lambda: "other")
    assert changed(before, keys(tmp_path)) == "abc"


def test_keys_change_with_the_shipped_teacher(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "WEIGHTS", tmp_path)
    before = keys(tmp_path)
    (tmp_path / profiles.profile("smoke").shipped_teacher).write_bytes(b"weights")
    assert changed(before, keys(tmp_path)) == "abc"


def test_keys_change_with_the_content_of_a_teacher_that_is_given(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execute, "declared_parameters", lambda notebook: {"TEACHER": "auto"})
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
        execute.declared_parameters(toys / "c.ipynb")


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
    toys: Path, tmp_path: Path, fake_papermill: list[str]
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
    write_notebook(toys, "a", GOOD.format(name="a"), "for i in range(20_000): print('noise', i)")
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
    assert (execute.SOURCES / edited).is_file()
    first = execute.source_hash(tmp_path)
    path.write_text("a = 2")
    assert (execute.source_hash(tmp_path) != first) is counts


def test_profiles_are_replaced_not_changed() -> None:
    smoke = profiles.profile("smoke")
    assert replace(smoke, seeds=(9,)).seeds == (9,) and smoke.seeds != (9,)
    assert sys.modules["kdlib.lab.profiles"].PROFILES["smoke"] is smoke
