from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import get_args

import numpy as np
import pytest
import torch

from kdlib.config import HeadConfig, LogitKDConfig, PivotalForm
from kdlib.errors import ConfigError
from kdlib.kd.align import align_maps
from kdlib.kd.check import check_logit
from kdlib.kd.logit import head_kd, heatmap_kd, logit_weights
from kdlib.kd.pivotal import pivotal_mask
from kdlib.models.losses.detection import detection_loss
from kdlib.models.losses.heatmap_focal import focal_loss
from kdlib.types import HeadOutput, HeadTargets

POSITIONS = get_args(PivotalForm)
DISTANCES = ("mse", "smooth_l1", "focal")
REGION = (-5.0, -4.0, 7.0, 4.0)
MAPS = ("hm", "center", "center_z", "dim", "rot")
SAME = LogitKDConfig(weight=10.0, regression_weight=0.2)  # cp-voxel-s_sparsekd
COARSE = LogitKDConfig(weight=7.0)  # the pillar pairs
FORMS = {
    "base": {},
    "w15": {"weight": 15.0},
    "soft_off": {"soft": False},
    "fg_off": {"positions": "all"},
    "thresh0p3": {"threshold": 0.3},
    "soft_off_fg_off_thresh0p3": {"positions": "confidence", "soft": False, "threshold": 0.3},
    "soft_off_fg_off_thresh0": {"positions": "all", "soft": False},
    "soft_on_fg_off_thresh0p3": {"positions": "confidence", "threshold": 0.3},
    "smoothl1": {"distance": "smooth_l1"},
    "target_student": {"target": "student"},
    "target_student_fg_off": {"target": "student", "positions": "all"},
    "hm_w0": {"weight": 0.0},
}
CASES = [("same_res", v) for v in FORMS if v != "target_student_fg_off"] + [
    ("diff_res_small_2x", v)
    for v in (
        "base",
        "soft_off",
        "fg_off",
        "thresh0p3",
        "soft_off_fg_off_thresh0p3",
        "target_student",
        "target_student_fg_off",
    )
]
CASES += [
    (f, v)
    for f in ("diff_res_small_1p5x", "diff_res_small_1p25x")
    for v in ("base", "soft_off", "target_student")
]


def logit_kd(student, teacher, student_targets, teacher_targets, config, region=None):
    """The values of a head's parts by name."""
    targets = teacher_targets if config.target == "teacher" else student_targets
    return {part.name: part.value for part in head_kd(student, teacher, targets, config, region)}


def read(goldens, name):
    """Return the stored arrays, the two heads (leaves for the student) and the two targets."""
    stored = np.load(goldens / f"original/04_logit_kd/{name}.npz")
    meta = json.loads(str(stored["meta"]))

    def head(prefix):
        values = [
            stored[f"{prefix}_q_{n}"].astype(np.float32) * np.float32(meta["step"][n])
            + np.float32(meta["offset"].get(n, 0))
            for n in MAPS
        ]
        return HeadOutput(*(torch.from_numpy(v).requires_grad_(prefix == "stu") for v in values))

    def targets(prefix):
        mask = torch.from_numpy(stored[f"{prefix}_masks"]).bool()
        indices = torch.from_numpy(stored[f"{prefix}_inds"]).long()
        return HeadTargets(
            torch.from_numpy(stored[f"{prefix}_heatmaps"]),
            torch.zeros(*mask.shape, 8),
            indices,
            mask,
        )

    return stored, head("stu"), head("tea"), targets("stu"), targets("tea")


@pytest.mark.parametrize("name, variant", CASES)
def test_golden_of_the_original(goldens, name, variant):
    stored, student, teacher, student_targets, teacher_targets = read(goldens, name)
    config = replace(SAME if name == "same_res" else COARSE, **FORMS[variant])
    parts = logit_kd(student, teacher, student_targets, teacher_targets, config)
    for key, want in (("kd_heatmap", "kd_hm"), ("kd_box", "kd_reg")):
        got = parts[key].item() if key in parts else 0.0
        assert got == pytest.approx(float(stored[f"{variant}__{want}"]), rel=1e-5), key
    assert sum(p.item() for p in parts.values()) == pytest.approx(
        float(stored[f"{variant}__kd_loss"]), rel=1e-5
    )

    if f"{variant}__kd_grad_hm_logits" in stored:
        sum(parts.values()).backward()
        for key, field in zip(("hm_logits", *MAPS[1:]), fields(HeadOutput)):
            grad = getattr(student, field.name).grad
            grad = torch.zeros_like(getattr(student, field.name)) if grad is None else grad
            np.testing.assert_allclose(
                grad, stored[f"{variant}__kd_grad_{key}"], rtol=1e-4, atol=1e-7, err_msg=key
            )
    assert all(getattr(teacher, f.name).grad is None for f in fields(HeadOutput))


