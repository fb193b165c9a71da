from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from distributed import LocalCluster
from typer.testing import CliRunner

from kdlib.cli import app
from kdlib.data import prepare as module
from kdlib.data import segment as segments
from kdlib.data.prepare import prepare
from kdlib.data.store import Store
from kdlib.errors import DataError
from kdlib.simulate import simulate


@pytest.fixture
def waymo(source, tmp_path):
    """A copy of the source that may be damaged."""
    return shutil.copytree(source, tmp_path / "waymo")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "store"


def _tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _litter(folder):
    return [path for path in folder.rglob("*.tmp")]


def test_the_report_counts_what_is_there(source, out):
    report = prepare(source, out, progress=False)
    training = report.splits["training"]
    assert (training.segments, training.frames, training.reused) == (2, 7, 0)
    assert training.boxes == {"Vehicle": 3, "Pedestrian": 2, "Sign": 2, "Cyclist": 1}
    assert report.fingerprint == Store.open(out).fingerprint
    assert json.loads(json.dumps(report.to_dict()))["splits"]["validation"]["frames"] == 3
    assert "training: 2 segments (0 kept), 7 frames" in str(report)
    assert not _litter(out)


def test_a_second_call_changes_nothing(source, out):
    prepare(source, out, progress=False)
    before = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    report = prepare(source, out, progress=False)
    assert sum(split.reused for split in report.splits.values()) == 3
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_processes_give_the_same_store(source, out, tmp_path):
    prepare(source, out, progress=False)
    prepare(source, tmp_path / "other", workers=2, progress=False)
    assert _tree(out) == _tree(tmp_path / "other")


def test_a_changed_source_is_prepared_again(waymo, out, waymo_writer):
    first = prepare(waymo, out, progress=False)
    waymo_writer(waymo / "training", "a", [[{}]], seed=1)
    second = prepare(waymo, out, progress=False)
    assert second.splits["training"].reused == 1 and second.splits["training"].frames == 5
    assert second.fingerprint != first.fingerprint
    assert Store.open(out).fingerprint == second.fingerprint and not _litter(out)


def test_a_damaged_segment_is_repaired(source, out):
    prepare(source, out, progress=False)
    whole = _tree(out)
    (out / "training" / "a" / "points.npy").write_bytes(b"")
    prepare(source, out, progress=False)
    assert _tree(out) == whole


def test_splits_can_come_one_by_one(source, out):
    first = prepare(source, out, splits=("training",), progress=False)
    second = prepare(source, out, splits=("validation", "testing"), progress=False)
    assert second.missing_splits == (
        "testing",
    ) and "testing: the source has no such folder" in str(second)
    assert (
        set(Store.open(out).contents) == {"training", "validation"}
        and first.fingerprint != second.fingerprint
    )


def test_a_source_without_splits_is_an_error(tmp_path, out):
    with pytest.raises(DataError, match="has none of the folders training, validation"):
        prepare(tmp_path, out, progress=False)
    assert not out.exists()


def test_an_incomplete_source_is_an_error_before_anything_is_written(waymo, out):
    (waymo / "validation" / "lidar_pose" / "c.parquet").unlink()
    with pytest.raises(DataError, match="segment c has no lidar_pose file"):
        prepare(waymo, out, progress=False)
    assert not out.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_truncated_source_file_leaves_the_finished_segments(waymo, out, workers):
    path = waymo / "training" / "lidar" / "b.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{path} is damaged"):
        prepare(waymo, out, workers=workers, progress=False)
    assert not _litter(out) and not (out / "training" / "b").exists()
    with pytest.raises(DataError, match="holds no finished store"):
        Store.open(out)
    path.write_bytes(content)
    report = prepare(waymo, out, progress=False)
    assert report.splits["training"].reused == 1 and len(Store.open(out).split("training")) == 7


def test_nan_in_a_point_cloud_is_named(waymo, out, monkeypatch):
    original = module.read_segment

    def spoil(folder, segment):
        for frame in original(folder, segment):
            if frame.frame_id == "b_001":
                frame.points[0, 0] = np.nan
            yield frame

    monkeypatch.setattr(module, "read_segment", spoil)
    with pytest.raises(DataError, match=r"frame b_001: 1 of \d+ points hold NaN"):
        prepare(waymo, out, progress=False)
    assert not _litter(out)


@pytest.mark.parametrize("step", ["manifest", "table", "points"])
def test_a_full_disk_is_one_sentence_and_leaves_earlier_results(
    source, waymo, out, waymo_writer, monkeypatch, step
):
    prepare(waymo, out, progress=False)
    before = _tree(out)
    waymo_writer(waymo / "training", "b", [[{}]], seed=1)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    targets = {
        "manifest": (segments.records, "write_json"),
        "table": (segments.pq, "write_table"),
        "points": (segments.os, "fsync"),
    }
    monkeypatch.setattr(*targets[step], full)
    with pytest.raises(
        DataError, match=(r"the disk is full; free some space and run the same " r"command again")
    ):
        prepare(waymo, out, progress=False)
    assert _tree(out) == before and not _litter(out)
    assert len(Store.open(out).split("training")) == 7


