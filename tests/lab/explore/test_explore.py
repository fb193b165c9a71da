"""What the notebooks look at: tables of the data, frames with their boxes, where distillation
acts.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from kdlib.config import CLASS_NAMES
from kdlib.data.segment import BOX_NUMBERS
from kdlib.errors import ConfigError
from kdlib.lab import explore, pipeline, scoring
from kdlib.lab.explore.choice import MAP_NAMES
from kdlib.lab.explore.ranking import most_improved_frame
from kdlib.lab.explore.studio import Studio
from kdlib.lab.pipeline import Run
from kdlib.metric.box_tables import predictions_table
from kdlib.records import write_json
from kdlib.tools.scans.trained import find_weights

OWN = f"{Path(__file__).parents[2]}/kd/own_term.py:HEADING"
BOX = np.array([[1.0, 2.0, 0.5, 4.0, 2.0, 1.5, 0.0], [5.0, 2.0, 0.5, 4.0, 2.0, 1.5, 0.0]])


def predicted(run: Run, *frames: int) -> pa.Table:
    ids = run.store.split("validation").frame_ids(run.profile.evaluation.interval)
    names = [ids[frame] for frame in frames for _ in BOX]
    boxes = np.tile(BOX, (len(frames), 1))
    return predictions_table(
        names, boxes, np.array([1, 4] * len(frames)), np.array([0.9, 0.2] * len(frames)), None, ids
    )


def test_overview_counts_what_the_store_holds(smoke_run: Run) -> None:
    table = explore.data_overview(smoke_run.store).set_index("split")
    made = smoke_run.profile.simulated
    assert table.loc["training", "segments"] == made.training_segments
    assert table.loc["validation", "frames"] == made.validation_segments * made.frames
    assert (table["points per frame"] > 1000).all()
    assert (table[["Vehicle", "Pedestrian"]] > 0).all(axis=None)


def test_every_validation_box_has_one_level(smoke_run: Run) -> None:
    levels = explore.difficulty_table(smoke_run.store).set_index("class")
    boxes = explore.data_overview(smoke_run.store).set_index("split").loc["validation"]
    assert levels.sum(axis=1).to_dict() == {kind: boxes[kind] for kind in CLASS_NAMES}


def test_the_reading_of_the_data_follows_its_tables(smoke_run: Run) -> None:
    overview = explore.data_overview(smoke_run.store)
    levels = explore.difficulty_table(smoke_run.store)
    said = explore.data_reading(overview, levels, "validation")
    seen = int(levels[["LEVEL_1", "LEVEL_2"]].sum().sum())
    assert f"8 frames of 2 segments with {seen} boxes" in said
    assert f"{levels['LEVEL_2'].sum() / seen:.0%} of them are LEVEL_2" in said


def test_scene_shows_the_models_range(smoke_run: Run) -> None:
    scene = explore.scene(smoke_run, 1)
    low_x, low_y, high_x, high_y = explore.extent(smoke_run.profile.student_model)
    assert (low_x, high_x) == (low_y, high_y) == (-20.48, 20.48)
    assert np.abs(scene.points[:, :2]).max() < 20.48 and len(scene.points) > 500
    assert [layer.name for layer in scene.layers] == ["ground truth"]
    assert scene.frame_id == smoke_run.store.split("validation").frame_id(1)


def test_scene_with_predictions(smoke_run: Run) -> None:
    tables = {name: predicted(smoke_run, 0) for name in ("teacher", "alone", "init", "full")}
    scene = explore.scene(smoke_run, 0, tables, threshold=0.3)
    assert [layer.name for layer in scene.layers[1:]] == [
        "teacher",
        "student alone",
        "initialised student",
        "distilled student",
    ]
    assert all(len(layer.boxes) == 1 for layer in scene.layers[1:]), (
        "the box of score 0.2 is not drawn"
    )
    assert len({layer.color for layer in scene.layers}) == 5
    assert [len(panel.layers) for panel in scene.panels()] == [2] * 4
    assert [layer.name for layer in scene.only("distilled student", "teacher", "nobody")] == [
        "distilled student",
        "teacher",
    ]
    assert len(explore.scene(smoke_run, 1, tables).layers[1].boxes) == 0, "another frame"


@pytest.mark.parametrize("frame", [-1, 8, 999])
def test_a_frame_that_is_not_there(smoke_run: Run, frame: int) -> None:
    assert smoke_run.frame_count == 8
    with pytest.raises(ConfigError, match=f"FRAME={frame} is none of the 8 evaluated frames"):
        explore.scene(smoke_run, frame)


def test_most_improved_frame(smoke_run: Run) -> None:
    truth = scoring.truth(smoke_run)
    ids = smoke_run.store.split("validation").frame_ids()
    here = truth.filter(pa.array(truth.column("frame_id").to_numpy() == ids[5]))
    boxes = np.stack([here.column(name).to_numpy() for name in BOX_NUMBERS], axis=1)
    kinds = here.column("type").to_numpy()
    perfect = predictions_table(
        [ids[5]] * len(boxes), boxes, kinds, np.full(len(boxes), 0.9), None, ids
    )
    nothing = predictions_table([], np.zeros((0, 7)), np.zeros(0, np.int64), np.zeros(0), None, ids)
    assert (
        most_improved_frame({"teacher": nothing, "alone": nothing, "full": perfect}, smoke_run, 0.3)
        == 5
    )
    assert most_improved_frame({"teacher": nothing}, smoke_run, 0.3) in range(8)


@pytest.fixture(scope="module")
def studio(smoke_run: Run) -> Studio:
    return Studio(smoke_run, threshold=0.1)


def test_studio_names_every_model(studio: Studio) -> None:
    assert list(studio.models) == ["teacher", "alone_seed1", "init_seed1", "full_seed1"]
    assert studio.models["full_seed1"] == "distilled student, seed 1"
    view = studio.start(3)
    assert (view.frame, view.left, view.right, view.min_score) == (3, "teacher", "full_seed1", 0.1)
    assert studio.name(view).startswith("frame 3: ") and 0 <= studio.start().frame < 8


def test_studio_judges_both_sides(studio: Studio) -> None:
    view = studio.start(2)
    truth = explore.scene(studio.run, 2).layers[0]
    for panel in studio.panels(view):
        found, hits, missed, _ = panel.layers
        assert len(found) + len(missed) == len(truth) and len(hits) == len(found)
        assert panel.note.endswith("false alarms") and f"{len(missed)} missed" in panel.note
    one, _ = studio.panels(replace(view, layers=("misses",), class_name="Vehicle"))
    assert len(one.layers) == 1 and set(one.layers[0].labels) <= {1}
    assert isinstance(studio.draw(view), Figure)
    space = json.loads(studio.scene(view).to_json())
    assert {trace["scene"] for trace in space["data"]} == {"scene", "scene2"}
    assert [note["text"].endswith("false alarms") for note in space["layout"]["annotations"]] == [
        True,
        True,
    ]
    assert "simulated data" in space["layout"]["title"]["text"]


@pytest.mark.parametrize("name", MAP_NAMES[1:])
def test_maps_lie_between_none_and_most(studio: Studio, name: str) -> None:
    maps = [panel.ground for panel in studio.panels(replace(studio.start(2), map=name))]
    for ground in maps:
        assert ground is not None and ground.values.ndim == 2
        assert 0 <= ground.values.min() and 0 < ground.values.max() <= 1


def test_target_map_is_one_at_every_object(studio: Studio) -> None:
    left, right = studio.panels(replace(studio.start(2), map="KD masks"))
    assert left.ground is not None and right.ground is not None
    assert left.ground.name.startswith("target heat map") and right.ground.name.startswith("pull")
    assert left.ground.values.max() == 1


def test_a_jump_goes_to_the_furthest_then_on_and_round(studio: Studio) -> None:
    view, seen = studio.start(0), []
    for _ in range(9):
        frame, sentence = studio.jump("hardest", view, onward=bool(seen))
        missed = studio.panels(replace(view, frame=frame))[1].note
        assert f"{sentence.split()[-3]} missed" in missed, "as the view counts"
        seen.append(frame)
        view = replace(view, frame=frame)
    assert len(set(seen)) > 1 and seen[-1] in seen[:-1], "after the last comes the first"
    assert studio.jump("hardest", replace(view, frame=seen[1]))[0] == seen[0], "the most"
    with pytest.raises(ConfigError, match="unknown order 'best'"):
        studio.jump("best", view)


@pytest.mark.parametrize(
    "change",
    [{}, {"min_score": 0.3}, {"class_name": "Vehicle"}, {"iou": 0.3, "right": "alone_seed1"}],
)
def test_frames_are_ranked_as_they_are_drawn(studio: Studio, change: dict[str, Any]) -> None:
    view = replace(studio.start(0), **change)
    drawn = [studio.panels(replace(view, frame=frame))[1].note for frame in range(8)]
    missed = [int(note.split(" found, ")[1].split()[0]) for note in drawn]
    frame, sentence = studio.jump("hardest", view)
    assert missed[frame] == max(missed) and f": {max(missed)} objects missed" in sentence


def test_the_recipe_is_compared_with_both_bases(studio: Studio) -> None:
    view = studio.start(0)
    for order, base in (("helped", "initialised student"), ("ahead", "student alone")):
        try:
            assert studio.jump(order, view)[1].endswith(f"against {base}, seed 1")
        except ConfigError as error:
            assert "for distilled student, seed 1" in str(error)
    said = studio.reading(replace(view, frame=2))
    counts = [panel.note.split()[0] for panel in studio.panels(replace(view, frame=2))]
    assert f"teacher {counts[0]} with" in said and f"distilled student {counts[1]} with" in said


def test_studios_finds_the_neighbours(smoke_run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(smoke_run.folder, tmp_path / name)
    write_json(tmp_path / "c" / "02_distill_student" / "result.json", {"profile": "nobody's"})
    opened = explore.studios(replace(smoke_run, folder=tmp_path / "b"))
    assert list(opened) == ["b", "a"], "the run itself first, none that cannot be opened"
    assert opened["a"]().run.folder == tmp_path / "a"


def test_pivotal_weight_lies_where_objects_are(smoke_run: Run) -> None:
    weight, _ = explore.pivotal_example(smoke_run, pipeline.chosen_teacher(smoke_run))
    columns, rows, _ = smoke_run.profile.teacher_model.grid.grid_size
    assert weight.shape == (rows, columns)
    assert 0 < weight.max() <= 1 and weight.min() == 0
    assert (weight > 0).mean() < 0.5


def test_startup_report_names_every_term(smoke_run: Run) -> None:
    table = explore.startup_report(smoke_run, pipeline.chosen_teacher(smoke_run)).set_index("name")
    assert {"heatmap", "box"} < set(table.index)
    assert np.isfinite(table["value"]).all() and (table["value"] > 0).all()
    assert (table["positions"].dropna() > 0).all()
    own = replace(smoke_run, profile=replace(smoke_run.profile, terms=(OWN,)))
    beside = explore.startup_report(own, pipeline.chosen_teacher(own)).set_index("name")
    assert set(beside.index) == {*table.index, "kd_heading"}
    assert beside.loc["kd_heading", "weight"] == 0.5 and beside.loc["kd_heading", "value"] > 0


def test_a_student_with_own_terms_can_be_looked_at(smoke_run: Run, tmp_path: Path) -> None:
    run = replace(smoke_run, folder=tmp_path)
    for part in ("01_train_teacher", "02_distill_student"):
        shutil.copytree(smoke_run.folder / part, tmp_path / part)
    values = run.result("02_distill_student")
    row = {**values["students"][-1], "arm": "own"}
    write_json(
        tmp_path / "02_distill_student" / "result.json",
        {**values, "students": [*values["students"], row]},
    )
    studio = Studio(run)
    choice = replace(studio.start(0), right="own_seed1", map="KD masks")
    assert studio.models["own_seed1"] == "student with own terms, seed 1"
    colors = [panel.layers[1].color for panel in studio.panels(choice)]
    assert isinstance(studio.draw(choice), Figure) and len(set(colors)) == 2
    shown = find_weights(str(tmp_path), arm="own")
    assert shown.weights == run.located(row["weights"]) and "own terms" in shown.origin


def test_a_recipe_without_logits_weighs_nothing(smoke_run: Run) -> None:
    pair = smoke_run.profile.pair
    profile = replace(smoke_run.profile, pair=replace(pair, kd=replace(pair.kd, logit=None)))
    run = replace(smoke_run, profile=profile)
    weight, points = explore.pivotal_example(run, pipeline.chosen_teacher(smoke_run))
    assert weight.shape == (128, 128) and not weight.any() and len(points)
