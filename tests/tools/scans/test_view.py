"""``kdlib view``: scans of other LiDARs with boxes, in a picture where there is no display; which
detector is meant.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kdlib import cli, zoo
from kdlib.errors import ConfigError, DataError
from kdlib.lab.pipeline import Run
from kdlib.models.build import build
from kdlib.models.weights import save_weights
from kdlib.profiling.sweep import simulated_sweeps
from kdlib.tools.scans.trained import find_weights, load_detector
from kdlib.tools.scans.view import view
from kdlib.training.job import TrainJob
from kdlib.viz import scene3d

SMALL = (480, 270)
DEAD = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One simulated sweep as OpenPCDet saves Waymo's."""
    points = simulated_sweeps(1, seed=5, scale="demo")[0].points.copy()
    points[:, 3] = np.arctanh(np.minimum(points[:, 3], 0.999))
    file = tmp_path_factory.mktemp("scan") / "street.npy"
    np.save(file, np.column_stack((points, -np.ones(len(points), np.float32))))
    return file


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


def test_boxes_and_picture_of_a_scan(scan: Path, tmp_path: Path) -> None:
    seen = view(scan, "cp_pillar_demo", score=0.4, out=tmp_path / "a.png", size=SMALL, worker=DEAD)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert len(seen.boxes) and seen.scores.min() >= 0.4 and (np.diff(seen.scores) <= 0).all()
    rows = seen.rows()
    assert rows[0]["points"] > 0 and set(seen.classes) <= set(seen.trained.model.class_names)
    text = str(seen)
    assert (
        "Layout waymo" in text
        and "simulated streets" in text
        and f"Picture: {tmp_path / 'a.png'}" in text
    )
    assert "killed by SIGSEGV" in text, "the renderer died, the caller did not"
    assert rows[0]["class"] in text and json.dumps(seen.to_dict())


def test_a_network_that_answers_nan_is_no_empty_scene(scan: Path, tmp_path: Path) -> None:
    network = build(zoo.CP_PILLAR_DEMO)
    state = network.state_dict()
    state["backbone_2d.blocks.0.1.weight"].fill_(3e38)  # finite, but sums are not
    save_weights(tmp_path / "odd.safetensors", network, {"model": "cp_pillar_demo"})
    with pytest.raises(DataError, match="answers NaN or infinity to street"):
        view(scan, str(tmp_path / "odd.safetensors"), out=tmp_path / "a.png", size=SMALL)
    assert not (tmp_path / "a.png").exists()