@pytest.mark.parametrize("name, variant", CASES)
def test_golden_gradient_at_the_probabilities(goldens, name, variant):
    stored, _, _, student_targets, teacher_targets = read(goldens, name)
    config = replace(SAME if name == "same_res" else COARSE, **FORMS[variant])
    student = torch.from_numpy(stored["stu_hm_prob"]).requires_grad_()
    teacher = torch.from_numpy(stored["tea_hm_prob"])
    size = (teacher if config.target == "teacher" else student).shape[-2:]
    ours, theirs = align_maps(student, size), align_maps(teacher, size)
    mask = pivotal_mask(
        theirs, teacher_targets if config.target == "teacher" else student_targets, config
    )
    (config.weight * heatmap_kd(ours, theirs, mask, config.distance)).backward()
    np.testing.assert_allclose(
        student.grad, stored[f"{variant}__kd_grad_hm_prob"], rtol=1e-4, atol=1e-7
    )


def scene(
    classes=2, student=(4, 6), teacher=(4, 6), frames=2, boxes=3, seed=0, dtype=torch.float64
):
    """Return random heads on two grids with targets on each."""
    gen = torch.Generator().manual_seed(seed)

    def head(size):
        return HeadOutput(
            *(
                torch.randn(frames, c, *size, generator=gen, dtype=dtype)
                for c in (classes, 2, 1, 3, 2)
            )
        )

    def targets(size):
        heatmap = torch.rand(frames, classes, *size, generator=gen, dtype=dtype)
        mask = torch.zeros(frames, 5, dtype=torch.bool)
        mask[:, :boxes] = True
        indices = torch.randint(0, size[0] * size[1], (frames, 5), generator=gen) * mask
        return HeadTargets(
            heatmap * (boxes > 0), torch.zeros(frames, 5, 8, dtype=dtype), indices, mask
        )

    return head(student), head(teacher), targets(student), targets(teacher)


def naive(student, teacher, targets, config):
    """Equal grids, Gaussian positions: spec 7.5 with loops."""

    def probability(x):
        return min(max(1 / (1 + np.exp(-float(x))), 1e-4), 1 - 1e-4)

    top, bottom = 0.0, 0.0
    frames, classes, height, width = student.heatmap.shape
    for b, y, x in np.ndindex(frames, height, width):
        t = [probability(teacher.heatmap[b, c, y, x]) for c in range(classes)]
        s = [probability(student.heatmap[b, c, y, x]) for c in range(classes)]
        m = float(max(t) > config.threshold) * max(t) * float(max(targets.heatmap[b, :, y, x]))
        top += m * sum((p - q) ** 2 for p, q in zip(s, t))
        bottom += m
    box, count = 0.0, 0
    for b, k in np.ndindex(*targets.mask.shape):
        if targets.mask[b, k]:
            y, x = divmod(int(targets.indices[b, k]), width)
            box += float((student.regression - teacher.regression)[b, :, y, x].abs().sum())
            count += 1
    return config.weight * top / (bottom + 1e-6), config.regression_weight * box / max(count, 1)


@pytest.mark.parametrize("classes", [1, 3])
def test_equals_the_formula_cell_by_cell(classes):
    student, teacher, student_targets, teacher_targets = scene(classes)
    config = LogitKDConfig(regression_weight=0.2, threshold=0.3)
    got = logit_kd(student, teacher, student_targets, teacher_targets, config)
    heatmap, box = naive(student, teacher, teacher_targets, config)
    assert got["kd_heatmap"].item() == pytest.approx(heatmap, rel=1e-12)
    assert got["kd_box"].item() == pytest.approx(box, rel=1e-12)


def test_hand_value():
    """Spec 13.5: s = (.3, .6), t = (.9, .2), g = (1, .5) gives 0.34 times the weight."""
    s, t = torch.tensor([[[[0.3, 0.6]]]]), torch.tensor([[[[0.9, 0.2]]]])
    assert heatmap_kd(s, t, torch.tensor([[[0.9, 0.1]]])).item() == pytest.approx(0.34, abs=1e-6)
    targets = HeadTargets(
        torch.tensor([[[[1, 0.5]]]]),
        torch.zeros(1, 1, 8),
        torch.zeros(1, 1).long(),
        torch.ones(1, 1).bool(),
    )
    zero = [torch.zeros(1, n, 1, 2) for n in (2, 1, 3, 2)]
    parts = logit_kd(
        HeadOutput(s.logit(), *zero),
        HeadOutput(t.logit(), *zero),
        None,
        targets,
        LogitKDConfig(weight=10.0),
    )
    assert parts["kd_heatmap"].item() == pytest.approx(3.4, abs=1e-5)
    assert set(parts) == {"kd_heatmap"}


