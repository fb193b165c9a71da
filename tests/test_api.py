"""The names others build on are a decision: tests/api.json lists them, and a change of it shows in
the diff.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
AGREED: dict[str, list[str]] = json.loads(Path(__file__).with_name("api.json").read_text())
PAGES = ("README.md", "data/README.md", "notebooks/README.md")


def taken(code: str) -> Iterator[tuple[str, str]]:
    """Module and name of everything of kdlib that some code uses, by ``from`` or by the module's
    name.
    """
    modules: dict[str, str] = {}
    tree = ast.parse(
        "\n".join(line for line in code.splitlines() if not line.lstrip().startswith("%"))
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kdlib"):
            for alias in node.names:
                path = ROOT / f"{node.module}.{alias.name}".replace(".", "/")
                if path.is_dir() or path.with_suffix(".py").is_file():
                    modules[alias.name] = f"{node.module}.{alias.name}"
                else:
                    yield str(node.module), alias.name
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
        ):
            yield modules[node.value.id], node.attr


@pytest.mark.parametrize("module", AGREED)
def test_agreed_names_are_there(module: str) -> None:
    assert not [
        name for name in AGREED[module] if not hasattr(importlib.import_module(module), name)
    ]


@pytest.mark.parametrize("module", ["kdlib.types", "kdlib.config", "kdlib.zoo"])
def test_all_that_these_define_is_agreed(module: str) -> None:
    members = vars(importlib.import_module(module)).items()
    own = [
        name
        for name, value in members
        if (inspect.isclass(value) or inspect.isfunction(value))
        and (value.__module__ + ".").startswith(module + ".")
        and not name.startswith("_")
    ]
    assert sorted(own) == AGREED[module], "if the change is meant, write it into api.json"


def test_notebooks_and_pages_use_agreed_names_only() -> None:
    used: set[tuple[str, str]] = set()
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(notebook.read_text())["cells"]
        used.update(
            taken(
                "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
            )
        )
    for page in PAGES:
        text = (ROOT / page).read_text()
        for block in re.findall(r"```python\n(.*?)```", text, re.S):
            used.update(taken(block))
        used.update(re.findall(r"from (kdlib[\w.]*) import (\w+)", text))
    strange = {(module, name) for module, name in used if name not in AGREED.get(module, ())}
    assert not {(module, name) for module, name in strange if f"{module}.{name}" not in AGREED}


def test_the_surface_stays_small() -> None:
    assert sum(map(len, AGREED.values())) <= 130
