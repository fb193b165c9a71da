"""Profiles outside the package: what a TOML file or a single setting may say, and what a run
keeps.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdlib import records, zoo
from kdlib.errors import ConfigError
from kdlib.kd.objective import Distillation
from kdlib.lab import execute, plan, profile_files, profiles
from kdlib.lab.profile import Profile
from kdlib.lab.profile_files import load
from kdlib.models.build import build

HALL = """
base = "own_small"
seeds = [7]
[detector]
classes = ["Forklift", "Vehicle"]
range = [0, -12.8, -1, 51.2, 12.8, 5]
point_features = 3
pillar = 0.16
width = 0.5
[student]
epochs = 4
[kd.logit]
weight = 20
"""


def written(folder: Path, text: str, *settings: str, name: str = "hall") -> Profile:
    (folder / f"{name}.toml").write_text(text)
    return load(str(folder / f"{name}.toml"), settings)


def test_one_table_changes_teacher_student_recipe_and_evaluation(tmp_path: Path) -> None:
    hall, base = written(tmp_path, HALL), profiles.OWN_SMALL
    teacher, student = hall.teacher_model, hall.student_model
    for model, cells, wide in ((teacher, (320, 160, 1), 8), (student, (160, 80, 1), 8)):
        assert model.class_names == ("Forklift", "Vehicle") == model.head.heads[0]
        assert model.grid.grid_size == cells and model.encoder.point_features == 3
        assert model.encoder.filters == (wide, wide) and model.backbone.channels == (8, 16, 32)
        assert model.head.decode.center_limit == (-2, -14.8, -3, 53.2, 14.8, 7)
        assert model.name not in zoo.MODELS
    assert hall.evaluation == replace(base.evaluation, half_width=51.2)
    assert hall.kd.label.thresholds == (0.5, 0.6), "Vehicle keeps its own"
    assert hall.kd == replace(
        base.kd,
        logit=replace(base.kd.logit, weight=20.0),
        label=replace(base.kd.label, thresholds=(0.5, 0.6)),
    )
    assert (hall.name, hall.seeds, hall.student) == ("hall", (7,), replace(base.student, epochs=4))
    Distillation(build(student), build(teacher), hall.kd)


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("student.batch_size=8", "student.batch_size", 8),
        ("student.learning_rate=1e-3", "student.learning_rate", 0.001),
        ("teacher.epochs=9", "teacher.epochs", 9),
        ("student.precision=bf16-mixed", "student.precision", "bf16-mixed"),
        ("student.workers=2", "student.workers", 2),
        ("student.interval = 1", "student.interval", 1),
        ("kd.logit.weight=20", "pair.kd.logit.weight", 20.0),
        ("kd.label=none", "pair.kd.label", None),
        ("kd.feature.form=rois", "pair.kd.feature.form", "rois"),
        ("pair.student.head.decode.nms_iou=.3", "pair.student.head.decode.nms_iou", 0.3),
        ("evaluation.half_width=inf", "evaluation.half_width", float("inf")),
        ("seeds=4,5", "seeds", (4, 5)),
        ("arms=alone,full", "arms", ("alone", "full")),
        ('arms=["init"]', "arms", ("init",)),
        ("student.augment.flip_x=false", "student.augment.flip_x", False),
        ("pair=cp_voxel_demo_xs_sparsekd", "pair.student.name", "cp_voxel_demo_xs"),
    ],
)
def test_any_field_can_be_set(setting: str, path: str, value: object) -> None:
    found: object = load("demo", [setting])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


B = 'base = "own_small"\n'


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("seeds = [1]", [], ["hall.toml", "base is missing", "own_small"]),
        ('base = "mine"', [], ["'mine'", "own_small", "demo"]),
        ("base = ", [], ["hall.toml is not TOML"]),
        (B + "epochs = 3", [], ["hall.toml", "no setting epochs", "student", "detector"]),
        (B + "[student]\nepoch = 3", [], ["no setting student.epoch", "epochs"]),
        (B + "student = 3", [], ["student is a group", "epochs", "3"]),
        (B + '[student]\nepochs = "3"', [], ["student.epochs", "int", "'3'"]),
        (B + "[student]\nlearning_rate = nan", [], ["student.learning_rate", "finite", "nan"]),
        (B + "[kd.logit]\nweight = inf", [], ["pair.kd.logit.weight", "finite", "inf"]),
        (B + "[detector]\nclass = ['A']", [], ["detector", "class", "classes"]),
        (B + "[detector]\nclasses = []", [], ["detector.classes is empty"]),
        (B + "[detector]\nclasses = ['A', 'a']", [], ["('A', 'a')", "case"]),
        (B + "[detector]\nwidth = 0.01", [], ["width 0.01 leaves", "without channels"]),
        (B + "[detector]\npoint_features = 7", [], ["point_features is 7"]),
        (B + "[detector]\nrange = [0, 0, 0, 0, 0, 0]", [], ["0 to 0", "empty"]),
        (B + "[detector]\nrange = [-50, -51.2, -2, 50, 51.2, 4]", [], ["-51.2 to 51.2 is"]),
        (B + "[detector]\nrange = [0, -51.2, -2, 50, 51.2, 4]", [], ["0 to 51.2 is"]),
        (B, ["pair.student.grid.voxel_size=[2.048,2.048,6]"], ["8.192 m", "-32.768 to"]),
        (B, ["seeds=7"], ["hall.toml --set seeds=7", "must be a list"]),
        (B, ["seeds=[1, 1]"], ["seeds", "each once"]),
        (B, ["arms=fulll"], ["arms", "must be a list"]),
        (B, ["student.epochs=0"], ["student", "epochs must be positive, not 0"]),
        (B, ["student.epochs"], ["not PATH=VALUE"]),
        (B, ["student.epochs=1", "student.epochs=2"], ["student.epochs is given twice"]),
        (B, ["student=1", "student.epochs=2"], ["student was given a value"]),
        (B, ["base=demo"], ["--set base"]),
        (B, ["chain=[]"], ["take another base"]),
        (B, ["name=demo"], ["ready profile demo", "my_demo"]),
        (B, ["name=../x"], ["'../x' cannot name"]),
        (B, ["validation_split=training"], ["both 'training'"]),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(
    text: str, settings: list[str], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, text, *settings)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_file_must_not_be_called_like_a_ready_profile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ready profile own_small; give yours another name"):
        written(tmp_path, B, name="own_small")
    assert written(tmp_path, B + 'name = "mine"', name="own_small").name == "mine"


def test_data_lie_beside_the_file(tmp_path: Path) -> None:
    assert written(tmp_path, B + 'data = "../mine"').data == str(tmp_path.parent / "mine")
    assert written(tmp_path, B).data == "own_small"
    assert load("demo", ["student.epochs=2"]).data == "demo", "the base's streets are used"
    with pytest.raises(ConfigError, match=r"other data than data/demo holds.*--set name=NAME"):
        load("demo", ["simulated.frames=3"])
    assert load("demo", ["simulated.frames=3", "name=short"]).folder == "short"


def test_terms_lie_beside_the_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = written(tmp_path, B + 'terms = ["my_terms.py:HEADING", "installed.terms:OTHER"]')
    assert own.terms == (f"{tmp_path / 'my_terms.py'}:HEADING", "installed.terms:OTHER")
    monkeypatch.chdir(tmp_path)
    assert load("demo", ['terms=["a.py:X"]']).terms == (f"{tmp_path / 'a.py'}:X",)


def test_a_byte_order_mark_is_no_setting(tmp_path: Path) -> None:
    (tmp_path / "hall.toml").write_text("\ufeff" + B, encoding="utf-8")
    assert load(str(tmp_path / "hall.toml")).name == "hall"
    for odd in ("a" * 300 + ".toml", "a\0.toml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(odd)


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_a_run_keeps_its_profile(name: str, tmp_path: Path) -> None:
    profile = profiles.profile(name)
    path = profile_files.save(profile, tmp_path)
    assert load(str(path)) == profile == profile_files.of_run(tmp_path)
    changed = load(str(path), ["student.epochs=77"])
    assert changed.student == replace(profile.student, epochs=77)


def test_older_runs_name_a_ready_profile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not say of which profile"):
        profile_files.of_run(tmp_path)
    records.write_json(tmp_path / "00_explore_data" / "result.json", {"profile": "smoke"})
    assert profile_files.of_run(tmp_path) is profiles.SMOKE


def keys(folder: Path, profile: str, *settings: str) -> list[str]:
    return [stage.key for stage in plan.plan_stages(profile, folder, {}, settings)]


def test_another_profile_repeats_nothing_and_another_setting_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(tmp_path, "smoke")
    other = replace(profiles.SMOKE, name="another", seeds=(8,))
    monkeypatch.setitem(profiles.PROFILES, "another", other)
    assert keys(tmp_path, "smoke", "parallel=1") == keys(tmp_path, "smoke", "threads=2")
    assert keys(tmp_path, "smoke") == before
    changed = keys(tmp_path, "smoke", "kd.logit.weight=8")
    assert not set(changed) & set(before) and len(set(changed)) == len(before)
    for edited in ("zoo.py", "lab/profiles.py", "lab/profile_files.py"):
        (tmp_path / "kdlib" / edited).parent.mkdir(parents=True, exist_ok=True)
        hashed = plan.source_hash(tmp_path / "kdlib")
        (tmp_path / "kdlib" / edited).write_text("one = 'more'")
        assert plan.source_hash(tmp_path / "kdlib") == hashed, edited


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["kd.label.thresholds=[0.5]"], "1 label thresholds for 3 classes"),
        (["pair.student.grid.point_range=[-10.24,-10.24,-2,10.24,10.24,4]"], "point_range"),
        (["kd.logit.regression_weight=1"], "needs equal maps"),
        (["detector.width=0.5"], "the shipped teacher is not of this profile"),
    ],
)
def test_what_does_not_fit_together_stops_before_the_start(
    settings: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        execute.run_profile("smoke", tmp_path / "run", {}, settings)
    assert not (tmp_path / "run").exists()
