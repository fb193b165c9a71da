"""Checkpoints of other code bases, built from our own weights: each imports to the same outputs or
fails naming the tensors.
"""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdlib import zoo
from kdlib.errors import ConfigError, DataError
from kdlib.models.build import build
from kdlib.models.weights import load_weights, save_weights
from kdlib.tools.checkpoints import foreign
from kdlib.types import PointBatch

TINY = replace(
    zoo.model("cp_voxel_xxs"),
    name="tiny",
    grid=replace(zoo.model("cp_voxel_xxs").grid, point_range=(-6.4, -6.4, -2.0, 6.4, 6.4, 4.0)),
)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(1)
    model = build(TINY).eval()
    for module in model.modules():
        # fresh statistics would hide a forgotten one
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def points() -> PointBatch:
    generator = torch.Generator().manual_seed(2)
    xyz = torch.rand(3000, 3, generator=generator) * torch.tensor([12.0, 12.0, 3.0]) - torch.tensor(
        [6.0, 6.0, 1.5]
    )
    features = torch.rand(3000, 2, generator=generator)
    return PointBatch(
        torch.cat((xyz, features), 1), torch.zeros(3000, dtype=torch.long), 1, ("frame",)
    )


def kernels(state: State, axes: tuple[int, ...]) -> State:
    return {
        name: value.permute(axes).contiguous() if value.dim() == 5 else value
        for name, value in state.items()
    }


SPCONV1, NATIVE = (1, 2, 3, 4, 0), (1, 2, 3, 0, 4)


def wrapped(state: State) -> dict[str, object]:
    return {
        "epoch": 30,
        "it": 7,
        "model_state": state,
        "optimizer_state": None,
        "version": "pcdet+0.5.2",
    }


def same_outputs(
    file: Path, network: nn.Module, points: PointBatch, **options: object
) -> foreign.Imported:
    imported = foreign.import_checkpoint(file, network, **options)
    torch.manual_seed(99)
    fresh = build(TINY).eval()
    out = file.with_suffix(".ours.safetensors")
    foreign.save_imported(out, fresh, imported, {"model": TINY.name})
    again = build(TINY).eval()
    load_weights(out, again)
    with torch.no_grad():
        expected, found = network(points), again(points)
    for ours, theirs in zip(expected.heads, found.heads):
        assert torch.equal(ours.heatmap, theirs.heatmap) and torch.equal(
            ours.regression, theirs.regression
        )
    assert expected.heads[0].heatmap.abs().max() > 0
    return imported


@pytest.mark.parametrize(
    ("layout", "axes"), [("spconv1", SPCONV1), ("native", NATIVE), ("spconv2", (0, 1, 2, 3, 4))]
)
@pytest.mark.parametrize("form", ["openpcdet", "bare", "distributed", "shuffled", "half"])
def test_each_layout_and_form_gives_the_same_outputs(
    tmp_path: Path,
    network: nn.Module,
    points: PointBatch,
    layout: str,
    axes: tuple[int, ...],
    form: str,
) -> None:
    state = kernels(network.state_dict(), axes)
    if form == "half":  # numbers that sixteen bits hold exactly, so that equality can be asked for
        network = build(TINY).eval()
        network.load_state_dict(
            {
                k: v.half().to(v.dtype) if v.is_floating_point() else v
                for k, v in kernels(state, inverse(axes)).items()
            }
        )
        state = {
            k: v.half() if v.is_floating_point() else v
            for k, v in kernels(network.state_dict(), axes).items()
        }
    content: dict[str, Callable[[], object]] = {
        "openpcdet": lambda: wrapped(state),
        "bare": lambda: state,
        "distributed": lambda: {
            "state_dict": {f"module.{name}": value for name, value in state.items()}
        },
        "shuffled": lambda: wrapped(
            dict(sorted(state.items(), key=lambda item: hash(item[0]) % 97))
        ),
        "half": lambda: wrapped(state),
    }
    file = tmp_path / "theirs.pth"
    torch.save(content[form](), file)
    imported = same_outputs(file, network, points)
    assert imported.layout == layout
    assert f"stored as {layout}" in imported.table() and "backbone_3d.conv4" in imported.table()


def inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axes.index(axis) for axis in range(5))


def test_renamed_tensors_come_in_by_their_old_names(
    tmp_path: Path, network: nn.Module, points: PointBatch
) -> None:
    state = {
        name.replace("dense_head", "bbox_head"): value
        for name, value in network.state_dict().items()
    }
    file = tmp_path / "theirs.pth"
    torch.save(wrapped(state), file)
    with pytest.raises(
        DataError, match=(r"missing in the file: " r"dense_head\.shared_conv\.0\.weight.*--rename")
    ):
        foreign.import_checkpoint(file, network)
    same_outputs(file, network, points, rename={"bbox_head": "dense_head"})
    with pytest.raises(ConfigError, match=r"--rename nothing: no tensor.*bbox_head"):
        foreign.import_checkpoint(file, network, rename={"nothing": "dense_head"})


