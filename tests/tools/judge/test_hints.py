"""Perfect boxes in the wrong form: what `evaluate` says of them beside a poor score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from kdlib.cli import app
from kdlib.errors import DataError
from kdlib.metric.box_tables import TableFile, predictions_table
from kdlib.tools.judge.evaluate import Evaluation, evaluate

FRAMES = 12
PER_CLASS = 4
SIZES = {1: (4.6, 1.9, 1.6), 2: (0.9, 0.8, 1.75), 4: (1.8, 0.7, 1.7)}
IDS = np.repeat([f"drive_{i:03d}" for i in range(FRAMES)], len(SIZES) * PER_CLASS)
KINDS = np.tile(np.repeat(list(SIZES), PER_CLASS), FRAMES)


def scene() -> np.ndarray:
    """(N, 7) boxes far apart, in headings all around."""
    rng = np.random.default_rng(0)
    place = np.arange(len(KINDS)) % (len(SIZES) * PER_CLASS)
    centre = np.column_stack((10.0 * (place % 4) - 5, 10.0 * (place // 4) - 12))
    sizes = np.array([SIZES[kind] for kind in KINDS.tolist()])
    centre += rng.uniform(-2, 2, centre.shape)
    heading = rng.uniform(-3.1, 3.1, len(KINDS))
    return np.column_stack((centre, sizes[:, 2] / 2, sizes, heading))


BOXES = scene()


def judged(
    folder: Path,
    boxes: np.ndarray = BOXES,
    kinds: np.ndarray = KINDS,
    ids: np.ndarray = IDS,
    labels: np.ndarray = KINDS,
    labelled: np.ndarray = BOXES,
) -> Evaluation:
    scores = np.resize(np.linspace(0.3, 0.9, len(IDS)), len(ids))
    pq.write_table(predictions_table(list(ids), boxes, kinds, scores), folder / "p.parquet")
    truth = predictions_table(list(IDS), labelled, labels, np.ones(len(IDS)))
    for name, value in (("difficulty", 1), ("num_points", 9)):
        truth = truth.append_column(name, pa.array(np.full(len(IDS), value)))
    pq.write_table(truth, folder / "g.parquet")
    return evaluate(folder / "p.parquet", folder / "g.parquet")


def changed(**columns: np.ndarray) -> np.ndarray:
    names = ("x", "y", "z", "length", "width", "height", "heading")
    return np.column_stack([columns.get(name, BOXES[:, i]) for i, name in enumerate(names)])


X, Y, Z, LENGTH, WIDTH, HEIGHT, HEADING = BOXES.T


@pytest.mark.parametrize(
    ("boxes", "hint"),
    [
        (changed(z=Z - HEIGHT / 2), "z is raised by half the height"),
        (changed(z=Z + HEIGHT / 2), "z is lowered by half the height"),
        (changed(length=WIDTH, width=LENGTH), "length and width are swapped"),
        (changed(heading=np.degrees(HEADING)), "headings in degrees become radians"),
        (changed(heading=HEADING + np.pi), "headings are turned by pi"),
        (changed(heading=-HEADING), "headings change their sign"),
        (changed(heading=-HEADING - np.pi / 2), "read as KITTI's rotation_y"),
        (changed(length=LENGTH / 2, width=WIDTH / 2, height=HEIGHT / 2), "sizes are doubled"),
        (changed(x=-Y, y=X, heading=HEADING + np.pi / 2), "x and y are turned by -90 degrees"),
        (changed(x=Y, y=-X, heading=HEADING - np.pi / 2), "x and y are turned by 90 degrees"),
        (changed(x=-X, y=-Y, heading=HEADING + np.pi), "x and y are turned by 180 degrees"),
        (changed(x=Y, y=X, heading=np.pi / 2 - HEADING), "x and y are swapped"),
        (changed(x=-X, heading=np.pi - HEADING), "x changes its sign"),
        (changed(heading=np.pi / 2 - HEADING), "headings are read as clockwise from y"),
        (BOXES / ([0.3048] * 6 + [1]), "feet become metres"),
        (changed(x=X - 1.4, z=Z - 2), "boxes are moved by x +1.40, y +0.00, z +2.00 m"),
        (BOXES * ([1000] * 6 + [1]), "millimetres become metres"),
        (
            changed(z=Z - HEIGHT / 2, length=WIDTH, width=LENGTH),
            "z is raised by half the height and length and width are swapped",
        ),
        (
            changed(z=np.where(KINDS == 2, Z - HEIGHT / 2, Z)),
            "mAPH of pedestrian on 12 frames rises from 0.0 to 100.0 when z is raised",
        ),
    ],
)
def test_perfect_boxes_in_another_form(tmp_path: Path, boxes: np.ndarray, hint: str) -> None:
    said = judged(tmp_path, boxes)
    assert said.result.metrics["LEVEL_2/mAPH"] < 0.9
    assert any(hint in line and "to 100.0 when" in line for line in said.hints), said.hints


@pytest.mark.parametrize(
    ("meant", "hint"),
    [
        ({1: 0, 2: 1, 4: 2}, "0 as 1 (vehicle), 1 as 2 (pedestrian), 2 as 4 (cyclist)"),
        ({1: 1, 2: 2, 4: 3}, "3 as 4 (cyclist)"),
        ({1: 2, 2: 0, 4: 1}, "0 as 2 (pedestrian), 1 as 4 (cyclist), 2 as 1 (vehicle)"),
    ],
)
def test_class_numbers_of_another_list(tmp_path: Path, meant: dict[int, int], hint: str) -> None:
    kinds = np.array([meant[kind] for kind in KINDS.tolist()])
    said = judged(tmp_path, kinds=kinds)
    assert any(hint in line and "to 100.0 when" in line for line in said.hints), said.hints
    assert any("type 0 is 'unknown'" in line for line in said.hints) == (0 in kinds)
    labels = judged(tmp_path, labels=kinds)
    assert any("lie on" in line or "counts nowhere" in line for line in labels.hints)


def test_labels_in_degrees(tmp_path: Path) -> None:
    said = judged(tmp_path, labelled=changed(heading=np.degrees(HEADING)))
    assert any("the labels' headings in degrees" in line for line in said.hints)


def test_small_angles_are_not_taken_for_degrees(tmp_path: Path) -> None:
    said = judged(tmp_path, changed(heading=0 * HEADING), labelled=changed(heading=HEADING / 3))
    assert not any("degrees become radians" in line for line in said.hints), said.hints


@pytest.mark.parametrize(
    ("boxes", "near"), [(changed(x=X + 4000), 0), (changed(length=np.log(LENGTH) / 9 + 1), 144)]
)
def test_boxes_of_which_none_is_right_get_a_word(tmp_path: Path, boxes, near: int) -> None:
    boxes = boxes * (1, 1, 1, 1, 0.2, 1, 1)
    said = judged(tmp_path, boxes)
    assert any(f"{near} of 144 predicted boxes lie within 2 m" in h for h in said.hints), said.hints


def test_frames_that_are_missing_or_shifted(tmp_path: Path) -> None:
    early = IDS < "drive_008"
    said = judged(tmp_path, BOXES[early], KINDS[early], IDS[early])
    assert any("4 of the 12 frames with labels have no predicted box" in h for h in said.hints)
    assert any("frames without a prediction are left out" in h for h in said.hints)
    later = np.array([f"drive_{int(name[-3:]) + 1:03d}" for name in IDS])
    there = later < "drive_012"
    said = judged(tmp_path, BOXES[there], KINDS[there], later[there])
    assert any("boxes belong -1 frame further" in h for h in said.hints)
    with pytest.raises(DataError, match=r"whose ids are like 'drive_000'; 0 of 12 predicted"):
        judged(tmp_path, ids=np.char.replace(IDS, "drive", "segment"))


def test_every_box_twice(tmp_path: Path) -> None:
    twice = (np.concatenate((values, values)) for values in (BOXES, KINDS, IDS))
    said = judged(tmp_path, *twice)
    assert any(
        "144 of 288 predicted boxes, on 12 frames, stand there twice" in h for h in said.hints
    )
    assert any("each box is taken once" in h for h in said.hints)


def judged_scores(folder: Path, ids, boxes, kinds, scores) -> Evaluation:
    judged(folder)
    order = np.argsort(ids, kind="stable")
    columns = (values[order] for values in (np.asarray(ids), boxes, kinds, scores))
    pq.write_table(predictions_table(*columns), folder / "p.parquet")
    return evaluate(folder / "p.parquet", folder / "g.parquet")


def test_scores_that_rank_nothing_or_the_wrong_way_round(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    wrong = changed(x=X + 4)
    both = (np.tile(IDS, 2), np.concatenate((BOXES, wrong)), np.tile(KINDS, 2))
    low, high = rng.uniform(0.1, 0.4, len(IDS)), rng.uniform(0.6, 0.9, len(IDS))
    said = judged_scores(tmp_path, *both, np.concatenate((low, high))).hints
    assert any("to 100.0 when scores are read as 1 - score" in hint for hint in said), said
    assert judged_scores(tmp_path, *both, np.concatenate((high, low))).hints == ()
    many = [changed(x=X + dx, y=Y + 4) for dx in (-4, 0, 4)]
    ids, kinds = np.tile(IDS, 4), np.tile(KINDS, 4)
    said = judged_scores(
        tmp_path, ids, np.concatenate((BOXES, *many)), kinds, np.full(len(ids), 0.5)
    )
    assert any("every predicted score is 0.5" in hint for hint in said.hints), said.hints


def test_boxes_that_were_not_suppressed(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    four = np.tile(BOXES, (4, 1))
    four[:, :2] += rng.normal(0, 0.05, (len(four), 2))
    scores = rng.uniform(0.3, 0.9, len(four))
    said = judged_scores(tmp_path, np.tile(IDS, 4), four, np.tile(KINDS, 4), scores).hints
    assert any("within 0.5 m of each other the best is kept" in hint for hint in said), said


def test_boxes_that_are_none_are_counted(tmp_path: Path) -> None:
    flat = changed(height=np.where(np.arange(len(Z)) % 3, HEIGHT, -HEIGHT))
    assert any("48 of 144 predicted boxes have a length" in h for h in judged(tmp_path, flat).hints)
    away = changed(x=np.where(np.arange(len(Z)) % 3, X, 1e30))
    assert any("48 of 144 predicted boxes lie more" in h for h in judged(tmp_path, away).hints)


def test_a_table_in_order_and_a_poor_detector_get_no_hint(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0, 1, BOXES.shape)
    for size in (0.0, 0.03, 0.15):
        assert judged(tmp_path, BOXES + size * noise).hints == (), size


def test_counts_are_printed_and_hints_stay_out_of_json(tmp_path: Path) -> None:
    judged(tmp_path, changed(z=Z - HEIGHT / 2), labels=np.where(KINDS == 4, 3, KINDS))
    files = [str(tmp_path / name) for name in ("p.parquet", "g.parquet")]
    command = ["evaluate", "--predictions", files[0], "--ground-truth", files[1]]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0 and "mean of vehicle, pedestrian " in shown.stdout
    rows = {line[:12].strip(): line[14:].split() for line in shown.stdout.splitlines()}
    assert rows["predictions"] == ["12", "48", "48", "0", "48"]
    assert rows["ground truth"] == ["12", "48", "48", "48", "0"]
    assert "hint: no cyclist (type 4) is labelled, but 48 are predicted" in shown.stdout
    with_all = CliRunner().invoke(app, [*command, "--all-classes"])
    assert "mean of vehicle, pedestrian, cyclist " in with_all.stdout
    plain = CliRunner().invoke(app, [*command, "--json"])
    assert plain.stdout.startswith("{") and "hint" not in plain.stdout
    assert "kdlib: hint: LEVEL_2 mAPH on 12 frames rises" in plain.stderr


@pytest.mark.parametrize(
    "content", [b"frame_id,x,y\na,1,2\n", b'{"a": 1}', b"version https://git-lfs", b"\x80\x04K"]
)
def test_what_is_no_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"is no Parquet, it begins with b.*\.to_parquet"):
        TableFile.open(tmp_path / "p.csv", "predictions")
