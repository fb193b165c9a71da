"""Who may import whom: walls between the rooms of the package, no circle anywhere, and light parts
that stay light.
"""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "kdlib").rglob("*.py"))
}
ROOMS = {
    # the thin package
    *(
        "types",
        "errors",
        "zoo",
        "records",
        "config",
        "models",
        "kd",
        "waymo",
        "data",
        "metric",
        "training",
    ),
    *("simulate", "viz", "profiling", "lab", "tools", "cli", "__main__"),
}
METHOD = ("types", "errors", "zoo", "records", "config", "models", "kd")
THIN = (*METHOD, "waymo", "data", "metric", "training")
# Rooms on the left import nothing of those on the right, not even inside a function.
WALLS = {
    "the thin package stands without what grew around it": (
        THIN,
        ("simulate", "viz", "profiling", "lab", "tools", "cli"),
    ),
    "models and distillation know no data": (METHOD, ("waymo", "data", "metric", "training")),
    "models know no distillation": (("models", "config", "types", "errors", "records"), ("kd",)),
    "the metric and the data train nothing": (("waymo", "data", "metric"), ("training", "kd")),
    "pictures and costs take finished results": (
        ("simulate", "viz", "profiling"),
        ("metric", "training", "lab", "tools", "cli"),
    ),
    "notebooks reach no tool": (("lab",), ("tools", "cli")),
    "nothing but __main__ starts the command line": (("tools",), ("cli",)),
}
NUMPY_ONLY = (
    "errors",
    "config",
    "zoo",
    "records",
    "waymo",
    "simulate",
    "tools.doctor",
    "lab.profiles",
)
HEAVY = {
    "numpy",
    "torch",
    "tensorflow",
    "open3d",
    "lightning",
    "pandas",
    "pyarrow",
    "matplotlib",
    "plotly",
    "scipy",
    "dask",
}
# in any module, even inside a function
FORBIDDEN = {"tensorflow", "waymo_open_dataset", "pickle", "cloudpickle"}
# except there: scripts for the Python that has Waymo's own package, run by path, imported by nobody
OFFICIAL = "official_child"


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module a tree imports, wherever the statement stands; ``from kdlib import records``
    counts as ``kdlib.records``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module or ""


IMPORTS = {name: set(imports(ast.parse(file.read_text()))) for name, file in MODULES.items()}


def is_in(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == f"kdlib.{room}" or module.startswith(f"kdlib.{room}.") for room in rooms)


def packages(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def loaded_after(code: str) -> set[str]:
    """Top-level packages in ``sys.modules`` of a fresh interpreter after some code."""
    script = (
        f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.partition('.')[0] for m in "
        f"sys.modules}})))"
    )
    child = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(child.stdout.splitlines()[-1]))


def test_the_package_has_the_agreed_rooms() -> None:
    assert {name.split(".")[1] for name in MODULES if "." in name} == ROOMS


@pytest.mark.parametrize("wall", WALLS)
def test_walls_hold(wall: str) -> None:
    importers, forbidden = WALLS[wall]
    broken = {
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if is_in(module, importers)
        for name in names
        if is_in(name, forbidden)
    }
    assert not broken


def test_only_main_imports_the_command_line() -> None:
    assert {module for module, names in IMPORTS.items() if "kdlib.cli" in names} == {
        "kdlib.__main__"
    }


def test_no_import_runs_in_a_circle() -> None:
    """Also none through a function; a package's ``__init__`` counts for those that import it."""
    graph = {
        module: {name for name in names if name in MODULES and name != module}
        for module, names in IMPORTS.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_tensorflow_and_pickle_are_never_imported() -> None:
    for module, names in IMPORTS.items():
        assert not [name for name in names if name.endswith(f".{OFFICIAL}")], module
        if module.endswith(f".{OFFICIAL}"):
            assert not packages(names) & {"kdlib", "pickle", "cloudpickle"}, module
        else:
            assert not packages(names) & FORBIDDEN, module


def test_notebooks_import_neither_tensorflow_nor_tools() -> None:
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        names = set(
            imports(
                ast.parse(
                    "\n".join(
                        line for line in code.splitlines() if not line.lstrip().startswith("%")
                    )
                )
            )
        )
        assert not packages(names) & FORBIDDEN, file.name
        assert not [name for name in names if is_in(name, ("tools", "cli"))], file.name


def test_numpy_only_parts_do_not_name_torch() -> None:
    assert not [
        module
        for module, names in IMPORTS.items()
        if is_in(module, NUMPY_ONLY) and "torch" in packages(names)
    ]


def test_package_and_command_line_start_light() -> None:
    assert not loaded_after("import kdlib, kdlib.cli") & HEAVY


def test_reading_and_simulating_do_not_load_torch() -> None:
    names = [name for name in MODULES if is_in(name, ("waymo", "simulate"))]
    assert not loaded_after("import " + ", ".join(names)) & {"torch", "tensorflow"}


def test_no_part_loads_tensorflow() -> None:
    names = [name for name in MODULES if not name.endswith("__main__")]
    assert "tensorflow" not in loaded_after("import " + ", ".join(names))