def test_a_two_stage_checkpoint_comes_in_without_its_second_stage(
    tmp_path: Path, network: nn.Module, points: PointBatch
) -> None:
    state = {**network.state_dict(), "roi_head.cls_layers.0.weight": torch.zeros(4, 4)}
    file = tmp_path / "theirs.pth"
    torch.save(wrapped(state), file)
    with pytest.raises(DataError, match=r"unknown to the model: roi_head\.cls_layers\.0\.weight"):
        foreign.import_checkpoint(file, network)
    same_outputs(file, network, points, drop=["roi_head"])
    with pytest.raises(ConfigError, match="--drop point_head"):
        foreign.import_checkpoint(file, network, drop=["point_head"])


def test_counters_may_be_missing_and_weights_may_not(
    tmp_path: Path, network: nn.Module, points: PointBatch
) -> None:
    counters = ("global_step", "num_batches_tracked")
    state = {
        name: value for name, value in network.state_dict().items() if not name.endswith(counters)
    }
    file = tmp_path / "theirs.pth"
    torch.save(wrapped(state), file)
    assert "a counter, no weight" in same_outputs(file, network, points).table()
    del state["backbone_3d.conv3.1.bn1.running_var"]
    torch.save(wrapped(state), file)
    with pytest.raises(
        DataError, match=(r"missing in the file: " r"backbone_3d\.conv3\.1\.bn1\.running_var")
    ):
        foreign.import_checkpoint(file, network)


def change(state: State, name: str, value: Tensor) -> State:
    return {**state, name: value}


def test_what_does_not_fit_is_named(tmp_path: Path, network: nn.Module) -> None:
    state, file = network.state_dict(), tmp_path / "theirs.pth"
    kernel, bias = "backbone_3d.conv2.0.0.weight", "dense_head.shared_conv.0.bias"
    # (Cout, Cin, kz, ky, kx): no release of spconv stores that
    flipped = state[kernel].permute(0, 4, 1, 2, 3).contiguous()
    mixed = {**state, kernel: state[kernel].permute(SPCONV1).contiguous()}
    cases = (
        (change(state, kernel, flipped), rf"{kernel}: model .*, file "),
        (
            mixed,
            (
                r"sparse kernels disagree, backbone_3d\.conv2\.0\.0\.weight is stored as spconv1 "
                r"but .*spconv2"
            ),
        ),
        (change(state, bias, torch.zeros(7)), r"shared_conv\.0\.bias: model \(16,\), file \(7,\)"),
        (
            change(state, bias, torch.full((16,), torch.nan)),
            (r"16 numbers of " r"dense_head\.shared_conv\.0\.bias are not finite"),
        ),
        (change(state, bias, torch.zeros(16, dtype=torch.long)), r"holds torch\.int64"),
    )
    for content, message in cases:
        torch.save(wrapped(content), file)
        with pytest.raises(DataError, match=message):
            foreign.import_checkpoint(file, network)


def test_square_kernels_alone_need_a_word(tmp_path: Path) -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.rand(4, 3, 3, 3, 4))

    square, file = Square(), tmp_path / "theirs.pth"
    torch.save({"kernel": square.kernel.data.permute(SPCONV1).contiguous()}, file)
    with pytest.raises(DataError, match="native and spconv1 look alike; say which with --layout"):
        foreign.import_checkpoint(file, square)
    imported = foreign.import_checkpoint(file, square, layout="spconv1")
    assert torch.equal(imported.tensors["kernel"], square.kernel.data)
    # of a wider model: shapes are the matter, not the layout
    torch.save({"kernel": torch.rand(3, 3, 3, 8, 8)}, file)
    with pytest.raises(DataError, match=r"kernel: model \(4, 3, 3, 3, 4\), file \(8, 3, 3, 3, 8\)"):
        foreign.import_checkpoint(file, square)


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return print, ("run",)