def test_a_file_size_limit_is_reported_like_a_full_disk(source, out):
    """The real thing: the kernel refuses the write in the middle of points.npy."""
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from kdlib.data.prepare import prepare\nfrom kdlib.errors import DataError\n"
        "signal.signal(signal.SIGXFSZ, "
        "signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"try:\n    prepare(Path({str(source)!r}), Path({str(out)!r}), progress=False)\n"
        "except DataError as error:\n    print(error)\n    sys.exit(2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and str(out / "training" / "a") in done.stdout
        and len(done.stdout.splitlines()) == 1
    ), done.stderr
    assert not _litter(out) and not (out / "training" / "a").exists()


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write everywhere: run the tests as another user"
)
def test_a_read_only_folder_is_one_sentence(source, out):
    out.mkdir()
    out.chmod(0o500)
    with pytest.raises(DataError, match="may not be written by this user"):
        prepare(source, out, progress=False)


def test_a_forbidden_folder_is_one_sentence(source, out, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(segments.pq, "write_table", refuse)
    with pytest.raises(
        DataError, match=f"{out / 'training' / 'a'}: may not be written by this user"
    ):
        prepare(source, out, progress=False)


def test_a_file_where_the_store_should_be_is_an_error(source, out):
    out.write_text("not a folder")
    with pytest.raises(DataError, match="cannot be written"):
        prepare(source, out, progress=False)
    assert out.read_text() == "not a folder"


def test_two_calls_at_once_are_refused(source, out):
    out.mkdir()
    with (
        module.only_writer(out),
        pytest.raises(DataError, match="is being prepared by another process"),
    ):
        prepare(source, out, progress=False)


def test_an_interrupt_leaves_no_litter(source, out, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(segments.pq, "write_table", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, out, progress=False)
    assert not _litter(out)


def test_a_killed_call_is_continued(source, out, tmp_path):
    """SIGKILL while the second segment is being written: the first is kept, the rest is as if
    nothing had happened.
    """
    code = (
        "import time\nfrom pathlib import Path\nfrom kdlib.data import prepare as "
        "module\noriginal = module.read_segment\n"
        "def slow(folder, segment):\n"
        "    for frame in original(folder, segment):\n        yield frame\n        time.sleep(60 "
        "if segment == 'b' else 0)\n"
        f"module.read_segment = slow\nmodule.prepare(Path({str(source)!r}), Path({str(out)!r}), "
        "progress=False)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not list(out.glob("training/.b.*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (
        _litter(out) and (out / "training" / "a").is_dir() and not (out / "training" / "b").exists()
    )
    with pytest.raises(DataError, match="holds no finished store"):
        Store.open(out)
    report = prepare(source, out, progress=False)
    assert report.splits["training"].reused == 1 and not _litter(out)
    prepare(source, tmp_path / "other", progress=False)
    assert _tree(out) == _tree(tmp_path / "other")


def test_rows_in_any_order_give_the_same_store(waymo, source, out, tmp_path):
    rng = np.random.default_rng(0)
    for path in waymo.glob("training/*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.take(rng.permutation(table.num_rows)), path)
    assert prepare(waymo, out, progress=False).splits["training"].frames == 7
    prepare(source, tmp_path / "other", progress=False)
    ours, theirs = (Store.open(path).split("training") for path in (out, tmp_path / "other"))
    np.testing.assert_array_equal(ours.timestamps, theirs.timestamps)
    for number in range(7):
        np.testing.assert_array_equal(ours.points(number), theirs.points(number))
        boxes = [np.sort(split.boxes[split.box_rows(number)], axis=0) for split in (ours, theirs)]
        np.testing.assert_array_equal(*boxes)


def test_a_testing_split_needs_no_boxes(waymo, out):
    shutil.move(waymo / "validation", waymo / "testing")
    shutil.rmtree(waymo / "testing" / "lidar_box")
    report = prepare(waymo, out, splits=("testing",), progress=False)
    assert (
        report.splits["testing"].frames == 3 and sum(report.splits["testing"].boxes.values()) == 0
    )
    assert len(Store.open(out).split("testing").boxes) == 0 and report.object_bank is None


def test_a_missing_frame_is_an_error(source, out, monkeypatch):
    original = module.read_segment
    monkeypatch.setattr(
        module, "read_segment", lambda folder, segment: list(original(folder, segment))[:-1]
    )
    with pytest.raises(
        DataError, match="segment a: 2 of 3 frames were read; download its files again"
    ):
        prepare(source, out, progress=False)
    assert not _litter(out) and not (out / "training" / "a").exists()


def test_segments_can_come_in_portions(waymo, out):
    whole = prepare(waymo, out, progress=False)
    for path in waymo.glob("training/*/a.parquet"):
        path.unlink()
    report = prepare(waymo, out, progress=False)
    assert report.fingerprint == whole.fingerprint and report.splits["training"].elsewhere == 1
    assert "1 of the segments are of earlier calls" in str(report)
    (out / "training" / "a" / "points.npy").unlink()
    with pytest.raises(
        DataError,
        match=(r"points\.npy is missing; .* that has this segment; or " r"delete .*store\.json"),
    ):
        prepare(waymo, out, progress=False)


def test_simulated_and_real_segments_do_not_mix(waymo, out):
    prepare(waymo, out, splits=("validation",), progress=False)
    simulate(
        waymo,
        segments=1,
        frames=1,
        seed=1,
        scale="demo",
        split="validation",
        workers=1,
        progress=False,
    )
    with pytest.raises(DataError, match="is simulated, c is not; prepare them into two stores"):
        prepare(waymo, out, splits=("validation",), progress=False)


def test_both_formats_give_one_store(tmp_path):
    reports = []
    for which in ("v1", "v2"):
        simulate(
            tmp_path / which,
            segments=2,
            frames=2,
            seed=1,
            scale="demo",
            workers=1,
            progress=False,
            format=which,
        )
        reports.append(prepare(tmp_path / which, tmp_path / f"store_{which}", progress=False))
    assert reports[0].fingerprint == reports[1].fingerprint and all(
        report.splits["training"].simulated for report in reports
    )


def test_a_running_cluster_prepares_the_same_store(source, out, tmp_path, monkeypatch):
    prepare(source, out, progress=False)
    monkeypatch.chdir(tmp_path)
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as cluster:
        report = prepare(source, Path("other"), scheduler=cluster.scheduler_address, progress=False)
    assert report.workers == 2 and _tree(out) == _tree(tmp_path / "other")


def test_what_a_killed_call_left_is_removed(source, out):
    prepare(source, out, progress=False)
    whole = _tree(out)
    for name in (".store.json.1.tmp", "training/.objects.safetensors.1.tmp"):
        (out / name).write_text("half")
    (out / "training" / ".a.host.1.tmp").mkdir()
    prepare(source, out, progress=False)
    assert _tree(out) == whole and not _litter(out)


def test_a_segment_somebody_else_just_wrote_is_left_alone(source, out):
    """A worker whose caller was killed may finish a moment after its successor."""
    prepare(source, out, progress=False)
    folder = out / "validation" / "c"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    fingerprint = json.loads((folder / "manifest.json").read_text())["source"]
    segments.write_segment(module.read_segment(source / "validation", "c"), folder, fingerprint)
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()} and not _litter(
        out
    )


def test_the_progress_bar_writes_lines_into_a_log(source, out, capsys, monkeypatch):
    # which another test may have loaded
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    prepare(source, out, objects=False)
    lines = capsys.readouterr().err.split("\n")
    assert lines[0].startswith(
        "source: training 2 segments, 7 frames; validation 1 segments, 3 frames"
    )
    assert (
        lines[-2].startswith("prepare: 100%")
        and "3/3" in lines[-2]
        and not any("\r" in line for line in lines)
    )


def test_objects_are_collected_unless_unwanted(source, out):
    assert prepare(source, out, objects=False, progress=False).object_bank is None
    assert not (out / "training" / "objects.safetensors").exists()
    report = prepare(source, out, progress=False)
    assert (
        Path(report.object_bank) == out / "training" / "objects.safetensors"
        and Path(report.object_bank).is_file()
    )


def test_the_command_line(source, out):
    def call(*arguments):
        return CliRunner().invoke(app, ["prepare", *map(str, arguments)])

    assert "3 frames" in call(source, out, "--dry-run").output and not out.exists()
    assert json.loads(call(source, out, "--dry-run", "--json").stdout)["frames_to_do"] == 10
    assert call(source).exit_code == 2
    made = call(source, out, "--split", "validation", "--workers", 1, "--json")
    assert json.loads(made.stdout)["splits"]["validation"]["frames"] == 3
    assert call("--verify", out).exit_code == 0
    incomplete = json.loads(call("--verify", out, "--json").stdout)
    assert incomplete["sound"] and list(incomplete["splits"]) == ["validation"]
    (out / "validation" / "c" / "points.npy").write_bytes(b"")
    damaged = call("--verify", source, out)
    assert damaged.exit_code == 1 and "damaged: " in damaged.output


def test_an_interrupted_command_says_how_to_go_on(source, out, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "prepare_segment", stop)
    result = CliRunner().invoke(app, ["prepare", str(source), str(out), "--workers", "1"])
    assert (
        result.exit_code == 130
        and ("interrupted; finished segments are kept, the same command continues") in result.output
    )
