from __future__ import annotations

import pytest
import torch
from torch import nn

from kdlib.errors import ConfigError
from kdlib.kd.teacher import Teacher, unmoved_statistics


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same_state(module, before):
    return all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("norm", ["running", "batch"])
def test_b9_asking_leaves_no_trace(pair, batch, norm):
    _, model = pair()
    before = state(model)
    teacher = Teacher(model, norm)
    data = batch()
    first = teacher(data)
    teacher.train()
    nn.ModuleList([teacher]).train()
    model.train()  # even behind its back
    second = teacher(data)
    assert same_state(model, before)
    assert torch.equal(first.heads[0].heatmap, second.heads[0].heatmap)
    assert not first.heads[0].heatmap.requires_grad and not any(
        p.requires_grad for p in teacher.parameters()
    )


def test_running_answers_do_not_depend_on_batch_mates_and_batch_answers_do(pair, batch, one_frame):
    _, model = pair()
    data = batch()
    gap = {}
    for norm in ("running", "batch"):
        teacher = Teacher(model, norm)
        together, alone = (
            teacher(data).heads[0].heatmap[:1],
            teacher(one_frame(data, 0)).heads[0].heatmap,
        )
        gap[norm] = float((together - alone).abs().max())
    assert gap["running"] < 1e-4 and gap["batch"] > 1e-3


def test_modes_are_those_of_the_network_itself(pair, batch):
    """Running equals plain evaluation; batch equals training mode, which only differs in the
    statistics it leaves behind.
    """
    _, model = pair()
    data = batch()
    with torch.no_grad():
        wanted_eval = model.eval()(data.points).heads[0].heatmap
        assert torch.equal(Teacher(model, "running")(data).heads[0].heatmap, wanted_eval)
        got = Teacher(model, "batch")(data).heads[0].heatmap
    with torch.no_grad():
        assert torch.allclose(model.train()(data.points).heads[0].heatmap, got, atol=1e-6)


def test_answer_holds_ground_truth_targets_and_boxes_without_nms(pair, batch):
    _, model = pair()
    with torch.no_grad():
        # boxes of about 2.7 m, several cells long: they overlap
        model.dense_head.heads_list[0].dim[1].bias.fill_(1.0)
    data = batch()
    answer = Teacher(model, "running")(data)
    wanted = model.targets(data.truth)
    assert torch.equal(answer.targets[0].heatmap, wanted[0].heatmap) and answer.heads[
        0
    ].heatmap.shape[-2:] == (32, 32)
    assert len(answer.boxes) == 2 and len(answer.boxes[0].labels) > 100
    with torch.no_grad():
        assert len(model.detect(model(data.points), nms=True)[0].labels) < len(
            answer.boxes[0].labels
        )
    bare = Teacher(model, "running")(data, ())
    assert bare.targets == () and bare.boxes == ()


def test_inputs_unchanged(pair, batch):
    _, model = pair()
    data = batch()
    before = [
        t.clone()
        for t in (data.points.points, data.points.batch_index, data.truth.boxes, data.truth.labels)
    ]
    Teacher(model, "batch")(data)
    after = (data.points.points, data.points.batch_index, data.truth.boxes, data.truth.labels)
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_unknown_norm_is_an_error(pair):
    with pytest.raises(
        ConfigError, match="unknown teacher norm 'train'; use one of running, batch"
    ):
        Teacher(pair()[1], "train")


def test_a_training_student_can_run_without_moving_its_statistics(pair, batch):
    student, _ = pair()
    student.train()
    before = state(student)
    with torch.no_grad(), unmoved_statistics(student):
        still = student(batch().points).heads[0].heatmap
    assert same_state(student, before) and student.training
    with torch.no_grad():
        assert torch.allclose(student(batch().points).heads[0].heatmap, still, atol=1e-6)
    assert not same_state(student, before)