def test_files_that_are_no_checkpoints(
    tmp_path: Path, network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs.pth"
    with pytest.raises(DataError, match="does not exist"):
        foreign.import_checkpoint(file, network)
    torch.save(wrapped(network.state_dict()), file)
    whole = file.read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"no complete torch checkpoint|is empty|no weights"):
            foreign.import_checkpoint(file, network)
    file.write_bytes(pickle.dumps({"model_state": Evil()}))
    with pytest.raises(DataError):
        foreign.import_checkpoint(file, network)
    file.write_bytes(pickle.dumps({"weights": np.zeros(3)}, protocol=4))
    with warnings.catch_warnings(), pytest.raises(DataError, match="a pickle that torch"):
        warnings.simplefilter("error")
        foreign.import_checkpoint(file, network)
    objects = {
        r"(builtins\.)?print": Evil(),
        "pathlib.PosixPath": Path("runs/3"),
        "argparse.Namespace": argparse.Namespace(lr=0.1),
        "torch.nn.modules.linear.Linear": nn.Linear(2, 2),
    }
    for name, value in objects.items():
        torch.save({"model_state": network.state_dict(), "config": value}, file)
        with pytest.raises(DataError, match=rf"holds {name}, an object that only running code"):
            foreign.import_checkpoint(file, network)
    assert "run" not in capsys.readouterr().out
    for content, words in (
        ({"lr": 0.1}, "'lr': float"),
        ([1], "list"),
        ({}, "nothing"),
        ({"w": np.zeros((3, 3))}, "'w': a NumPy array, save torch.from_numpy of it"),
        ({0: torch.zeros(2, 3)}, r"0: a tensor \(2, 3\)"),
        ({"mean": torch.zeros(5)}, r"'mean': a tensor \(5,\)"),
    ):
        torch.save(content, file)
        with pytest.raises(DataError, match=rf"no state dict \(found: {words}\)"):
            foreign.import_checkpoint(file, network)


def test_numpy_scalars_and_arrays_beside_the_weights_are_read(
    tmp_path: Path, network: nn.Module, points: PointBatch
) -> None:
    file = tmp_path / "theirs.pth"
    notes = {
        "best": np.float64(0.5),
        "step": np.int64(3),
        "name": np.str_("teacher"),
        "seeds": np.arange(3),
    }
    for legacy in (False, True):
        torch.save(
            {**wrapped(network.state_dict()), **notes},
            file,
            _use_new_zipfile_serialization=not legacy,
        )
        same_outputs(file, network, points)


def test_state_of_scalers_and_statistics_is_no_set_of_weights(
    tmp_path: Path, network: nn.Module, recwarn: pytest.WarningsRecorder
) -> None:
    state = network.state_dict()
    beside = {
        "scaler": {"scale": torch.tensor(65536.0), "growth": torch.tensor(0)},
        "stats": {"mean": torch.zeros(5), "std": torch.ones(5)},
    }
    torch.save({"model_state": state, **beside}, tmp_path / "theirs.pth")
    imported = foreign.import_checkpoint(tmp_path / "theirs.pth", network)
    assert len(imported.coverage.loaded) == len(state) and not recwarn.list


@pytest.mark.parametrize(
    ("change_of", "message"),
    [
        (lambda name, value: 0 * value if value.dim() > 1 else value, "all its weights are 0"),
        (
            lambda name, value: -1 - value if name.endswith("running_var") else value,
            r"running_var holds negative variances, down to -2",
        ),
    ],
)
def test_numbers_that_no_training_ends_with_are_refused(
    tmp_path: Path, network: nn.Module, change_of, message: str
) -> None:
    state = {name: change_of(name, value) for name, value in network.state_dict().items()}
    torch.save(wrapped(state), tmp_path / "theirs.pth")
    with pytest.raises(DataError, match=message):
        foreign.import_checkpoint(tmp_path / "theirs.pth", network)


def test_plain_values_among_the_tensors_are_passed_over(tmp_path: Path, network: nn.Module) -> None:
    state = network.state_dict()
    for content in ({**state, "epoch": 3}, {"state_dict": {**state, "head._extra_state": None}}):
        torch.save(content, tmp_path / "theirs.pth")
        imported = foreign.import_checkpoint(tmp_path / "theirs.pth", network)
        assert all(torch.equal(imported.tensors[name], state[name]) for name in state)


def test_sparse_tensors_are_read_and_others_named(
    tmp_path: Path, network: nn.Module, points: PointBatch
) -> None:
    state, file, name = (
        network.state_dict(),
        tmp_path / "theirs.pth",
        "dense_head.shared_conv.0.bias",
    )
    kernel = "backbone_3d.conv2.0.0.weight"
    torch.save(wrapped(change(state, kernel, state[kernel].to_sparse())), file)
    same_outputs(file, network, points)
    odd = (
        torch.zeros(16, dtype=torch.complex64),
        torch.zeros(16, device="meta"),
        torch.quantize_per_tensor(torch.zeros(16), 0.1, 0, torch.qint8),
    )
    for value in odd:
        torch.save(wrapped(change(state, name, value)), file)
        with pytest.raises(
            DataError, match=rf"{name} is stored as .*{value.dtype}.* plain numbers"
        ):
            foreign.import_checkpoint(file, network)