@pytest.mark.parametrize("form", POSITIONS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_teacher_equal_to_student_gives_zero(form, distance):
    student, _, targets, _ = scene()
    config = LogitKDConfig(
        positions=form, distance=distance, rank_weight=1.0, regression_weight=0.2
    )
    parts = logit_kd(student, student, targets, targets, config, REGION)
    assert {name: part.item() for name, part in parts.items()} == {
        "kd_heatmap": 0,
        "kd_rank": 0,
        "kd_box": 0,
    }


@pytest.mark.parametrize("target", ["teacher", "student"])
@pytest.mark.parametrize("sizes", [((3, 4), (6, 8)), ((4, 5), (3, 3)), ((3, 4), (3, 4))])
def test_gradcheck(sizes, target):
    student, teacher, student_targets, teacher_targets = scene(2, *sizes, frames=1)
    weight = 0.2 if sizes[0] == sizes[1] else 0.0
    config = LogitKDConfig(target=target, rank_weight=1.0, rank=5, regression_weight=weight)

    def loss(*maps):
        return sum(
            logit_kd(HeadOutput(*maps), teacher, student_targets, teacher_targets, config).values()
        )

    leaves = [getattr(student, f.name).requires_grad_() for f in fields(HeadOutput)]
    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize(
    "form, distance",
    [*((form, "mse") for form in POSITIONS), *(("gaussian", d) for d in DISTANCES[1:])],
)
@pytest.mark.parametrize("sizes", [((3, 4), (5, 6)), ((3, 4), (3, 4))])
def test_gradcheck_of_every_form(sizes, form, distance):
    student, teacher, student_targets, teacher_targets = scene(2, *sizes, frames=1)
    config = LogitKDConfig(positions=form, distance=distance, rank=3, instances=2)

    def loss(heatmap):
        parts = logit_kd(
            replace(student, heatmap=heatmap),
            teacher,
            student_targets,
            teacher_targets,
            config,
            REGION,
        )
        return parts["kd_heatmap"]

    assert loss(student.heatmap) > 0
    assert torch.autograd.gradcheck(loss, student.heatmap.requires_grad_())


@pytest.mark.parametrize("form", POSITIONS)
@pytest.mark.parametrize("sizes", [((4, 6), (8, 12)), ((4, 6), (4, 6)), ((5, 4), (3, 7))])
@pytest.mark.parametrize("target, align_corners", [("teacher", False), ("student", True)])
def test_every_form_on_every_pair_of_grids(form, sizes, target, align_corners):
    """Value and gradient of one-class heads, with box distillation where it can be."""
    student, teacher, student_targets, teacher_targets = scene(1, *sizes)
    leaf = student.heatmap.requires_grad_()
    config = LogitKDConfig(
        positions=form, rank=6, target=target, align_corners=align_corners, rank_weight=1.0
    )
    if sizes[0] == sizes[1]:
        config = replace(config, regression_weight=0.2)
    parts = logit_kd(student, teacher, student_targets, teacher_targets, config, REGION)
    assert list(parts) == list(logit_weights(config)) and all(
        part.dim() == 0 and part > 0 for part in parts.values()
    )
    sum(parts.values()).backward()
    assert leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("classes", [1, 3])
def test_focal_equals_its_formula_cell_by_cell(classes):
    gen = torch.Generator().manual_seed(3)
    s, t = (
        torch.rand(2, classes, 3, 4, generator=gen, dtype=torch.float64) * 0.98 + 0.01
        for _ in range(2)
    )
    mask = torch.rand(2, 3, 4, generator=gen, dtype=torch.float64)
    top = 0.0
    for b, c, y, x in np.ndindex(*s.shape):
        p, q = float(s[b, c, y, x]), float(t[b, c, y, x])
        top -= float(mask[b, y, x]) * (q - p) ** 2 * (q * np.log(p) + (1 - q) * np.log(1 - p))
    assert heatmap_kd(s, t, mask, "focal").item() == pytest.approx(
        top / (float(mask.sum()) + 1e-6), rel=1e-12
    )


def test_focal_by_hand_and_at_its_limits():
    """t = .5, s = .25: -(1/16)(.5 ln .25 + .5 ln .75); at targets of 0 and 1 it is CenterNet's
    focal loss, undivided.
    """
    s, t, mask = torch.tensor([[[[0.25]]]]), torch.tensor([[[[0.5]]]]), torch.ones(1, 1, 1)
    assert heatmap_kd(s, t, mask, "focal").item() == pytest.approx(
        -(np.log(0.25) + np.log(0.75)) / 32, rel=1e-4
    )
    gen = torch.Generator().manual_seed(0)
    s = torch.rand(2, 3, 4, 5, generator=gen, dtype=torch.float64) * 0.98 + 0.01
    hard = (torch.rand(2, 3, 4, 5, generator=gen) > 0.7).double()
    everywhere = torch.ones(2, 4, 5, dtype=torch.float64)
    want = focal_loss(s, hard) * hard.sum() / (everywhere.sum() + 1e-6)
    assert heatmap_kd(s, hard, everywhere, "focal").item() == pytest.approx(want.item(), rel=1e-12)


@pytest.mark.parametrize(
    "variant, inverse", [("focal_pos0p6", False), ("focal_pos0p6_inverse", True)]
)
def test_golden_of_the_original_focal_type(goldens, variant, inverse):
    """What the docstring of heatmap_kd says the original's focal type is."""
    stored, *_ = read(goldens, "same_res")
    student, teacher = (torch.from_numpy(stored[f"{name}_hm_prob"]) for name in ("stu", "tea"))
    student.requires_grad_()
    got = 10 * (
        focal_loss(teacher, student, positive=0.6)
        if inverse
        else focal_loss(student, teacher, positive=0.6)
    )
    assert got.item() == pytest.approx(float(stored[f"{variant}__kd_hm"]), rel=1e-5)
    got.backward()
    np.testing.assert_allclose(
        student.grad, stored[f"{variant}__kd_grad_hm_prob"], rtol=1e-4, atol=1e-6
    )


def test_gradient_reaches_the_student_only_and_inputs_stay():
    student, teacher, student_targets, teacher_targets = scene()
    leaves = [
        getattr(head, f.name).requires_grad_()
        for head in (student, teacher)
        for f in fields(HeadOutput)
    ]
    before = [leaf.detach().clone() for leaf in leaves] + [teacher_targets.heatmap.clone()]
    sum(
        logit_kd(student, teacher, student_targets, teacher_targets, replace(SAME)).values()
    ).backward()
    assert all(leaf.grad is not None for leaf in leaves[:5]) and all(
        leaf.grad is None for leaf in leaves[5:]
    )
    assert all(torch.equal(a, b) for a, b in zip(before, [*leaves, teacher_targets.heatmap]))


@pytest.mark.parametrize("target", ["teacher", "student"])
def test_b6_one_class_on_different_grids(target):
    student, teacher, student_targets, teacher_targets = scene(1, (4, 6), (8, 12), frames=3)
    parts = logit_kd(
        student,
        teacher,
        student_targets,
        teacher_targets,
        LogitKDConfig(target=target, positions="all", soft=False),
    )
    size = (8, 12) if target == "teacher" else (4, 6)
    s, t = (align_maps(h.heatmap.sigmoid(), size) for h in (student, teacher))
    assert parts["kd_heatmap"].item() == pytest.approx(7 * float((s - t).square().mean()), rel=1e-5)


def test_b1_align_corners_is_obeyed():
    student, teacher, student_targets, teacher_targets = scene(2, (4, 6), (8, 12))
    one, two = (
        logit_kd(
            student, teacher, student_targets, teacher_targets, LogitKDConfig(align_corners=a)
        )["kd_heatmap"].item()
        for a in (False, True)
    )
    assert abs(one - two) > 1e-6


def test_b5_value_does_not_depend_on_what_ran_before():
    """The original compared logits with probabilities unless the detection loss had run first."""
    student, teacher, student_targets, teacher_targets = scene(3)
    first = logit_kd(student, teacher, student_targets, teacher_targets, SAME)
    detection_loss((student,), (student_targets,), HeadConfig())
    second = logit_kd(student, teacher, student_targets, teacher_targets, SAME)
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_b11_regression_on_different_grids_is_an_error():
    with pytest.raises(
        ConfigError,
        match=(r"student has 4 x 6 cells and the teacher 8 x 12; set " r"regression_weight to 0"),
    ):
        check_logit(LogitKDConfig(regression_weight=0.2), (4, 6), (8, 12))


def test_empty_scene_is_finite():
    parts = logit_kd(*scene(3, boxes=0), SAME)
    assert [p.item() for p in parts.values()] == [0, 0]


def test_other_classes_and_unknown_distance_are_refused():
    student, _, targets, _ = scene(2)
    _, teacher, _, _ = scene(3)
    with pytest.raises(ConfigError, match="same heads"):
        logit_kd(student, teacher, targets, targets, LogitKDConfig())
    with pytest.raises(ConfigError, match="unknown distance 'l3'"):
        heatmap_kd(torch.rand(1, 1, 2, 2), torch.rand(1, 1, 2, 2), torch.ones(1, 2, 2), "l3")
