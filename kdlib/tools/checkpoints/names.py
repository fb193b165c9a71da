"""Names of a foreign checkpoint's tensors: prefixes of wrappers come off, beginnings are renamed or
dropped as asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from kdlib.errors import ConfigError

# parts of names that DistributedDataParallel, torch.compile, FSDP and checkpointing put anywhere,
# and what holders of a model call it at the beginning
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_HOLDER = "model"


def named(
    tensors: Mapping[str, Tensor],
    rename: Mapping[str, str],
    drop: Sequence[str],
    path: Path,
    own: Iterable[str],
) -> dict[str, Tensor]:
    """Return the tensors under the model's names as far as wrappers and options lead there.

    Raises:
        ConfigError: If an option fits no name, or two tensors would have one name.
    """
    bare = _unwrapped(tensors, own)
    _check_beginnings("--rename", rename, {*tensors, *bare.values()}, path)
    # a beginning may be meant with the prefixes of wrappers or without
    renamed = {
        name: _renamed(name, rename) or _renamed(short, rename) or short
        for name, short in bare.items()
    }
    final = _unwrapped(renamed.values(), own)
    origin: dict[str, str] = {}
    for name, ours in ((name, final[new]) for name, new in renamed.items()):
        if any(_below(name, each) or _below(ours, each) for each in drop):
            continue
        if ours in origin:
            raise ConfigError(
                f"two tensors of {path} would be called {ours}, {origin[ours]} and {name}; say "
                "which with --rename, or --drop one"
            )
        origin[ours] = name
    _check_beginnings("--drop", drop, {*tensors, *final.values()}, path)
    return {ours: tensors[name] for ours, name in origin.items()}


def _unwrapped(names: Iterable[str], own: Iterable[str]) -> dict[str, str]:
    """Return what names are called without the parts that wrappers of a model put into them."""
    parts = {
        name: [part for part in name.split(".") if part not in _WRAPPERS] or [name]
        for name in names
    }
    first = {name.partition(".")[0] for name in own}
    while True:
        heads = {words[0] for words in parts.values()}
        shared = heads if len(heads) == 1 else set()
        cut = ({_HOLDER} | shared) - first
        if not any(words[0] in cut and len(words) > 1 for words in parts.values()):
            return {name: ".".join(words) for name, words in parts.items()}
        parts = {
            name: words[1:] if words[0] in cut and len(words) > 1 else words
            for name, words in parts.items()
        }


def _renamed(name: str, rename: Mapping[str, str]) -> str | None:
    """Return what a name becomes by the longest beginning that it has; None if it has none."""
    old = max((old for old in rename if _below(name, old)), key=len, default=None)
    if old is None:
        return None
    rest = name[len(old.rstrip(".")) :].lstrip(".")
    return ".".join(part for part in (rename[old].rstrip("."), rest) if part)


def _below(name: str, beginning: str) -> bool:
    beginning = beginning.rstrip(".")
    return name == beginning or name.startswith(beginning + ".")


def _check_beginnings(
    option: str, beginnings: Iterable[str], names: Iterable[str], path: Path
) -> None:
    for beginning in beginnings:
        if not any(_below(name, beginning) for name in names):
            heads = ", ".join(sorted({name.partition(".")[0] for name in names}))
            raise ConfigError(
                f"{option} {beginning}: no tensor of {path} begins so; it has {heads}"
            )