WRAPPED: dict[str, Callable[[str], str]] = {
    "distributed": lambda name: f"module.{name}",
    "distributed twice": lambda name: f"module.module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled and distributed": lambda name: f"module._orig_mod.{name}",
    "lightning": lambda name: f"model.{name}",
    "lightning, compiled": lambda name: f"model._orig_mod.{name}",
    "mixed": lambda name: f"model.module.{name}" if "bias" in name else f"module.{name}",
    "one part compiled": lambda name: name.replace("backbone_3d.", "backbone_3d._orig_mod."),
    "sharded": lambda name: (
        f"_fsdp_wrapped_module.{name.replace('.0.', '.0._fsdp_wrapped_module.')}"
    ),
    "any holder": lambda name: f"net.detector.{name}",
}


@pytest.mark.parametrize("form", ["theirs.pth", "theirs.safetensors", "last.ckpt"])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_prefixes_of_wrappers_come_off_in_every_format(
    tmp_path: Path, network: nn.Module, points: PointBatch, wrapper: str, form: str
) -> None:
    state = {WRAPPED[wrapper](name): value for name, value in network.state_dict().items()}
    file = tmp_path / form
    if file.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, file)
    else:
        lightning = {"state_dict": state, "optimizer_states": [{"state": {0: {"step": 3}}}]}
        torch.save(lightning if file.suffix == ".ckpt" else state, file)
    same_outputs(file, network, points)


@pytest.mark.parametrize(
    "option", ["model=", "model.=", "ema.model=", "ema.model.=", "ema=", "ema.="]
)
def test_a_beginning_may_end_in_a_dot_or_not(
    tmp_path: Path, network: nn.Module, points: PointBatch, option: str
) -> None:
    beginning = "ema.model." if "ema" in option else "model."
    state = {f"{beginning}{name}": value for name, value in network.state_dict().items()}
    file = tmp_path / "theirs.pth"
    torch.save({**state, "epoch": torch.tensor(3)}, file)
    old, _, new = option.partition("=")
    same_outputs(file, network, points, rename={old: new}, drop=["epoch"])


def test_names_that_meet_are_named(tmp_path: Path, network: nn.Module) -> None:
    state, file = network.state_dict(), tmp_path / "theirs.pth"
    torch.save({**state, **{f"module.{name}": value for name, value in state.items()}}, file)
    with pytest.raises(ConfigError, match=r"would be called (\S+), \1 and module\.\1"):
        foreign.import_checkpoint(file, network)
    foreign.import_checkpoint(file, network, drop=["module"])


def test_of_several_sets_one_is_taken_aloud_and_another_by_name(
    tmp_path: Path, network: nn.Module, points: PointBatch
) -> None:
    state, file = network.state_dict(), tmp_path / "theirs.pth"
    noise = {name: torch.ones_like(value) for name, value in state.items()}
    torch.save({"ema_state_dict": state, "state_dict": noise, "optimizer": {"state": noise}}, file)
    with pytest.warns(UserWarning, match="2 sets of weights: 'state_dict' is taken, not ema_state"):
        imported = foreign.import_checkpoint(file, network)
    assert all((value == 1).all() for value in imported.tensors.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same_outputs(file, network, points, take="ema_state_dict")
    with pytest.raises(ConfigError, match="no set of weights 'ema', it has: ema_state_dict, state"):
        foreign.import_checkpoint(file, network, take="ema")
    torch.save({"student": state, "teacher": noise}, file)
    with pytest.raises(DataError, match="several sets of weights, student, teacher; say which"):
        foreign.import_checkpoint(file, network)
    torch.save({"net": {"weights": state}, "epoch": 3}, file)  # the only one, whatever its name
    same_outputs(file, network, points)


def test_what_does_not_fit_shows_names_of_both_sides(tmp_path: Path, network: nn.Module) -> None:
    file = tmp_path / "theirs.pth"
    torch.save({f"encoder{n}.weight": torch.zeros(2, 2) for n in range(9)}, file)
    with pytest.raises(
        DataError,
        match=r"missing in the file: \w+.* and \d+ more; unknown to the model: "
        r"encoder0\.weight, encoder1\.weight, encoder2\.weight and 6 more\)",
    ):
        foreign.import_checkpoint(file, network)


@pytest.mark.parametrize("layout", ["spconv1", "spconv2", "native"])
def test_an_exported_checkpoint_comes_back_bit_for_bit(
    tmp_path: Path, network: nn.Module, layout: str
) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pth"
    save_weights(ours, network, {"model": TINY.name})
    foreign.export_checkpoint(ours, network, theirs, layout=layout)
    content = torch.load(theirs, weights_only=True)
    kernel = tuple(content["model_state"]["backbone_3d.conv_input.0.weight"].shape)
    assert (
        kernel
        == {"spconv1": (3, 3, 3, 5, 8), "spconv2": (8, 3, 3, 3, 5), "native": (3, 3, 3, 8, 5)}[
            layout
        ]
    )
    imported = foreign.import_checkpoint(theirs, network)
    assert imported.layout == layout
    assert all(
        torch.equal(value, imported.tensors[name]) for name, value in network.state_dict().items()
    )
