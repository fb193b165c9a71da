"""Imports, exports and initialises weights by names of files and models, and says what was done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from kdlib import __version__, zoo
from kdlib.config import Initialisation, ModelConfig, lookup
from kdlib.errors import ConfigError
from kdlib.kd.initialise import CopyReport, initialise
from kdlib.models.build import build
from kdlib.models.detector import AnchorDetector, CenterPoint
from kdlib.models.weights import save_weights, weights_format
from kdlib.tools.checkpoints import foreign

_WAYS: dict[str, Initialisation] = {way: way for way in get_args(Initialisation)}


def import_file(
    file: Path,
    model: str,
    out: Path | None,
    *,
    layout: str | None,
    rename: Sequence[str],
    drop: Sequence[str],
    take: str | None = None,
) -> str:
    """Write a foreign checkpoint as weights of ours and return the table of what went where.

    Raises:
        ConfigError: If the zoo has no such model, or an option is malformed.
        DataError: If the checkpoint does not fit.
    """
    network = build(zoo.model(model))
    target = out or file.with_suffix(".safetensors")
    if target.resolve() == file.resolve():
        raise ConfigError(
            f"{file} would be overwritten by its own import; name another file with --out"
        )
    imported = foreign.import_checkpoint(
        file, network, layout=layout, rename=_pairs(rename), drop=drop, take=take
    )
    card = {
        "model": model,
        "source": file.name,
        "imported_by": f"kdlib {__version__}",
        "trained_on": "as its owner says",
    }
    foreign.save_imported(target, network, imported, card)
    return f"{imported.table()}\nwritten to {target}"


def export_file(weights: Path, model: str, out: Path, *, layout: str) -> str:
    """Write weights of ours as a foreign checkpoint and return one sentence about it.

    Raises:
        ConfigError: If the zoo has no such model or there is no such layout.
        DataError: If the weights do not fit the model.
    """
    foreign.export_checkpoint(weights, build(zoo.model(model)), out, layout=layout)
    return f"{weights} written to {out}: tensors under 'model_state', sparse kernels as {layout}"


def _pairs(options: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for option in options:
        old, equals, new = option.partition("=")
        if not (old and equals):
            raise ConfigError(f"--rename takes OLD=NEW, not '{option}'")
        pairs[old] = new
    return pairs


def initialise_file(
    student: str,
    teacher: str,
    weights: Path | None = None,
    out: Path | None = None,
    how: str = "first",
    layout: str | None = None,
) -> CopyReport:
    """Initialise a student of the zoo from a teacher of the zoo, and write it if it has a file to
    go to.

    ``weights`` are the teacher's: ours, or a checkpoint of OpenPCDet or SparseKD; None takes fresh
    ones, to see shapes. ``how`` is one of the values of ``Initialisation``. ``layout`` is that of
    sparse kernels in ``weights``; None takes a safetensors file as ours, and finds it from the
    shapes in others.

    Raises:
        ConfigError: If a name is unknown, the two models do not fit, or ``out`` is asked for
            without ``weights``.
        DataError: If the file is not the teacher's.
    """
    source, target, way = (
        zoo.model(teacher),
        zoo.model(student),
        lookup(_WAYS, how, "initialisation"),
    )
    if weights is None and out is not None:
        raise ConfigError(
            f"{out} would start from weights nobody trained; name the teacher's with --weights"
        )
    if weights is not None and out is not None and weights.resolve() == out.resolve():
        raise ConfigError(f"{out} holds the teacher's weights; name another file with --out")
    network, wide = _fresh(target), _fresh(source)
    state, card = wide.state_dict(), {}
    if weights is not None:
        # ours are stored as spconv 2 stores them
        layout = layout or ("spconv2" if weights_format(weights) == "safetensors" else None)
        imported = foreign.import_checkpoint(weights, wide, layout=layout)
        state, card = (
            dict(imported.tensors),
            {"source": weights.name, "source_sha256": imported.sha256},
        )
    report = initialise(network, state, way)
    if out is not None:
        made = {
            "model": student,
            "initialised_from": teacher,
            "initialisation": way,
            "initialised_by": f"kdlib {__version__}",
        }
        save_weights(out, network, {**made, **card})
    return report


def _fresh(config: ModelConfig) -> CenterPoint | AnchorDetector:
    """Build a model whose fresh weights are the same at every call; torch's own generator is left
    as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(config)
