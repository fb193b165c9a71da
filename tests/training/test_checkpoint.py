"""One file per checkpoint, whole or named as damaged."""

from __future__ import annotations

import pytest
import torch

from kdlib.training import checkpoint
from kdlib.training.checkpoint import Checkpoint, CheckpointError


def make(step: int, job: str = "job") -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "weights/a": torch.randn(4, 3, generator=generator),
        "weights/a_view": torch.arange(6.0).view(2, 3).T,  # not contiguous
        "weights/count": torch.tensor(step),
        "random/host": torch.get_rng_state(),
    }
    return Checkpoint(step, job, tensors, {"seconds": 0.1 + 0.2, "last": {}})


def test_round_trip_is_exact(tmp_path):
    before = make(7)
    after = checkpoint.load_checkpoint(checkpoint.save(tmp_path, before))
    assert (after.step, after.job, after.notes) == (7, "job", {"seconds": 0.1 + 0.2, "last": {}})
    assert after.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(after.tensors[k], before.tensors[k]) for k in before.tensors)


def test_shared_memory_is_no_obstacle(tmp_path):
    one = torch.ones(3)
    after = checkpoint.load_checkpoint(
        checkpoint.save(tmp_path, Checkpoint(1, "job", {"a": one, "b": one}, {}))
    )
    assert torch.equal(after.tensors["b"], one)


def test_keeps_the_newest_two(tmp_path):
    for step in (9, 10, 100, 11):
        checkpoint.save(tmp_path, make(step))
    assert [path.name for path in checkpoint.files(tmp_path)] == [
        "step_0000011.safetensors",
        "step_0000100.safetensors",
    ]
    assert checkpoint.latest(tmp_path, "job").step == 100


def test_nothing_there(tmp_path):
    assert checkpoint.latest(tmp_path / "none", "job") is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "foreign"])
def test_damaged_newest_is_named_and_skipped(tmp_path, caplog, damage):
    checkpoint.save(tmp_path, make(1))
    newest = checkpoint.save(tmp_path, make(2))
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[-50] ^= 1
    newest.write_bytes(
        {
            "truncated": content[:-9],
            "empty": b"",
            "flipped": content,
            "foreign": b"PK" + bytes(100),
        }[damage]
    )
    assert checkpoint.latest(tmp_path, "job").step == 1
    assert str(newest) in caplog.text and "going back to the checkpoint before it" in caplog.text


def test_all_damaged_starts_over(tmp_path, caplog):
    checkpoint.save(tmp_path, make(1)).write_bytes(b"")
    assert checkpoint.latest(tmp_path, "job") is None
    assert "step_0000001" in caplog.text


def test_other_job_is_refused(tmp_path):
    checkpoint.save(tmp_path, make(1, "theirs"))
    with pytest.raises(CheckpointError, match="belongs to job theirs, this run is job ours"):
        checkpoint.latest(tmp_path, "ours")
