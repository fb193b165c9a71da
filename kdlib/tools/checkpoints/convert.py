"""Converts checkpoint files between code bases, by names of files and models, and says what was done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdlib import __version__, zoo
from kdlib.errors import ConfigError
from kdlib.models.build import build
from kdlib.tools.checkpoints import foreign


def import_file(
    file: Path, model: str, out: Path | None, *, layout: str | None, rename: Sequence[str], drop: Sequence[str]
) -> str:
    """Write a foreign checkpoint as weights of ours and return the table of what went where.

    Raises:
        ConfigError: If the zoo has no such model, or an option is malformed.
        DataError: If the checkpoint does not fit.
    """
    network = build(zoo.model(model))
    target = out or file.with_suffix(".safetensors")
    if target.resolve() == file.resolve():
        raise ConfigError(f"{file} would be overwritten by its own import; name another file with --out")
    imported = foreign.import_checkpoint(file, network, layout=layout, rename=_pairs(rename), drop=drop)
    card = {"model": model, "source": file.name, "imported_by": f"kdlib {__version__}", "trained_on": "as its owner says"}
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