def test_overlaps_and_scores(scan: Path, tmp_path: Path) -> None:
    loose, strict = (
        view(
            scan,
            "cp_pillar_demo",
            score=0.05,
            overlap=o,
            out=tmp_path / "a.png",
            size=SMALL,
            worker=DEAD,
        )
        for o in (0.9, 0.0)
    )
    assert len(strict.boxes) < len(loose.boxes) and loose.scores.min() < 0.1
    none = view(scan, "cp_pillar_demo", score=1.0, out=tmp_path / "a.png", size=SMALL, worker=DEAD)
    assert not len(none.boxes) and "no box reaches the score" in str(none)
    with pytest.raises(ConfigError, match="--score is a share"):
        view(scan, "cp_pillar_demo", score=30)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        *((["--score", value], "--score") for value in ("30", "-0.1", "nan")),
        *((["--overlap", value], "--overlap") for value in ("2", "nan", "-inf")),
        *((["--scale", value], "--scale") for value in ("0", "-1", "nan", "inf")),
        *((["--height", value], "--height") for value in ("nan", "inf", "1730")),
        *((["--out", value], "--out") for value in ("a.jpg", "a", "folder.png")),
        (["--layout", "velodyne"], "--layout"),
    ],
)
def test_a_wrong_option_is_refused_by_name(
    scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(sys, "argv", ["kdlib", "view", str(scan), *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out and name in said.err
    assert said.err.count("\n") == 1 and options[1] in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_height_that_nobody_gave_is_searched(scan: Path, tmp_path: Path) -> None:
    where = {"out": tmp_path / "a.png", "size": SMALL, "worker": DEAD}
    # KITTI's own height, 1.73 m, is assumed of such a file, but its sensor hangs 0.16 m lower
    low = (np.load(scan)[:, :4] - (0, 0, 1.57, 0)).astype("<f4")
    low[:, 3] = np.tanh(low[:, 3])
    low.tofile(tmp_path / "low.bin")
    assumed = view(tmp_path / "low.bin", "cp_pillar_demo", height=1.73, **where)
    assert not any("that were tried" in note for note in assumed.notes), "a given one is kept"
    found = view(tmp_path / "low.bin", "cp_pillar_demo", **where)
    assert any("-0.16 m is taken" in n and "(--height 1.57)" in n for n in found.notes), found.notes
    assert found.scores[:10].sum() > 1.05 * assumed.scores[:10].sum()
    right = view(tmp_path / "low.bin", "cp_pillar_demo", height=1.57, **where)
    np.testing.assert_allclose(found.boxes, right.boxes, atol=1e-4)


def test_boxes_with_hardly_a_point_are_marked_and_counted(scan: Path, tmp_path: Path) -> None:
    points = np.load(scan)
    where = {"out": tmp_path / "a.png", "size": SMALL, "worker": DEAD}
    seen = view(scan, "cp_pillar_demo", score=0.05, **where)
    hardly = [row for row in seen.rows() if row["points"] < 5]
    assert hardly and all((row["seen"] == "hardly") == (row in hardly) for row in seen.rows())
    said = next(note for note in seen.notes if "in grey" in note)
    assert f"{len(hardly)} of them, in grey, hold fewer than 5 points" in said
    counts = [int(part.split()[0]) for part in said.split(";")[0].split(", ")]
    assert sum(counts) == len(seen.boxes) and len(points)


def test_the_camera_looks_at_the_best_boxes(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cameras = []
    render = scene3d.render_views

    def noted(views, **options):
        cameras.extend(view.camera for view in views)
        return render(views, **options)

    monkeypatch.setattr(scene3d, "render_views", noted)
    seen = view(scan, "cp_pillar_demo", score=0.4, out=tmp_path / "a.png", size=SMALL, worker=DEAD)
    best = seen.boxes[seen.scores >= seen.scores[0] / 2][:10, :3]
    forward = cameras[0].axes() @ (best - cameras[0].eye).T
    tangent = np.tan(np.radians(cameras[0].field_of_view / 2))
    assert (np.abs(forward[1]) < tangent * forward[2]).all(), "all of them are in the picture"
    assert (np.abs(forward[0]) < 16 / 9 * tangent * forward[2]).all()


def test_points_beyond_the_models_reach_are_counted(tmp_path: Path) -> None:
    far = np.random.default_rng(0).uniform(200, 260, (300, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", far)
    seen = view(tmp_path / "a.npy", "cp_pillar_demo", out=tmp_path / "a.png", worker=DEAD)
    assert any("Only 0 of 300 points lie so near" in note for note in seen.notes)


def test_without_a_display_the_command_writes_a_picture_and_says_so(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["kdlib", "view", str(scan), "--model", "cp_pillar_demo", "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("No display" in note and "picture instead" in note for note in notes)
    assert (tmp_path / "street_boxes.png").is_file()


def test_a_window_where_there_is_a_display(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISPLAY", ":7")
    fine = (sys.executable, "-c", "import sys; assert sys.argv[-1] == '--window'")
    assert "Shown in a window." in view(scan, "cp_pillar_demo", worker=fine).notes
    assert not list(tmp_path.iterdir())
    broken = view(scan, "cp_pillar_demo", window=True, size=SMALL, worker=DEAD)
    assert (
        any("window failed" in note for note in broken.notes)
        and (tmp_path / "street_boxes.png").is_file()
    )


@pytest.mark.parametrize("name", ["kitti_000008.bin", "nuscenes_lidar_top.pcd.bin"])
def test_the_real_sweeps_with_boxes(shared: Path, tmp_path: Path, name: str) -> None:
    seen = view(
        shared / "data" / name,
        "cp_pillar_demo",
        out=tmp_path / "a.png",
        size=SMALL,
        worker=scene3d.WORKER,
    )
    assert sum(kind == "Vehicle" for kind in seen.classes) >= 4, (
        "cars are cars, also to another sensor"
    )
    assert (tmp_path / "a.png").stat().st_size > 10_000


# ---- which detector


def test_names_files_and_folders(smoke_run: Run, tmp_path: Path) -> None:
    assert find_weights("cp_pillar_demo").weights.name == "cp_pillar_demo.safetensors"
    student, teacher = (
        find_weights(str(smoke_run.folder)),
        find_weights(str(smoke_run.folder), arm="teacher"),
    )
    assert student.model == smoke_run.profile.student_model and "full SparseKD" in student.origin
    assert (
        teacher.model == smoke_run.profile.teacher_model
        and teacher.weights.name == "teacher.safetensors"
    )
    assert find_weights(str(smoke_run.folder), arm="alone").weights != student.weights
    TrainJob(student.model, smoke_run.profile.student, str(smoke_run.data / "store")).write(
        tmp_path / "training"
    )
    save_weights(tmp_path / "training/weights.safetensors", build(student.model), {})
    assert find_weights(str(tmp_path / "training")).model == student.model
    torch.manual_seed(1)
    save_weights(
        tmp_path / "mine.safetensors",
        build(zoo.CP_PILLAR_DEMO_V064),
        {"model": "cp_pillar_demo_v0.64"},
    )
    for chosen in (
        find_weights(str(tmp_path / "mine.safetensors")),
        find_weights("cp_pillar_demo_v0.64", tmp_path / "mine.safetensors"),
    ):
        assert chosen.model == zoo.CP_PILLAR_DEMO_V064
        assert not load_detector(chosen, score=0.05).training


def test_a_moved_run_is_found(smoke_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    (folder / "students/full_seed1").mkdir(parents=True)
    (folder / "02_distill_student").mkdir()
    rows = [
        {
            "arm": "full",
            "seed": 1,
            "weights": "reports/runs/none/students/full_seed1/weights.safetensors",
        }
    ]
    (folder / "02_distill_student/result.json").write_text(
        json.dumps({"profile": "smoke", "students": rows})
    )
    with pytest.raises(ConfigError, match="do not exist; train first"):
        find_weights(str(folder))
    file = folder / "students/full_seed1/weights.safetensors"
    save_weights(file, build(smoke_run.profile.student_model), {})
    assert find_weights(str(folder)).weights == file


@pytest.mark.parametrize(
    ("source", "arm", "message"),
    [
        ("nobody", None, "neither a folder of a run"),
        ("cp_voxel", None, "no weights are shipped for cp_voxel"),
        ("cp_pillar_demo", "full", "from a whole run only"),
        ("RUN", "best", "has no arm 'best', it has: teacher, alone"),
        ("FILE", None, "does not say which model"),
    ],
)
def test_what_is_no_detector(
    smoke_run: Run, tmp_path: Path, source: str, arm: str | None, message: str
) -> None:
    save_weights(tmp_path / "a.safetensors", build(zoo.CP_PILLAR_DEMO_V064), {})
    source = {"RUN": str(smoke_run.folder), "FILE": str(tmp_path / "a.safetensors")}.get(
        source, source
    )
    with pytest.raises(ConfigError, match=message):
        find_weights(source, arm=arm)
